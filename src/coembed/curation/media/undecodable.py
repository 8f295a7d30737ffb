"""What is said of media that cannot be decoded."""

from __future__ import annotations

import re

from coembed.pairs.media_types import IMAGE_ENDINGS, sniff

# What Undecodable.reason and Facts.fault may be: drop reasons, whatever the filters.
DECODE_REASONS = ("unreadable", "truncated", "too_many_pixels", "too_many_seconds")

_CUT = re.compile(
    r"truncat|premature end|unexpected end|not enough|data ended|end of file", re.IGNORECASE
)
_MAX_DETAIL_CHARS = 200
# Pillow's words for IMAGING_CODEC_BROKEN and _MEMORY, and one that several of its plugins share.
_CLEARER = {
    "decoder error -2": "the pixel data are broken",
    "decoder error -9": "the decoder asks for more memory than there is",
    "broken data stream when reading image file": "the pixel data are broken",
}


class Undecodable(Exception):  # noqa: N818 - a finding, not a fault of the program
    """The media cannot be decoded: a drop reason (of DECODE_REASONS) and what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # both, so that it can be pickled
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


def from_decoder(error: Exception) -> Undecodable:
    """What a decoder's error says: `truncated` where it speaks of a missing end."""
    # One line, printable: the words of a decoder may quote the file.
    words = " ".join(str(error).split()) or type(error).__name__
    words = _CLEARER.get(words, words)
    words = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
    if len(words) > _MAX_DETAIL_CHARS:
        words = words[: _MAX_DETAIL_CHARS - 1] + "…"
    return Undecodable("truncated" if _CUT.search(words) else "unreadable", words)


def describe(data: bytes, expected: str) -> str:
    """What bytes that are not `expected` ("picture", "sound") look like."""
    head = data[:512].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return f"an HTML page, not a {expected}"
    if b"<svg" in head:
        return "an SVG drawing; only pixel formats are read"
    if head.startswith(b"%pdf"):
        return f"a PDF document, not a {expected}"
    if head.startswith((b"pk\x03\x04", b"\x1f\x8b", b"rar!", b"7z\xbc\xaf")):
        return f"an archive, not a {expected}"
    if data[4:8] == b"ftyp" and data[8:12] not in (b"avif", b"avis"):
        brand = data[8:12].decode("ascii", "replace").strip()
        return f"an ISO media file of brand {brand!r}, which is not read"
    ending = sniff(data)
    if ending is not None:
        is_picture = ending in IMAGE_ENDINGS
        if is_picture == (expected == "picture"):
            return f"begins as {ending.upper()}, but its header is damaged or cut short"
        return f"a {ending.upper()} {'picture' if is_picture else 'sound'}, not a {expected}"
    if not data.strip(b"\0"):
        return "nothing but zero bytes"
    return f"not a known {expected} format (begins with {data[:8].hex(' ')})"
