"""From scores to drops: how many pairs are mismatched, and below which score they are dropped.

Nobody says which pairs are mismatched, but two distributions are known: that of all pairs, and that
of pairs that were mispaired on purpose. Were a share π of the pool mismatched, then of the pairs
below any score there would be π times as many as of the mispaired ones, and above it more: the
least ratio is an estimate of π (Blanchard, Lee and Scott 2010, "Semi-supervised novelty detection",
JMLR 11, section 3), and with it the precision of dropping all below a score is known. As in
confident learning (Northcutt et al. 2021, arXiv 1911.00068), each cluster of captions has its own
limit: a concept that the model finds hard must not lose its pairs for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]

# π is read off where half to nearly all of the mispaired pairs lie: counts below are too small,
# and above, sound pairs join in.
_FROM, _TO, _STEPS = 0.5, 0.95, 46
# How many standard deviations of a Poisson count may exceed the precision that is asked for.
_SLACK = 1.0
# Pairs of its own from which on a cluster's limit is mostly its own.
_SHRINK_PAIRS = 100
_TAIL = 0.05


@dataclass(frozen=True)
class Limits:
    """What was found.

    share: estimated share of mismatched pairs. separation: share of the mispaired pairs that score
    below the pool's median; 0.5 is guessing. power: share of them that the limits find. limits: per
    cluster, the score below which a pair is dropped when the limits are `reliable`. medians: of the
    sound pairs' scores, per cluster.
    """

    share: float
    separation: float
    power: float
    reliable: bool
    limits: Scores
    medians: Scores

    def doubts(self, scores: Scores, clusters: NDArray[np.int64]) -> Scores:
        """Doubt of each pair: 0 at its cluster's median, 1 at its limit and below."""
        limits, medians = self.limits[clusters], self.medians[clusters]
        span = np.maximum(medians - limits, 1e-9)
        return np.clip((medians - scores) / span, 0.0, 1.0)


def find_limits(
    scores: Scores,
    clusters: NDArray[np.int64],
    mispaired: Scores,
    mispaired_clusters: NDArray[np.int64],
    *,
    num_clusters: int,
    min_precision: float,
    num_spreads: float,
    min_separation: float,
    min_power: float,
) -> Limits:
    """Limits of all clusters.

    A pair is below its limit when it is below the pool's, up to which dropping has an estimated
    precision of `min_precision`, and below its cluster's fence: `num_spreads` times the distance
    from the median of the sound pairs to their 5 % quantile, below that median. The fence bounds
    what a weak model could drop where the counts are too small to tell. The limits are reliable
    when they find at least `min_power` of the mispaired pairs, and at least `min_separation` of
    those score below the median of the pool: to a model that knows nothing, all pairs look
    mismatched.
    """
    ordered, wrong = np.sort(scores), np.sort(mispaired)
    share = _share(ordered, wrong)
    whole_median, whole_spread = _middle(ordered, share)
    medians = np.full(num_clusters, whole_median)
    spreads = np.full(num_clusters, whole_spread)
    order = np.argsort(clusters, kind="stable")
    ends = np.searchsorted(clusters[order], np.arange(num_clusters), side="right")
    start = 0
    for cluster, end in enumerate(ends):
        own = np.sort(scores[order[start:end]])
        start = end
        if len(own):
            weight = len(own) / (len(own) + _SHRINK_PAIRS)
            median, spread = _middle(own, share)
            medians[cluster] += weight * (median - whole_median)
            spreads[cluster] += weight * (spread - whole_spread)
    fences = medians - num_spreads * spreads
    separation = float((wrong < np.median(ordered)).mean())
    power = float((mispaired < fences[mispaired_clusters]).mean())
    limit = _pool_limit(ordered, wrong, share, min_precision)
    return Limits(
        share=share,
        separation=separation,
        power=power,
        reliable=separation >= min_separation and power >= min_power,
        limits=np.minimum(fences, limit),
        medians=medians,
    )


def _share(ordered: Scores, wrong: Scores) -> float:
    """Estimated share of mismatched pairs, at most 0.9."""
    parts = np.linspace(_FROM, _TO, _STEPS)
    below = np.searchsorted(ordered, np.quantile(wrong, parts), side="right") / len(ordered)
    return float(min((below / parts).min(), 0.9))


def _pool_limit(ordered: Scores, wrong: Scores, share: float, min_precision: float) -> float:
    """The score below which all may be dropped; -inf where nothing may."""
    num = len(ordered)
    found = np.searchsorted(wrong, ordered, side="right") / len(wrong)
    expected = num * share * found
    count = np.arange(1, num + 1)
    # The last place, not the first failure: mismatched pairs may be worse than mispaired ones, and
    # then there are more of them among the lowest scores.
    enough = np.flatnonzero(
        (count <= expected / min_precision + _SLACK * np.sqrt(expected)) & (found >= _FROM)
    )
    if not share or not len(enough):
        return -np.inf
    return float(np.nextafter(ordered[enough[-1]], np.inf))


def _middle(ordered: Scores, share: float) -> tuple[float, float]:
    """Median of the sound pairs' scores, and its distance to their 5 % quantile.

    Taken as if the mismatched `share` were the lowest scores.
    """
    low, median = np.quantile(ordered, [share + (1 - share) * part for part in (_TAIL, 0.5)])
    return float(median), float(median - low)
