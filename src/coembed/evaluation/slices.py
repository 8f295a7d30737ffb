"""Slices: the queries that share one value of a column, and which columns make slices."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from coembed.evaluation.evaluation_set import as_label
from coembed.evaluation.retrieval import Ints
from coembed.types import Attribute

MAX_VALUES = 50
"""Values of a column that become slices: those that most items have."""

# Numbers with at most as many values (a rating, a year) are slices of one value each.
_FEW_NUMBERS = 10
_NUM_RANGES = 4
# From this share of distinct values on, words or whole numbers name single items.
_IDS = 0.8
_MIN_IDS = 10


@dataclass(frozen=True, slots=True)
class SliceScore:
    """One metric of one task on one slice, beside the same metric over all queries.

    `low` and `high` bound the score with 95 % confidence. `small` marks a slice with too few
    queries to trust.
    """

    task: str
    column: str
    value: str
    num_queries: int
    small: bool
    metric: str
    score: float
    low: float
    high: float
    overall: float
    chance: float


def label_slices(values: Sequence[Attribute | None]) -> tuple[str | None, ...]:
    """The slice of each item by one column, None for items in none. `values` holds one an item.

    Words and booleans are slices by themselves, the MAX_VALUES most frequent ones (of equally
    frequent ones the first by name). Numbers of more than ten values are cut at their quartiles
    into up to four slices, which are named by their own lowest and highest value: "9.5 to 25".
    """
    present = [value for value in values if value is not None]
    numbers = [float(value) for value in present if _is_number(value)]
    if len(numbers) < len(present) or len(set(numbers)) <= _FEW_NUMBERS:
        counts = Counter(as_label(value) for value in present)
        frequent = sorted(counts, key=lambda label: (-counts[label], label))[:MAX_VALUES]
        kept = frozenset(frequent)
        labels = (None if value is None else as_label(value) for value in values)
        return tuple(label if label in kept else None for label in labels)
    # Quartiles that are values themselves: what ties stays together.
    shares = np.arange(1, _NUM_RANGES) / _NUM_RANGES
    edges = np.unique(np.quantile(numbers, shares, method="inverted_cdf"))
    places = np.searchsorted(edges, numbers, side="left")
    names = _range_names(numbers, places)
    named = iter([names[place] for place in places.tolist()])
    return tuple(None if value is None else next(named) for value in values)


def makes_slices(values: Sequence[Attribute | None]) -> bool:
    """Whether a column tells groups of items apart: it has two values at least, and does not name
    single items, as an item number or a file's name does (nearly as many values as items; measures
    such as a price may well differ from item to item, whole numbers may not)."""
    present = [value for value in values if value is not None]
    num = len(set(present))
    if num < 2:
        return False
    measures = all(_is_number(value) for value in present) and any(
        isinstance(value, float) and not value.is_integer() for value in present
    )
    return measures or num < _MIN_IDS or num < _IDS * len(present)


def _is_number(value: Attribute) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _range_names(numbers: Sequence[float], places: Ints) -> dict[int, str]:
    """Names of the ranges by place: as few digits as tell their ends apart."""
    groups: dict[int, list[float]] = defaultdict(list)
    for number, place in zip(numbers, places.tolist(), strict=True):
        groups[place].append(number)
    ends = {place: (min(group), max(group)) for place, group in groups.items()}
    distinct = len({end for pair in ends.values() for end in pair})
    for digits in range(4, 18):
        shown = {place: [f"{end:.{digits}g}" for end in pair] for place, pair in ends.items()}
        if len({end for pair in shown.values() for end in pair}) == distinct:
            break
    return {
        place: low if low == high else f"{low} to {high}" for place, (low, high) in shown.items()
    }


def slice_places(labels: Sequence[str | None]) -> Iterator[tuple[str, Ints]]:
    """Each value of one column, in order, and the places of the queries that have it."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        if label is not None:
            places[label].append(place)
    for value in sorted(places):
        yield value, np.asarray(places[value], dtype=np.int64)
