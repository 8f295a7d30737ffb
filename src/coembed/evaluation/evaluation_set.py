"""The evaluated split: its items, their captions, and which caption answers which item.

A caption's positives are its own item and every item that has the same caption, for nothing in the
words tells these apart. Captions are the same when they agree after Unicode compatibility folding,
case folding and joining of white space. Conversely an item's positives are its captions and those
that are the same as one of them. Texts that are equal to the letter are candidates once.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from coembed.errors import DataError
from coembed.evaluation.retrieval import Ints, Positives
from coembed.files import sha256_json
from coembed.types import Attribute, Modality

ITEM_MODALITIES: tuple[Modality, ...] = ("image", "audio")
"""What is evaluated against captions, in the order of reports. The first one that is there is what
settings mean that name no modality."""


@dataclass(frozen=True, slots=True)
class EvaluatedItem:
    """An item without its media."""

    item_id: str
    modality: Modality
    path: str
    captions: tuple[str, ...]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True)
class EvaluationSet:
    """The items of one split, in the order of their embeddings: those of a modality together."""

    items: Sequence[EvaluatedItem]

    @cached_property
    def first_items(self) -> Mapping[Modality, int]:
        """The modalities that are there, in their order, and the number of the first item of each.

        Raises ValueError where the items of a modality are not all together.
        """
        firsts: dict[Modality, int] = {}
        for number, item in enumerate(self.items):
            firsts.setdefault(item.modality, number)
            if item.modality != next(reversed(firsts)):
                raise ValueError(f"item {number} is of modality {item.modality}, behind another's")
        return firsts

    @cached_property
    def _parts(self) -> Mapping[Modality, EvaluationSet]:
        firsts = self.first_items
        if len(firsts) == 1:
            return dict.fromkeys(firsts, self)
        ends = [*list(firsts.values())[1:], len(self.items)]
        return {
            modality: EvaluationSet(self.items[first:end])
            for (modality, first), end in zip(firsts.items(), ends, strict=True)
        }

    def of_modality(self, modality: Modality) -> EvaluationSet:
        """The items of one modality alone."""
        return self._parts[modality]

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The distinct captions, in the order in which they first appear."""
        return tuple(dict.fromkeys(text for item in self.items for text in item.captions))

    @cached_property
    def _text_number(self) -> dict[str, int]:
        return {text: number for number, text in enumerate(self.texts)}

    @cached_property
    def queries(self) -> tuple[tuple[int, int], ...]:
        """Text queries as (item, text) numbers: every caption of every item, once an item."""
        return tuple(
            (number, self._text_number[text])
            for number, item in enumerate(self.items)
            for text in dict.fromkeys(item.captions)
        )

    @property
    def query_texts(self) -> Ints:
        """Text number of each text query, [num_queries]."""
        return np.asarray([text for _, text in self.queries], dtype=np.int64)

    @property
    def query_items(self) -> Ints:
        """Item number of each text query, [num_queries]."""
        return np.asarray([item for item, _ in self.queries], dtype=np.int64)

    def text_to_item(self) -> Positives:
        """For each text query the items that answer it."""
        holders: dict[str, list[int]] = defaultdict(list)
        for item, text in self.queries:
            holders[same_text(self.texts[text])].append(item)
        return Positives.from_lists([holders[same_text(self.texts[t])] for _, t in self.queries])

    def item_to_text(self) -> Positives:
        """For each item the distinct texts that answer it."""
        equal: dict[str, list[int]] = defaultdict(list)
        for number, text in enumerate(self.texts):
            equal[same_text(text)].append(number)
        return Positives.from_lists(
            [
                [number for text in item.captions for number in equal[same_text(text)]]
                for item in self.items
            ]
        )

    @cached_property
    def _columns(self) -> tuple[str, ...]:
        return tuple(sorted({name for item in self.items for name in item.attributes}))

    def columns(self) -> tuple[str, ...]:
        """Names of the attribute columns that at least one item has, sorted."""
        return self._columns

    def values(
        self, column: str, *, setting: str, what: str = "item"
    ) -> tuple[Attribute | None, ...]:
        """Each item's value of `column`, None where it has none.

        `setting` names the setting that asked for the column, should no item have it, and `what`
        says what the items are.
        """
        if column not in self.columns():
            there = ", ".join(self.columns()) or "none"
            raise DataError(
                f"{setting} names the column {column!r}, which no evaluated {what} has; "
                f"columns there are: {there}",
                hint=f"name one of these in {setting}, or add {column!r} to the pool's table",
            )
        return tuple(item.attributes.get(column) for item in self.items)

    def labels(self, column: str, *, setting: str, what: str = "item") -> tuple[str | None, ...]:
        """`values` as text."""
        found = self.values(column, setting=setting, what=what)
        return tuple(None if value is None else as_label(value) for value in found)

    def word_columns(self) -> tuple[str, ...]:
        """Columns of strings or booleans with 2 to 50 values, sorted by name."""
        chosen = []
        for column in self.columns():
            values = {item.attributes[column] for item in self.items if column in item.attributes}
            words = all(isinstance(value, str | bool) for value in values)
            if words and 2 <= len(values) <= 50:
                chosen.append(column)
        return tuple(chosen)

    def content_hash(self) -> str:
        """SHA-256 over the sorted (item_id, sorted captions, attributes), whatever the order of the
        items. Attributes count: labels, attribute queries and slices are made of them."""
        items = sorted(self.items, key=lambda item: item.item_id)
        return sha256_json(
            [[item.item_id, sorted(item.captions), dict(item.attributes)] for item in items]
        )


def as_label(value: Attribute) -> str:
    """An attribute's value as the name of a class or slice."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def same_text(text: str) -> str:
    """What two captions must share to count as the same words."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
