"""What a training step sees of an image."""

from __future__ import annotations

import numpy as np

from coembed import draws
from coembed.modalities._augment import ImageAugment
from coembed.modalities.image import _kept_side, crop_images

AUGMENT = ImageAugment()


def noise(num: int, side: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, side, side, 3), dtype=np.uint8)


def crops(images: np.ndarray, augment: ImageAugment, *, epoch: int = 0, px: int = 20) -> np.ndarray:
    keys = draws.sample_keys([f"{i:016x}" for i in range(len(images))])
    return crop_images(list(images), keys, augment, px=px, seed=1, epoch=epoch)


def test_no_augmentation_gives_the_image() -> None:
    images = noise(9, 20)
    plain = ImageAugment(crop_area=1.0, flip=False)
    assert _kept_side(20, plain) == 20
    assert np.array_equal(crops(images, plain), images)


def test_flip_mirrors_about_half() -> None:
    images = noise(400, 20)
    out = crops(images, ImageAugment(crop_area=1.0, flip=True))
    same = (out == images).all((1, 2, 3))
    mirrored = (out == images[:, :, ::-1]).all((1, 2, 3))
    assert np.all(same ^ mirrored) and 150 < mirrored.sum() < 250


def test_crops_are_squares_of_the_asked_area_anywhere() -> None:
    """An image whose values are its coordinates tells where a crop came from."""
    side, px = 100, 50
    ramp = np.linspace(0, 250, side)
    image = np.stack([np.tile(ramp, (side, 1)), np.tile(ramp[:, None], (1, side))] * 2, -1)[..., :3]
    images = np.repeat(image.astype(np.uint8)[None], 300, axis=0)
    out = crops(images, ImageAugment(crop_area=0.5, flip=False), px=px).astype(float)
    width = (out[:, 25, -1, 0] - out[:, 25, 0, 0]) / 250 * px / (px - 1)
    height = (out[:, -1, 25, 1] - out[:, 0, 25, 1]) / 250 * px / (px - 1)
    assert np.abs(width - height).max() < 0.04
    assert 0.68 < width.min() < 0.75 and 0.96 < width.max() < 1.03
    assert out[:, 25, 0, 0].min() < 5 and out[:, 25, 0, 0].max() > 50


def test_brightness_changes_no_hue() -> None:
    images = np.full((200, 20, 20, 3), (120, 60, 30), dtype=np.uint8)
    out = crops(images, ImageAugment(crop_area=1.0, flip=False, brightness=0.3)).astype(float)
    factor = out[:, 0, 0, 0] / 120
    assert 0.69 < factor.min() < 0.8 and 1.2 < factor.max() < 1.31
    assert np.abs(out[:, 0, 0] - np.outer(factor, (120, 60, 30))).max() <= 1.0


def test_augmentation_is_new_every_epoch() -> None:
    images = noise(9)
    assert np.array_equal(crops(images, AUGMENT), crops(images, AUGMENT))
    assert not np.array_equal(crops(images, AUGMENT), crops(images, AUGMENT, epoch=1))


def test__kept_side_grows_with_the_crop() -> None:
    assert _kept_side(64, ImageAugment(crop_area=0.8)) == 71
    assert _kept_side(64, None) == 64


def test_crop_sizes_fit_the_smallest_image() -> None:
    images = np.zeros((50, 3, 3, 3), dtype=np.uint8)
    assert crops(images, ImageAugment(crop_area=0.11), px=2).shape == (50, 2, 2, 3)
