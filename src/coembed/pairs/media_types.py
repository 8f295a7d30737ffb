"""What a file holds, told from its first bytes or its ending."""

from __future__ import annotations

from pathlib import PurePosixPath

from coembed.types import Modality

_AUDIO_ENDINGS = frozenset({"wav", "flac", "mp3", "ogg", "oga", "opus", "m4a", "aac", "aiff"})
_TEXT_ENDINGS = frozenset({"txt", "md"})
IMAGE_ENDINGS = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "ppm", "pgm"}
)
MEDIA_ENDINGS = IMAGE_ENDINGS | _AUDIO_ENDINGS
# WebDataset keeps the caption in `.txt` and the metadata in `.json`: media may not be called that.
_TAKEN_IN_A_SHARD = {"txt": "text", "json": "text", "": "bin"}


def file_ending(path: str) -> str:
    """The ending of `path` in lower case without its dot; empty when there is none."""
    return PurePosixPath(path).suffix[1:].lower()


def modality_of(path: str) -> Modality:
    """The modality that the file ending of `path` stands for; image when it says nothing."""
    ending = file_ending(path)
    if ending in _AUDIO_ENDINGS:
        return "audio"
    return "text" if ending in _TEXT_ENDINGS else "image"


def sniff(data: bytes) -> str | None:
    """The usual file ending of a known image or sound format, from its first bytes; else None."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if data[:4] == b"RIFF":
        return {b"WEBP": "webp", b"WAVE": "wav"}.get(data[8:12])
    if data[:4] in (b"II*\x00", b"MM\x00*"):
        return "tiff"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    if data[:4] == b"fLaC":
        return "flac"
    if data[:4] == b"OggS":
        return "ogg"
    if data[:2] == b"BM" and data[6:10] == b"\0\0\0\0":
        return "bmp"
    return None


def shard_extension(data: bytes, path: str) -> str:
    """The ending that media gets in a shard: what the bytes say, else what the path says."""
    found = sniff(data)
    if found:
        return found
    ending = file_ending(path)
    # An ending from a foreign path goes into a tar member's name: letters and digits only.
    if not (ending.isascii() and ending.isalnum() and len(ending) <= 8):
        ending = ""
    return _TAKEN_IN_A_SHARD.get(ending, ending)
