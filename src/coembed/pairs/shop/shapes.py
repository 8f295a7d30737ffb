"""Outlines as lists of points: the alphabet every drawing of the shop is spelt with.

Object space is x to the right and y down, roughly -1..1 on both axes. Sines are rounded so that
the last bit of a C library's `sin` can never move a pixel.
"""

import functools
import math
from collections.abc import Sequence

Point = tuple[float, float]
Outline = list[Point]


def _cos(degrees: float) -> float:
    return round(math.cos(math.radians(degrees)), 9)


def _sin(degrees: float) -> float:
    return round(math.sin(math.radians(degrees)), 9)


@functools.cache
def path(text: str) -> tuple[Point, ...]:
    """Points from text: "x,y x,y ..."."""
    pairs = (pair.split(",") for pair in text.split())
    return tuple((float(x), float(y)) for x, y in pairs)


def rotated(points: Sequence[Point], degrees: float, centre: Point = (0.0, 0.0)) -> Outline:
    """The points turned clockwise (y is down) about `centre`."""
    c, s = _cos(degrees), _sin(degrees)
    cx, cy = centre
    return [(cx + (x - cx) * c - (y - cy) * s, cy + (x - cx) * s + (y - cy) * c) for x, y in points]


def arc(
    cx: float, cy: float, rx: float, ry: float, start: float, end: float, num: int = 24
) -> Outline:
    """Points on an ellipse from `start` to `end` degrees; 0 is right, 90 is down."""
    step = (end - start) / num
    return [
        (cx + rx * _cos(start + step * i), cy + ry * _sin(start + step * i)) for i in range(num + 1)
    ]


def ellipse(cx: float, cy: float, rx: float, ry: float, num: int = 40) -> Outline:
    """A closed ellipse."""
    return arc(cx, cy, rx, ry, 0.0, 360.0, num)[:-1]


def box(x0: float, y0: float, x1: float, y1: float, radius: float = 0.0) -> Outline:
    """A rectangle with rounded corners."""
    r = min(radius, (x1 - x0) / 2, (y1 - y0) / 2)
    if r <= 0:
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    return [
        *arc(x0 + r, y0 + r, r, r, 180, 270, 6),
        *arc(x1 - r, y0 + r, r, r, 270, 360, 6),
        *arc(x1 - r, y1 - r, r, r, 0, 90, 6),
        *arc(x0 + r, y1 - r, r, r, 90, 180, 6),
    ]


def spline(points: Sequence[Point], *, closed: bool = True, num: int = 6) -> Outline:
    """A Catmull-Rom curve through the points."""
    n = len(points)
    out: Outline = []
    for i in range(n if closed else n - 1):
        if closed:
            p = [points[(i + k) % n] for k in (-1, 0, 1, 2)]
        else:
            p = [points[min(max(i + k, 0), n - 1)] for k in (-1, 0, 1, 2)]
        for j in range(num):
            t = j / num
            out.append((_catmull(p, 0, t), _catmull(p, 1, t)))
    if not closed:
        out.append(points[-1])
    return out


def _catmull(p: Sequence[Point], axis: int, t: float) -> float:
    a, b, c, d = (q[axis] for q in p)
    return 0.5 * (
        2 * b
        + (c - a) * t
        + (2 * a - 5 * b + 4 * c - d) * t * t
        + (3 * b - a - 3 * c + d) * t * t * t
    )


def mirrored(right: Sequence[Point]) -> Outline:
    """A shape symmetric about x = 0, from its right half given top to bottom."""
    return [*right, *((-x, y) for x, y in reversed(right))]


def stroke(points: Sequence[Point], width: float, end_width: float | None = None) -> Outline:
    """A line of the given width as an outline; the width may taper to `end_width`."""
    last = len(points) - 1
    tip = width if end_width is None else end_width
    left: Outline = []
    right: Outline = []
    for i, (x, y) in enumerate(points):
        ax, ay = points[max(i - 1, 0)]
        bx, by = points[min(i + 1, last)]
        dx, dy = bx - ax, by - ay
        length = math.sqrt(dx * dx + dy * dy) or 1.0
        half = (width + (tip - width) * i / last) / 2
        nx, ny = -dy / length * half, dx / length * half
        left.append((x + nx, y + ny))
        right.append((x - nx, y - ny))
    return [*left, *reversed(right)]
