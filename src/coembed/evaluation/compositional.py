"""Does the model read a caption's words together, or only spot them?

Each query is an item with its true caption and an altered one, and is answered when the item lies
nearer to the true one. There are two kinds, as in SugarCrepe (Hsieh et al. 2023, arXiv 2306.14610):

- swap: an attribute's value in the caption becomes another value of the same column ("a red mug" →
  "a blue mug");
- order: two words of the caption change places ("a red mug on a blue cloth" → "a blue mug on a red
  cloth"), which a model that sees a bag of words cannot tell apart. Such captions are less natural
  than swaps, and may be told by that: read both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from coembed.errors import DataError
from coembed.evaluation.altered_captions import Altered, Captions, auto_columns
from coembed.evaluation.answered import Answered
from coembed.evaluation.evaluation_set import EvaluationSet
from coembed.evaluation.parts import EncodeTexts, Labels, Part, by_item, slug
from coembed.evaluation.retrieval import TIE_TOLERANCE, Embeddings, Floats, Outcomes
from coembed.evaluation.settings import CompositionalSettings


@dataclass(frozen=True, slots=True)
class AlteredTask:
    """The queries of one kind, by its key in metrics.json, and what came of them."""

    key: str
    queries: Sequence[Altered]
    outcomes: Outcomes


def altered_answers(
    data: EvaluationSet,
    parts: Sequence[Part],
    encode_texts: EncodeTexts,
    asked: CompositionalSettings,
) -> list[Answered]:
    """All tasks of all `parts` of `data`. Keys of the first modality are plain, others end in it.

    Raises DataError where a column that is named is not there, or cannot be swapped.
    """
    named = () if asked.columns == "auto" else asked.columns
    labels = {
        column: data.labels(column, setting="evaluate.compositional.columns") for column in named
    }
    answered: list[Answered] = []
    swapped, there = set(), set()
    for part in parts:
        ending = "" if part.modality == next(iter(data.first_items)) else f"_{part.modality}"
        last = part.first + len(part.items)
        own = {column: values[part.first : last] for column, values in labels.items()}
        if asked.columns == "auto":
            own = {
                column: part.data.labels(column, setting="evaluate.compositional.columns")
                for column in auto_columns(part.data)
            }
        there |= {column for column, values in own.items() if any(values)}
        for task in ask_altered(
            part.data, own, part.items, part.texts, encode_texts,
            order=asked.order, most=asked.max_items,
        ):  # fmt: skip
            key = slug(task.key) + ending
            outcomes = replace(task.outcomes, task=f"compositional_{key}")
            items = np.asarray([one.item for one in task.queries], dtype=np.int64)
            one = by_item("compositional", key, outcomes, part, items)
            queries = [
                f"{item_id}: {query.altered}"
                for item_id, query in zip(one.queries, task.queries, strict=True)
            ]
            answered.append(replace(one, queries=queries))
            swapped.add(task.key)
    for column in named:
        if column in there and f"swap_{column}" not in swapped:
            raise DataError(
                f"evaluate.compositional.columns names {column!r}, but no caption has a value of "
                "it as a word that could be swapped for that of another caption",
                hint="take the column out, or name columns whose values stand in captions",
            )
    return answered


def ask_altered(
    data: EvaluationSet,
    labels: Mapping[str, Labels],
    items: Embeddings,
    texts: Embeddings,
    encode_texts: EncodeTexts,
    *,
    order: bool,
    most: int,
) -> list[AlteredTask]:
    """Swaps in each column of `labels`, and exchanged words where `order` asks for them.

    `items` and `texts` are the embeddings of the items and of the distinct captions of `data`;
    `labels[column]` holds one value an item. At most `most` items are asked about in each task;
    tasks without a query are left out.
    """
    captions = Captions(data, labels)
    asked = {f"swap_{column}": captions.swapped(column, most=most) for column in labels}
    if order:
        asked["order"] = captions.exchanged(most=most)
    number = {text: place for place, text in enumerate(data.texts)}
    tasks = []
    for key, queries in asked.items():
        if queries:
            outcomes = compositional_outcomes(
                f"compositional_{key}",
                items[[one.item for one in queries]],
                texts[[number[one.caption] for one in queries]],
                encode_texts([one.altered for one in queries]),
            )
            tasks.append(AlteredTask(key, queries, outcomes))
    return tasks


def compositional_outcomes(
    task: str, items: Embeddings, captions: Embeddings, altered: Embeddings
) -> Outcomes:
    """Accuracy of each query: 1 where its item scores the caption above the altered one, a half
    where they tie. All are unit embeddings, [num_queries, dim]."""
    difference = (items * (captions - altered)).sum(axis=1, dtype=np.float64)
    accuracy: Floats = np.where(
        np.abs(difference) <= TIE_TOLERANCE, 0.5, (difference > 0).astype(np.float64)
    )
    return Outcomes(task, {"accuracy": accuracy}, {"accuracy": np.full(len(accuracy), 0.5)})
