"""The brush: fills outlines with shaded paint on a supersampled canvas.

Everything here is Pillow's integer drawing plus elementwise arithmetic, so that a seed draws the
same bytes on every x86-64 machine. A part's shading is a *profile* (how light runs across it)
looked up in a 256-entry table of its paint, which is much cheaper than lighting each pixel.
"""

import functools
import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from coembed.pairs.shop import shapes
from coembed.pairs.shop.shapes import Point

Rgb = tuple[int, int, int]
Shade = Literal["down", "up", "round", "ball", "metal", "flat"]

# A stop is (place across the part, brightness): below 1 darkens, above 1 mixes towards white.
# The part is taken to be lit from the left; for a light on the right the table is reversed.
_STOPS: dict[str, list[tuple[float, float]]] = {
    "down": [(0, 1.14), (0.35, 1.0), (1, 0.8)],
    "up": [(0, 0.72), (0.5, 0.9), (1, 1.02)],
    "round": [
        (0, 0.8),
        (0.14, 1.03),
        (0.27, 1.28),
        (0.4, 1.04),
        (0.72, 0.84),
        (0.93, 0.68),
        (1, 0.76),
    ],
    "ball": [(0, 1.42), (0.16, 1.18), (0.42, 1.0), (0.75, 0.82), (1, 0.64)],
    "metal": [(0, 0.7), (0.2, 1.3), (0.38, 0.9), (0.55, 0.72), (0.72, 1.25), (1, 0.62)],
    "flat": [(0, 1.0), (1, 1.0)],
}
_ACROSS = frozenset({"round", "metal"})
SUPERSAMPLE = 4


@dataclass(frozen=True, slots=True)
class Paint:
    """A colour, and the second colour its pattern is drawn in (None: no pattern)."""

    rgb: Rgb
    second: Rgb | None = None
    gloss: float = 1.0

    def shaded(self, brightness: float) -> "Paint":
        """The same paint without a pattern, darker (below 1) or lighter (above 1)."""
        return Paint(mixed(self.rgb, brightness), None, self.gloss)


def mixed(rgb: Rgb, brightness: float) -> Rgb:
    """The colour darkened (brightness below 1) or mixed towards white (above 1)."""
    if brightness <= 1:
        r, g, b = (int(v * brightness) for v in rgb)
    else:
        r, g, b = (int(v + (255 - v) * min(brightness - 1, 1.0)) for v in rgb)
    return r, g, b


@functools.lru_cache(maxsize=8192)
def _table(rgb: Rgb, shade: str, gloss: float) -> NDArray[np.uint8]:
    stops = _STOPS[shade]
    # A pale thing in shadow stays pale, or white would read as grey.
    keep = 0.55 if min(rgb) > 200 else 1.0
    rows = []
    for i in range(256):
        t = i / 255
        for (t0, m0), (t1, m1) in itertools.pairwise(stops):
            if t <= t1:
                m = m0 + (m1 - m0) * (t - t0) / (t1 - t0)
                break
        m = 1 + (m - 1) * (gloss if m > 1 else keep)
        rows.append(mixed(rgb, m))
    return np.array(rows, dtype=np.uint8)


@final
class Frame:
    """Where an object stands in the picture: object space to canvas pixels."""

    def __init__(
        self,
        size: tuple[int, int],
        *,
        centre: Point = (0.5, 0.5),
        scale: float = 0.5,
        turn: float = 0.0,
        lean: float = 0.0,
        taper: float = 0.0,
        mirror: bool = False,
    ) -> None:
        self.size = size
        self._scale = scale * min(size)
        self._x = centre[0] * size[0]
        self._y = centre[1] * size[1]
        (self._c, self._s), *_ = shapes.rotated([(1.0, 0.0)], turn)
        self._lean, self._taper = lean, taper
        self._flip = -1.0 if mirror else 1.0

    def __call__(self, points: Sequence[Point]) -> list[tuple[int, int]]:
        out = []
        for px, py in points:
            x = px * (1.0 + self._taper * py) + self._lean * py
            y = py * (1.0 + self._taper * 0.5 * px)
            x, y = x * self._c - y * self._s, x * self._s + y * self._c
            out.append(
                (
                    round(self._x + self._flip * x * self._scale),
                    round(self._y + y * self._scale),
                )
            )
        return out


@final
class Brush:
    """Draws parts of one object; `rgb` (premultiplied by coverage) and `alpha` are the result."""

    def __init__(
        self, frame: Frame, *, light_from_left: bool, pattern: str, rng: random.Random
    ) -> None:
        self.rng = rng
        self.rgb = Image.new("RGB", frame.size)
        self.alpha = Image.new("L", frame.size)
        self._draw = ImageDraw.Draw(self.rgb)
        self._frame = frame
        self.light_from_left = light_from_left
        self._places: list[tuple[float, float, float, float]] = []
        self._pattern = pattern
        self._pattern_mask: Image.Image | None = None
        self._pattern_turn = 0.0 if pattern == "checked" else rng.choice((0.0, 90.0, 90.0, 35.0))
        self._pattern_scale = rng.uniform(0.85, 1.2)
        self._line = max(1, round(min(frame.size) / 190))
        self._last: tuple[Image.Image, tuple[int, int, int, int]] | None = None

    @contextmanager
    def at(self, dx: float, dy: float, scale: float = 1.0, turn: float = 0.0) -> Iterator[None]:
        """Draw what follows moved, scaled and turned."""
        self._places.append((dx, dy, scale, turn))
        try:
            yield
        finally:
            self._places.pop()

    def set_pattern(self, *, scale: float = 1.0, turn: float | None = None) -> None:
        """Suit the pattern to the kind, before its first patterned part."""
        self._pattern_scale *= scale
        if turn is not None and self._pattern != "checked":
            self._pattern_turn = turn

    def _canvas(self, points: Sequence[Point]) -> list[tuple[int, int]]:
        for dx, dy, scale, turn in reversed(self._places):
            if turn:
                points = shapes.rotated(points, turn)
            points = [(x * scale + dx, y * scale + dy) for x, y in points]
        return self._frame(points)

    def part(
        self,
        points: Sequence[Point],
        paint: Paint,
        shade: Shade = "down",
        *,
        edge: bool = True,
        opacity: int = 255,
    ) -> None:
        """Fill an outline with shaded paint and its pattern, and line its edge darker."""
        poly = self._canvas(points)
        width, height = self._frame.size
        x0 = max(min(x for x, _ in poly), 0)
        y0 = max(min(y for _, y in poly), 0)
        x1 = min(max(x for x, _ in poly) + 1, width)
        y1 = min(max(y for _, y in poly) + 1, height)
        if x1 <= x0 or y1 <= y0:
            return
        place = (x0, y0, x1, y1)
        mask = Image.new("L", (x1 - x0, y1 - y0))
        ImageDraw.Draw(mask).polygon([(x - x0, y - y0) for x, y in poly], fill=opacity)
        self._last = (mask, place)
        self.rgb.paste(self._fill(paint.rgb, shade, paint.gloss, mask.size), place, mask)
        self.alpha.paste(255, place, mask)
        if paint.second is not None and self._pattern != "plain":
            spots = ImageChops.multiply(mask, self._patterned().crop(place))
            self.rgb.paste(self._fill(paint.second, shade, paint.gloss, mask.size), place, spots)
        if edge:
            dark = 0.8 if min(paint.rgb) > 200 else 0.66
            self._draw.line(
                [*poly, poly[0], poly[1]], fill=mixed(paint.rgb, dark), width=self._line
            )
            # The lid of the line outside the mask is covered too.
            ImageDraw.Draw(self.alpha).line([*poly, poly[0], poly[1]], fill=255, width=self._line)

    def line(self, points: Sequence[Point], rgb: Rgb, width: float) -> None:
        """A thin line on what is already drawn (a seam, a string), width in object units."""
        px = max(1, round(width * min(self._frame.size) / 2))
        poly = self._canvas(points)
        self._draw.line(poly, fill=rgb, width=px, joint="curve")
        ImageDraw.Draw(self.alpha).line(poly, fill=255, width=px, joint="curve")

    def glow(
        self, points: Sequence[Point], rgb: Rgb, strength: float, softness: float = 0.05
    ) -> None:
        """A soft light or shadow on the part drawn last, and on nothing else."""
        assert self._last is not None, "glow comes after a part"
        mask, (x0, y0, x1, y1) = self._last
        # Drawn at a quarter of the size: it is blurred anyway.
        small = (max(1, (x1 - x0) // 4), max(1, (y1 - y0) // 4))
        blob = Image.new("L", small)
        ImageDraw.Draw(blob).polygon(
            [((x - x0) // 4, (y - y0) // 4) for x, y in self._canvas(points)],
            fill=round(255 * strength),
        )
        radius = max(1, round(softness * min(self._frame.size) / 8))
        blob = blob.filter(ImageFilter.BoxBlur(radius)).filter(ImageFilter.BoxBlur(radius))
        blob = blob.resize(mask.size, Image.Resampling.BILINEAR)
        self.rgb.paste(rgb, (x0, y0, x1, y1), ImageChops.multiply(blob, mask))

    def _fill(self, rgb: Rgb, shade: Shade, gloss: float, size: tuple[int, int]) -> Image.Image:
        table = _table(rgb, shade, gloss)
        width, height = size
        if shade == "flat":
            return Image.new("RGB", size, rgb)
        if shade == "ball":
            cx = 0.34 if self.light_from_left else 0.66
            x = (
                np.arange(width, dtype=np.float32) / np.float32(width) - np.float32(cx)
            ) * np.float32(1.3)
            y = (
                np.arange(height, dtype=np.float32) / np.float32(height) - np.float32(0.3)
            ) * np.float32(1.15)
            far = np.sqrt((x * x)[None, :] + (y * y)[:, None]) * np.float32(255)
            return Image.fromarray(table[np.minimum(far, np.float32(255)).astype(np.uint8)])
        across = shade in _ACROSS
        num = width if across else height
        index = np.arange(num) * 255 // max(num - 1, 1)
        if across and not self.light_from_left:
            index = index[::-1]
        strip = table[index]
        strip = strip[None, :, :] if across else strip[:, None, :]
        return Image.fromarray(np.ascontiguousarray(strip)).resize(size, Image.Resampling.NEAREST)

    def _patterned(self) -> Image.Image:
        if self._pattern_mask is None:
            self._pattern_mask = Image.new("L", self._frame.size)
            draw = ImageDraw.Draw(self._pattern_mask)
            if self._pattern == "striped":
                self._bands(draw, self._pattern_turn, 0.19, 0.075, 255)
            elif self._pattern == "dotted":
                self._dots(draw)
            else:
                self._gingham()
        return self._pattern_mask

    def _bands(
        self, draw: ImageDraw.ImageDraw, turn: float, period: float, width: float, fill: int
    ) -> None:
        period, width = period * self._pattern_scale, width * self._pattern_scale
        num = int(1.7 / period) + 1
        for i in range(-num, num + 1):
            y = i * period + 0.03
            band = [(-1.8, y), (1.8, y), (1.8, y + width), (-1.8, y + width)]
            draw.polygon(self._frame(shapes.rotated(band, turn)), fill=fill)

    def _dots(self, draw: ImageDraw.ImageDraw) -> None:
        gap, radius = 0.16 * self._pattern_scale, 0.046 * self._pattern_scale
        num = int(1.3 / gap) + 1
        for row in range(-num, num + 1):
            for col in range(-num, num + 1):
                x = (col + (0.5 if row % 2 else 0.0)) * gap * 1.12
                y = row * gap * 0.86
                spot = shapes.ellipse(x, y, radius, radius, 12)
                draw.polygon(self._frame(spot), fill=255)

    def _gingham(self) -> None:
        # Two half-strong sets of bands added up: pale where one runs, full where they cross.
        assert self._pattern_mask is not None
        other = Image.new("L", self._frame.size)
        self._bands(ImageDraw.Draw(self._pattern_mask), 0.0, 0.2, 0.1, 118)
        self._bands(ImageDraw.Draw(other), 90.0, 0.2, 0.1, 118)
        self._pattern_mask = ImageChops.add(self._pattern_mask, other)
