"""Champion and challenger on the same frozen queries: what differs, by how much, how surely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of one task, over all shared queries or over those of one slice.

    `path` is the metric's in metrics.json. `column` and `value` name the slice, None for all
    queries. `difference` is the challenger's mean minus the champion's; `low` and `high` bound it
    with 95 % confidence (paired bootstrap over clusters). `p_value` is two-sided, `p_adjusted` the
    same corrected for all differences that were looked at together (overall ones and slices apart).
    `small` marks slices with too few queries to trust.
    """

    path: str
    column: str | None
    value: str | None
    num_queries: int
    num_clusters: int
    small: bool
    champion: float
    challenger: float
    difference: float
    low: float
    high: float
    p_value: float
    p_adjusted: float

    @property
    def significant(self) -> bool:
        """Whether chance alone would seldom bring such a difference, corrected at 5 %."""
        return self.p_adjusted < 0.05


@dataclass(frozen=True, slots=True)
class Change:
    """A query that one model answers and the other does not: `path` as of a `Difference`.

    `query` is its name in the outcomes, `item_id` the item it is about ("" for none); the two
    values are what each model's outcome was.
    """

    path: str
    query: str
    item_id: str
    champion: float
    challenger: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that was compared. `num_left_out` queries were left out, each with its reason's name
    (such as "the champion was trained on the item")."""

    evaluation_set: str
    num_queries: int
    left_out: Sequence[tuple[str, int]]
    overall: Sequence[Difference]
    slices: Sequence[Difference]
    broken: Sequence[Change]
    mended: Sequence[Change]
