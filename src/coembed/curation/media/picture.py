"""A picture's header and pixels, decoded as strictly as the decoders can, and scaled down.

Scaled, because judging a picture needs no more than about a hundred pixels a side: libjpeg leaves
the higher frequencies out (it still reads every coefficient, which is where damage shows), and
other formats are averaged over blocks, in strips, so that a second copy of a large picture is never
made.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from coembed.curation.media.picture_files import count_frames, is_cut_short
from coembed.curation.media.quiet import quiet_stderr
from coembed.curation.media.undecodable import Undecodable, describe, from_decoder
from coembed.errors import DataError
from coembed.modalities._jpeg import jpeg_layout
from coembed.modalities._pixels import (
    MAX_ASPECT,
    Pixels,
    jpeg_orientation,
    open_image,
    orientation_of,
    to_rgb,
    turn,
)

MIN_SIDE_PX = 64
"""Scaling leaves the shorter side at least this long, where it was."""

# Pillow can open far more, some of it through other programs (EPS runs Ghostscript).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
# Every scan of a progressive JPEG goes over the whole picture: a small file of thousands of them
# keeps a decoder busy for hours. Encoders write about ten.
_MAX_SCANS = 100
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_JPEG_MODES = {"RGB": "RGB", "YCbCr": "RGB", "Gray": "L", "CMYK": "CMYK", "YCCK": "CMYK"}
_STRIP_PIXELS = 4_000_000


class Header(NamedTuple):
    """What a picture's header says. Width and height as shown, after the EXIF orientation."""

    format: str
    width_px: int
    height_px: int
    colour_mode: str
    num_frames: int


def read_header(data: bytes, max_pixels: int) -> tuple[Header, int]:
    """The header of an encoded picture, and the orientation (1 to 8) that its pixels need.

    No pixel is decoded. Raises Undecodable: no picture, a damaged header, above `max_pixels`.
    """
    if data[:3] == _JPEG_START:
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError as error:
            raise _undecodable(data, error) from None
        _check_size(width, height, max_pixels)
        orientation = jpeg_orientation(data)
        if orientation in _SIDEWAYS:
            width, height = height, width
        return Header("JPEG", width, height, _JPEG_MODES.get(colours, colours), 1), orientation
    with _findings(data), open_image(data, _FORMATS) as image:
        width, height = image.size
        _check_size(width, height, max_pixels)
        kind = image.format or ""
        mode = image.mode
        frames = count_frames(image, data)
        # Pillow turns TIFFs itself, and gives their size as shown.
        orientation = 1 if kind == "TIFF" else orientation_of(image)
    if orientation in _SIDEWAYS:
        width, height = height, width
    return Header(kind, width, height, mode, frames), orientation


def read_pixels(data: bytes, header: Header, orientation: int) -> Pixels:
    """The picture, uint8 RGB [height, width, 3], scaled down by a power of two as far as leaves
    MIN_SIDE_PX of the shorter side. `header` and `orientation` are those of `read_header`.

    Of a picture more than 16 times as long as wide, the middle. Raises Undecodable.
    """
    scale = 1
    while min(header.width_px, header.height_px) >= 2 * scale * MIN_SIDE_PX:
        scale *= 2
    if header.format == "JPEG":
        pixels = _read_jpeg(data, header, orientation, scale)
    else:
        pixels = _read_other(data, header, scale)
    pixels = pixels if orientation == 1 else turn(pixels, orientation)
    pixels.setflags(write=False)  # filters share it
    return pixels


def _read_jpeg(data: bytes, header: Header, orientation: int, scale: int) -> Pixels:
    # The last scan must be followed by an end-of-image marker; one before it is the thumbnail's.
    end = data.rfind(_JPEG_END)
    if end < 0 or data.find(_JPEG_SCAN, end) >= 0:
        raise Undecodable("truncated", "no end-of-image marker after the last scan")
    if jpeg_layout(data).many_scans and data.count(_JPEG_SCAN) > _MAX_SCANS:
        raise Undecodable("unreadable", f"more than {_MAX_SCANS} scans")
    width, height = header.width_px, header.height_px
    if orientation in _SIDEWAYS:
        width, height = height, width
    by_decoder = min(scale, 8)
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            data,
            # libjpeg-turbo does not turn CMYK into RGB.
            colorspace="CMYK" if header.colour_mode == "CMYK" else "RGB",
            min_height=-(-height // by_decoder),
            min_width=-(-width // by_decoder),
            min_factor=1,
            strict=True,
        )
    except ValueError as error:
        raise from_decoder(error) from None
    if header.colour_mode == "CMYK":
        # JPEG holds the inks inverted, as Adobe's programs write them; Pillow reads it so, too.
        pixels = np.asarray(Image.fromarray(255 - pixels, mode="CMYK").convert("RGB"))
    pixels = _middle(pixels)
    if scale > by_decoder:
        pixels = np.array(Image.fromarray(pixels).reduce(scale // by_decoder))
    return pixels


def _read_other(data: bytes, header: Header, scale: int) -> Pixels:
    with _findings(data):
        if header.format == "PNG":
            # `load` leaves the checksums of the pixel chunks unread.
            with open_image(data, _FORMATS) as image:
                image.verify()
        with open_image(data, _FORMATS) as image:
            image.load()
            return _scaled_rgb(image, scale)


def _scaled_rgb(image: Image.Image, scale: int) -> Pixels:
    """The middle of `image` in RGB, averaged over blocks of `scale`, strip by strip."""
    width, height = image.size
    left, top, right, bottom = _middle_box(width, height)
    width = right - left
    rows = max(1, _STRIP_PIXELS // width // scale) * scale
    strips = []
    for start in range(top, bottom, rows):
        strip = to_rgb(image.crop((left, start, right, min(bottom, start + rows))))
        strips.append(np.asarray(strip.reduce(scale) if scale > 1 else strip))
    return np.concatenate(strips) if len(strips) > 1 else np.array(strips[0])


def _middle(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    if max(height, width) <= MAX_ASPECT * min(height, width):
        return pixels
    left, top, right, bottom = _middle_box(width, height)
    return np.ascontiguousarray(pixels[top:bottom, left:right])


def _middle_box(width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what is looked at of a very long picture: all, as a rule."""
    keep = MAX_ASPECT * min(width, height)
    left, top = max(0, (width - keep) // 2), max(0, (height - keep) // 2)
    return left, top, min(width, left + keep), min(height, top + keep)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise Undecodable("too_many_pixels", f"{width} x {height} px > {max_pixels:,} pixels")
    if min(width, height) < 1:
        raise Undecodable("unreadable", f"{width} x {height} px")


@contextmanager
def _findings(data: bytes) -> Iterator[None]:
    """Turn what Pillow raises about `data` into Undecodable."""
    quiet = quiet_stderr() if data[:2] in (b"II", b"MM") else nullcontext()  # libtiff's words
    try:
        with warnings.catch_warnings(), quiet:
            warnings.simplefilter("ignore")  # our own limit stands before Pillow's
            yield
    except Undecodable:
        raise
    except UnidentifiedImageError:
        reason = "truncated" if is_cut_short(data) else "unreadable"
        raise Undecodable(reason, describe(data, "picture")) from None
    except Image.DecompressionBombError as error:
        raise Undecodable("too_many_pixels", str(error)) from None
    except DataError as error:
        raise Undecodable("unreadable", error.message) from None
    except Exception as error:  # a broken file reaches Pillow's plugins anywhere
        raise _undecodable(data, error) from None


def _undecodable(data: bytes, error: Exception) -> Undecodable:
    found = from_decoder(error)
    return Undecodable("truncated", found.detail) if is_cut_short(data) else found
