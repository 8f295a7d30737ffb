"""Line charts as coordinates for inline SVG; the template draws them."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coembed.errors import DataError

WIDTH, HEIGHT = 360, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 24
_MAX_POINTS = 300


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis: its place in the drawing and its text."""

    place: float
    text: str


@dataclass(frozen=True, slots=True)
class LineChart:
    """One curve. `points` are SVG coordinates in a drawing of WIDTH x HEIGHT."""

    title: str
    points: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    first: str
    last: str


def read_history(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Curves of a training history: for every column but step and epoch its (step, value) points.

    Empty cells and cells that are not finite numbers are left out, as are constant columns.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"the training history {path} cannot be read: {error}",
            hint="run `coembed train` again: it writes history.csv beside the model",
        ) from error
    curves: dict[str, list[tuple[float, float]]] = {}
    for number, row in enumerate(rows):
        step = _number(row.get("step"))
        for name, cell in row.items():
            value = _number(cell)
            if name in ("step", "epoch") or value is None:
                continue
            curves.setdefault(name, []).append((number if step is None else step, value))
    return {name: points for name, points in curves.items() if len({y for _, y in points}) > 1}


def line_chart(title: str, points: Sequence[tuple[float, float]]) -> LineChart:
    """Chart of `points` (at least two), thinned to a few hundred by the mean of neighbours."""
    thin = _thin(points)
    x_low, x_high = thin[0][0], max(thin[-1][0], thin[0][0] + 1)
    y_marks = nice_ticks(min(y for _, y in thin), max(y for _, y in thin))
    y_low, y_high = y_marks[0], y_marks[-1]

    def x_place(x: float) -> float:
        return round(_LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT), 1)

    def y_place(y: float) -> float:
        return round(
            HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM), 1
        )

    inside = [mark for mark in nice_ticks(x_low, x_high) if x_low <= mark <= x_high]
    return LineChart(
        title=title,
        points=" ".join(f"{x_place(x)},{y_place(y)}" for x, y in thin),
        x_ticks=tuple(Tick(x_place(mark), _short(mark)) for mark in inside),
        y_ticks=tuple(Tick(y_place(mark), _short(mark)) for mark in y_marks),
        first=_short(points[0][1]),
        last=_short(points[-1][1]),
    )


def nice_ticks(low: float, high: float, num: int = 4) -> list[float]:
    """Round marks that enclose low..high: steps of 1, 2 or 5 times a power of ten."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / num))
    step = next(power * f for f in (1, 2, 5, 10) if power * f * num >= span * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(place * step, 12) for place in range(first, max(last, first + 1) + 1)]


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    size = math.ceil(len(points) / _MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def _number(cell: str | None) -> float | None:
    try:
        value = float(cell or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _short(value: float) -> str:
    """A number in few characters: 12,000 → 12k, 0.00050 → 5e-4."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10_000:
        return f"{value / 1000:g}k"
    if size < 0.001:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"
