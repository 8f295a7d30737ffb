from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import Run, settings_of

from coembed.errors import ConfigError
from coembed.training import draws
from coembed.training.cache import CachedSplit
from coembed.training.data import (
    Batch,
    Batches,
    cache_side,
    choose_captions,
    crop_images,
    find_positives,
    prefetch,
)
from coembed.training.settings import AugmentSettings, TrainSettings

AUGMENT = AugmentSettings()


def split_of(captions: list[list[int]], *, side: int = 24) -> CachedSplit:
    """A split with these caption ids and noise for images."""
    rng = np.random.default_rng(0)
    num = max(c for own in captions for c in own) + 1
    return CachedSplit(
        item_ids=tuple(f"{i:016x}{'0' * 48}" for i in range(len(captions))),
        images=rng.integers(0, 256, (len(captions), side, side, 3), dtype=np.uint8),
        tokens=np.arange(num * 4).reshape(num, 4),
        offsets=np.cumsum([0, *map(len, captions)]),
        caption_ids=np.array([c for own in captions for c in own]),
    )


def batches_of(split: CachedSplit, **changes: object) -> Batches:
    return Batches(split, settings_of(**changes), px=20, seed=3)


def test_an_epoch_sees_every_item_once_in_an_order_of_its_own() -> None:
    batches = batches_of(split_of([[i] for i in range(22)]), batch_size=5, steps=8)
    assert batches.steps_per_epoch == 4 and batches.num_steps == 8
    epochs = [
        np.concatenate([batches.make(step).rows for step in range(start, start + 4)])
        for start in (0, 4)
    ]
    for rows in epochs:
        assert len(set(rows.tolist())) == 20
    assert not np.array_equal(*epochs)


def test_a_batch_is_a_function_of_its_step_alone() -> None:
    split = split_of([[i, 30 + i] for i in range(22)])
    forwards, once = batches_of(split, steps=12), batches_of(split, steps=12)
    made = [forwards.make(step) for step in range(12)]
    again = once.make(7)
    assert torch.equal(made[7].images, again.images) and torch.equal(made[7].tokens, again.tokens)


def test_epochs_count_steps() -> None:
    split = split_of([[i] for i in range(22)])
    assert batches_of(split, batch_size=5, steps=None, epochs=3).num_steps == 12


def test_refuses_a_batch_larger_than_the_split() -> None:
    with pytest.raises(ConfigError, match=r"batch_size is 23.*only 22 items") as caught:
        batches_of(split_of([[i] for i in range(22)]), batch_size=23)
    assert "22 or less" in str(caught.value)


def test_captions_take_turns_over_the_epochs() -> None:
    split = split_of([[0, 1, 2], [3], [4, 5]])
    rows = np.array([2, 0, 1])
    keys = draws.sample_keys(split.item_ids)[rows]
    seen: list[set[int]] = [set(), set(), set()]
    for epoch in range(40):
        chosen = choose_captions(split, rows, keys, seed=1, epoch=epoch)
        for place, caption in enumerate(chosen):
            seen[place].add(int(caption))
    assert seen == [{4, 5}, {0, 1, 2}, {3}]


def slow_positives(
    captions: list[list[int]], rows: list[int], chosen: list[int]
) -> list[list[bool]]:
    return [[caption in captions[row] for caption in chosen] for row in rows]


def test_positives_agree_with_looking_one_by_one() -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        captions = [rng.integers(0, 12, rng.integers(1, 4)).tolist() for _ in range(10)]
        split = split_of(captions)
        rows = rng.permutation(10)[:6]
        chosen = np.array([rng.choice(captions[row]) for row in rows])
        expected = np.array(slow_positives(captions, rows.tolist(), chosen.tolist()))
        mask = find_positives(split, rows, chosen)
        if mask is None:
            assert np.array_equal(expected, np.eye(6, dtype=bool))
        else:
            assert np.array_equal(mask.numpy(), expected)


def test_positives_are_none_where_all_captions_differ() -> None:
    split = split_of([[0, 5], [1], [2]])
    assert find_positives(split, np.array([0, 1, 2]), np.array([0, 1, 2])) is None
    assert find_positives(split, np.array([0, 1, 2]), np.array([5, 1, 2])) is None


def crops(
    images: np.ndarray, augment: AugmentSettings, *, epoch: int = 0, px: int = 20
) -> np.ndarray:
    keys = draws.sample_keys([f"{i:016x}" for i in range(len(images))])
    rows = np.arange(len(images))
    return crop_images(images, rows, keys, augment, px=px, seed=1, epoch=epoch)


def test_no_augmentation_gives_the_image() -> None:
    images = split_of([[i] for i in range(9)], side=20).images
    plain = AugmentSettings(crop_area=1.0, flip=False)
    assert cache_side(20, plain) == 20
    assert np.array_equal(crops(images, plain), images)


def test_flip_mirrors_about_half() -> None:
    images = split_of([[i] for i in range(400)], side=20).images
    out = crops(images, AugmentSettings(crop_area=1.0, flip=True))
    same = (out == images).all((1, 2, 3))
    mirrored = (out == images[:, :, ::-1]).all((1, 2, 3))
    assert np.all(same ^ mirrored) and 150 < mirrored.sum() < 250


def test_crops_are_squares_of_the_asked_area_anywhere() -> None:
    """An image whose values are its coordinates tells where a crop came from."""
    side, px = 100, 50
    ramp = np.linspace(0, 250, side)
    image = np.stack([np.tile(ramp, (side, 1)), np.tile(ramp[:, None], (1, side))] * 2, -1)[..., :3]
    images = np.repeat(image.astype(np.uint8)[None], 300, axis=0)
    out = crops(images, AugmentSettings(crop_area=0.5, flip=False), px=px).astype(float)
    width = (out[:, 25, -1, 0] - out[:, 25, 0, 0]) / 250 * px / (px - 1)
    height = (out[:, -1, 25, 1] - out[:, 0, 25, 1]) / 250 * px / (px - 1)
    assert np.abs(width - height).max() < 0.04
    assert 0.68 < width.min() < 0.75 and 0.96 < width.max() < 1.03
    assert out[:, 25, 0, 0].min() < 5 and out[:, 25, 0, 0].max() > 50


def test_brightness_changes_no_hue() -> None:
    images = np.full((200, 20, 20, 3), (120, 60, 30), dtype=np.uint8)
    out = crops(images, AugmentSettings(crop_area=1.0, flip=False, brightness=0.3)).astype(float)
    factor = out[:, 0, 0, 0] / 120
    assert 0.69 < factor.min() < 0.8 and 1.2 < factor.max() < 1.31
    assert np.abs(out[:, 0, 0] - np.outer(factor, (120, 60, 30))).max() <= 1.0


def test_augmentation_is_new_every_epoch() -> None:
    images = split_of([[i] for i in range(9)]).images
    assert np.array_equal(crops(images, AUGMENT), crops(images, AUGMENT))
    assert not np.array_equal(crops(images, AUGMENT), crops(images, AUGMENT, epoch=1))


def test_batches_hold_what_the_model_takes(run: Run) -> None:
    _, spec = run.model()
    batch = Batches(run.split(spec), run.settings, px=spec.image.px, seed=1).make(0)
    assert batch.images.shape == (8, 32, 32, 3) and batch.images.dtype == torch.uint8
    assert batch.tokens.shape == (8, 16) and batch.tokens.dtype == torch.int64


def a_batch(step: int) -> Batch:
    empty = torch.zeros(0)
    return Batch(step, 0, empty, empty, None, np.zeros(0, dtype=np.int64))


def test_prefetch_keeps_the_order_and_ends() -> None:
    assert [b.step for b in prefetch(a_batch, range(20))] == list(range(20))


def test_prefetch_hands_over_the_error() -> None:
    def make(step: int) -> Batch:
        if step == 3:
            raise ValueError("no such item")
        return a_batch(step)

    seen = []
    with pytest.raises(ValueError, match="no such item"):
        for batch in prefetch(make, range(9)):
            seen.append(batch.step)  # noqa: PERF401 (the error comes in between)
    assert seen == [0, 1, 2]


def test_prefetch_stays_two_ahead_and_leaves_no_thread() -> None:
    made: list[int] = []

    def make(step: int) -> Batch:
        made.append(step)
        return a_batch(step)

    ahead = prefetch(make, range(1000))
    next(ahead)
    time.sleep(0.2)
    assert len(made) <= 4
    ahead.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name == "coembed-batches"]


def test_cache_side_grows_with_the_crop() -> None:
    assert cache_side(64, AugmentSettings(crop_area=0.8)) == 71
    assert TrainSettings().augment == AUGMENT


def test_crop_sizes_fit_the_smallest_image(tmp_path: Path) -> None:
    images = np.zeros((50, 3, 3, 3), dtype=np.uint8)
    assert crops(images, AugmentSettings(crop_area=0.11), px=2).shape == (50, 2, 2, 3)
    del tmp_path
