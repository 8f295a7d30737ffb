"""Every metric by slice: the queries that share one value of a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coembed.evaluation.retrieval import Outcomes


@dataclass(frozen=True, slots=True)
class SliceScore:
    """One metric of one task on one slice, beside the same metric over all queries.

    `small` marks a slice with too few queries to trust.
    """

    task: str
    column: str
    value: str
    num_queries: int
    small: bool
    metric: str
    score: float
    overall: float
    chance: float


def slice_scores(
    outcomes: Outcomes, columns: Mapping[str, Sequence[str | None]], *, min_slice: int
) -> list[SliceScore]:
    """Scores of every value of every column, sorted by column, value and metric.

    `columns[name]` holds one value a query; queries without a value (None) are in no slice.
    """
    found: list[SliceScore] = []
    for column, values in sorted(columns.items()):
        array = np.asarray(values, dtype=object)
        for value in sorted({value for value in values if value is not None}):
            inside = array == value
            num = int(inside.sum())
            for metric, scores in sorted(outcomes.values.items()):
                found.append(
                    SliceScore(
                        task=outcomes.task,
                        column=column,
                        value=value,
                        num_queries=num,
                        small=num < min_slice,
                        metric=metric,
                        score=float(scores[inside].mean()),
                        overall=float(scores.mean()),
                        chance=float(outcomes.chance[metric][inside].mean()),
                    )
                )
    return found
