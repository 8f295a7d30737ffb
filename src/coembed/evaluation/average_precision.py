"""Average precision at k of queries with several positives, its expectation where scores tie.

AP@k = sum over the places r <= k that hold a positive of precision@r, divided by min(P, k), the
most that P positives can give: a perfect search has 1, whatever P. Its mean over queries is mAP@k.

Candidates whose scores tie are taken in random order and AP@k in expectation (McSherry & Najork,
"Computing information retrieval performance measures efficiently in the presence of tied scores",
ECIR 2008): in the order of their numbers, a model that gives all of them one score would look as
good as the numbering is. Such a model gets exactly the value of chance.

Scores tie within a tolerance, which is no equivalence: one may tie with two that don't tie with
each other. So each positive has its own tie, what lies within the tolerance of its score, except
that all that lies within the tolerance of the k-th best score is one tie.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_BLOCK = 1_000_000  # comparisons of scores at one time


@dataclass(frozen=True, slots=True)
class Ties:
    """Groups of candidates with one score, as counts, all of one shape.

    Of each group: `above`, the candidates that score higher, and `right_above`, the positives among
    them; `tied`, its candidates, at least one, and `right`, the positives among them.
    """

    above: Ints
    right_above: Ints
    tied: Ints
    right: Ints

    def gain(self, k: int) -> Floats:
        """What one positive of each group adds to the sum of AP@k, in expectation; 0 for none.

        It stands at the i-th place of its tie with chance 1/n, and then (i - 1) (p - 1) / (n - 1)
        of the p - 1 others are expected before it.
        """
        inside = np.clip(k - self.above, 0, self.tied)  # places of the tie that are looked at
        harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, k + 1))])
        first = np.minimum(self.above, k)
        inverse_places = harmonic[first + inside] - harmonic[first]
        density = (self.right - 1) / np.maximum(self.tied - 1, 1)
        others = inside - (self.above + 1) * inverse_places
        gain = ((self.right_above + 1) * inverse_places + density * others) / self.tied
        return np.where(self.right > 0, gain, 0.0)


def average_precision(
    scores: Floats, right: Bools, last_tie: Ties, num_positives: Ints, *, k: int, tolerance: float
) -> Floats:
    """Expected AP@k of each query, [num_queries].

    scores: those of its best candidates, falling, [num_queries, at least k or all candidates].
    right: whether each of them is a positive. last_tie: what ties with the k-th best, [num_queries]
    each; see `last_ties`. num_positives: how many positives each query has.
    """
    threshold = _threshold(scores, k)
    safe = scores > threshold[:, None] + tolerance
    total = np.where(last_tie.right > 0, last_tie.right * last_tie.gain(k), 0.0)
    rows, columns = np.nonzero(safe & right)
    step = max(1, _BLOCK // max(scores.shape[1], 1))
    for start in range(0, len(rows), step):
        some = slice(start, start + step)
        own, others = scores[rows[some], columns[some]][:, None], scores[rows[some]]
        theirs = right[rows[some]]
        above = others > own + tolerance
        tied = ~above & (others >= own - tolerance)
        ties = Ties(*(mask.sum(axis=1) for mask in (above, above & theirs, tied, tied & theirs)))
        np.add.at(total, rows[some], ties.gain(k))
    found: Floats = total / np.minimum(num_positives, k)
    return found


def last_ties(scores: Floats, right: Bools, *, k: int, tolerance: float) -> tuple[Ties, Bools]:
    """What ties with the k-th best candidate of each query, as far as `scores` goes, and whether it
    goes far enough; both [num_queries]. `scores` and `right` are those of `average_precision`.
    """
    threshold = _threshold(scores, k)[:, None]
    above = scores > threshold + tolerance
    tied = ~above & (scores >= threshold - tolerance)
    ties = Ties(*(mask.sum(axis=1) for mask in (above, above & right, tied, tied & right)))
    return ties, scores[:, -1] < threshold[:, 0] - tolerance


def chance_average_precision(num_candidates: int, num_positives: Ints, k: int) -> Floats:
    """Expected AP@k of each query when candidates come in random order, [num_queries]."""
    none = np.zeros_like(num_positives)
    every = Ties(none, none, np.full_like(num_positives, num_candidates), num_positives)
    found: Floats = num_positives * every.gain(k) / np.minimum(num_positives, k)
    return found


def _threshold(scores: Floats, k: int) -> Floats:
    """The k-th best score of each query, or the worst where there are fewer candidates."""
    return scores[:, min(k, scores.shape[1]) - 1]
