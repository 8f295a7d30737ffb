"""Whether uploaded media may be decoded at all: their headers are read, and no more than that.

Of sounds whose header does not say how long they are, samples are counted up to the limit.
"""

from __future__ import annotations

import warnings

import simplejpeg

from coembed.modalities._pixels import open_image
from coembed.modalities._sound import blocks, check_length, header_of, opened
from coembed.modalities._sound_files import BrokenSound, check_whole, sniff_sound
from coembed.serve.refusals import Refusal, invalid

_IMAGE_HINT = "send a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file"
_SOUND_HINT = "send a WAV, FLAC, OGG, MP3 or AIFF file"


def check_image(data: bytes, *, max_pixels: int) -> None:
    """Raise Refusal (422) where `data` is no picture, or has more than `max_pixels` pixels."""
    try:
        width, height = _size(data)
    except Exception as error:  # Pillow's plugins raise nearly everything on hostile bytes
        raise invalid(f"the image is not readable: {_words(error)}", hint=_IMAGE_HINT) from None
    if width * height > max_pixels:
        raise invalid(
            f"the image has {width} × {height} = {width * height:,} pixels, at most "
            f"{max_pixels:,} are allowed",
            hint="send a smaller one: models look at far fewer",
        )


def check_sound(data: bytes, *, max_s: float) -> None:
    """Raise Refusal (422) where `data` is no sound, is cut short, or is longer than `max_s`."""
    try:
        kind = sniff_sound(data)
        if kind is None:
            raise BrokenSound("unreadable", "not a WAV, AIFF, FLAC, Ogg or MP3 file")
        check_whole(kind, data)
        with opened(data, kind) as file:
            header = header_of(file, kind)
            check_length(header.num_frames or 0, header, max_s)
            # An MP3's number is an estimate.
            if header.num_frames is None or kind == "MP3":
                num_frames = 0
                for block in blocks(file):
                    num_frames += len(block)
                    check_length(num_frames, header, max_s)
    except BrokenSound as error:
        raise _refuse(error, max_s) from None


def _size(data: bytes) -> tuple[int, int]:
    if data[:3] == b"\xff\xd8\xff":
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        return width, height
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # our own limit stands before Pillow's
        with open_image(data) as image:
            return image.width, image.height


def _refuse(error: BrokenSound, max_s: float) -> Refusal:
    if error.fault == "too_many_seconds":
        return invalid(f"the sound is too long: {error}", hint=f"send at most {max_s:g} s of it")
    return invalid(f"the sound is not readable: {_words(error)}", hint=_SOUND_HINT)


def _words(error: Exception) -> str:
    # Pillow names the buffer's address in its message.
    text = str(error) or type(error).__name__
    return "not a picture of a known format" if "<_io.BytesIO" in text else text[:200]
