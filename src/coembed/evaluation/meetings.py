"""Which items of one modality belong to which of another: the picture of a kettle and its whistle.

Pairs tie each image and each sound to captions, never to one another. So an image and a sound are
taken to belong together where they share a caption (`same_text`), or a value in one of the columns
that `evaluate.meets_on` names. What shares nothing has no positive, and is not asked about.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from coembed.evaluation.evaluation_set import EvaluationSet, same_text
from coembed.evaluation.retrieval import Ints, Positives

# A caption, or a column and one of its values. No column is called "", so the two never collide.
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Meetings:
    """The queries that share a key with a candidate, and the candidates that they share one with.

    Positives are put together a block of queries at a time: a column of few values gives each query
    thousands of them, and all at once they would outgrow the embeddings.

    queries: numbers of the items that can be asked about, [num_asked]. num_not_asked: how many
    cannot. keys: of each asked query, those that candidates have too, as numbers. holders: of each
    key, the candidates that have it, rising.
    """

    queries: Ints
    num_not_asked: int
    keys: Sequence[tuple[int, ...]]
    holders: Sequence[Ints]
    counts: Ints = field(init=False)

    def __post_init__(self) -> None:
        known: dict[tuple[int, ...], int] = {}
        for keys in self.keys:
            if keys not in known:
                known[keys] = len(self._candidates(keys))
        counts = np.asarray([known[keys] for keys in self.keys], dtype=np.int64)
        object.__setattr__(self, "counts", counts)

    def block(self, start: int, stop: int) -> Positives:
        """The positives of the asked queries `start` to `stop`."""
        starts = np.zeros(stop - start + 1, dtype=np.int64)
        np.cumsum(self.counts[start:stop], out=starts[1:])
        merged = {keys: self._candidates(keys) for keys in set(self.keys[start:stop])}
        found = [merged[keys] for keys in self.keys[start:stop]]
        return Positives(starts, np.concatenate(found) if found else np.empty(0, dtype=np.int64))

    def _candidates(self, keys: tuple[int, ...]) -> Ints:
        if len(keys) == 1:
            return self.holders[keys[0]]
        return np.unique(np.concatenate([self.holders[key] for key in keys]))


def meet(queries: Sequence[Sequence[Key]], candidates: Sequence[Sequence[Key]]) -> Meetings:
    """Who shares a key with whom: one sequence of keys a query, and one a candidate."""
    held: dict[Key, list[int]] = defaultdict(list)
    for number, keys in enumerate(candidates):
        for key in dict.fromkeys(keys):
            held[key].append(number)
    place = {key: number for number, key in enumerate(held)}
    shared = [tuple(sorted({place[key] for key in keys if key in place})) for keys in queries]
    asked = [number for number, keys in enumerate(shared) if keys]
    return Meetings(
        queries=np.asarray(asked, dtype=np.int64),
        num_not_asked=len(queries) - len(asked),
        keys=[shared[number] for number in asked],
        holders=[np.asarray(numbers, dtype=np.int64) for numbers in held.values()],
    )


def meeting_keys(
    data: EvaluationSet, labels: Mapping[str, Sequence[str | None]]
) -> list[list[Key]]:
    """What each item of `data` can meet others by. `labels[column]` holds one value an item."""
    keys: list[list[Key]] = [
        [("", same_text(caption)) for caption in item.captions] for item in data.items
    ]
    for column, values in labels.items():
        for number, value in enumerate(values):
            if value is not None:
                keys[number].append((column, value))
    return keys
