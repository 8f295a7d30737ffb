"""From single queries to figures: every mean, overall and by slice, with its 95 % interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coembed.evaluation.answered import Answered
from coembed.evaluation.retrieval import Ints
from coembed.evaluation.settings import BootstrapSettings
from coembed.evaluation.slices import SliceScore, slice_places
from coembed.evaluation.statistics import (
    ClusterSums,
    Figure,
    Median,
    Resamples,
    Weigh,
    draw,
    percentiles,
)


def score(
    answered: Sequence[Answered], *, bootstrap: BootstrapSettings, min_slice: int
) -> tuple[list[Figure], list[SliceScore]]:
    """The figures and the slices of all tasks, in their order; slices by column, value and metric.

    Figures are the means of all metrics and the median rank where a task has ranks.
    """
    figures: list[Figure] = []
    slices: list[SliceScore] = []
    for one in answered:
        own_figures, own_slices = _score_task(one, bootstrap, min_slice)
        figures += own_figures
        slices += own_slices
    return figures, slices


def _score_task(
    one: Answered, bootstrap: BootstrapSettings, min_slice: int
) -> tuple[list[Figure], list[SliceScore]]:
    outcomes = one.outcomes
    metrics = sorted(outcomes.values)
    values = np.stack([outcomes.values[metric] for metric in metrics], axis=1)
    chance = np.stack([outcomes.chance[metric] for metric in metrics], axis=1)
    numbers, clusters = np.unique(one.clusters, return_inverse=True)
    groups: list[tuple[str, str, Ints]] = [
        (column, value, inside)
        for column, labels in sorted(one.labels.items())
        for value, inside in slice_places(labels)
    ]
    everything = ClusterSums.of(values, clusters)
    sums = [ClusterSums.of(values[inside], clusters[inside]) for _, _, inside in groups]
    weighed: list[Weigh] = [everything.weigh, *(part.weigh for part in sums)]
    if outcomes.ranks is not None:
        weighed.append(Median.of(outcomes.ranks, clusters, len(numbers)).weigh)
    resamples = Resamples(len(numbers), num=bootstrap.num_resamples, seed=bootstrap.seed)
    drawn = draw(weighed, resamples)

    low, high = everything.interval(drawn[0])
    figures = [
        Figure(one.path(metric), float(everything.means[m]), float(low[m]), float(high[m]))
        for m, metric in enumerate(metrics)
    ]
    if outcomes.ranks is not None:
        bounds = percentiles(drawn[-1])
        median = float(np.median(outcomes.ranks))
        figures.append(Figure(one.path("median_rank"), median, *(float(b) for b in bounds)))
    slices = []
    for (column, value, inside), part, draws in zip(
        groups, sums, drawn[1 : 1 + len(groups)], strict=True
    ):
        low, high = part.interval(draws)
        slices += [
            SliceScore(
                task=outcomes.task,
                column=column,
                value=value,
                num_queries=len(inside),
                small=len(inside) < min_slice,
                metric=metric,
                score=float(part.means[m]),
                low=float(low[m]),
                high=float(high[m]),
                overall=float(everything.means[m]),
                chance=float(chance[inside, m].mean()),
            )
            for m, metric in enumerate(metrics)
        ]
    return figures, slices
