"""What the containers of sounds say of their own completeness.

libsndfile reads what there is of a file that was cut short and says nothing. Where a format holds
a length or checksums outside the samples, they are compared here.
"""

from __future__ import annotations

import struct
import zlib
from typing import Literal

SoundFormat = Literal["WAV", "RF64", "AIFF", "FLAC", "OGG", "MP3"]
SoundFault = Literal["unreadable", "truncated", "too_many_seconds"]


class BrokenSound(Exception):  # noqa: N818 - a finding, not a fault of the program
    """A sound that cannot be decoded, or must not be: `fault` in a word, and what was found.

    `fault` is None where only the words of a decoder tell.
    """

    def __init__(self, fault: SoundFault | None, detail: str) -> None:
        super().__init__(fault, detail)
        self.fault = fault
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


# A writer that did not know the length yet (a pipe) leaves one of these, or nearly.
_UNKNOWN_FROM = 0x7FFFF000
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_MP3_KBPS = {  # by (is MPEG-1, layer), ISO 11172-3 table 2.4.2.3 and ISO 13818-3
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MP3_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def sniff_sound(data: bytes) -> SoundFormat | None:
    """The container of a sound that is read, from its first bytes; None for any other."""
    head = data[:12]
    if head[8:12] == b"WAVE" and head[:4] in (b"RIFF", b"RF64"):
        return "WAV" if head[:4] == b"RIFF" else "RF64"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "AIFF"
    if head[:4] == b"fLaC":
        return "FLAC"
    if head[:4] == b"OggS":
        return "OGG"
    if head[:3] == b"ID3" or _mp3_frame_bytes(data, 0):
        return "MP3"
    return None


def check_whole(kind: SoundFormat, data: bytes) -> None:
    """Raise BrokenSound where the container shows that `data` is cut short or damaged."""
    if kind in ("WAV", "RF64"):
        _check_riff(data)
    elif kind == "AIFF":
        _check_chunks(data, ">", b"SSND", None)
    elif kind == "OGG":
        _check_ogg(data)
    elif kind == "MP3":
        _check_mp3(data)


def _check_riff(data: bytes) -> None:
    long_size = None
    if data[:4] == b"RF64" and data[12:16] == b"ds64" and len(data) >= 36:
        (long_size,) = struct.unpack_from("<Q", data, 28)
    _check_chunks(data, "<", b"data", long_size)


def _check_chunks(data: bytes, order: str, wanted: bytes, long_size: int | None) -> None:
    """Find the chunk that holds the samples and see whether it is all there. `long_size` stands for
    a chunk size that says it is elsewhere."""
    at = 12
    while at + 8 <= len(data):
        name = data[at : at + 4]
        (size,) = struct.unpack_from(order + "I", data, at + 4)
        there = len(data) - at - 8
        if name == wanted:
            if size >= _UNKNOWN_FROM:
                size = long_size if long_size is not None else there
            if size > there:
                raise BrokenSound(
                    "truncated", f"{there:,} of the {size:,} bytes of samples are there"
                )
            return
        at += 8 + size + (size & 1)
    raise BrokenSound("truncated", f"the file ends before its {wanted.decode()!r} chunk")


def _check_ogg(data: bytes) -> None:
    """Walk the pages (RFC 3533): checksums, numbers, and an end for every stream."""
    at, size = 0, len(data)
    next_number: dict[bytes, int] = {}
    open_streams: set[bytes] = set()
    while at < size:
        if data[at : at + 4] != b"OggS":
            if at + 4 > size or not data[at:].strip(b"\0"):
                break
            raise BrokenSound("unreadable", f"no Ogg page at byte {at:,}")
        num_segments = data[at + 26] if at + 27 <= size else 0
        start = at + 27 + num_segments
        end = start + sum(data[at + 27 : start]) if start <= size else size + 1
        if end > size:
            raise BrokenSound("truncated", f"the Ogg page at byte {at:,} is cut short")
        stored = int.from_bytes(data[at + 22 : at + 26], "little")
        if _ogg_checksum(data[at : at + 22] + bytes(4) + data[at + 26 : end]) != stored:
            raise BrokenSound("unreadable", f"checksum of the Ogg page at byte {at:,}")
        stream = data[at + 14 : at + 18]
        number = int.from_bytes(data[at + 18 : at + 22], "little")
        if number != next_number.get(stream, number):
            raise BrokenSound("unreadable", f"an Ogg page is missing before byte {at:,}")
        next_number[stream] = number + 1
        if data[at + 5] & 4:
            open_streams.discard(stream)
        else:
            open_streams.add(stream)
        at = end
    if open_streams:
        raise BrokenSound("truncated", "the Ogg stream has no last page")


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 with the polynomial of zlib's, but most significant bit first and from 0 (RFC 3533):
    zlib's of the bit-reversed bytes, reversed, without its inversions at the start and the end."""
    mirrored = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_REVERSED), "big")


def _check_mp3(data: bytes) -> None:
    """Walk the frames: each must begin where the one before it ends, and where an encoder's tag
    counts them, as many must be there."""
    at, size, whole = _after_id3(data, 0), len(data), 0
    expected = _tagged_frames(data, at)
    while at < size:
        length = _mp3_frame_bytes(data, at)
        if not length:
            if data[at : at + 3] == b"ID3" and _after_id3(data, at) > at:
                at = _after_id3(data, at)
                continue
            rest = data[at : at + 8]
            if rest[:3] == b"TAG" or rest in (b"APETAGEX", b"LYRICSBE"):
                break
            if size - at < 4 or not data[at:].strip(b"\0"):
                break
            raise BrokenSound("unreadable", f"no MPEG frame at byte {at:,}")
        at += length
        whole += at <= size
    if whole < expected:
        raise BrokenSound("truncated", f"{whole:,} of {expected:,} MPEG frames are there")
    # Without the tag, a last frame that is cut short is how recorded streams end.
    if not whole:
        raise BrokenSound("unreadable", "no MPEG frame")


def _tagged_frames(data: bytes, at: int) -> int:
    """Frames that the encoder's tag in the frame at `at` counts; else 0. Most encoders leave the
    frame of the tag itself out, so that one missing frame may pass.

    The tag stands where the frame's side information would: 13, 21 or 36 bytes into it.
    """
    for offset in (13, 21, 36):
        tag = data[at + offset : at + offset + 12]
        if tag[:4] in (b"Xing", b"Info") and len(tag) == 12 and tag[7] & 1:
            return int.from_bytes(tag[8:12], "big")
    return 0


def _after_id3(data: bytes, at: int) -> int:
    """Where an ID3v2 tag at `at` ends (its size has 7 bits a byte), or `at`."""
    if data[at : at + 3] != b"ID3" or at + 10 > len(data):
        return at
    length = 0
    for byte in data[at + 6 : at + 10]:
        length = length << 7 | byte & 0x7F
    return at + 10 + length + (10 if data[at + 5] & 0x10 else 0)


def _mp3_frame_bytes(data: bytes, at: int) -> int:
    """Length of the MPEG audio frame whose header is at `at`; 0 where there is none.

    Frames of free format, whose length the header does not hold, count as none.
    """
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] & 0xE0 != 0xE0:
        return 0
    version, layer = data[at + 1] >> 3 & 3, 4 - (data[at + 1] >> 1 & 3)
    rate, hz = data[at + 2] >> 4, data[at + 2] >> 2 & 3
    if version == 1 or layer == 4 or rate in (0, 15) or hz == 3:
        return 0
    is_mpeg1 = version == 3
    kbps, hertz = _MP3_KBPS[is_mpeg1, layer][rate], _MP3_HZ[version][hz]
    padding = data[at + 2] >> 1 & 1
    if layer == 1:
        return (12 * kbps * 1000 // hertz + padding) * 4
    samples = 1152 if layer == 2 or is_mpeg1 else 576
    return samples // 8 * kbps * 1000 // hertz + padding
