"""The marker segments of a JPEG before its first scan (ITU-T T.81, annex B)."""

from __future__ import annotations

from typing import NamedTuple

_SOS, _APP1 = 0xDA, 0xE1
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset((0x01, *range(0xD0, 0xDA)))  # markers without a length


class JpegLayout(NamedTuple):
    """What the segments say: whether EXIF or XMP may hold an orientation, and whether a decoder
    has to go over the picture more than once."""

    has_metadata: bool
    many_scans: bool


def jpeg_layout(data: bytes) -> JpegLayout:
    """Walk the segments up to the first scan, reading a few bytes of each. Never raises."""
    at, size = 2, len(data)
    has_metadata = progressive = False
    num_components = 0
    while at + 4 <= size:
        if data[at] != 0xFF:  # rubbish between segments is skipped, as decoders do
            at = data.find(b"\xff", at)
            if at < 0:
                break
            continue
        marker = data[at + 1]
        if marker == 0xFF or marker == 0 or marker in _ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        length = data[at + 2] << 8 | data[at + 3]
        if marker == _SOS:
            num_in_scan = data[at + 4] if at + 4 < size else 0
            return JpegLayout(has_metadata, progressive or num_in_scan < num_components)
        if marker == _APP1:
            body = data[at + 4 : at + 10]
            has_metadata |= body == b"Exif\0\0" or body == b"http:/"
        elif marker in _FRAMES:
            progressive = marker in _PROGRESSIVE
            num_components = data[at + 9] if at + 9 < size else 0
        at += 2 + length
    return JpegLayout(has_metadata, True)
