"""What the newest version of the pool brought, against what was there before.

The pool keeps a journal of its own, one line an ingest with the tables that came; the manifest has
a row for every row of those tables, in the same order. So the comparison is a pure function of the
pool and the manifest: no earlier run is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from coembed.curation.report.look import Manifest
from coembed.curation.report.report_numbers import kinds
from coembed.curation.report.report_text import column_label, visible
from coembed.pairs.history import read_history
from coembed.pairs.pool import PAIR_COLUMNS, open_pool
from coembed.pairs.tables import table_batches

_SHOWN_COLUMNS = 8
_SHOWN_VALUES = 6
_NUM_WORDS = "len(string_split_regex(trim(caption), '\\s+'))"
# Doubling: 1, 2, 3 to 4, 5 to 8, ... words.
_LENGTH = f"CASE WHEN trim(caption) = '' THEN -1 ELSE ceil(log2({_NUM_WORDS})) END::INTEGER"
# Item ids are SHA-256 in hexadecimal: their first 64 bits tell ten million apart, and weigh less.
_ITEM = "('0x' || substr(item_id, 1, 16))::UBIGINT"


@dataclass(frozen=True, slots=True)
class ReasonShift:
    """A drop reason's pairs among the new ones and its share there and before."""

    reason: str
    num: int
    share: float
    share_before: float


@dataclass(frozen=True, slots=True)
class ValueShift:
    """A value's share among the pairs before and among the new ones."""

    label: str
    before: float
    new: float


@dataclass(frozen=True, slots=True)
class ColumnShift:
    """A column of kinds: `distance` is half the sum of absolute differences of the shares."""

    title: str
    distance: float
    values: tuple[ValueShift, ...]


@dataclass(frozen=True, slots=True)
class NumberShift:
    """Medians of a number."""

    title: str
    unit: str
    before: float | None
    new: float | None


@dataclass(frozen=True, slots=True)
class Change:
    """The newest version against all before it. Counts are of pairs unless named items."""

    version: int
    source: str
    num_before: int
    num_kept_before: int
    num_new: int
    num_kept_new: int
    num_items_before: int
    num_items_new: int
    reasons: tuple[ReasonShift, ...]
    columns: tuple[ColumnShift, ...]
    numbers: tuple[NumberShift, ...]


def last_change(manifest: Manifest, pool: Path) -> Change | None:
    """The change that the pool's newest version is; None where the pool has no journal, or nothing
    was there before. Raises DataError when the journal is malformed."""
    # Tables that the journal does not know were there before it: a pool made by hand, or the demo.
    history = [entry for entry in read_history(pool) if entry.tables]
    if not history:
        return None
    newest = history[-1]
    is_new = _is_new(pool, newest.tables)
    if is_new is None:
        return None
    (counts,) = manifest.ask(
        f"SELECT count(*) FILTER (NOT {is_new}), count(*) FILTER (kept AND NOT {is_new}), "
        f"count(*) FILTER ({is_new}), count(*) FILTER (kept AND {is_new}) FROM pairs"
    )
    num_before, num_kept_before, num_new, num_kept_new = counts
    if not num_before or not num_new:
        return None
    items_before, items_new = _count_items(manifest, is_new)
    return Change(
        version=newest.version,
        source=visible(newest.source, 120),
        num_before=num_before,
        num_kept_before=num_kept_before,
        num_new=num_new,
        num_kept_new=num_kept_new,
        num_items_before=items_before,
        num_items_new=items_new,
        reasons=_reasons(manifest, is_new, num_before, num_new),
        columns=_columns(manifest, is_new),
        numbers=_numbers(manifest, is_new),
    )


def _is_new(pool: Path, tables: Sequence[str]) -> str | None:
    """SQL: whether the pair came with one of `tables`; None where none of them is there."""
    ranges, start = [], 0
    wanted = set(tables)
    for table in open_pool(pool).tables:
        num = _count_rows(table)
        if table.name in wanted and num:
            ranges.append(f"row BETWEEN {start} AND {start + num - 1}")
        start += num
    return f"({' OR '.join(ranges)})" if ranges else None


def _count_rows(table: Path) -> int:
    if table.suffix == ".parquet":
        return int(pq.read_metadata(table).num_rows)
    batches = table_batches(table, text=PAIR_COLUMNS, max_rows=8192)
    return sum(batch.num_rows for batch in batches)


def _count_items(manifest: Manifest, is_new: str) -> tuple[int, int]:
    """Distinct items before, and those that only the new pairs have."""
    ((before, new),) = manifest.ask(
        "SELECT count(*) FILTER (NOT only_new), count(*) FILTER (only_new) FROM ("
        f" SELECT bool_and({is_new}) AS only_new FROM pairs WHERE item_id IS NOT NULL"
        f" GROUP BY {_ITEM})"
    )
    return before, new


def _reasons(
    manifest: Manifest, is_new: str, num_before: int, num_new: int
) -> tuple[ReasonShift, ...]:
    found = manifest.ask(
        f"SELECT drop_reason, count(*) FILTER ({is_new}) AS num, "
        f"count(*) FILTER (NOT {is_new}) FROM pairs "
        "WHERE NOT kept GROUP BY drop_reason ORDER BY num DESC, drop_reason"
    )
    return tuple(
        ReasonShift(reason, new, new / num_new, before / num_before)
        for reason, new, before in found
    )


def _columns(manifest: Manifest, is_new: str) -> tuple[ColumnShift, ...]:
    names = kinds(manifest)
    shifts = [_shift(manifest, is_new, column_label(name)[0], manifest.sql(name)) for name in names]
    shifts.append(_shift(manifest, is_new, "Caption length", _LENGTH, _length_label))
    shifts.sort(key=lambda shift: (-shift.distance, shift.title))
    return tuple(shifts[:_SHOWN_COLUMNS])


def _length_label(power: int) -> str:
    if power < 1:
        return "no words" if power < 0 else "1 word"
    low, high = 2 ** (power - 1) + 1, 2**power
    return f"{low} to {high} words" if low < high else f"{high} words"


def _shift(
    manifest: Manifest,
    is_new: str,
    title: str,
    column: str,
    label: Callable[[Any], str] = lambda value: visible(value, 40),
) -> ColumnShift:
    found = manifest.ask(
        f"SELECT {column} AS value, count(*) FILTER (NOT {is_new}), "
        f"count(*) FILTER ({is_new}) FROM pairs "
        f"WHERE {column} IS NOT NULL GROUP BY value ORDER BY value"
    )
    num_before = sum(before for _, before, _ in found) or 1
    num_new = sum(new for *_, new in found) or 1
    values = [
        ValueShift(label(value), before / num_before, new / num_new) for value, before, new in found
    ]
    values.sort(key=lambda v: (-abs(v.new - v.before), v.label))
    distance = sum(abs(v.new - v.before) for v in values) / 2
    return ColumnShift(visible(title, 60), distance, tuple(values[:_SHOWN_VALUES]))


_NUMBERS: Mapping[str, tuple[str, str, str]] = {
    "words": ("Words in a caption", "", _NUM_WORDS),
    "width": ("Width", "px", "width_px"),
    "height": ("Height", "px", "height_px"),
    "bytes": ("File size", "bytes", "num_bytes"),
    "seconds": ("Length of the sound", "s", "duration_s"),
}


def _numbers(manifest: Manifest, is_new: str) -> tuple[NumberShift, ...]:
    shifts = []
    for title, unit, sql in _NUMBERS.values():
        ((before, new),) = manifest.ask(
            f"SELECT quantile_disc({sql}, 0.5) FILTER (NOT {is_new}), "
            f"quantile_disc({sql}, 0.5) FILTER ({is_new}) FROM pairs"
        )
        if before is not None or new is not None:
            shifts.append(NumberShift(title, unit, before, new))
    return tuple(shifts)
