"""What a task measured, query by query, with who was asked: the ground of all statistics.

Whatever is measured of single queries (retrieval, classification, searches, swapped captions,
blurred pictures) ends here. Slices, intervals, the outcomes file and the comparison of two models
read this and nothing else, so a new task needs none of them to know it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coembed.evaluation.retrieval import Ints, Outcomes


@dataclass(frozen=True, slots=True)
class Answered:
    """The outcomes of one task and its queries.

    metrics.json holds a metric of it at `group/key/METRIC`. All sequences are [num_queries]:
    `queries` name each query, once in the task and alike in every evaluation of the same set;
    `items` are the numbers, in the whole set, of the items that the queries are about, -1 for none;
    queries of one number in `clusters` are resampled together; `labels[column]` are values of the
    slice columns, None for queries in no slice of it.
    """

    group: str
    key: str
    outcomes: Outcomes
    queries: Sequence[str]
    items: Ints
    clusters: Ints
    labels: Mapping[str, Sequence[str | None]]

    def path(self, metric: str) -> str:
        """Where metrics.json holds the mean of `metric`."""
        return f"{self.group}/{self.key}/{metric}"
