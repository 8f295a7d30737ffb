"""A pair under examination: its row, its media bytes, and the picture in them, decoded once."""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import simplejpeg
from PIL import Image, UnidentifiedImageError

from coembed.types import Pair

# Pillow can open far more, some of it through other programs (EPS runs Ghostscript).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class Undecodable(Exception):  # noqa: N818 - a finding, not a fault of the program
    """The media cannot be decoded: a drop reason and what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Header(NamedTuple):
    """What a picture's header says. Width and height as shown, after the EXIF orientation."""

    format: str
    width_px: int
    height_px: int


class _Picture:
    """The picture in some bytes. What was found is kept, for several captions of one file."""

    def __init__(self, media: bytes, max_pixels: int) -> None:
        self.media = media
        self._max_pixels = max_pixels
        self._header: Header | Undecodable | None = None
        self._whole: Undecodable | bool | None = None

    @property
    def known_header(self) -> Header | None:
        return self._header if isinstance(self._header, Header) else None

    def header(self) -> Header:
        if self._header is None:
            try:
                self._header = self._read_header()
            except Undecodable as finding:
                self._header = finding
        if isinstance(self._header, Undecodable):
            raise self._header
        return self._header

    def check_pixels(self) -> None:
        if self._whole is None:
            try:
                self._decode(self.header().format)
                self._whole = True
            except Undecodable as finding:
                self._whole = finding
        if isinstance(self._whole, Undecodable):
            raise self._whole

    def _read_header(self) -> Header:
        with _findings(self.media), self._open() as image:
            width, height = image.size
            if width * height > self._max_pixels:
                raise Undecodable(
                    "too_many_pixels", f"{width} x {height} px > {self._max_pixels:,} pixels"
                )
            if image.getexif().get(_ORIENTATION) in _SIDEWAYS:
                width, height = height, width
            return Header(image.format or "", width, height)

    def _decode(self, kind: str) -> None:
        with _findings(self.media):
            if kind in ("JPEG", "MPO"):
                _check_jpeg(self.media)
                return
            if kind == "PNG":
                # `load` leaves the checksums of the pixel chunks unread.
                with self._open() as image:
                    image.verify()
            with self._open() as image:
                image.load()

    def _open(self) -> Image.Image:
        return Image.open(io.BytesIO(self.media), formats=_FORMATS)


class Candidate:
    """A pair and its media bytes. `max_pixels` is the most that may be decoded.

    `like` is a candidate of the same bytes, whose findings are shared.
    """

    def __init__(
        self, pair: Pair, media: bytes, *, max_pixels: int, like: Candidate | None = None
    ) -> None:
        self.pair = pair
        self.media = media
        self._picture: _Picture = like._picture if like else _Picture(media, max_pixels)

    @property
    def is_image(self) -> bool:
        """Whether the pair's modality is image: only then is there a picture to look at."""
        return self.pair.modality == "image"

    @property
    def known_header(self) -> Header | None:
        """The picture's header if somebody has read it."""
        return self._picture.known_header

    @property
    def header(self) -> Header:
        """The picture's header. Raises Undecodable when there is none that can be read."""
        return self._picture.header()

    def check_pixels(self) -> None:
        """Decode the whole picture. Raises Undecodable where a decoder, at its strictest, would
        have to guess: cut short, bits flipped, checksums wrong."""
        self._picture.check_pixels()


@contextmanager
def _findings(media: bytes) -> Iterator[None]:
    """Turn what the decoders raise about `media` into Undecodable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit stands before Pillow's
            yield
    except UnidentifiedImageError:
        raise Undecodable("unreadable", _describe(media)) from None
    except Image.DecompressionBombError as error:
        raise Undecodable("too_many_pixels", str(error)) from None
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        ZeroDivisionError,
        OverflowError,
        MemoryError,
        struct.error,
        AttributeError,
        RuntimeError,
    ) as error:  # fmt: skip - a broken file reaches Pillow's plugins anywhere
        text = str(error).strip() or type(error).__name__
        cut = re.search(r"truncat|premature end|unexpected end|not enough", text, re.IGNORECASE)
        raise Undecodable("truncated" if cut else "unreadable", text) from None


def _check_jpeg(media: bytes) -> None:
    # The last scan must be followed by an end-of-image marker; one before it is the thumbnail's.
    if media.rfind(b"\xff\xd9") < media.rfind(b"\xff\xda"):
        raise Undecodable("truncated", "no end-of-image marker after the last scan")
    _, _, space, _ = simplejpeg.decode_jpeg_header(media)
    if space in ("CMYK", "YCCK"):
        # libjpeg-turbo does not turn these into grey; Pillow decodes them as they are.
        with Image.open(io.BytesIO(media), formats=("JPEG",)) as image:
            image.load()
        return
    # An eighth of the size: every coefficient is still read, which is where damage shows.
    simplejpeg.decode_jpeg(media, colorspace="GRAY", min_height=1, min_width=1, min_factor=1)


def _describe(media: bytes) -> str:
    """What a file that is no picture looks like."""
    head = media[:512].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not a picture"
    if b"<svg" in head:
        return "an SVG drawing; only pixel formats are read"
    if head.startswith(b"%pdf"):
        return "a PDF document, not a picture"
    if not media.strip(b"\0"):
        return "nothing but zero bytes"
    return f"not a known picture format (begins with {media[:8].hex(' ')})"
