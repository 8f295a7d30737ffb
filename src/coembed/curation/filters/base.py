"""What a filter is: it judges single pairs, the whole pool, or both, and gives reasons.

A filter is one module here: `class Settings(ComponentSettings)` with `build() -> Filter`, and the
filter. The engine runs `check` of all filters on a pair in the order of the settings, in worker
processes, then `check_pool` of each in the parent. A filter must be a pure function of what it is
given: the outcome may not depend on the number of workers or on the order in which they finish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from coembed.curation.candidate import Candidate

ScoreType = Literal["int64", "float64", "string"]
Score = int | float | str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one filter says of one pair. `reason` is None when the pair may stay.

    `scores` are cells of the manifest columns that the filter declares.
    """

    reason: str | None = None
    detail: str = ""
    scores: Mapping[str, Score] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PoolDrop:
    """A pair that a filter drops on sight of the whole pool.

    `row` and `duplicate_of` count pool rows from 0. With `keep_caption` the pair's caption goes to
    the item of `duplicate_of`.
    """

    row: int
    reason: str
    detail: str
    duplicate_of: int | None = None
    keep_caption: bool = False


@dataclass(frozen=True)
class Records:
    """Light records of all pairs, one array element a pool row.

    `kept` [rows] bool: not dropped so far. `items`, `paths`, `captions` [rows] int64: equal numbers
    mean the same media bytes (-1: unread), the same path, the same caption up to case and
    whitespace. `scores`: the columns that filters declare; NaN or None where there is no cell.
    `pair_id` and `path` look a row's text up.
    """

    kept: NDArray[np.bool_]
    items: NDArray[np.int64]
    paths: NDArray[np.int64]
    captions: NDArray[np.int64]
    scores: Mapping[str, NDArray[Any]]
    pair_id: Callable[[int], str]
    path: Callable[[int], str]


class Filter:
    """Base of all filters.

    `reasons` are the drop reasons it may give. `scores` declares its manifest columns; one that
    begins with an underscore goes to `check_pool` only.
    """

    reasons: ClassVar[tuple[str, ...]]
    scores: ClassVar[Mapping[str, ScoreType]] = {}

    def check(self, candidate: Candidate) -> Verdict:  # noqa: ARG002
        """Judge one pair."""
        return Verdict()

    def check_pool(self, records: Records) -> Iterable[PoolDrop]:  # noqa: ARG002
        """Judge all pairs together. Only rows that are `kept` may be dropped."""
        return ()
