"""Where a product is photographed: walls, tables, shelves and floors, all in quiet colours.

Nothing here is as saturated as a product, so that the product's colour is the picture's colour.
"""

import random
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from coembed.pairs.shop.brush import Rgb, mixed

# Muted: the furthest apart any two channels get is about 45.
_PASTELS: tuple[Rgb, ...] = (
    (206, 218, 208), (198, 212, 218), (226, 214, 200), (220, 206, 206), (212, 208, 222),
    (188, 204, 202), (230, 222, 206), (196, 198, 204), (216, 220, 200), (178, 190, 198),
)  # fmt: skip
_WOODS: tuple[Rgb, ...] = ((214, 182, 140), (196, 164, 124), (226, 202, 168), (178, 150, 118))

Sketch = Callable[[random.Random, int, int], Image.Image]


def _gradient(width: int, height: int, top: Rgb, bottom: Rgb) -> Image.Image:
    t = (np.arange(height, dtype=np.float32) / np.float32(max(height - 1, 1)))[:, None]
    a, b = np.array(top, dtype=np.float32), np.array(bottom, dtype=np.float32)
    column = (a + (b - a) * t).astype(np.uint8)[:, None, :]
    return Image.fromarray(np.ascontiguousarray(column)).resize(
        (width, height), Image.Resampling.NEAREST
    )


def _spot(picture: Image.Image, x: float, y: float, strength: float) -> Image.Image:
    """Lit around (x, y), darker towards the corners."""
    width, height = picture.size
    dx = np.arange(width, dtype=np.float32) / np.float32(width) - np.float32(x)
    dy = np.arange(height, dtype=np.float32) / np.float32(height) - np.float32(y)
    far = (dx * dx)[None, :] + (dy * dy)[:, None]
    light = np.float32(1.05) - np.float32(strength) * np.minimum(far, np.float32(1))
    pixels = np.asarray(picture, dtype=np.float32) * light[:, :, None]
    return Image.fromarray(np.minimum(pixels, np.float32(255)).astype(np.uint8))


def _studio(rng: random.Random, width: int, height: int) -> Image.Image:
    base = rng.choice(((236, 236, 236), (224, 226, 228), (240, 238, 232), (212, 214, 216)))
    sweep = _gradient(width, height, mixed(base, 0.93), mixed(base, 1.3))
    return _spot(sweep, 0.5, 0.55, rng.uniform(0.3, 0.6))


def _pastel(rng: random.Random, width: int, height: int) -> Image.Image:
    base = rng.choice(_PASTELS)
    return _spot(_gradient(width, height, base, mixed(base, 0.93)), rng.uniform(0.3, 0.7), 0.4, 0.5)


def _planks(rng: random.Random, picture: Image.Image, top: int, wood: Rgb, *, deep: bool) -> None:
    """Boards from `top` down; `deep` runs them away from the eye, else they lie across."""
    width, height = picture.size
    draw = ImageDraw.Draw(picture)
    if deep:
        num = rng.randrange(5, 8)
        middle = width // 2
        for i in range(-num, num + 1):
            near, far = middle + i * width * 2 // num, middle + i * width // num
            step = (width * 2 // num, width // num)
            shade = mixed(wood, 1 - 0.07 * rng.random())
            draw.polygon(
                [(far, top), (far + step[1], top), (near + step[0], height), (near, height)],
                fill=shade,
            )
            draw.line([(far, top), (near, height)], fill=mixed(wood, 0.82), width=1)
    else:
        tall = rng.randrange(height // 7, height // 4)
        for y in range(top, height, tall):
            draw.rectangle([0, y, width, y + tall], fill=mixed(wood, 1 - 0.08 * rng.random()))
            for _ in range(4):
                at, x = y + rng.randrange(3, tall), rng.randrange(-width // 2, width)
                draw.line(
                    [(x, at), (x + width // 2, at + rng.randrange(-1, 2))], fill=mixed(wood, 0.9)
                )
            draw.line([(0, y), (width, y)], fill=mixed(wood, 0.74), width=2)


def _table(rng: random.Random, width: int, height: int) -> Image.Image:
    wall = rng.choice(_PASTELS)
    picture = _gradient(width, height, mixed(wall, 0.96), mixed(wall, 1.15))
    picture = picture.filter(ImageFilter.BoxBlur(1))
    top = int(height * rng.uniform(0.6, 0.68))
    _planks(rng, picture, top, rng.choice(_WOODS), deep=rng.random() < 0.6)
    ImageDraw.Draw(picture).line([(0, top), (width, top)], fill=(148, 120, 92), width=1)
    return _spot(picture, 0.45, 0.5, 0.45)


def _shelf(rng: random.Random, width: int, height: int) -> Image.Image:
    wall, wood = rng.choice(_PASTELS), rng.choice(_WOODS)
    picture = _gradient(width, height, mixed(wall, 1.12), mixed(wall, 0.94))
    draw = ImageDraw.Draw(picture)
    top, lip, low = int(height * 0.76), int(height * 0.87), int(height * 0.935)
    draw.rectangle([0, low, width, height], fill=mixed(wall, 0.72))
    for i in range(8):
        y = low + i * (height - low) // 8
        draw.rectangle([0, y, width, height], fill=mixed(wall, 0.66 + 0.03 * i))
    draw.rectangle([0, top, width, lip], fill=mixed(wood, 1.08))
    draw.rectangle([0, lip, width, low], fill=mixed(wood, 0.84))
    for _ in range(9):
        y, x = rng.randrange(top, lip), rng.randrange(-width // 2, width)
        draw.line([(x, y), (x + width // 2, y)], fill=mixed(wood, 0.96))
    return _spot(picture, 0.5, 0.4, 0.45)


def _room(rng: random.Random, width: int, height: int) -> Image.Image:
    wall = rng.choice(_PASTELS)
    picture = _gradient(width, height, mixed(wall, 0.95), mixed(wall, 1.1))
    draw = ImageDraw.Draw(picture)
    top = int(height * rng.uniform(0.62, 0.7))
    if rng.random() < 0.6:
        _planks(rng, picture, top, rng.choice(_WOODS), deep=True)
    else:
        draw.rectangle([0, top, width, height], fill=mixed(rng.choice(_PASTELS), 0.86))
    skirting = int(height * 0.05)
    draw.rectangle([0, top - skirting, width, top], fill=(242, 240, 236))
    draw.line([(0, top - skirting), (width, top - skirting)], fill=mixed(wall, 0.86), width=1)
    draw.line([(0, top), (width, top)], fill=(150, 142, 134), width=2)
    if rng.random() < 0.5:
        x, y = rng.choice((0.1, 0.7)), 0.1
        frame = [int(width * x), int(height * y), int(width * (x + 0.2)), int(height * (y + 0.24))]
        draw.rectangle(frame, fill=(248, 246, 240), outline=(176, 156, 132), width=3)
        draw.rectangle(
            [frame[0] + 8, frame[1] + 10, frame[2] - 8, frame[3] - 10], fill=mixed(wall, 0.84)
        )
    return _spot(picture, rng.uniform(0.35, 0.65), 0.5, 0.45)


def _counter(rng: random.Random, width: int, height: int) -> Image.Image:
    tile = rng.choice(((232, 236, 236), (238, 236, 230), (216, 226, 224), (226, 228, 234)))
    picture = _gradient(width, height, tile, mixed(tile, 0.95))
    draw = ImageDraw.Draw(picture)
    top = int(height * 0.68)
    tall = rng.choice((height // 7, height // 9))
    for row, y in enumerate(range(top - tall * 9, top, tall)):
        draw.line([(0, y), (width, y)], fill=mixed(tile, 0.87), width=2)
        for x in range(-tall * (row % 2), width + tall, tall * 2):
            draw.line([(x, y), (x, y + tall)], fill=mixed(tile, 0.87), width=2)
            draw.line([(x + 3, y + 3), (x + tall * 2 - 4, y + 3)], fill=mixed(tile, 1.5), width=1)
    stone = rng.choice(((150, 152, 154), (222, 220, 216), (186, 180, 172)))
    draw.rectangle([0, top, width, height], fill=stone)
    draw.rectangle([0, top, width, top + 4], fill=mixed(stone, 1.3))
    for _ in range(60):
        x, y = rng.randrange(width), rng.randrange(top + 6, height)
        draw.point([(x, y), (x + 1, y)], fill=mixed(stone, rng.choice((0.86, 1.25))))
    return _spot(picture, 0.5, 0.5, 0.4)


def _window(rng: random.Random, width: int, height: int) -> Image.Image:
    wall = rng.choice(_PASTELS)
    picture = _gradient(width, height, mixed(wall, 0.92), mixed(wall, 0.98))
    light = Image.new("L", picture.size)
    draw = ImageDraw.Draw(light)
    slant, x0 = rng.choice((-1, 1)) * width // 3, rng.randrange(0, width // 3)
    pane, gap = width * 2 // 7, width // 28
    for i in range(2):
        for j in range(2):
            x, y = x0 + i * (pane + gap), int(height * (0.06 + 0.38 * j))
            tall = int(height * 0.34)
            shift = (y * slant // height, (y + tall) * slant // height)
            draw.polygon(
                [
                    (x + shift[0], y),
                    (x + pane + shift[0], y),
                    (x + pane + shift[1], y + tall),
                    (x + shift[1], y + tall),
                ],
                fill=118,
            )
    light = light.filter(ImageFilter.BoxBlur(max(1, width // 60)))
    picture.paste((255, 250, 232), (0, 0), light)
    return picture


def _boards(rng: random.Random, width: int, height: int) -> Image.Image:
    picture = Image.new("RGB", (width, height))
    _planks(rng, picture, 0, rng.choice(_WOODS), deep=False)
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.ROTATE_90).resize(
            (width, height), Image.Resampling.NEAREST
        )
    return _spot(picture, 0.45, 0.45, 0.5)


_SKETCHES: dict[str, Sketch] = {
    "studio": _studio,
    "pastel": _pastel,
    "table": _table,
    "shelf": _shelf,
    "room": _room,
    "counter": _counter,
    "window": _window,
    "boards": _boards,
}
BACKGROUNDS = tuple(_SKETCHES)
# On these the product hangs or lies flat: its shadow falls straight behind it.
FLAT = frozenset({"boards", "window"})


def draw_backdrop(name: str, rng: random.Random, width: int, height: int) -> NDArray[np.float32]:
    """The named background as float RGB [height, width, 3], drawn at twice the size."""
    picture = _SKETCHES[name](rng, width * 2, height * 2).reduce(2)
    return np.asarray(picture, dtype=np.float32)
