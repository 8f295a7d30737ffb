"""Searches made of attribute values ("red sneaker"), judged by the attributes of their hits.

Recall asks for one particular item; a person who types two words wants any item that is both. Where
fewer items than k are right, even a perfect search cannot fill the page: `capped_recall_at_k`
divides the right hits by what was possible, min(k, right items), as BEIR does (Thakur et al. 2021,
arXiv 2104.08663, section 4), while `precision_at_k` divides by k.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coembed.evaluation.retrieval import TIE_TOLERANCE, Embeddings, Floats, Ints, Outcomes


@dataclass(frozen=True, slots=True)
class AttributeQuery:
    """One search: its text, the value asked of each column, the numbers of the items that fit."""

    text: str
    values: tuple[str, ...]
    right: Ints


def make_queries(
    template: str, labels: Mapping[str, Sequence[str | None]]
) -> tuple[AttributeQuery, ...]:
    """One query for each combination of values that at least one item has, sorted by values.

    `labels[column]` holds one value an item; every column stands in `template` as "{column}".
    """
    found: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, row in enumerate(zip(*labels.values(), strict=True)):
        if None not in row:
            found[tuple(value for value in row if value is not None)].append(number)
    queries = []
    for values, numbers in sorted(found.items()):
        text = fill(template, dict(zip(labels, values, strict=True)))
        queries.append(AttributeQuery(text, values, np.asarray(numbers, dtype=np.int64)))
    return tuple(queries)


def fill(template: str, values: Mapping[str, str]) -> str:
    """The search for `values` by column, as a person types it."""
    text = template
    for column, value in values.items():
        text = text.replace(f"{{{column}}}", value.replace("_", " "))
    return text


def right_in_top(scores: Floats | Embeddings, right: Ints, k: int) -> float:
    """Expected number of right items among the top k of `scores` [num_items].

    Items that tie for the last places share them evenly, in whatever order they come.
    """
    k = min(k, len(scores))
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    inside = scores > threshold + TIE_TOLERANCE
    tied = (scores >= threshold - TIE_TOLERANCE) & ~inside
    places = k - int(inside.sum())
    return float(inside[right].sum() + tied[right].sum() * places / tied.sum())


def attribute_outcomes(
    task: str,
    queries: Sequence[AttributeQuery],
    embedded_queries: Embeddings,
    items: Embeddings,
    ks: Sequence[int],
) -> Outcomes:
    """precision_at_k and capped_recall_at_k of each query. Embeddings are [num, dim], unit L2.

    Holds one query's scores at a time.
    """
    metrics = [f"{name}_at_{k}" for k in ks for name in ("precision", "capped_recall")]
    values = {metric: np.empty(len(queries), dtype=np.float64) for metric in metrics}
    chance = {metric: np.empty(len(queries), dtype=np.float64) for metric in metrics}
    for place, query in enumerate(queries):
        scores = items @ embedded_queries[place]
        share = len(query.right) / len(items)
        for k in ks:
            hits = right_in_top(scores, query.right, k)
            possible = min(k, len(query.right))
            looked_at = min(k, len(items))
            values[f"precision_at_{k}"][place] = hits / k
            chance[f"precision_at_{k}"][place] = share * looked_at / k
            values[f"capped_recall_at_{k}"][place] = hits / possible
            chance[f"capped_recall_at_{k}"][place] = share * looked_at / possible
    return Outcomes(task, values, chance)


def best_precision(queries: Sequence[AttributeQuery], k: int) -> float:
    """Mean precision_at_k of a perfect search: below 1 where fewer than k items are right."""
    return float(np.mean([min(k, len(query.right)) / k for query in queries]))


def shared_value(query: AttributeQuery, values: Sequence[str | None]) -> str | None:
    """The value of a column that all right items of `query` share, None where they differ.

    `values` holds one value an item. So the queries of a combination that training never saw form
    a slice, when a column says so of their items.
    """
    found = {values[number] for number in query.right}
    return found.pop() if len(found) == 1 else None
