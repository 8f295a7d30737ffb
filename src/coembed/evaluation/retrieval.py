"""Exact retrieval ranks in bounded memory, and the measures that come from them.

A query's rank is the place of its best positive: 1 + the negatives that score higher + half of the
negatives that score the same (mid-rank). Ties in index order would flatter a collapsed model, whose
scores are all equal: with mid-rank it does no better than chance. A query's further positives never
push its rank down.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coembed.errors import ModelError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Embeddings = NDArray[np.float32]

# Scores of unit vectors that are closer than this are a tie. The rounding error of a float32 dot
# product of unit vectors stays below 1e-6 up to some thousand dimensions, and two equal vectors can
# get scores that far apart because the matrix product works in tiles.
TIE_TOLERANCE = 1e-6

_QUERY_BLOCK = 1024
_CANDIDATE_BLOCK = 8192
# Positives at hand at one time, whatever the number of queries: 8 MB for each array of them.
_MAX_POSITIVES = 1_000_000
# Where more positives than this, and more than one in 32 of all scores, are asked for, the matrix
# product gives them sooner than row by row products, which wait for memory.
_MANY_POSITIVES = 500_000
_DENSE = 32


class PositiveSource(Protocol):
    """Which candidates answer which query, however that is held."""

    @property
    def counts(self) -> Ints:
        """How many positives each query has, [num_queries], each at least one."""

    def block(self, start: int, stop: int) -> Positives:
        """The positives of the queries `start` to `stop`."""


@dataclass(frozen=True, slots=True)
class Positives:
    """For each query the candidates that answer it, as a compressed sparse row matrix.

    Those of query i are `candidates[starts[i]:starts[i + 1]]`; each query has at least one.
    """

    starts: Ints
    candidates: Ints

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]]) -> Positives:
        """Positives from one list of candidate numbers a query; repeats in a list count once."""
        distinct = [sorted(set(found)) for found in lists]
        if not all(distinct):
            empty = next(i for i, found in enumerate(distinct) if not found)
            raise ValueError(f"query {empty} has no positive")
        starts = np.zeros(len(distinct) + 1, dtype=np.int64)
        np.cumsum([len(found) for found in distinct], out=starts[1:])
        flat = [candidate for found in distinct for candidate in found]
        return cls(starts, np.asarray(flat, dtype=np.int64))

    @property
    def counts(self) -> Ints:
        """How many positives each query has, [num_queries]."""
        return np.diff(self.starts)

    def block(self, start: int, stop: int) -> Positives:
        """The positives of the queries `start` to `stop`."""
        first, last = self.starts[start], self.starts[stop]
        return Positives(self.starts[start : stop + 1] - first, self.candidates[first:last])


def check_embeddings(embeddings: Embeddings, what: str) -> None:
    """Refuse NaN and infinity, which would sort anywhere. `what` names the embeddings' items."""
    bad = int((~np.isfinite(embeddings)).any(axis=1).sum())
    if bad:
        raise ModelError(
            f"the embeddings of {bad:,} of {len(embeddings):,} {what} are not finite numbers",
            hint="its training diverged: look at history.csv, lower train.lr and train again",
        )


def ranks(
    queries: Embeddings,
    candidates: Embeddings,
    positives: PositiveSource,
    *,
    device: str = "cpu",
    query_block: int = _QUERY_BLOCK,
    candidate_block: int = _CANDIDATE_BLOCK,
    tie_tolerance: float = TIE_TOLERANCE,
) -> Floats:
    """Rank of every query's best positive among its negatives, [num_queries], from 1, by mid-rank.

    `queries` [num_queries, dim] and `candidates` [num_candidates, dim] are float32. The score is
    their dot product, summed in float32. At most `query_block` x `candidate_block` scores, and one
    million positives (or one query's), exist at one time.
    """
    found = np.empty(len(queries), dtype=np.float64)
    on_device = torch.from_numpy(np.ascontiguousarray(candidates, dtype=np.float32)).to(device)
    for start, stop in _query_blocks(positives.counts, query_block):
        block = np.ascontiguousarray(queries[start:stop], dtype=np.float32)
        found[start:stop] = _block_ranks(
            torch.from_numpy(block).to(device),
            on_device,
            positives.block(start, stop),
            candidate_block=candidate_block,
            tie_tolerance=tie_tolerance,
        )
    return found


def _query_blocks(counts: Ints, query_block: int) -> Iterator[tuple[int, int]]:
    """Runs of at most `query_block` queries that have at most _MAX_POSITIVES, or of one query."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = int(ends[start - 1]) if start else 0
        fitting = int(np.searchsorted(ends, before + _MAX_POSITIVES, side="right"))
        stop = min(start + query_block, max(fitting, start + 1))
        yield start, stop
        start = stop


def _block_ranks(
    queries: Tensor,
    candidates: Tensor,
    positives: Positives,
    *,
    candidate_block: int,
    tie_tolerance: float,
) -> Floats:
    num = len(queries)
    rows = torch.from_numpy(np.repeat(np.arange(num), positives.counts)).to(queries.device)
    columns = torch.from_numpy(positives.candidates).to(queries.device)
    best = _best_scores(queries, candidates, rows, columns, candidate_block)
    above = torch.zeros(num, dtype=torch.int64, device=queries.device)
    not_below = torch.zeros_like(above)
    for start in range(0, len(candidates), candidate_block):
        scores = queries @ candidates[start : start + candidate_block].T
        inside = (columns >= start) & (columns < start + candidate_block)
        scores[rows[inside], columns[inside] - start] = -torch.inf  # positives don't compete
        above += _count_above(scores, best + tie_tolerance)
        not_below += _count_above(scores, best - tie_tolerance)
    above, not_below = above.cpu(), not_below.cpu()
    rank = 1 + above.double() + (not_below - above).double() / 2
    found: Floats = rank.numpy()
    return found


def _best_scores(
    queries: Tensor, candidates: Tensor, rows: Tensor, columns: Tensor, candidate_block: int
) -> Tensor:
    """The best score of each query's positives, [num_queries]; `rows` are queries, `columns` their
    positives, [num_positives]."""
    best = queries.new_full((len(queries),), -torch.inf)
    if len(rows) > max(_MANY_POSITIVES, len(queries) * len(candidates) // _DENSE):
        for start in range(0, len(candidates), candidate_block):
            scores = queries @ candidates[start : start + candidate_block].T
            inside = (columns >= start) & (columns < start + candidate_block)
            found = scores[rows[inside], columns[inside] - start]
            best.scatter_reduce_(0, rows[inside], found, reduce="amax")
        return best
    # Gathered in slices: a query may have thousands of positives.
    for start in range(0, len(rows), candidate_block):
        some = slice(start, start + candidate_block)
        scores = (queries[rows[some]] * candidates[columns[some]]).sum(dim=1)
        best.scatter_reduce_(0, rows[some], scores, reduce="amax")
    return best


def _count_above(scores: Tensor, limits: Tensor) -> Tensor:
    """How many scores of each row are above the row's limit."""
    if scores.device.type == "cpu":
        # NumPy compares and counts eight times faster than torch 2.14 here.
        above = scores.numpy() > limits.numpy()[:, None]
        return torch.from_numpy(above.sum(axis=1))
    return (scores > limits[:, None]).sum(dim=1)


def chance_recall(num_candidates: int, num_positives: Ints, k: int) -> Floats:
    """Recall@k of each query when candidates come in random order, [num_queries].

    1 - C(N - P, k) / C(N, k): the hypergeometric chance that at least one of the P positives is
    among the first k of N.
    """
    missed = np.ones(len(num_positives), dtype=np.float64)
    for place in range(min(k, num_candidates)):
        left = num_candidates - place
        missed *= np.clip(left - num_positives, 0, None) / left
    return 1 - missed


def chance_reciprocal_rank(num_candidates: int, num_positives: Ints) -> Floats:
    """Mean reciprocal rank of each query when candidates come in random order, [num_queries]."""
    found = np.empty(len(num_positives), dtype=np.float64)
    for count in np.unique(num_positives):
        # The chance that the first positive stands at place r is missed(r - 1) * P / (N - r + 1).
        places = np.arange(num_candidates - int(count) + 1)
        left = num_candidates - places
        still_missing = np.cumprod(np.concatenate([[1.0], 1 - count / left[:-1]]))
        found[num_positives == count] = (still_missing * (count / left) / (places + 1)).sum()
    return found


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What one task measured for each of its queries: the ground of means, slices and intervals.

    `values[metric]` and `chance[metric]` are [num_queries]; a metric is the mean of its values.
    `ranks` is [num_queries], or None where the task has none.
    """

    task: str
    values: Mapping[str, Floats]
    chance: Mapping[str, Floats]
    ranks: Floats | None = None

    @property
    def num_queries(self) -> int:
        """How many queries were asked."""
        return len(next(iter(self.values.values())))


def rank_outcomes(
    task: str, ranks: Floats, num_candidates: int, positives: PositiveSource, ks: Sequence[int]
) -> Outcomes:
    """Recall@k and reciprocal rank of each query, with what chance would give it."""
    values: dict[str, Floats] = {}
    chance: dict[str, Floats] = {}
    for k in ks:
        values[f"recall_at_{k}"] = (ranks <= k).astype(np.float64)
        chance[f"recall_at_{k}"] = chance_recall(num_candidates, positives.counts, k)
    values["mrr"] = 1 / ranks
    chance["mrr"] = chance_reciprocal_rank(num_candidates, positives.counts)
    return Outcomes(task, values, chance, ranks)


def summarise(outcomes: Outcomes) -> dict[str, float]:
    """Means of all metrics, `chance_` beside each, the median rank and the number of queries."""
    summary: dict[str, float] = {"num_queries": outcomes.num_queries}
    for metric, values in outcomes.values.items():
        summary[metric] = float(values.mean())
        summary[f"chance_{metric}"] = float(outcomes.chance[metric].mean())
    if outcomes.ranks is not None:
        summary["median_rank"] = float(np.median(outcomes.ranks))
    return summary
