"""What one evaluation asks, part by part: the items of a modality, and each task upon them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from coembed.evaluation.answered import Answered
from coembed.evaluation.attribute_queries import AttributeQuery
from coembed.evaluation.evaluation_set import EvaluationSet
from coembed.evaluation.meetings import Meetings
from coembed.evaluation.retrieval import (
    Embeddings,
    Floats,
    Ints,
    Outcomes,
    PositiveSource,
    Rankings,
)
from coembed.evaluation.settings import AttributeQuerySettings, ZeroShotSettings
from coembed.evaluation.zero_shot import ZeroShot
from coembed.types import Modality

EncodeTexts = Callable[[Sequence[str]], Embeddings]
Labels = Sequence[str | None]


@dataclass(frozen=True, slots=True)
class Retrieval:
    """One direction of retrieval."""

    outcomes: Outcomes
    found: Rankings
    positives: PositiveSource
    num_candidates: int

    @property
    def ranks(self) -> Floats:
        """Of each query's best positive, [num_queries]."""
        return self.found.ranks


@dataclass(frozen=True, slots=True)
class Part:
    """The items of one modality, against their own captions.

    `first`: the number of its first item in the whole set. `items` and `texts` are the embeddings,
    [num_items or num_texts, dim]. `slice_labels[column]` holds one value an item.
    """

    modality: Modality
    first: int
    data: EvaluationSet
    items: Embeddings
    texts: Embeddings
    text_to_item: Retrieval
    item_to_text: Retrieval
    slice_labels: Mapping[str, Labels]

    @property
    def retrieval(self) -> tuple[Retrieval, Retrieval]:
        """Both directions."""
        return self.text_to_item, self.item_to_text


@dataclass(frozen=True, slots=True)
class Crossing:
    """The items of one modality as queries for those of another; `retrieval` is None where no item
    of the one belongs to any of the other.
    """

    source: Part
    target: Part
    meetings: Meetings
    retrieval: Retrieval | None

    @property
    def task(self) -> str:
        """How metrics.json calls it: image_to_audio."""
        return f"{self.source.modality}_to_{self.target.modality}"


@dataclass(frozen=True, slots=True)
class Recognition:
    """Zero-shot classification of the items of one part. `classes` are the embeddings of the
    classes, [num_classes, dim]."""

    settings: ZeroShotSettings
    part: Part
    result: ZeroShot
    classes: Embeddings


@dataclass(frozen=True, slots=True)
class AttributeSearch:
    """The searches of one template in one part. `embedded` is [num_queries, dim]."""

    settings: AttributeQuerySettings
    part: Part
    queries: Sequence[AttributeQuery]
    embedded: Embeddings
    labels: Mapping[str, Labels]
    outcomes: Outcomes


def slug(name: str) -> str:
    """`name` in lower-case letters, digits and single underscores, as metrics are keyed."""
    return re.sub(r"[^a-z0-9]+", "_", name.casefold()).strip("_") or "_"


def by_item(group: str, key: str, outcomes: Outcomes, part: Part, items: Ints) -> Answered:
    """Outcomes of queries that are about one item of `part` each: `items` [num_queries] are its
    numbers within the part, each item asked about once."""
    numbers = items.tolist()
    return Answered(
        group,
        key,
        outcomes,
        queries=tuple(part.data.items[item].item_id for item in numbers),
        items=items + part.first,
        clusters=items + part.first,
        labels=labels_of(part, numbers),
    )


def labels_of(part: Part, items: Sequence[int]) -> dict[str, Labels]:
    """Slice labels of queries about the items with these numbers within the part, by column."""
    return {
        column: [values[item] for item in items] for column, values in part.slice_labels.items()
    }
