"""How sure a figure is: bootstrap over clusters, intervals, p-values of paired differences.

Queries about one item (its captions) are not independent of one another, so items are drawn, with
all that belongs to them, and not queries: the cluster bootstrap (Davison & Hinkley 1997, section
3.8). A resample is written as weights: how often each cluster was drawn. A figure is then a
function of weights, and many figures share the same draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coembed.evaluation.retrieval import Floats, Ints

ALPHA = 0.05
"""One minus the confidence of every interval."""

# Numbers of weights, and resamples, at hand at one time. The draws depend on both.
_BLOCK = 2_000_000
_ROWS = 200
# Resampled differences that lie this close to one another are equal but for rounding.
_ROUNDING = 1e-9

Weigh = Callable[[Floats], Floats]
"""A figure, or several, as a function of weights: [some, num_clusters] → [some] or [some, num]."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of metrics.json, at `path`, with its 95 % interval."""

    path: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Resamples:
    """Draws of `num_clusters` clusters out of as many, with replacement, `num` times.

    The same three numbers give the same draws; draws of different numbers of clusters are
    independent. So models that are compared, and figures of the same clusters, are resampled alike.
    """

    num_clusters: int
    num: int = 2000
    seed: int = 0

    def blocks(self) -> Iterator[Floats]:
        """Weights [some, num_clusters], `num` rows in all, each of the sum `num_clusters`."""
        rows = max(1, min(_ROWS, _BLOCK // self.num_clusters))
        for number, start in enumerate(range(0, self.num, rows)):
            shape = (min(rows, self.num - start), self.num_clusters)
            rng = np.random.default_rng((self.seed, self.num_clusters, number))
            drawn = rng.integers(self.num_clusters, size=shape, dtype=np.uint32)
            # Each row counts in numbers of its own.
            drawn += np.arange(shape[0], dtype=np.uint32)[:, None] * np.uint32(self.num_clusters)
            counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(shape)
            yield counts.astype(np.float64)


def draw(figures: Sequence[Weigh], resamples: Resamples) -> list[Floats]:
    """Every figure for every resample: [num] or [num, ...] each. All share one pass of draws."""
    found: list[list[Floats]] = [[] for _ in figures]
    for weights in resamples.blocks():
        for parts, figure in zip(found, figures, strict=True):
            parts.append(figure(weights))
    return [np.concatenate(parts) for parts in found]


def estimate(figures: Mapping[str, Weigh], resamples: Resamples) -> list[Figure]:
    """Figures by their paths in metrics.json, for what is no mean over queries.

    Each function gives one number a row of weights, [some, num_clusters] → [some]. The value is
    that of equal weights, the interval runs from the 2.5th to the 97.5th percentile of the
    resamples (Efron 1979; the percentile method). A figure whose value is the same in every
    resample gets no wider interval here: its possible values are not known.
    """
    once = np.ones((1, resamples.num_clusters))
    drawn = draw(list(figures.values()), resamples)
    found = []
    for (path, figure), draws in zip(figures.items(), drawn, strict=True):
        low, high = percentiles(draws)
        found.append(Figure(path, float(figure(once)[0]), float(low), float(high)))
    return found


def percentiles(draws: Floats) -> tuple[Floats, Floats]:
    """The 2.5th and the 97.5th percentile over the first axis: [num, ...] → two of [...].

    Resamples without a single query of a slice leave it no value (NaN): the others count. A figure
    that no resample has a value for gets NaN.
    """
    flat = draws.reshape(len(draws), -1)
    low, high = np.quantile(flat, (ALPHA / 2, 1 - ALPHA / 2), axis=0)
    for column in np.flatnonzero(np.isnan(flat).any(axis=0)):
        there = flat[~np.isnan(flat[:, column]), column]
        if len(there):
            low[column], high[column] = np.quantile(there, (ALPHA / 2, 1 - ALPHA / 2))
    return low.reshape(draws.shape[1:]), high.reshape(draws.shape[1:])


@dataclass(frozen=True, slots=True)
class ClusterSums:
    """Means over queries as functions of weights: a ratio of two sums over the drawn clusters.

    `members` [num] are the clusters that have a query here; `table` [num, num_metrics + 1] holds
    the sums of their queries' values and, last, how many queries they have. `means`, `lowest` and
    `highest` [num_metrics] are of the queries' values.
    """

    members: Ints
    table: Floats
    means: Floats
    lowest: Floats
    highest: Floats

    @classmethod
    def of(cls, values: Floats, clusters: Ints) -> ClusterSums:
        """From `values` [num_queries, num_metrics], at least one query, and their clusters."""
        members, places = np.unique(clusters, return_inverse=True)
        columns = [*values.T, np.ones(len(values))]
        table: Floats = np.stack(
            [np.bincount(places, weights=column, minlength=len(members)) for column in columns],
            axis=1,
        )
        return cls(
            members.astype(np.int64),
            table,
            values.mean(axis=0),
            values.min(axis=0),
            values.max(axis=0),
        )

    @property
    def num_clusters(self) -> int:
        """How many clusters have a query here."""
        return len(self.members)

    @property
    def num_changed(self) -> Ints:
        """In how many clusters the sum of a difference is not 0, [num_metrics]."""
        found: Ints = (np.abs(self.table[:, :-1]) > _ROUNDING).sum(axis=0)
        return found

    def weigh(self, weights: Floats) -> Floats:
        """Means for each row of weights, [some, all clusters] → [some, num_metrics]; NaN where no
        cluster of `members` was drawn."""
        # Taking all columns in their order would copy them for nothing.
        whole = self.num_clusters == weights.shape[1]
        sums = (weights if whole else weights[:, self.members]) @ self.table
        counts = sums[:, -1:]
        return np.divide(sums[:, :-1], counts, out=np.full_like(sums[:, :-1], np.nan),
                         where=counts > 0)  # fmt: skip

    def interval(self, draws: Floats) -> tuple[Floats, Floats]:
        """Low and high of each mean [num_metrics], from its draws [num, num_metrics].

        Percentiles of the resamples. Where all values are equal (a share of 0 % or 100 %, a slice
        of one item) these have no width, though the next query may well differ: see `unseen`.
        Values that do not lie between 0 and 1 have no such bound.
        """
        low, high = percentiles(draws)
        bounded = (self.lowest >= 0) & (self.highest <= 1)
        equal = (self.highest - self.lowest <= _ROUNDING) & bounded
        least, most = unseen(self.means, self.num_clusters)
        return np.where(equal, least, low), np.where(equal, most, high)

    def difference_interval(self, draws: Floats) -> tuple[Floats, Floats]:
        """Low and high of differences between -1 and 1, as `interval`.

        Resamples of queries none of which became better never say that any might have. So where no
        value is above 0 the upper bound is raised as if up to 1 - q of all clusters were such, each
        better by 1, and conversely: four broken queries and none mended are no sure loss.
        """
        low, high = percentiles(draws)
        seen = _seen(self.num_clusters)
        none_worse, none_better = self.lowest >= -_ROUNDING, self.highest <= _ROUNDING
        return (
            np.where(none_worse, low * seen - (1 - seen), low),
            np.where(none_better, high * seen + (1 - seen), high),
        )


def unseen(value: Floats, num_clusters: int) -> tuple[Floats, Floats]:
    """Low and high of a mean between 0 and 1 to which all clusters gave the same `value`.

    The exact interval of Clopper & Pearson (1934), widened to values between 0 and 1: up to 1 - q
    of all clusters, q = 0.025^(1 / num_clusters), may be such as were never drawn, and these have
    any value. That is about 3.7 / num_clusters, the "rule of three" for two-sided 95 %.
    """
    seen = _seen(num_clusters)
    return value * seen, 1 - (1 - value) * seen


def p_values(sums: ClusterSums, draws: Floats) -> Floats:
    """Two-sided p-values of paired differences, [num_metrics], from draws [num, num_metrics].

    How often a resampled difference lies as far from the measured one as that from 0, of num + 1
    (the measured one counts, so that none is 0). No p-value is below 2^(1 - num_changed): should
    better and worse be equally likely for each, as
    often all of them go one way by chance alone (the sign test).
    """
    size = np.abs(sums.means)
    as_far = (np.abs(draws - sums.means) >= size - _ROUNDING).sum(axis=0)
    num = (~np.isnan(draws)).sum(axis=0)
    p: Floats = np.clip((1 + as_far) / (1 + num), 0.5 ** (sums.num_changed - 1.0), 1.0)
    return p


def _seen(num_clusters: int) -> float:
    """The share of all clusters that at least are like those drawn, should all drawn be alike."""
    return float((ALPHA / 2) ** (1 / num_clusters))


@dataclass(frozen=True, slots=True)
class Median:
    """The median over queries as a function of weights, equal to that of the queries repeated.

    Only the values near the middle are looked at one by one: those further down are counted for
    whole clusters.
    """

    values: Floats
    clusters: Ints
    below: Floats
    totals: Floats

    @classmethod
    def of(cls, values: Floats, clusters: Ints, num_clusters: int) -> Median:
        """From `values` [num_queries] and their clusters, numbers below `num_clusters`."""
        order = np.argsort(values, kind="stable")
        totals = np.bincount(clusters, minlength=num_clusters)
        # How many of the drawn queries lie below the median has a standard deviation of at most
        # half the root of the sum of the clusters' squared sizes. No draw goes ten times that far.
        reach = 5 * np.sqrt((totals.astype(np.float64) ** 2).sum()) + 1
        middle = len(values) / 2
        first = max(0, int(middle - reach))
        last = min(len(values), int(middle + reach) + 1)
        below = np.bincount(clusters[order[:first]], minlength=num_clusters)
        inside = order[first:last]
        return cls(
            values[inside],
            clusters[inside],
            below.astype(np.float64),
            totals.astype(np.float64),
        )

    def weigh(self, weights: Floats) -> Floats:
        """The median for each row of weights, [some, num_clusters] → [some]."""
        half = (weights @ self.totals) / 2
        reached = np.cumsum(weights[:, self.clusters], axis=1)
        reached += (weights @ self.below)[:, None]
        # With an even number of queries the median lies between two of them.
        lower = (reached < half[:, None]).sum(axis=1)
        upper = (reached <= half[:, None]).sum(axis=1)
        last = len(self.values) - 1
        found: Floats = (
            self.values[np.minimum(lower, last)] + self.values[np.minimum(upper, last)]
        ) / 2
        return found
