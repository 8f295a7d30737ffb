"""Pictures for the benchmarks: drawn, so that nothing is downloaded, and as costly to decode as
photographs.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def draw(number: int, side: int) -> bytes:
    """A JPEG, `side` wide and 3/4 as high, with soft ground, shapes and a camera's grain, different
    for every number.
    """
    rng = np.random.default_rng(number)
    ground = Image.fromarray(rng.integers(40, 216, (5, 5, 3), dtype=np.uint8))
    image = ground.resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = rng.integers(0, side, 2).tolist()
        w, h = rng.integers(side // 20, side // 3, 2).tolist()
        colour = tuple(rng.integers(0, 256, 3).tolist())
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape((x, y, x + w, y + h), fill=colour)
    image = image.filter(ImageFilter.GaussianBlur(side / 640))
    grain = rng.normal(0, 5, (*image.size[::-1], 1))
    buffer = io.BytesIO()
    pixels = np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=87)
    return buffer.getvalue()


def with_comment(jpeg: bytes, number: int) -> bytes:
    """The same picture in another file: a comment with `number` after the JPEG's first marker."""
    return jpeg[:2] + b"\xff\xfe\x00\x0a" + f"{number:08d}".encode() + jpeg[2:]
