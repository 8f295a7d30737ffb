"""An item's own media, and a small picture of it.

Only files of indexed items are read, only inside the pool's folder, and only where the file is
still the one that was indexed: its SHA-256 is the item's id. So no request can lead to another
file, and what is sent is what was checked.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from coembed.curation.reading import MediaReader
from coembed.curation.report.report_pictures import small_picture
from coembed.errors import DataError
from coembed.evaluation.sound_picture import sound_picture
from coembed.files import sha256_bytes
from coembed.index.base import Point
from coembed.modalities._pixels import FORMATS, open_image
from coembed.modalities._sound_files import sniff_sound
from coembed.search.settings import ServeSettings
from coembed.serve.cache import Cache
from coembed.serve.refusals import Refusal, not_found

_QUALITY = 80
_SOUND_HEIGHT = 0.5  # of a sound's picture, by its width
_UNKNOWN = "application/octet-stream"
_SOUND_TYPES = {
    "WAV": "audio/wav", "RF64": "audio/wav", "FLAC": "audio/flac", "OGG": "audio/ogg",
    "MP3": "audio/mpeg", "AIFF": "audio/aiff",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class MediaFile:
    """Bytes to be sent, and their media type."""

    data: bytes
    media_type: str


class MediaStore:
    """Reads media of the pool at `pool`. Safe to use from several threads."""

    def __init__(self, pool: Path, settings: ServeSettings) -> None:
        self._reader = MediaReader(pool, int(settings.max_media_mb * 1e6))
        self._max_pixels = settings.max_image_pixels
        self._thumbnails: Cache[bytes] = Cache(
            max_entries=1_000_000, max_bytes=int(settings.thumbnails_mb * 1e6)
        )

    def media(self, item: Point) -> MediaFile:
        """The item's file. Raises Refusal (404)."""
        data = self._read(item)
        return MediaFile(data, _media_type(data, str(item.payload.get("modality"))))

    def known_thumbnail(self, item_id: str, px: int) -> MediaFile | None:
        """A thumbnail that was made before."""
        data = self._thumbnails.get((item_id, px))
        return None if data is None else MediaFile(data, "image/webp")

    def thumbnail(self, item: Point, px: int) -> MediaFile:
        """A WebP picture with a longest side of `px`: of a sound, its waveform and spectrogram.

        Decoded and encoded anew: nothing of the file but its pixels gets out. Raises Refusal (404).
        """
        data = self._read(item)
        modality = item.payload.get("modality")
        picture: Image.Image | None = None
        if modality == "image":
            picture = small_picture(data, px=px, max_pixels=self._max_pixels)
        elif modality == "audio":
            try:
                picture = sound_picture(data, width=px, height=max(8, int(px * _SOUND_HEIGHT)))
            except DataError:
                picture = None
        if picture is None:
            raise not_found(f"there is no picture of item {item.item_id}")
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=_QUALITY, method=4)
        made = buffer.getvalue()
        self._thumbnails.put((item.item_id, px), made, num_bytes=len(made))
        return MediaFile(made, "image/webp")

    def _read(self, item: Point) -> bytes:
        found = self._reader.read(str(item.payload.get("path") or ""))
        if not found.data:
            raise _gone(item, found.reason.replace("_", " "))
        if sha256_bytes(found.data) != item.item_id:
            raise _gone(item, "another file is in its place")
        return found.data


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `first` to `last`, both included."""

    first: int
    last: int


def read_range(header: str | None, size: int) -> Span | Literal["whole", "impossible"]:
    """The one range that a Range header asks for (RFC 9110, section 14).

    What is not understood, and several ranges, is "whole": a server may ignore them.
    """
    unit, _, ranges = (header or "").partition("=")
    first, dash, last = ranges.strip().partition("-")
    numbers = all(not part or (part.isascii() and part.isdigit()) for part in (first, last))
    if unit.strip().lower() != "bytes" or not dash or not numbers or not (first or last):
        return "whole"
    if not first:  # the last so many bytes
        num = int(last[:18])
        return Span(max(size - num, 0), size - 1) if num and size else "impossible"
    start, end = int(first[:18]), min(int(last[:18]) if last else size - 1, size - 1)
    if last and int(last[:18]) < start:
        return "whole"
    return Span(start, end) if start < size else "impossible"


def _media_type(data: bytes, modality: str) -> str:
    """By what the bytes are, not by what a file is called."""
    if modality == "audio":
        return _SOUND_TYPES.get(sniff_sound(data) or "", _UNKNOWN)
    if modality == "text":
        return "text/plain; charset=utf-8"
    try:
        with open_image(data, FORMATS) as image:
            return Image.MIME.get(image.format or "", _UNKNOWN)
    except Exception:  # Pillow's plugins raise nearly everything on hostile bytes
        return _UNKNOWN


def _gone(item: Point, why: str) -> Refusal:
    return not_found(
        f"the media of item {item.item_id} are not in the pool as they were indexed: {why}",
        hint="is the pool checked out (`dvc checkout`) at the version that was indexed?",
    )
