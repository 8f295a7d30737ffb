"""Sketches against a plain cosine transform, and what they tell apart."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from lookalike_pictures import COPIES, copy_of, photograph
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from coembed.curation.lookalikes.perceptual import (
    LUMA,
    NUM_WINDOWS,
    THUMBNAIL_PX,
    WINDOWS,
    fingerprint,
    unpack_thumbnails,
)
from coembed.curation.lookalikes.sketch import (
    SKETCH_BYTES,
    Remainder,
    compare,
    has_structure,
    sketch_thumbnails,
)


def _thumbnails(*pictures: Image.Image) -> NDArray[np.uint8]:
    return unpack_thumbnails(b"".join(map(fingerprint, pictures)))


def _against(asked: Image.Image, known: Image.Image, *, mirrored: bool = False) -> Remainder:
    """The remainders of the best window."""
    sketches = sketch_thumbnails(_thumbnails(known)).repeat(NUM_WINDOWS, axis=0)
    thumbnails = _thumbnails(asked).repeat(NUM_WINDOWS, axis=0)
    flip = np.full(NUM_WINDOWS, mirrored)
    found = compare(thumbnails, np.arange(NUM_WINDOWS), flip, sketches)
    best = int(found.luma.argmin())
    return Remainder(found.luma[best : best + 1], found.colour[best : best + 1])


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def test_a_sketch_is_the_amplitudes_of_a_cosine_transform() -> None:
    thumbnails = _thumbnails(*(photograph(seed) for seed in range(10)))
    pictures = thumbnails.astype(np.float64)
    luma = pictures @ LUMA / 256

    def amplitudes(values: NDArray[np.float64], num: int) -> NDArray[np.float64]:
        # The square of an orthonormal amplitude over all pixels is a sum of squares: make it a
        # mean.
        found = dctn(values, axes=(1, 2), norm="ortho")[:, :num, :num] / THUMBNAIL_PX
        return found.reshape(len(values), -1)

    blue, red = pictures[..., 2] - luma, pictures[..., 0] - luma
    expected = np.concatenate(
        [amplitudes(luma, 8)[:, 1:], amplitudes(blue, 4), amplitudes(red, 4)], axis=1
    )
    sketches = sketch_thumbnails(thumbnails)
    assert sketches.shape == (10, SKETCH_BYTES)
    # Steps of two grey levels; the cosines are rounded, too.
    assert np.abs(2.0 * sketches - expected).max() < 1.1


def test_a_picture_leaves_nothing_of_itself_mirrored_or_not() -> None:
    picture = photograph(3)
    flipped = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for asked, mirrored in ((picture, False), (flipped, True)):
        found = _against(asked, picture, mirrored=mirrored)
        assert found.luma[0] < 0.002 and found.colour[0] < 0.01
    assert _against(flipped, picture).luma[0] > 0.1


@pytest.mark.parametrize("how", sorted(set(COPIES) - {"flipped", "cropped"}))
def test_copies_leave_little_and_other_pictures_much(how: str) -> None:
    for seed in range(12):
        copy = _opened(copy_of(photograph(seed), how, seed))
        found = _against(photograph(seed), copy)
        assert found.luma[0] < (0.05 if how == "stamped" else 0.02), seed
        assert found.colour[0] < 0.1, seed
        other = _against(photograph(seed + 50), copy)
        assert other.luma[0] > 0.3


def test_a_crop_is_found_from_its_original() -> None:
    """Not the other way about: of a sketched picture no window can be taken."""
    rng = random.Random(1)
    for seed in range(6):
        picture = photograph(seed)
        top, bottom, left, right = (WINDOWS[rng.randrange(1, NUM_WINDOWS)] * 192).round()
        crop = picture.crop((int(left), int(top), int(right), int(bottom)))
        assert _against(picture, crop).luma[0] < 0.03
        assert _against(picture, crop).luma[0] < _against(crop, picture).luma[0]


def test_an_even_picture_tells_nothing() -> None:
    even = Image.new("RGB", (90, 90), (200, 180, 160))
    sketches = sketch_thumbnails(_thumbnails(even, photograph(1)))
    assert has_structure(sketches).tolist() == [False, True]
