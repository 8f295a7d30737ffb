"""Encoded images to RGB pixels, without torch: what decoding means everywhere in coembed.

The image modality decodes whole pictures for towers; curation decodes them scaled down, to judge
them. Orientation, transparency and colour modes are treated alike by both.
"""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from coembed.errors import DataError
from coembed.modalities._jpeg import jpeg_layout

Pixels = NDArray[np.uint8]

# Pillow can also read formats that start other programs (EPS) or are none of a pool's business.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
ORIENTATION = 0x0112
# An image more elongated than this is first cut to its middle: resized whole, it could fill memory.
MAX_ASPECT = 16
_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_BUFFER = re.compile(r" <_io\.BytesIO object at 0x[0-9a-f]+>")
_DEEP_GREYS = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def decode_image(data: bytes, *, max_pixels: int) -> Pixels:
    """RGB pixels [height, width, 3] of an encoded image.

    The EXIF orientation is applied, transparency laid on white, 16-bit values brought to 8, and an
    animation gives its first frame. Colour profiles are not applied. The size is read from the
    header and checked before anything is decoded.

    Raises:
        DataError: not an image of a known format, damaged, cut short, or above `max_pixels`.
    """
    try:
        if data[:3] == _JPEG_START:
            return _decode_jpeg(data, max_pixels)
        return _decode_other(data, max_pixels)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"the image is too large: {error}") from None
    except Exception as error:  # Pillow's plugins raise nearly everything on hostile bytes
        # The message of an unknown format names the buffer by its address: another in every run.
        message = _BUFFER.sub("", str(error)) or type(error).__name__
        raise DataError(f"not a readable image: {message}") from error


def open_image(data: bytes, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Read the header with Pillow. Raises whatever its plugins raise."""
    Image.init()  # Pillow loads most of its plugins only when told to
    return Image.open(io.BytesIO(data), formats=[name for name in formats if name in Image.OPEN])


def orientation_of(image: Image.Image) -> int:
    """The EXIF (or XMP) orientation of an image that is not loaded yet, 1 to 8.

    1 where it has none, and where the metadata are broken: the pixels may be sound all the same.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other tags that are broken
            orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow's EXIF reader raises nearly everything on hostile bytes
        return 1
    return int(orientation) if orientation in range(1, 9) else 1


def jpeg_orientation(data: bytes) -> int:
    """The orientation of a JPEG, 1 to 8, as `orientation_of`."""
    if not jpeg_layout(data).has_metadata:
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_image(data, ("JPEG", "MPO")) as image:
                return orientation_of(image)
    except Exception:  # the same
        return 1


def turn(pixels: Pixels, orientation: int) -> Pixels:
    """Undo EXIF orientation 2 to 8 (CIPA DC-008, tag 0x0112) of pixels [height, width, 3]."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` in mode RGB: transparency on white, 16-bit greys in 8 bits.

    Raises DataError for floating-point pixels, which have no agreed range.
    """
    if image.mode in _DEEP_GREYS:
        # 16-bit greys. Pillow's own conversion clips at 255.
        values = np.clip(np.asarray(image, dtype=np.float32), 0, 65535) / 257
        return Image.fromarray(values.round().astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DataError("floating-point pixels have no agreed range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _decode_jpeg(data: bytes, max_pixels: int) -> Pixels:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    _check_pixels(width, height, max_pixels)
    if data.rfind(_JPEG_END) < 0:
        raise DataError("the JPEG is cut short: it has no end marker")
    if colours not in ("RGB", "YCbCr", "Gray"):
        return _decode_other(data, max_pixels)  # CMYK, YCCK
    # Strict: without it libjpeg fills what is missing or damaged with grey and says nothing.
    pixels: Pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
    orientation = jpeg_orientation(data)
    return pixels if orientation == 1 else turn(pixels, orientation)


def _decode_other(data: bytes, max_pixels: int) -> Pixels:
    with open_image(data) as image:
        _check_pixels(image.width, image.height, max_pixels)
        image.load()
        # Asked after loading: Pillow turns TIFFs itself, and then says that they are upright.
        orientation = orientation_of(image)
        pixels = np.array(to_rgb(image))
        return pixels if orientation == 1 else turn(pixels, orientation)


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DataError(
            f"the image is too large: {width} × {height} = {width * height:,} pixels, at most "
            f"{max_pixels:,} are allowed"
        )
