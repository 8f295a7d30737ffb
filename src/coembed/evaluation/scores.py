"""Scores chunk by chunk in bounded memory, and the best of each query kept on the way."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

QUERY_BLOCK = 1024
CANDIDATE_BLOCK = 8192
_FEW = 4  # times k
_SLAB = 64  # rows in which ties are looked at together: that takes several times their own memory


def score_blocks(
    queries: Tensor, candidates: Tensor, candidate_block: int
) -> Iterator[tuple[int, Tensor]]:
    """The dot products of all queries with `candidate_block` candidates at a time.

    Yields the number of the first candidate and the scores [num_queries, up to candidate_block].
    All of them lie in one buffer: use each, or write in it, before the next one is asked for.
    """
    # A fresh array a chunk would cost as much in page faults as reading it does.
    buffer = queries.new_empty(len(queries) * min(candidate_block, len(candidates)))
    for start in range(0, len(candidates), candidate_block):
        some = candidates[start : start + candidate_block]
        scores = buffer[: len(queries) * len(some)].view(len(queries), len(some))
        torch.mm(queries, some.T, out=scores)
        yield start, scores


class BestScores:
    """The `k` best candidates of each query among those seen so far; ties by candidate number.

    `scores` [num_queries, k] fall, `numbers` [num_queries, k] are the candidates' own. Where fewer
    than k were seen, the places left are -inf and -1.
    """

    def __init__(self, num_queries: int, k: int, device: torch.device) -> None:
        self.scores = torch.full((num_queries, k), -torch.inf, device=device)
        self.numbers = torch.full((num_queries, k), -1, dtype=torch.int64, device=device)

    def see(self, scores: Tensor, first: int) -> None:
        """Take in `scores` [num_queries, block] of the candidates from number `first` on.

        Blocks come in the order of the candidates' numbers.
        """
        k = self.scores.shape[1]
        better = self._better(scores) if scores.device.type == "cpu" else None
        best, places = better or _best(scores, min(k, scores.shape[1]))
        # What was seen before has lower numbers and stands first: a stable sort keeps it there.
        both = torch.cat([self.scores, best], dim=1)
        numbers = torch.cat([self.numbers, places + first], dim=1)
        both, order = both.sort(dim=1, descending=True, stable=True)
        self.scores, self.numbers = both[:, :k].contiguous(), numbers.gather(1, order[:, :k])

    def _better(self, scores: Tensor) -> tuple[Tensor, Tensor] | None:
        """The scores of each row that may be among its k best, and their places, both [num_queries,
        most of a row], filled up with -inf. None where a row has many of them. Where rows have few,
        as a rule, this takes a fifth of the time of a search for the k best."""
        k = self.scores.shape[1]
        full = bool(self.numbers[0, -1] >= 0)
        above = scores.numpy() > (self.scores[:, -1:] if full else _below_best(scores, k)).numpy()
        limit = _FEW * k
        if np.count_nonzero(above) > limit * len(scores):
            return None
        rows, places = np.divmod(np.flatnonzero(above), scores.shape[1])
        counts = np.bincount(rows, minlength=len(scores))
        most = int(counts.max(initial=0))
        if most > limit:
            return None
        column = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        best = np.full((len(scores), most), -np.inf, dtype=np.float32)
        found = np.full((len(scores), most), -1, dtype=np.int64)
        best[rows, column], found[rows, column] = scores.numpy()[rows, places], places
        return torch.from_numpy(best), torch.from_numpy(found)


def _below_best(scores: Tensor, k: int) -> Tensor:
    """A score for each row that at least k of its scores are above, and few more as a rule: just
    below the k-th best of the best ones of 4 k groups; [rows, 1]."""
    size = scores.shape[1] // (4 * k)
    if size < 1:
        return scores.new_full((len(scores), 1), -torch.inf)
    best = scores[:, : 4 * k * size].view(len(scores), 4 * k, size).amax(dim=2)
    last = best.topk(k, dim=1).values[:, -1:]
    return last.nextafter(last.new_tensor(-torch.inf))


def _best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row, best first, and their places; equal ones by place. Both [rows, k]."""
    extra = min(k + 1, scores.shape[1])
    values, places = scores.topk(extra, dim=1)
    if extra > k:
        # topk takes any of those that tie for the last places. The first ones are meant.
        tied = (values[:, k - 1] == values[:, k]).nonzero()[:, 0]
        places = places[:, :k]
        for start in range(0, len(tied), _SLAB):
            some = tied[start : start + _SLAB]
            places[some] = _first_of_tied(scores[some], values[some, k - 1], k)
    places = places.sort(dim=1).values
    best, order = scores.gather(1, places).sort(dim=1, descending=True, stable=True)
    return best, places.gather(1, order)


def _first_of_tied(scores: Tensor, last: Tensor, k: int) -> Tensor:
    """Places of the k best of each row, rising, the first ones of those that score `last`, the
    k-th best score of the row."""
    above = scores > last[:, None]
    tied = scores == last[:, None]
    room = k - above.sum(dim=1)
    chosen = above | (tied & (tied.cumsum(dim=1) <= room[:, None]))
    return chosen.nonzero()[:, 1].view(len(scores), k)
