"""Hashes, alignment and the comparison of thumbnails, against slow or known answers."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from lookalike_pictures import COPIES, copy_of, photograph
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from coembed.curation.lookalikes.alignment import align
from coembed.curation.lookalikes.perceptual import (
    LUMA,
    MIRROR,
    NUM_WINDOWS,
    THUMBNAIL_BYTES,
    THUMBNAIL_PX,
    WINDOWS,
    fingerprint,
    hash_thumbnails,
    unpack_thumbnails,
)
from coembed.curation.lookalikes.resemblance import Proposal, resemblance


def _thumbnails(*pictures: Image.Image) -> NDArray[np.uint8]:
    return unpack_thumbnails(b"".join(map(fingerprint, pictures)))


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def _score(thumbnails: NDArray[np.uint8], one: int, other: int, *, mirrored: bool = False) -> float:
    """The best score over all windows, either way."""
    windows = np.tile(np.arange(NUM_WINDOWS), 2)
    first = np.repeat([one, other], NUM_WINDOWS)
    second = np.repeat([other, one], NUM_WINDOWS)
    proposal = Proposal(first, second, windows, np.full(len(first), mirrored))
    return float(resemblance(thumbnails, proposal).max())


def test_a_fingerprint_is_small_and_a_hash_has_63_bits() -> None:
    thumbnails = _thumbnails(*(photograph(seed) for seed in range(5)))
    assert len(fingerprint(photograph(0))) == THUMBNAIL_BYTES == 2352
    hashes = hash_thumbnails(thumbnails)
    assert hashes.shape == (5, NUM_WINDOWS) and (hashes >> np.uint64(63) == 0).all()


def test_the_frame_hash_is_the_signs_of_the_cosine_transform() -> None:
    thumbnails = _thumbnails(*(photograph(seed) for seed in range(20)))
    transformed = dctn(thumbnails @ LUMA.astype(np.float64), axes=(1, 2), norm="ortho")
    low = transformed[:, :8, :8].reshape(20, 64)[:, 1:]
    expected = low > 0
    bits = (hash_thumbnails(thumbnails)[:, :1] >> np.arange(62, -1, -1, dtype=np.uint64)) & 1
    clear = np.abs(low) > 0.01 * np.abs(low).max()  # the cosines are rounded
    assert clear.mean() > 0.6
    assert (bits.astype(bool) == expected)[clear].all()


def test_mirroring_a_picture_turns_known_bits() -> None:
    thumbnails = _thumbnails(*(photograph(seed) for seed in range(10)))
    mirrored = hash_thumbnails(np.ascontiguousarray(thumbnails[:, :, ::-1]))
    assert (mirrored[:, 0] == hash_thumbnails(thumbnails)[:, 0] ^ MIRROR).all()


def test_a_crop_hashes_like_a_window_of_its_original() -> None:
    originals = [photograph(seed) for seed in range(30)]
    crops = [_opened(copy_of(picture, "cropped", seed)) for seed, picture in enumerate(originals)]
    ours = hash_thumbnails(_thumbnails(*originals))
    theirs = hash_thumbnails(_thumbnails(*crops))[:, 0]
    by_window = np.bitwise_count(ours ^ theirs[:, None])
    assert np.mean(by_window.min(axis=1) <= 6) > 0.9
    assert np.mean(by_window[:, 0] <= 6) < 0.7  # the whole frame alone does not find them
    others = np.bitwise_count(ours ^ np.roll(theirs, 1)[:, None]).min(axis=1)
    assert (others > 6).all()


def test_hashes_do_not_depend_on_the_batch() -> None:
    thumbnails = np.tile(_thumbnails(*(photograph(seed) for seed in range(7))), (90, 1, 1, 1))
    together = hash_thumbnails(thumbnails)
    assert (together == np.tile(hash_thumbnails(thumbnails[:7]), (90, 1))).all()
    assert hash_thumbnails(thumbnails[:0]).shape == (0, NUM_WINDOWS)


@pytest.mark.parametrize("window", [(0.0, 1.0, 0.0, 1.0), (0.03, 0.97, 0.06, 0.99)])
def test_alignment_finds_the_window(window: tuple[float, ...]) -> None:
    size = 560
    original = photograph(3, px=size)
    box = [round(part * size) for part in (window[2], window[0], window[3], window[1])]
    pictures = _thumbnails(original, original.crop(tuple(box))).astype(np.float32)  # type: ignore[arg-type]
    begin = np.array([[0.01, 0.99, 0.03, 1.0]])
    found = align(pictures[:1], pictures[1:], begin, (LUMA / 256).astype(np.float32))
    assert np.abs(found.windows[0] - np.array(window)).max() < 0.004
    away = np.abs(found.warped - found.second)[found.inside]
    assert away.mean() < 1.0


@pytest.mark.parametrize("how", sorted(COPIES))
def test_copies_score_high(how: str) -> None:
    scores = []
    for seed in range(12):
        original = photograph(seed)
        thumbnails = _thumbnails(original, _opened(copy_of(original, how, seed)))
        scores.append(_score(thumbnails, 0, 1, mirrored=how == "flipped"))
    assert np.mean(np.array(scores) > 0.73) >= 0.9, np.round(scores, 2)


def test_another_thing_in_the_same_place_scores_low() -> None:
    pairs = [_thumbnails(photograph(seed), photograph(seed, thing=99)) for seed in range(12)]
    assert max(_score(thumbnails, 0, 1) for thumbnails in pairs) < 0.65


def test_another_colour_of_the_same_shape_is_no_copy() -> None:
    original = photograph(5)
    red, green, blue = original.split()
    swapped = Image.merge("RGB", (blue, red, green))
    thumbnails = _thumbnails(original, swapped, original.convert("L").convert("RGB"))
    assert _score(thumbnails, 0, 0) > 0.999
    assert _score(thumbnails, 0, 1) < 0.5
    assert _score(thumbnails, 0, 2) < 0.5


def test_a_score_does_not_depend_on_the_other_pairs() -> None:
    rng = random.Random(4)
    pictures = [photograph(seed) for seed in range(6)]
    copies = [_opened(copy_of(picture, "cropped", 1)) for picture in pictures]
    thumbnails = _thumbnails(*pictures, *copies)
    first = np.array([rng.randrange(12) for _ in range(400)])
    proposal = Proposal(first, (first + 6) % 12, first % NUM_WINDOWS, first % 5 == 0)
    together = resemblance(thumbnails, proposal)
    for at in (0, 1, 255, 256, 399):
        assert resemblance(thumbnails, proposal.part(slice(at, at + 1)))[0] == together[at]
    assert WINDOWS.shape == (NUM_WINDOWS, 4) and THUMBNAIL_PX == 28
