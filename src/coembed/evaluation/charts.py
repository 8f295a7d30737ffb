"""Charts as coordinates for inline SVG; the templates draw them."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from coembed.errors import DataError

WIDTH, HEIGHT = 360, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 24
_SQUARE = 240
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


@dataclass(frozen=True, slots=True)
class Mark:
    """A figure with its interval: their places along the axis."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True, slots=True)
class Forest:
    """The axis that differences share, row below row: zero in the middle, `reach` to either side.

    `reach` is a difference of shares (0.05 is five percentage points).
    """

    reach: float
    width: int = 200

    @classmethod
    def of(cls, rows: Sequence[tuple[float, float, float]]) -> Forest:
        """An axis for the (low, middle, high) of `rows`, one percentage point or more to each side.

        It holds every difference and most of the intervals: one that is far wider than the others
        would leave nothing of them to see.
        """
        middles = [abs(middle) for _, middle, _ in rows]
        ends = sorted(max(abs(low), abs(high)) for low, _, high in rows)
        most = max([0.01, *middles, *ends[3 * len(ends) // 4 : 3 * len(ends) // 4 + 1]])
        return cls(nice_ticks(0.0, most, num=2)[-1])

    @property
    def first(self) -> float:
        """The axis's left end."""
        return self._place(-self.reach)

    @property
    def last(self) -> float:
        """The axis's right end."""
        return self._place(self.reach)

    @property
    def zero(self) -> float:
        """Where no difference is."""
        return self.width / 2

    @property
    def ticks(self) -> tuple[Tick, ...]:
        """The axis in percentage points."""
        ends = (-self.reach, -self.reach / 2, 0.0, self.reach / 2, self.reach)
        return tuple(
            Tick(self._place(end), f"{100 * end:+.3g}".replace("-", "−") if end else "0")
            for end in ends
        )

    def mark(self, low: float, middle: float, high: float) -> Mark:
        """Places of a difference and its interval; what lies beyond the axis is cut off there."""
        return Mark(self._place(low), self._place(middle), self._place(high))

    def _place(self, value: float) -> float:
        share = min(max(value / self.reach, -1.0), 1.0)
        # Numbers at the ends stay inside the drawing.
        return round(self.zero + share * (self.zero - 14), 1)


@dataclass(frozen=True, slots=True)
class ReliabilityPoint:
    """Queries of like confidence: places of the confidence, of the share right and its interval."""

    x: float
    y: float
    low: float
    high: float
    text: str


@dataclass(frozen=True, slots=True)
class ReliabilityChart:
    """Confidence from left to right, the share that is right from bottom to top, both 0 to 1, in a
    square drawing of `size`. A model whose word can be taken lies on the diagonal."""

    points: tuple[ReliabilityPoint, ...]
    ticks: tuple[Tick, ...]
    size: int = _SQUARE
    left: int = _LEFT
    bottom: int = _BOTTOM

    @property
    def last(self) -> int:
        """Where 1 lies along either axis, from the drawing's right or top."""
        return _RIGHT


def reliability_chart(
    bins: Iterable[tuple[float, float, float, float, str]],
) -> ReliabilityChart:
    """Chart of (confidence, share right, its low, its high, words), shares from 0 to 1."""

    def x_place(share: float) -> float:
        return round(_LEFT + share * (_SQUARE - _LEFT - _RIGHT), 1)

    def y_place(share: float) -> float:
        return round(_SQUARE - _BOTTOM - share * (_SQUARE - _RIGHT - _BOTTOM), 1)

    return ReliabilityChart(
        tuple(
            ReliabilityPoint(x_place(sure), y_place(right), y_place(low), y_place(high), text)
            for sure, right, low, high, text in bins
        ),
        tuple(Tick(x_place(part / 4), f"{25 * part} %") for part in range(5)),
    )


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
