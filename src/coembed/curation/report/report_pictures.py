"""Small pictures and sounds for the report, made of the pool's own files.

Nothing that curation could not decode is decoded here, and nothing is read from outside the pool.
"""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from coembed.curation.media.undecodable import DECODE_REASONS
from coembed.curation.reading import INTAKE_REASONS, read_media
from coembed.curation.report.look import PairRow
from coembed.curation.report.report_text import visible

# Pillow can open far more, some of it through other programs (EPS runs Ghostscript).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000")
SOUND_TYPES = {"WAV": "audio/wav", "FLAC": "audio/flac", "OGG": "audio/ogg", "MP3": "audio/mpeg",
                "OPUS": "audio/ogg"}  # fmt: skip
# Reasons after which a file is not opened again.
UNDECODABLE = frozenset({*INTAKE_REASONS, *DECODE_REASONS, "crashes_decoder", "timed_out"})
_QUALITY = 72
_PAPER = (255, 255, 255)
_LARGE = 8_000_000  # pixels
_ORIENTATION = 0x0112


class Shown:
    """What stands in a pair's frame: a picture, a sound, some text, or a note why there is none."""

    __slots__ = ("kind", "source")

    def __init__(self, kind: str, source: str) -> None:
        self.kind = kind  # picture, sound, text or note
        self.source = source


class Pictures:
    """Thumbnails of pairs, each made once. `px`: the longest side.

    Sounds are embedded as they are up to `max_sound_bytes` each and `max_sounds_bytes` in all.
    """

    def __init__(
        self,
        pool: Path,
        *,
        max_pixels: int,
        max_media_bytes: int,
        px: int = 128,
        max_sound_bytes: int = 60_000,
        max_sounds_bytes: int = 900_000,
    ) -> None:
        self._pool = pool
        self._px = px
        self._max_pixels = max_pixels
        self._max_media_bytes = max_media_bytes
        self._max_sound_bytes = max_sound_bytes
        self._sounds_left = max_sounds_bytes
        self._made: dict[str, Shown] = {}

    def show(self, row: PairRow) -> Shown:
        """What is to be seen or heard of the pair."""
        key = row.text("path")
        if row.text("drop_reason") in UNDECODABLE:
            return Shown("note", row.text("drop_reason").replace("_", " "))
        if key not in self._made:
            self._made[key] = self._make(row)
        return self._made[key]

    def _make(self, row: PairRow) -> Shown:
        data, reason, _ = read_media(self._pool, row.text("path"), self._max_media_bytes)
        if not data:
            return Shown("note", reason.replace("_", " "))
        modality = row.text("modality")
        if modality == "audio":
            return self._sound(row, data)
        if modality == "text":
            return Shown("text", visible(data[:2000].decode("utf-8", "replace"), 160))
        uri = thumbnail(data, px=self._px, max_pixels=self._max_pixels)
        return Shown("note", "cannot be shown") if uri is None else Shown("picture", uri)

    def _sound(self, row: PairRow, data: bytes) -> Shown:
        kind = SOUND_TYPES.get(row.text("format").upper())
        seconds = row["duration_s"]
        length = "a sound" if seconds is None else f"a sound of {seconds:.1f} s"
        if kind is None or len(data) > min(self._max_sound_bytes, self._sounds_left):
            return Shown("note", length)
        self._sounds_left -= len(data)
        return Shown("sound", data_uri(kind, data))


def thumbnail(data: bytes, *, px: int, max_pixels: int) -> str | None:
    """The picture in `data` as a WebP data URI. None where it cannot be decoded."""
    picture = small_picture(data, px=px, max_pixels=max_pixels)
    if picture is None:
        return None
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=_QUALITY, method=4)
    return data_uri("image/webp", buffer.getvalue())


def small_picture(data: bytes, *, px: int, max_pixels: int) -> Image.Image | None:
    """The picture in `data`, RGB, upright, on white where it is see-through, its longest side at
    most `px`, without any data but its pixels. None where it cannot be decoded."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            warnings.simplefilter("ignore")  # our own limit stands before Pillow's
            if image.width * image.height > max_pixels:
                return None
            image.draft("RGB", (2 * px, 2 * px))
            if image.width * image.height > _LARGE and image.mode in ("L", "RGB", "RGBA", "CMYK"):
                # Made small before anything copies it: a hundred megapixels would fill memory.
                image.thumbnail((4 * px, 4 * px))
            small = _flat(image)
            small.thumbnail((px, px), Image.Resampling.LANCZOS)
            upright = ImageOps.exif_transpose(small)
    except Exception:  # Pillow's plugins raise nearly everything on hostile bytes
        return None
    upright.info.clear()
    return upright


def _flat(image: Image.Image) -> Image.Image:
    """RGB pixels of any picture; what is see-through lies on white. Of the picture's own data the
    orientation alone is left: no profile, no place, no time."""
    orientation = _orientation(image)
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        # Straight conversion cuts at 255: a 16-bit picture would be white all over.
        values = np.asarray(image, np.float32)
        low = float(values.min())
        span = max(float(values.max()) - low, 1.0)
        flat = Image.fromarray(((values - low) * (255 / span)).astype(np.uint8)).convert("RGB")
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        clear = image.convert("RGBA")
        flat = Image.new("RGB", clear.size, _PAPER)
        flat.paste(clear, mask=clear.getchannel("A"))
    else:
        flat = image.convert("RGB")
    flat.info.clear()
    if orientation is not None:
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        flat.info["exif"] = exif.tobytes()
    return flat


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # broken metadata; the pixels may be sound all the same
        return None


def data_uri(kind: str, data: bytes) -> str:
    """`data` as a data URI of the media type `kind`."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
