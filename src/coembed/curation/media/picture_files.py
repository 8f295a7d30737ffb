"""What the containers of pictures say of themselves: how many frames they hold, and whether the
file goes on for as long as it should. Nothing is decoded for it."""

from __future__ import annotations

import struct

from PIL import Image

_MAX_TIFF_PAGES = 10_000


def count_frames(image: Image.Image, data: bytes) -> int:
    """Frames (GIF, WebP, APNG, AVIF) or pages (TIFF) of an opened picture; at least 1.

    Pillow would walk the whole chain of a GIF or TIFF, in time that a hostile file may choose.
    Here the time is linear in the size of the file.
    """
    if image.format == "GIF":
        return max(1, _gif_frames(data))
    if image.format == "TIFF":
        return max(1, _tiff_pages(data))
    if image.format in ("WEBP", "PNG", "AVIF"):  # in the header
        return max(1, int(getattr(image, "n_frames", 1)))
    return 1


def _gif_frames(data: bytes) -> int:
    """Image descriptors of a GIF89a stream (GIF89a specification, section 20)."""
    size, num = len(data), 0
    at = 13 + _colour_table(data, 10)
    while at < size:
        block = data[at]
        if block == 0x2C:
            num += 1
            at = _after_sub_blocks(data, at + 11 + _colour_table(data, at + 9))
        elif block == 0x21:
            at = _after_sub_blocks(data, at + 2)
        else:  # 0x3B, the trailer, or damage
            break
    return num


def _colour_table(data: bytes, at: int) -> int:
    """Bytes of the colour table that the packed field at `at` announces."""
    if at >= len(data) or not data[at] & 0x80:
        return 0
    return 3 << ((data[at] & 7) + 1)


def _after_sub_blocks(data: bytes, at: int) -> int:
    size = len(data)
    while at < size and data[at]:
        at += 1 + data[at]
    return at + 1


def _tiff_pages(data: bytes) -> int:
    """Directories of a TIFF's chain (TIFF 6.0, section 2; BigTIFF's are counted as one)."""
    order = "<" if data[:2] == b"II" else ">"
    if struct.unpack_from(order + "H", data, 2)[0] != 42:
        return 1
    (at,) = struct.unpack_from(order + "I", data, 4)
    seen: set[int] = set()
    while at and at not in seen and at + 2 <= len(data) and len(seen) < _MAX_TIFF_PAGES:
        seen.add(at)
        (entries,) = struct.unpack_from(order + "H", data, at)
        following = at + 2 + 12 * entries
        if following + 4 > len(data):
            break
        (at,) = struct.unpack_from(order + "I", data, following)
    return len(seen)


def is_cut_short(data: bytes) -> bool:
    """Whether the lengths that a container states, or the mark at its end, are not there. Only
    asked of files that did not decode: it says why."""
    size = len(data)
    if data[:3] == b"\xff\xd8\xff":
        return b"\xff\xd9" not in data
    if data[:4] == b"GIF8":
        return not data.rstrip(b"\0").endswith(b";")
    if data[:4] == b"\x89PNG":
        return b"IEND" not in data[-64:]
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return 8 + int.from_bytes(data[4:8], "little") > size
    if data[:2] == b"BM":
        return size < 6 or int.from_bytes(data[2:6], "little") > size
    if data[:4] in (b"II*\0", b"MM\0*"):
        return size < 8 or struct.unpack_from("<I" if data[0] == 0x49 else ">I", data, 4)[0] >= size
    if data[4:8] == b"ftyp":
        return _boxes_end(data) > size
    return False


def _boxes_end(data: bytes) -> int:
    """Where the last box of an ISO media file (AVIF) says that it ends (ISO 14496-12, 4.2)."""
    at, size = 0, len(data)
    while at + 16 <= size:
        (length,) = struct.unpack_from(">I", data, at)
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, at + 8)
        if length < 8:  # 0: to the end of the file
            return size
        at += length
    return at
