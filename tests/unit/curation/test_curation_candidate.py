"""Damage in pictures: every kind is found and named, and nothing whole is called damaged."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from coembed.curation.candidate import Candidate, Undecodable
from coembed.types import Pair

PAIR = Pair("p", "media/a.jpg", "a red mug")


def _picture(
    kind: str, *, mode: str = "RGB", size: tuple[int, int] = (61, 47), **save: object
) -> bytes:
    rng = np.random.default_rng(7)
    # Smooth shapes with some noise, so that every format has something to compress.
    ramp = np.linspace(0, 255, size[0])[None, :, None] * np.ones((size[1], 1, 3))
    pixels = np.clip(ramp + rng.normal(0, 12, ramp.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **save)  # type: ignore[arg-type]
    return buffer.getvalue()


WHOLE = {
    "jpeg": _picture("JPEG"),
    "jpeg progressive": _picture("JPEG", progressive=True),
    "jpeg grey": _picture("JPEG", mode="L"),
    "jpeg cmyk": _picture("JPEG", mode="CMYK"),
    "jpeg 4:4:4": _picture("JPEG", subsampling=0),
    "jpeg with a tail": _picture("JPEG") + b"\0" * 100,
    "png": _picture("PNG"),
    "png palette": _picture("PNG", mode="P"),
    "png grey": _picture("PNG", mode="LA"),
    "webp": _picture("WEBP"),
    "webp lossless": _picture("WEBP", lossless=True),
    "gif": _picture("GIF"),
    "bmp": _picture("BMP"),
    "tiff": _picture("TIFF"),
    "one pixel": _picture("PNG", size=(1, 1)),
}


def _judge(media: bytes, max_pixels: int = 10**6) -> str:
    try:
        Candidate(PAIR, media, max_pixels=max_pixels).check_pixels()
    except Undecodable as finding:
        assert finding.detail
        return finding.reason
    return "fine"


@pytest.mark.parametrize("name", WHOLE)
def test_whole_pictures_are_fine(name: str) -> None:
    assert _judge(WHOLE[name]) == "fine"


@pytest.mark.parametrize("name", [n for n in WHOLE if n not in ("one pixel", "jpeg with a tail")])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 0.97])
def test_cut_pictures_are_never_fine(name: str, share: float) -> None:
    media = WHOLE[name]
    assert _judge(media[: int(len(media) * share)]) in ("truncated", "unreadable")


@pytest.mark.parametrize("name", ["jpeg", "jpeg progressive", "png", "gif", "bmp"])
def test_a_picture_cut_in_its_pixels_is_called_truncated(name: str) -> None:
    media = WHOLE[name]
    assert _judge(media[: int(len(media) * 0.8)]) == "truncated"


def test_a_jpeg_without_its_last_marker_is_truncated() -> None:
    assert _judge(WHOLE["jpeg"][:-2]) == "truncated"


def test_the_end_marker_of_a_thumbnail_does_not_stand_for_the_picture() -> None:
    thumbnail = _picture("JPEG", size=(8, 8))
    exif = b"Exif\0\0" + thumbnail
    whole = WHOLE["jpeg"]
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    media = whole[:2] + segment + whole[2:]
    assert _judge(media) == "fine"
    assert _judge(media[: int(len(media) * 0.9)]) == "truncated"


def test_a_png_with_wrong_pixels_or_checksum_is_unreadable() -> None:
    media = bytearray(WHOLE["png"])
    at = media.index(b"IDAT") + 40
    media[at] ^= 0x55
    assert _judge(bytes(media)) == "unreadable"


def test_damaged_jpegs_are_mostly_found() -> None:
    """One flipped byte often decodes to another valid picture; runs of them do not."""
    media = _picture("JPEG", size=(256, 256), quality=90)
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(50):
        hurt = bytearray(media)
        start = int(rng.integers(len(media) // 4, len(media) - 64))
        hurt[start : start + 32] = rng.bytes(32)
        found += _judge(bytes(hurt)) != "fine"
    assert found >= 40


@pytest.mark.parametrize(
    ("media", "detail"),
    [
        (b"<!DOCTYPE html><p>404", "an HTML page"),
        (b"  <html><body>", "an HTML page"),
        (b'<?xml version="1.0"?><svg/>', "an SVG drawing"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\0" * 64, "zero bytes"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a known picture format"),
        (b"x", "not a known picture format (begins with 78)"),
    ],
)
def test_what_is_no_picture_is_said_to_be_what_it_is(media: bytes, detail: str) -> None:
    with pytest.raises(Undecodable) as caught:
        Candidate(PAIR, media, max_pixels=100).check_pixels()
    assert caught.value.reason == "unreadable" and detail in caught.value.detail


def _bomb() -> bytes:
    """A PNG that says it is 60,000 x 60,000 pixels, in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + checksum

    side = (60_000).to_bytes(4, "big")
    header = chunk(b"IHDR", side + side + bytes([8, 2, 0, 0, 0]))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


def test_bombs_are_refused_by_their_header() -> None:
    assert _judge(_bomb()) == "too_many_pixels"
    assert _judge(WHOLE["jpeg"], max_pixels=61 * 47) == "fine"
    assert _judge(WHOLE["jpeg"], max_pixels=61 * 47 - 1) == "too_many_pixels"


def test_the_size_is_the_one_that_is_shown() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    header = Candidate(PAIR, _picture("JPEG", exif=exif), max_pixels=10**6).header
    assert (header.format, header.width_px, header.height_px) == ("JPEG", 47, 61)


def test_captions_of_one_file_share_what_was_found() -> None:
    first = Candidate(PAIR, WHOLE["jpeg"], max_pixels=10**6)
    second = Candidate(PAIR, WHOLE["jpeg"], max_pixels=10**6, like=first)
    assert second.known_header is None
    assert first.header is second.header is second.known_header
