"""Drop captions that are mostly symbols, nothing but emoji, or one character over and over."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from pydantic import Field

from coembed.curation.candidate import Candidate
from coembed.curation.captions.words import quoted
from coembed.curation.filters.base import Filter, Verdict
from coembed.settings import ComponentSettings

# Fewer symbols than this beside a letter prove nothing: "C++".
_MIN_SYMBOLS = 4


class Settings(ComponentSettings):
    """`min_letter_share`: letters, digits and combining marks of any script over all characters
    that are not white space. Data-Juicer's alphanumeric filter asks for 0.25 of all characters;
    0.4 without the white space is a guess near it that passes prices, sizes and stars beside words.

    `min_run`: one character so often in a row, in more than half of the caption ("aaaaaaa",
    "哈哈哈哈哈哈"), says nothing; 0 turns it off. A guess.
    """

    name: Literal["caption_symbols"] = "caption_symbols"
    min_letter_share: float = Field(default=0.4, ge=0, le=1)
    min_run: int = Field(default=6, ge=0)

    def build(self) -> Filter:
        """Make the filter."""
        return CaptionSymbols(self)


class CaptionSymbols(Filter):
    """Looks at the caption only, whatever the modality. Empty captions pass: caption_length drops
    them."""

    reasons = ("symbol_caption", "repeated_characters")
    columns = {"letter_share": "float64"}  # noqa: RUF012

    def __init__(self, settings: Settings) -> None:
        self._min_share = settings.min_letter_share
        self._run = (
            re.compile(rf"(\S)\1{{{settings.min_run - 1},}}", re.IGNORECASE)
            if settings.min_run
            else None
        )

    def judge(self, candidate: Candidate) -> Verdict:
        """Judge the caption."""
        caption = "".join(candidate.caption.split())
        if not caption:
            return Verdict()
        num_letters, num = _count(caption)
        if not num:
            return Verdict("symbol_caption", f"{quoted(caption)} shows nothing")
        share = num_letters / num
        columns = {"letter_share": round(share, 4)}
        if share < self._min_share and (not num_letters or num - num_letters >= _MIN_SYMBOLS):
            shown = quoted(candidate.caption)
            if not num_letters and _is_emoji(caption):
                return Verdict("symbol_caption", f"{shown}: nothing but emoji", columns)
            found = f"{shown}: {share:.2g} letters and digits < {self._min_share:g}"
            return Verdict("symbol_caption", found, columns)
        if self._run and (run := self._run.search(caption)):
            in_runs = sum(len(match.group()) for match in self._run.finditer(caption))
            if in_runs * 2 > len(caption):
                found = f"{quoted(candidate.caption)}: {run.group(1)!r} {len(run.group())} times"
                return Verdict("repeated_characters", f"{found} in a row", columns)
        return Verdict(columns=columns)


def _count(text: str) -> tuple[int, int]:
    """Letters, digits and marks in `text`, and its characters other than invisible ones."""
    if text.isalnum():
        return len(text), len(text)
    num_letters = sum(map(str.isalnum, text))
    if text.isascii():
        return num_letters, len(text)
    num = len(text)
    for char in text:
        if not char.isalnum() and not char.isascii():
            kind = unicodedata.category(char)
            if kind[0] == "M" and not _is_selector(char):
                num_letters += 1
            elif kind in ("Cf", "Cc") or _is_selector(char):  # joiners, direction marks
                num -= 1
    return num_letters, num


def _is_selector(char: str) -> bool:
    """Variation selectors and enclosing marks make emoji of letters and digits."""
    return "\ufe00" <= char <= "\ufe0f" or char == "\u20e3"


def _is_emoji(text: str) -> bool:
    """Whether `text` is all pictographs, with their modifiers and joiners."""
    return all(
        unicodedata.category(char) in ("So", "Sk", "Cf", "Cn") or _is_selector(char)
        for char in text
    )
