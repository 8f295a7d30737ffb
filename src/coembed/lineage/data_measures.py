"""Distributions of two versions of the data, side by side, from the tables `old` and `new`.

Quantiles are exact and come from counts of values, which DuckDB sorts on disk where memory is
short; its own quantile functions hold every value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    import duckdb

_NUM_VALUES = 8
_SIDES = ("old", "new")


@dataclass(frozen=True, slots=True)
class Distribution:
    """`num` values that are there, their mean and quantiles; None where there is no value."""

    num: int
    mean: float | None
    minimum: float | None
    p5: float | None
    median: float | None
    p95: float | None
    maximum: float | None


@dataclass(frozen=True, slots=True)
class Numbers:
    """A column of numbers before and after."""

    name: str
    old: Distribution
    new: Distribution


@dataclass(frozen=True, slots=True)
class Shift:
    """A column of words before and after: how often it has no value, how many different ones it
    has, and how many pairs each of the `values` has whose share changed most.

    `distance` is the total variation distance of the two distributions of values: the share of
    pairs, 0 to 1, that would have to change theirs.
    """

    name: str
    absent: tuple[int, int]
    num_values: tuple[int, int]
    distance: float
    values: tuple[tuple[str, int, int], ...]


def measure(
    database: duckdb.DuckDBPyConnection, attributes: Mapping[str, pa.DataType]
) -> tuple[Numbers, tuple[Shift, ...], tuple[Numbers, ...]]:
    """The lengths of captions in characters, the shifts of modality, given split and of attributes
    that are text or true or false, and the attributes that are numbers."""
    shifts = [_shift(database, name, name) for name in ("modality", "split")]
    numbers = []
    for index, (name, kind) in enumerate(attributes.items()):
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            numbers.append(_numbers(database, name, f"a{index}"))
        else:
            shifts.append(_shift(database, name, f"a{index}"))
    lengths = _numbers(database, "caption length", "length(caption)")
    return lengths, tuple(shifts), tuple(numbers)


def _numbers(database: duckdb.DuckDBPyConnection, name: str, value: str) -> Numbers:
    old, new = (_distribution(database, side, value) for side in _SIDES)
    return Numbers(name, old, new)


def _distribution(database: duckdb.DuckDBPyConnection, side: str, value: str) -> Distribution:
    quantiles = ", ".join(
        f"min(v) FILTER (WHERE upto >= {share} * num)" for share in (0.05, 0.5, 0.95)
    )
    found: Any = database.execute(
        f"WITH counted AS (SELECT {value} AS v, count(*) AS n FROM {side} GROUP BY v "
        "HAVING v IS NOT NULL AND isfinite(v::DOUBLE)), "
        "ranked AS (SELECT v, n, sum(n) OVER (ORDER BY v) AS upto, sum(n) OVER () AS num "
        "FROM counted) "
        # As whole sums in order: floating sums would differ with the order of threads.
        f"SELECT sum(n), sum(n * v::DOUBLE ORDER BY v), min(v), {quantiles}, max(v) FROM ranked"
    ).fetchone()
    num = int(found[0] or 0)
    if not num:
        return Distribution(0, None, None, None, None, None, None)
    return Distribution(num, float(found[1]) / num, *(float(cell) for cell in found[2:]))


def _shift(database: duckdb.DuckDBPyConnection, name: str, column: str) -> Shift:
    old, new = (
        f"(SELECT {column}::VARCHAR AS v, count(*) AS n FROM {side} GROUP BY v)" for side in _SIDES
    )
    database.execute(
        "CREATE OR REPLACE TEMP TABLE shift AS SELECT coalesce(o.v, n.v) AS v, "
        f"coalesce(o.n, 0) AS old_n, coalesce(n.n, 0) AS new_n FROM {old} AS o "
        f"FULL JOIN {new} AS n ON o.v IS NOT DISTINCT FROM n.v"
    )
    totals: Any = database.execute(
        "SELECT sum(old_n) FILTER (WHERE v IS NULL), sum(new_n) FILTER (WHERE v IS NULL), "
        "count(*) FILTER (WHERE v IS NOT NULL AND old_n > 0), "
        "count(*) FILTER (WHERE v IS NOT NULL AND new_n > 0), "
        "greatest(sum(old_n), 1), greatest(sum(new_n), 1) FROM shift"
    ).fetchone()
    absent_old, absent_new, values_old, values_new, old_pairs, new_pairs = map(
        int, (cell or 0 for cell in totals)
    )
    change = f"abs(new_n / {new_pairs} - old_n / {old_pairs})"
    distance: Any = database.execute(
        # Whole numbers, so that the order of summing does not matter.
        f"SELECT sum(abs(new_n::HUGEINT * {old_pairs} - old_n::HUGEINT * {new_pairs})) FROM shift"
    ).fetchone()
    values = database.execute(
        f"SELECT v, old_n, new_n FROM shift WHERE v IS NOT NULL "
        f"ORDER BY {change} DESC, old_n + new_n DESC, v LIMIT {_NUM_VALUES}"
    ).fetchall()
    return Shift(
        name,
        (absent_old, absent_new),
        (values_old, values_new),
        int(distance[0] or 0) / (2 * old_pairs * new_pairs),
        tuple((str(value), int(before), int(after)) for value, before, after in values),
    )
