"""HTML and addresses of web pages in captions: found, and taken out.

A caption is text, not a document, so only what is certainly HTML counts: the elements of the HTML
standard, written as a tag is written. "a < b", "<3" and "<PERSON>" are text. Every pattern is
anchored at a character that the rest of it cannot hold, so that hostile input costs linear time.
"""

from __future__ import annotations

import re
from html import unescape
from html.entities import html5

# Elements that stand inside a word or sentence: taking their tags out leaves no gap.
_INLINE = (
    "a|abbr|acronym|b|bdi|bdo|big|cite|code|del|dfn|em|font|i|ins|kbd|mark|nobr|q|s|samp|small|"
    "span|strike|strong|sub|sup|tt|u|var|wbr"
)
_BLOCK = (
    "address|article|aside|audio|base|basefont|blockquote|body|br|button|canvas|caption|center|col|"
    "colgroup|data|datalist|dd|details|dialog|dir|div|dl|dt|embed|fieldset|figcaption|figure|"
    "footer|form|frame|frameset|h[1-6]|head|header|hgroup|hr|html|iframe|img|input|label|legend|li|"
    "link|main|map|marquee|menu|meta|meter|nav|noframes|noscript|object|ol|optgroup|option|output|"
    "p|param|picture|pre|progress|rp|rt|ruby|script|section|select|slot|source|style|summary|svg|"
    "table|tbody|td|template|textarea|tfoot|th|thead|time|title|tr|track|ul|video"
)
_NAMES = rf"(?:(?P<inline>{_INLINE})|{_BLOCK})(?![a-z0-9-])"
# `name`, `name=value`, `name="value"`: a value in quotation marks may hold ">", never "<".
_ATTRIBUTE = r"""[a-z_:@][\w:.-]*+(?:\s*+=\s*+(?:"[^"<]*+"|'[^'<]*+'|[^\s"'<>=`]++))"""
_FLAG = (
    r"(?:async|autoplay|checked|controls|defer|disabled|download|hidden|loop|muted|noshade|nowrap|"
    r"open|readonly|required|reversed|selected)"
)
_TAG = re.compile(rf"</?{_NAMES}(?:\s++(?:{_ATTRIBUTE}|{_FLAG}\b))*+\s*+/?>", re.IGNORECASE)
# Things without text of their own. Each ends at its own end mark, or where the caption was cut.
_HIDDEN = re.compile(
    r"<!--(?s:.*?)(?:-->|$)|<!doctype[^<>]*+>|<\?xml[^<>]*+>|<!\[cdata\[|\]\]>"
    r"|<(?P<kind>script|style)\b[^<>]*+>(?s:.*?)(?:</(?P=kind)\s*+>|\Z)",
    re.IGNORECASE,
)
# A tag that the end of the caption cuts short, told by an attribute with its value.
_CUT_TAG = re.compile(rf"<{_NAMES}\s++[a-z-]++=[^<>]*+\Z", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,31});", re.IGNORECASE)
# Captions that went through an escaping program twice are common; more often is hostile.
_MAX_ROUNDS = 3

# Scripts without spaces end an address as a space does; so do Korean's particles.
_END = (
    r"\s<>\"'`{}|\\^\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7af"
    r"\uf900-\ufaff\uff00-\uffef"
)
_HOST = r"(?:[a-z0-9](?:[a-z0-9-]{0,62})\.)"
_TLD = (
    r"(?:com|net|org|info|biz|edu|gov|io|co|me|ly|tv|to|be|gl|app|dev|shop|store|eu|uk|de|fr|it|es|"
    r"nl|pl|ru|jp|cn|in|br|au|ca|us|ch|at|se)"
)
_URL = re.compile(
    rf"(?<![a-z0-9@.-])(?:(?:https?|ftps?)://[^{_END}]++|www\.[^{_END}.]++\.[^{_END}]++"
    rf"|(?:{_HOST}){{1,4}}{_TLD}/[^{_END}]*+)",
    re.IGNORECASE,
)
_TRAILING = ".,;:!?)]}'\"»”’"
_EMPTY_BRACKETS = re.compile(r"\(\s*+\)|\[\s*+\]|\{\s*+\}")

_LONELY_SPACE = re.compile(r"\s++(?=[.,;!?](?:\s|\Z))")


def without_html(text: str) -> str:
    """`text` without tags and comments, and with its character references replaced.

    The same object comes back when there is nothing of the kind in it.
    """
    for _ in range(_MAX_ROUNDS):
        cleaned = text
        if "<" in text:
            cleaned = _HIDDEN.sub(" ", cleaned)
            cleaned = _TAG.sub(_gap, cleaned)
            cleaned = _CUT_TAG.sub(" ", cleaned)
        if "&" in cleaned:
            cleaned = _ENTITY.sub(_character, cleaned)
        if cleaned == text:
            break
        text = cleaned
    return text


def _gap(tag: re.Match[str]) -> str:
    return "" if tag["inline"] else " "


def _character(entity: re.Match[str]) -> str:
    """What a character reference stands for; one that HTML does not know stays."""
    text = entity.group()
    return unescape(text) if text[1] == "#" or text[1:] in html5 else text


def urls(text: str) -> list[tuple[int, int]]:
    """Where addresses of web pages begin and end in `text`: with a scheme, with "www.", or a host
    in a common top-level domain with a path. A bare host ("Booking.com") may be a name."""
    if "/" not in text and "www." not in text.lower():
        return []
    found = []
    for match in _URL.finditer(text):
        found_text = match.group()
        # A closing bracket belongs to the address only when it was opened in it.
        spare = found_text.count(")") - found_text.count("(")
        end = match.end()
        while end > match.start() and (last := text[end - 1]) in _TRAILING:
            if last == ")":
                if spare <= 0:
                    break
                spare -= 1
            end -= 1
        found.append((match.start(), end))
    return found


def without(text: str, places: list[tuple[int, int]]) -> str:
    """`text` with `places` and the brackets that they leave empty taken out."""
    kept, at = [], 0
    for start, end in places:
        kept.append(text[at:start])
        at = end
    kept.append(text[at:])
    return _LONELY_SPACE.sub("", _EMPTY_BRACKETS.sub("", "".join(kept)))
