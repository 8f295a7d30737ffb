"""Whether items that share a caption have anything else in common, by the pool's attributes.

"Red sneakers" may be true of a thousand items, "no description available" of none. A column counts
as evidence when items that share a caption mostly share its value: a kind or a colour will, a
licence or a year will not. The agreement of a group of items in a column is the share of pairs of
its items with equal values, less what chance gives in this pool: 0 is chance, 1 is all equal.
"""

from __future__ import annotations

from typing import Any

from coembed.curation.filters.base import PoolView

# An attribute with more values than this tells products, not kinds.
_MAX_VALUES = 1000
# Fewer groups than this that have several items say nothing about an attribute.
_MIN_GROUPS = 20
# A column in which two items mostly agree by chance tells nothing.
_MAX_CHANCE = 0.5


def evidence(pool: PoolView, groups: str, least: float) -> dict[str, float]:
    """The columns that are evidence, and the share of pairs of items that agree by chance.

    `groups` names a table (grp, item, row) with one line a group and item, and a row of that item.
    Columns in which its groups agree by `least` or more on average are evidence.
    """
    found = {}
    for name in pool.attribute_names:
        column = _quoted(name)
        num_values, kind = _cells(
            pool,
            f"SELECT approx_count_distinct({column}), any_value(typeof({column})) FROM attributes",
        )
        # Fractions measure (a price); they do not sort items into kinds.
        if not 1 < int(num_values or 0) <= _MAX_VALUES or kind in ("DOUBLE", "FLOAT"):
            continue
        num, share, chance = _cells(
            pool,
            f"SELECT count(*), avg(share), (SELECT sum(n * (n - 1)) / (sum(n) * (sum(n) - 1)) FROM"
            f" (SELECT count(*) AS n FROM attributes WHERE {column} IS NOT NULL"
            f" GROUP BY {column})) FROM ({_shares(groups, column)})",
        )
        if num < _MIN_GROUPS or share is None or chance is None or chance > _MAX_CHANCE:
            continue
        if (share - chance) / (1 - chance) >= least:
            found[name] = float(chance)
    return found


def agreements(
    pool: PoolView, groups: str, columns: dict[str, float]
) -> dict[int, tuple[float, str]]:
    """The best agreement of each group in `columns` (as `evidence` gave them), and in which."""
    best: dict[int, tuple[float, str]] = {}
    for name, chance in columns.items():
        for batch in pool.query(_shares(groups, _quoted(name))):
            for group, share in zip(*batch.to_pydict().values(), strict=True):
                agreement = (share - chance) / (1 - chance)
                if group not in best or agreement > best[group][0]:
                    best[group] = (agreement, name)
    return best


def _shares(groups: str, column: str) -> str:
    """SQL of (grp, share of pairs of items with equal values), for groups of several items."""
    return (
        f"SELECT grp, sum(n * (n - 1)) / (sum(n) * (sum(n) - 1)) AS share FROM (SELECT grp,"
        f" count(*) AS n FROM {groups} JOIN attributes USING (row) WHERE {column} IS NOT NULL"
        f" GROUP BY grp, {column}) GROUP BY grp HAVING sum(n) > 1"
    )


def _cells(pool: PoolView, sql: str) -> tuple[Any, ...]:
    """The cells of a query of one row."""
    (row,) = [row for batch in pool.query(sql) for row in batch.to_pylist()]
    return tuple(row.values())


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
