"""Pictures that look like photographs, copies of them as others would post them, and lookalikes."""

from __future__ import annotations

import functools
import io
import random
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont


def _soft_noise(rng: np.random.Generator, px: int) -> NDArray[np.float64]:
    """Noise with the spectrum of natural pictures, mean 0, deviation 1."""
    frequency = np.fft.fftfreq(px)
    distance = np.hypot(frequency[:, None], frequency[None])
    distance[0, 0] = 1
    phases = rng.normal(size=(px, px)) + 1j * rng.normal(size=(px, px))
    noise = np.fft.ifft2(phases / distance**1.6).real
    scaled: NDArray[np.float64] = (noise - noise.mean()) / noise.std()
    return scaled


@functools.cache
def photograph(seed: int, *, thing: int | None = None, px: int = 192) -> Image.Image:
    """A thing in a scene. `thing`: the seed of the thing; another one makes a lookalike."""
    rng = np.random.default_rng(seed)
    light = _soft_noise(rng, px)[:, :, None]
    tones = rng.uniform(60, 190, 3) + 25 * light + 9 * _soft_noise(rng, px)[:, :, None]
    horizon = int(px * rng.uniform(0.4, 0.7))
    tones[horizon:] = rng.uniform(40, 180, 3) + 16 * light[horizon:]
    scene = Image.fromarray(np.clip(tones, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(scene)
    for _ in range(4):
        _blob(draw, rng, px, rng.uniform(0, px, 2), rng.uniform(0.05, 0.15))
    own = np.random.default_rng([seed, 1] if thing is None else [thing, 2])
    _blob(draw, own, px, px * own.uniform(0.35, 0.65, 2), own.uniform(0.2, 0.3))
    return scene.filter(ImageFilter.GaussianBlur(0.7))


def _blob(
    draw: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    px: int,
    middle: NDArray[np.float64],
    size: float,
) -> None:
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    reach = px * size * rng.uniform(0.5, 1.2, 9)
    x, y = middle[0] + reach * np.cos(angles), middle[1] + reach * np.sin(angles)
    colour = tuple(int(v) for v in rng.uniform(0, 255, 3))
    draw.polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=colour)


def _crop(picture: Image.Image, rng: random.Random) -> Image.Image:
    width, height = picture.size
    left, right = sorted((rng.uniform(0, 0.09), rng.uniform(0, 0.09)))
    top, bottom = sorted((rng.uniform(0, 0.09), rng.uniform(0, 0.09)))
    box = (
        round(width * left), round(height * top),
        round(width * (1 - right + left)), round(height * (1 - bottom + top)),
    )  # fmt: skip
    return picture.crop(box).resize(picture.size, Image.Resampling.BICUBIC)


def _stamp(picture: Image.Image, rng: random.Random) -> Image.Image:
    mask = Image.new("L", picture.size)
    font = ImageFont.load_default(size=picture.height / 12)
    at = (picture.width * rng.uniform(0.05, 0.4), picture.height * rng.uniform(0.1, 0.8))
    ImageDraw.Draw(mask).text(at, "(c) example", fill=rng.randrange(120, 190), font=font)
    stamped = picture.copy()
    stamped.paste((250, 250, 250), (0, 0), mask)
    return stamped


COPIES: dict[str, Callable[[Image.Image, random.Random], Image.Image]] = {
    "encoded": lambda picture, _: picture,
    "scaled": lambda picture, rng: picture.resize(
        [round(side * rng.uniform(0.5, 0.9)) for side in picture.size], Image.Resampling.BILINEAR
    ),
    "cropped": _crop,
    "flipped": lambda picture, _: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "brighter": lambda picture, rng: ImageEnhance.Brightness(picture).enhance(
        rng.choice((rng.uniform(0.8, 0.9), rng.uniform(1.1, 1.2)))
    ),
    "recoloured": lambda picture, rng: ImageEnhance.Color(picture).enhance(
        rng.choice((rng.uniform(0.65, 0.85), rng.uniform(1.2, 1.4)))
    ),
    "stamped": _stamp,
}


def jpeg(picture: Image.Image, quality: int = 88) -> bytes:
    """The picture as JPEG."""
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


def copy_of(picture: Image.Image, how: str, seed: int) -> bytes:
    """A JPEG of `picture` as changed by COPIES[how]."""
    rng = random.Random(seed)
    return jpeg(COPIES[how](picture, rng), 45 if how == "encoded" else rng.randrange(75, 92))
