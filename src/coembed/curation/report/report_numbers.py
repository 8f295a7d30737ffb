"""Distributions of the pool, before and after, as counts and as coordinates for inline SVG.

Every column is counted once for all that is asked of it. Bins and categories are made of all
pairs, so that before and after can be laid over each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from coembed.curation.report.look import Manifest
from coembed.curation.report.report_text import column_label, is_telling, number, short, visible

MAX_CATEGORIES = 60  # a column with more values than this is a name, not a kind: a guess
_SHOWN_CATEGORIES = 12
_FEW_NUMBERS = 8
_NUM_BINS = 28
# The outermost 1 in 1000 on either side goes into the first and last bin: one outlier must not
# squeeze everybody else into a single bar.
_TAIL = 0.001
WIDTH, HEIGHT = 340, 132
_LEFT, _RIGHT, _TOP, _BOTTOM = 8, 8, 8, 22

_CAPTION_WORDS = "len(string_split_regex(trim(caption), '\\s+'))"
# name → SQL over the view `pairs`; null where it does not apply
_EXPRESSIONS: tuple[tuple[str, str], ...] = (
    ("width_px", "width_px"),
    ("height_px", "height_px"),
    ("ratio", "width_px / nullif(height_px, 0)"),
    ("num_bytes", "num_bytes"),
    ("duration_s", "duration_s"),
    ("sample_rate_hz", "sample_rate_hz"),
    ("caption_words", f"CASE WHEN trim(caption) = '' THEN 0 ELSE {_CAPTION_WORDS} END"),
    ("caption_chars", "length(caption)"),
    ("modality", "modality"),
    ("format", "format"),
    ("colour_mode", "colour_mode"),
)


@dataclass(frozen=True, slots=True)
class Bar:
    """One column of a histogram in SVG coordinates: kept at the bottom, dropped on top."""

    x: float
    width: float
    kept_y: float
    kept_height: float
    dropped_y: float
    dropped_height: float
    label: str
    num_kept: int
    num_dropped: int


@dataclass(frozen=True, slots=True)
class Histogram:
    """A distribution of numbers. `ticks` are (x, text); the medians are texts."""

    title: str
    unit: str
    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]
    median_before: str
    median_after: str
    num_unknown: int
    logarithmic: bool


@dataclass(frozen=True, slots=True)
class Category:
    """One value of a column and how many pairs have it."""

    label: str
    num_before: int
    num_after: int


@dataclass(frozen=True, slots=True)
class Categories:
    """A distribution over few values, the most frequent first. Null cells are not counted."""

    title: str
    column: str
    values: tuple[Category, ...]
    num_further: int  # values that are not shown
    num_unknown: int
    num_before: int
    num_after: int

    @property
    def most(self) -> int:
        """The largest count, for the bars' scale."""
        return max((value.num_before for value in self.values), default=1)


@dataclass(frozen=True, slots=True)
class Constant:
    """A column that says the same of every pair."""

    title: str
    value: str


Distribution = Histogram | Categories | Constant


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    title: str
    unit: str
    sql: str
    is_number: bool
    num_known: int
    num_values: int  # about


def fact_distributions(manifest: Manifest) -> list[Distribution]:
    """Sizes, formats, caption lengths: what is known of every pair."""
    return list(_distributions(manifest, _EXPRESSIONS))


def score_distributions(manifest: Manifest) -> list[Distribution]:
    """What the filters measured: numbers, and texts with few values (languages)."""
    columns = [(name, manifest.sql(name)) for name in manifest.scores if is_telling(name)]
    found = _distributions(manifest, columns)
    return [view for view in found if not isinstance(view, Constant)]


def attribute_distributions(manifest: Manifest) -> list[Distribution]:
    """The pool's own columns: numbers, and texts with few values."""
    columns = [(name, manifest.sql(name)) for name in manifest.attributes]
    return list(_distributions(manifest, columns))


def kinds(manifest: Manifest) -> list[str]:
    """The columns that hold kinds, at least 2 and few of them: the pool's own, and texts that a
    filter found (languages). What a filter counted is a measure, however few values it has."""
    names = [*manifest.attributes, *filter(is_telling, manifest.scores)]
    columns = _describe(manifest, [(name, manifest.sql(name)) for name in names])
    return [
        column.name
        for column in columns
        if 2 <= column.num_values <= (_FEW_NUMBERS if column.is_number else MAX_CATEGORIES)
        and not (column.is_number and column.name in manifest.scores)
    ]


def _distributions(
    manifest: Manifest, columns: Sequence[tuple[str, str]]
) -> Iterator[Distribution]:
    for column in _describe(manifest, columns):
        if column.num_known == 0:
            continue
        if column.num_values <= (_FEW_NUMBERS if column.is_number else MAX_CATEGORIES):
            yield _categories(manifest, column)
        elif column.is_number:
            yield _histogram(manifest, column)


def _describe(manifest: Manifest, columns: Sequence[tuple[str, str]]) -> list[_Column]:
    if not columns:
        return []
    asked = ", ".join(
        f"count({sql}), approx_count_distinct({sql}), any_value(typeof({sql}))"
        for _, sql in columns
    )
    (cells,) = manifest.ask(f"SELECT {asked} FROM pairs")
    described = []
    for place, (name, sql) in enumerate(columns):
        known, values, kind = cells[3 * place : 3 * place + 3]
        title, unit = column_label(name)
        is_number = kind in ("BIGINT", "INTEGER", "DOUBLE", "FLOAT", "SMALLINT", "TINYINT")
        described.append(_Column(name, visible(title, 60), unit, sql, is_number, known, values))
    return described


def _categories(manifest: Manifest, column: _Column) -> Distribution:
    found = manifest.ask(
        f"SELECT {column.sql} AS value, count(*) AS num, count(*) FILTER (kept) FROM pairs "
        "GROUP BY value ORDER BY num DESC, value NULLS LAST"
    )
    known = [(_label(value), num, kept) for value, num, kept in found if value is not None]
    unit = f" {column.unit}" if column.unit and column.is_number else ""
    unknown = sum(num for value, num, _ in found if value is None)
    if len(known) == 1:
        return Constant(column.title, known[0][0] + unit)
    shown = [Category(label + unit, num, kept) for label, num, kept in known[:_SHOWN_CATEGORIES]]
    return Categories(
        title=column.title,
        column=column.name,
        values=tuple(shown),
        num_further=len(known) - len(shown),
        num_unknown=unknown,
        num_before=sum(num for _, num, _ in known),
        num_after=sum(kept for _, _, kept in known),
    )


def _label(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, (int, float)) else visible(value, 40)


def _histogram(manifest: Manifest, column: _Column) -> Distribution:
    finite = f"CASE WHEN isfinite(({column.sql})::DOUBLE) THEN ({column.sql})::DOUBLE END"
    ((low, high, before, after, num_known),) = manifest.ask(
        f"SELECT quantile_disc(value, {_TAIL}), quantile_disc(value, {1 - _TAIL}), "
        "quantile_disc(value, 0.5), quantile_disc(value, 0.5) FILTER (kept), count(value) "
        f"FROM (SELECT {finite} AS value, kept FROM pairs)"
    )
    if low is None:
        return Constant(column.title, "no finite number")
    if low == high:
        return Constant(column.title, f"{number(low)} {column.unit}, nearly always".strip())
    logarithmic = low > 0 and high / low >= 30
    edges = _edges(low, high, logarithmic=logarithmic, whole=_whole(manifest, column))
    place = f"least(greatest(floor((@ - {edges.start!r}) / {edges.step!r}), 0), {edges.num - 1})"
    place = place.replace("@", "ln(greatest(value, 1e-300))" if logarithmic else "value")
    found = manifest.ask(
        f"SELECT {place}::INTEGER AS place, count(*), count(*) FILTER (kept) "
        f"FROM (SELECT {finite} AS value, kept FROM pairs) WHERE value IS NOT NULL "
        "GROUP BY place ORDER BY place"
    )
    ((num_pairs,),) = manifest.ask("SELECT count(*) FROM pairs")
    return Histogram(
        title=column.title,
        unit=column.unit,
        bars=_bars(found, edges),
        ticks=_ticks(edges),
        median_before=number(before),
        median_after="–" if after is None else number(after),
        num_unknown=num_pairs - num_known,
        logarithmic=logarithmic,
    )


@dataclass(frozen=True, slots=True)
class _Edges:
    """Bins of equal `step` from `start`, of values or of their natural logarithms."""

    start: float
    step: float
    num: int
    logarithmic: bool

    def value(self, place: float) -> float:
        at = self.start + place * self.step
        return math.exp(at) if self.logarithmic else at


def _whole(manifest: Manifest, column: _Column) -> bool:
    ((kind,),) = manifest.ask(f"SELECT any_value(typeof({column.sql})) FROM pairs")
    return kind in ("BIGINT", "INTEGER", "SMALLINT", "TINYINT")


def _edges(low: float, high: float, *, logarithmic: bool, whole: bool) -> _Edges:
    if logarithmic:
        start, end = math.log(low), math.log(high)
        return _Edges(start, (end - start) / _NUM_BINS * (1 + 1e-9), _NUM_BINS, True)
    if whole:
        # A bin that holds two whole numbers beside one that holds one would look like a comb.
        step = max(1.0, math.ceil((high - low + 1) / _NUM_BINS))
        return _Edges(low - 0.5, step, max(1, math.ceil((high - low + 1) / step)), False)
    return _Edges(low, (high - low) / _NUM_BINS * (1 + 1e-9), _NUM_BINS, False)


def _bars(found: Sequence[tuple[int, int, int]], edges: _Edges) -> tuple[Bar, ...]:
    tallest = max(num for _, num, _ in found)
    step = (WIDTH - _LEFT - _RIGHT) / edges.num
    inner = HEIGHT - _TOP - _BOTTOM
    bars = []
    for place, num, kept in found:
        # At least a pixel for what is there: a bar of nothing says that nothing is there.
        tall = max(inner * num / tallest, 1.0)
        kept_tall = tall * kept / num
        base = HEIGHT - _BOTTOM
        low, high = edges.value(place), edges.value(place + 1)
        bars.append(
            Bar(
                x=round(_LEFT + place * step, 2),
                width=round(max(step - 1, 0.5), 2),
                kept_y=round(base - kept_tall, 2),
                kept_height=round(kept_tall, 2),
                dropped_y=round(base - tall, 2),
                dropped_height=round(tall - kept_tall, 2),
                label=_range(low, high, edges),
                num_kept=kept,
                num_dropped=num - kept,
            )
        )
    return tuple(bars)


def _range(low: float, high: float, edges: _Edges) -> str:
    if not edges.logarithmic and edges.start % 1 == 0.5 and edges.step % 1 == 0:
        first, last = math.ceil(low), math.floor(high)
        return number(first) if first == last else f"{number(first)} to {number(last)}"
    return f"{short(low)} to {short(high)}"


def _ticks(edges: _Edges) -> tuple[tuple[float, str], ...]:
    inner = WIDTH - _LEFT - _RIGHT
    ticks = []
    for share, place in ((0.0, 0.0), (0.5, edges.num / 2), (1.0, float(edges.num))):
        value = edges.value(place)
        if not edges.logarithmic and edges.start % 1 == 0.5:
            value = math.ceil(value) if share < 1 else math.floor(value)
        ticks.append((round(_LEFT + share * inner, 1), short(value)))
    return tuple(ticks)
