"""What the caption filters share about written text: words of any script, and quoting in details.

Most scripts put spaces between words; Chinese, Japanese, Thai, Lao, Khmer and Burmese do not, so
each of their characters counts as a word here.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

# Ranges of scripts that are written without spaces between words, for use inside [...].
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u312f"
    "\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003ffff"
)
_MAX_SHOWN = 40
_UNSPACED_SCRIPTS = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
)
# The words of a text in lower case, as a pattern of DuckDB's (RE2's): what `words` finds.
WORD_SQL = (
    rf"[{_UNSPACED_SCRIPTS}]\p{{M}}*"
    rf"|(?:[^\P{{L}}{_UNSPACED_SCRIPTS}]|\p{{N}})(?:[^\P{{L}}{_UNSPACED_SCRIPTS}]|\p{{N}}|\p{{M}})*"
)


def quoted(text: str, max_chars: int = _MAX_SHOWN) -> str:
    """`text` on one line in quotation marks, cut to `max_chars` characters."""
    return repr(text if len(text) <= max_chars else text[: max_chars - 1] + "…")


def words(text: str) -> list[str]:
    """The words of `text` in order and in one case: letters and digits of any script, with their
    combining marks. In a script without spaces each character is a word."""
    return word_pattern().findall(text.casefold())


@cache
def word_pattern() -> re.Pattern[str]:
    """What `words` looks for, in text that is casefolded already."""
    marks = combining_marks()
    return re.compile(
        f"[{UNSPACED}][{marks}]*|(?:(?![{UNSPACED}])[^\\W_])(?:[{marks}]|(?![{UNSPACED}])[^\\W_])*"
    )


@cache
def combining_marks() -> str:
    """Ranges of all combining marks (Unicode category M), for use inside [...]. Python's \\w does
    not match them, and without them Hindi and Arabic words fall to pieces."""
    ranges: list[list[int]] = []
    for code in (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0)):
        if unicodedata.category(chr(code))[0] == "M":
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)
