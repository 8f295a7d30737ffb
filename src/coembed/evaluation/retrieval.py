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
from coembed.evaluation.average_precision import (
    Ties,
    average_precision,
    chance_average_precision,
    last_ties,
)
from coembed.evaluation.scores import CANDIDATE_BLOCK, QUERY_BLOCK, BestScores, score_blocks

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Embeddings = NDArray[np.float32]

# Scores of unit vectors that are closer than this are a tie. The rounding error of a float32 dot
# product of unit vectors stays below 1e-6 up to some thousand dimensions, and two equal vectors can
# get scores that far apart because the matrix product works in tiles.
TIE_TOLERANCE = 1e-6

# Positives at hand at one time, whatever the number of queries: 8 MB for each array of them.
_MAX_POSITIVES = 1_000_000
# Where more positives than this, and more than one in 32 of all scores, are asked for, the matrix
# product gives them sooner than row by row products, which wait for memory.
_MANY_POSITIVES = 500_000
_DENSE = 32
# So many candidates past the k-th best are kept: where they don't reach past all that ties with it,
# a second pass over the scores has to count.
_SPARE = 16
# Rows of scores that are compared at one time: they stay in the processor's cache meanwhile.
_SLAB = 16


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

    Those of query i are `candidates[starts[i]:starts[i + 1]]`, rising; each query has at least one.
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


@dataclass(frozen=True, slots=True)
class Rankings:
    """What one pass over all scores finds of each query.

    ranks: of its best positive, see `ranks`; [num_queries]. average_precision: expected AP@k, see
    its module; [num_queries]. top and top_scores: its k best candidates and their scores, best
    first, ties by number; [num_queries, k], with fewer columns where there are fewer candidates.
    """

    k: int
    ranks: Floats
    average_precision: Floats
    top: Ints
    top_scores: Embeddings


def ranks(
    queries: Embeddings,
    candidates: Embeddings,
    positives: PositiveSource,
    *,
    device: str = "cpu",
    query_block: int = QUERY_BLOCK,
    candidate_block: int = CANDIDATE_BLOCK,
    tie_tolerance: float = TIE_TOLERANCE,
) -> Floats:
    """Rank of every query's best positive among its negatives, [num_queries], from 1, by mid-rank.

    `queries` [num_queries, dim] and `candidates` [num_candidates, dim] are float32. The score is
    their dot product, summed in float32. At most `query_block` x `candidate_block` scores, and one
    million positives (or one query's), exist at one time.
    """
    found = np.empty(len(queries), dtype=np.float64)
    blocks = _blocks(queries, candidates, positives, device, query_block, candidate_block)
    for some, block in blocks:
        found[some] = _block_ranks(block, None, tie_tolerance)
    return found


def rankings(
    queries: Embeddings,
    candidates: Embeddings,
    positives: PositiveSource,
    k: int,
    *,
    device: str = "cpu",
    query_block: int = QUERY_BLOCK,
    candidate_block: int = CANDIDATE_BLOCK,
    tie_tolerance: float = TIE_TOLERANCE,
) -> Rankings:
    """Ranks, average precision at `k` and the `k` best candidates, all from one pass.

    Arguments and memory are those of `ranks`. Queries with more than some candidates tied around
    place k, as those of a collapsed model, take a second pass.
    """
    num = min(k, len(candidates))
    found = Rankings(
        k,
        np.empty(len(queries), dtype=np.float64),
        np.empty(len(queries), dtype=np.float64),
        np.empty((len(queries), num), dtype=np.int64),
        np.empty((len(queries), num), dtype=np.float32),
    )
    kept = min(k + _SPARE, len(candidates))
    blocks = _blocks(queries, candidates, positives, device, query_block, candidate_block)
    for some, block in blocks:
        best = BestScores(len(block.queries), kept, block.queries.device)
        found.ranks[some] = _block_ranks(block, best, tie_tolerance)
        scores, numbers = best.scores.cpu().numpy(), best.numbers.cpu().numpy()
        found.average_precision[some] = _block_precision(block, scores, numbers, k, tie_tolerance)
        found.top[some], found.top_scores[some] = numbers[:, :num], scores[:, :num]
    return found


@dataclass(frozen=True, slots=True)
class _Block:
    """Some queries and all candidates, on the device, [num, dim] each.

    rows, columns: the query and the candidate of each positive, by query, then by candidate;
    [num_positives].
    """

    queries: Tensor
    candidates: Tensor
    rows: Tensor
    columns: Tensor
    candidate_block: int

    def scores(self) -> Iterator[tuple[int, Tensor, tuple[Tensor, Tensor]]]:
        """Chunks as `score_blocks` yields them, each with the rows and columns of its positives."""
        for first, scores in score_blocks(self.queries, self.candidates, self.candidate_block):
            inside = (self.columns >= first) & (self.columns < first + scores.shape[1])
            yield first, scores, (self.rows[inside], self.columns[inside] - first)

    def only(self, chosen: Tensor) -> _Block:
        """The queries `chosen` [num_chosen], rising, alone."""
        place = self.rows.new_full((len(self.queries),), -1)
        place[chosen] = torch.arange(len(chosen), device=chosen.device)
        rows = place[self.rows]
        return _Block(
            self.queries[chosen],
            self.candidates,
            rows[rows >= 0],
            self.columns[rows >= 0],
            self.candidate_block,
        )


def _blocks(
    queries: Embeddings,
    candidates: Embeddings,
    positives: PositiveSource,
    device: str,
    query_block: int,
    candidate_block: int,
) -> Iterator[tuple[slice, _Block]]:
    """All queries, block by block."""
    on_device = torch.from_numpy(np.ascontiguousarray(candidates, dtype=np.float32)).to(device)
    for start, stop in _query_blocks(positives.counts, query_block):
        some = np.ascontiguousarray(queries[start:stop], dtype=np.float32)
        right = positives.block(start, stop)
        rows = np.repeat(np.arange(stop - start), right.counts)
        yield (
            slice(start, stop),
            _Block(
                torch.from_numpy(some).to(device),
                on_device,
                torch.from_numpy(rows).to(device),
                torch.from_numpy(right.candidates).to(device),
                candidate_block,
            ),
        )


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


def _block_ranks(block: _Block, best: BestScores | None, tolerance: float) -> Floats:
    """Ranks of the block's queries; `best` is shown all scores on the way."""
    wanted = _best_positives(block)
    limits = torch.stack([wanted + tolerance, wanted - tolerance])
    counts = torch.zeros(limits.shape, dtype=torch.int64, device=limits.device)
    for first, scores, places in block.scores():
        if best is not None:
            best.see(scores, first)
        scores[places] = -torch.inf  # positives don't compete
        counts += _count_above(scores, limits)
    above, not_below = counts.cpu().numpy()
    rank: Floats = 1 + above + (not_below - above) / 2
    return rank


def _best_positives(block: _Block) -> Tensor:
    """The best score of each query's positives, [num_queries]."""
    num, rows, columns = len(block.queries), block.rows, block.columns
    best = block.queries.new_full((num,), -torch.inf)
    if len(rows) > max(_MANY_POSITIVES, num * len(block.candidates) // _DENSE):
        for _, scores, places in block.scores():
            best.scatter_reduce_(0, places[0], scores[places], reduce="amax")
        return best
    # Gathered in slices: a query may have thousands of positives.
    for start in range(0, len(rows), block.candidate_block):
        some = slice(start, start + block.candidate_block)
        scores = (block.queries[rows[some]] * block.candidates[columns[some]]).sum(dim=1)
        best.scatter_reduce_(0, rows[some], scores, reduce="amax")
    return best


def _count_above(scores: Tensor, limits: Tensor) -> Tensor:
    """How many scores of each row are above each of the row's limits: `scores` [num_rows, num],
    `limits` and the counts [num_limits, num_rows]."""
    if scores.device.type != "cpu":
        return torch.stack([(scores > limit[:, None]).sum(dim=1) for limit in limits])
    # NumPy compares eight times faster than torch 2.14 here, and set bits are counted sooner than
    # bytes are added up.
    counts = np.empty(limits.shape, dtype=np.int64)
    for start in range(0, len(scores), _SLAB):
        some = slice(start, start + _SLAB)
        slab = scores[some].numpy()
        for count, limit in zip(counts, limits.numpy(), strict=True):
            bits = np.packbits(slab > limit[some, None], axis=1)
            count[some] = np.bitwise_count(bits).sum(axis=1)
    return torch.from_numpy(counts)


def _block_precision(
    block: _Block, scores: Embeddings, numbers: Ints, k: int, tolerance: float
) -> Floats:
    """AP@k of the block's queries from their best candidates, [num_queries, num_kept] both."""
    num, num_candidates = len(block.queries), len(block.candidates)
    rows, columns = block.rows.cpu().numpy(), block.columns.cpu().numpy()
    codes = rows * num_candidates + columns  # rising, as rows and columns are
    asked = np.arange(num)[:, None] * num_candidates + numbers
    right = codes[np.minimum(np.searchsorted(codes, asked), len(codes) - 1)] == asked
    exact = scores.astype(np.float64)
    ties, complete = last_ties(exact, right, k=k, tolerance=tolerance)
    if scores.shape[1] < num_candidates and not complete.all():
        unsettled = np.flatnonzero(~complete)
        threshold = torch.from_numpy(scores[unsettled, k - 1])
        few = block.only(torch.from_numpy(unsettled).to(block.rows.device))
        ties = _counted(few, unsettled, ties, threshold - tolerance)
    return average_precision(
        exact, right, ties, np.bincount(rows, minlength=num), k=k, tolerance=tolerance
    )


def _counted(few: _Block, which: Ints, ties: Ties, limit: Tensor) -> Ties:
    """`ties` with those of the queries `which` counted over all candidates, not among the best
    alone. few: these queries. limit: where their ties end, [num_which]."""
    limit = limit.to(few.queries.device)
    counts = torch.zeros(len(limit), dtype=torch.int64, device=limit.device)
    right = torch.zeros_like(counts)
    for _, scores, places in few.scores():
        counts += _count_above(scores, limit[None])[0]
        right.index_add_(0, places[0], (scores[places] > limit[places[0]]).long())
    # Another product may round otherwise: what was found before is there still.
    tied, found = ties.tied.copy(), ties.right.copy()
    tied[which] = np.maximum(counts.cpu().numpy() - ties.above[which], tied[which])
    found[which] = np.maximum(right.cpu().numpy() - ties.right_above[which], found[which])
    return Ties(ties.above, ties.right_above, tied, found)


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
    task: str,
    found: Rankings,
    num_candidates: int,
    positives: PositiveSource,
    ks: Sequence[int],
) -> Outcomes:
    """Recall at each of `ks`, average precision and reciprocal rank of each query, with what chance
    would give it."""
    counts = positives.counts
    values: dict[str, Floats] = {}
    chance: dict[str, Floats] = {}
    for k in ks:
        values[f"recall_at_{k}"] = (found.ranks <= k).astype(np.float64)
        chance[f"recall_at_{k}"] = chance_recall(num_candidates, counts, k)
    values[f"map_at_{found.k}"] = found.average_precision
    chance[f"map_at_{found.k}"] = chance_average_precision(num_candidates, counts, found.k)
    values["mrr"] = 1 / found.ranks
    chance["mrr"] = chance_reciprocal_rank(num_candidates, counts)
    return Outcomes(task, values, chance, found.ranks)


def summarise(outcomes: Outcomes) -> dict[str, float]:
    """Means of all metrics, `chance_` beside each, the median rank and the number of queries."""
    summary: dict[str, float] = {"num_queries": outcomes.num_queries}
    for metric, values in outcomes.values.items():
        summary[metric] = float(values.mean())
        summary[f"chance_{metric}"] = float(outcomes.chance[metric].mean())
    if outcomes.ranks is not None:
        summary["median_rank"] = float(np.median(outcomes.ranks))
    return summary
