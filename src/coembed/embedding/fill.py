"""Filling the store: every item without a vector goes through its tower, in blocks.

A block is written when so many vectors are there, so that a killed run loses at most one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from coembed.embedding.corpus import Corpus, MediaPlace, as_ids, ids_of, rows_of
from coembed.embedding.settings import Share
from coembed.embedding.store import Embeddings, StaleVectorsError, VectorStore
from coembed.errors import ModelError
from coembed.models.encoder import Embedded, Encoder
from coembed.types import Modality

# Vectors that wait are made again for so many items of a modality, and have to come out the same.
_NUM_CHECKED = 8
# Texts are few, and the last batch of each length is padded.
_TEXTS_AT_ONCE = 32


def fill_items(
    store: VectorStore,
    encoder: Encoder,
    corpus: Corpus,
    modality: Modality,
    *,
    block_size: int,
    share: Share | None,
    advance: Callable[[int], None],
) -> dict[str, str]:
    """Embed the items of `modality` that have no vector yet; with `share`, only those of its parts.

    Returns the ids of those that cannot be decoded, with the reason. `advance` hears of every item
    passed. Raises StaleVectorsError if what is in the store is not what the encoder makes now, bit
    by bit, DataError for damaged shards and ModelError for vectors that are not finite.
    """
    checked: list[MediaPlace] = []
    if not store.proven(modality) or num_without_vector(store, corpus, modality, share):
        checked = _some_with_vector(store, corpus, modality)
    ids = [place.item_id for place in checked]
    known = dict(zip(ids, store.take(store.find(modality, as_ids(ids))), strict=True))
    places = chain(checked, _without_vector(store, corpus, modality, share))
    with (
        _Blocks(store, modality, known, block_size) as blocks,
        closing(encoder.bulk(modality, places, corpus.fetch)) as batches,
    ):
        for found in batches:
            blocks.add(Embedded(
                tuple(place.item_id for place in found.keys),
                found.vectors,
                tuple((place.item_id, reason) for place, reason in found.unreadable),
            ))  # fmt: skip
            advance(len(found.keys) + len(found.unreadable))
    if checked:
        store.set_proven(modality)
    return blocks.unreadable


def fill_texts(
    store: VectorStore, encoder: Encoder, texts: Mapping[str, str], *, block_size: int
) -> None:
    """Embed those of `texts`, by id, that have no vector yet."""
    ids = list(texts)
    missing = np.flatnonzero(store.find("text", as_ids(ids)) < 0).tolist()
    keys = (ids[place] for place in missing)
    batches = encoder.bulk("text", keys, texts.__getitem__, batch_size=_TEXTS_AT_ONCE)
    with _Blocks(store, "text", {}, block_size) as blocks, closing(batches):
        for found in batches:
            blocks.add(found)


def num_without_vector(
    store: VectorStore, corpus: Corpus, modality: Modality, share: Share | None
) -> int:
    """How many items of `modality` are to be embedded."""
    found = _rows(store, corpus, modality, share)
    return sum(int((mine & (rows < 0)).sum()) for _, mine, rows in found)


class _Blocks:
    """Collects vectors and writes them as blocks of at least `size`, in a thread beside the tower.

    The items of `known` have a vector already: it is compared, and written no second time.
    """

    def __init__(
        self, store: VectorStore, modality: Modality, known: Mapping[str, Embeddings], size: int
    ) -> None:
        self._store, self._modality, self._known, self._size = store, modality, known, size
        self._ids: list[str] = []
        self._vectors: list[Embeddings] = []
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write-block")
        self._writing: Future[None] | None = None
        self.unreadable: dict[str, str] = {}

    def add(self, found: Embedded[str]) -> None:
        _check_finite(found.vectors)
        self.unreadable.update(found.unreadable)
        if lost := self._known.keys() & dict(found.unreadable).keys():
            raise StaleVectorsError(f"{min(lost)} has a vector, but cannot be decoded")
        new = []
        for place, item_id in enumerate(found.keys):
            if item_id not in self._known:
                new.append(place)
            elif found.vectors[place].tobytes() != self._known[item_id].tobytes():
                raise StaleVectorsError(f"the encoder gives {item_id} another vector now")
        self._ids += [found.keys[place] for place in new]
        self._vectors.append(found.vectors[new])
        if len(self._ids) >= self._size:
            self._flush()

    def _flush(self) -> None:
        self._wait()
        if self._ids:
            ids, vectors = self._ids, np.concatenate(self._vectors)
            self._ids, self._vectors = [], []
            self._writing = self._writer.submit(self._store.add, self._modality, ids, vectors)

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> _Blocks:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
                self._wait()
                self._store.settle()
        finally:
            self._writer.shutdown(wait=True)


def _rows(
    store: VectorStore, corpus: Corpus, modality: Modality, share: Share | None
) -> Iterator[tuple[object, NDArray[np.bool_], NDArray[np.int64]]]:
    """Of each part: its rows, which are of `modality`, and where the vectors of all rows are."""
    part, parts = share or (1, 1)
    for number, table in enumerate(corpus.tables()):
        if number % parts == part - 1:
            yield table, rows_of(table, modality), store.find(modality, ids_of(table))


def _without_vector(
    store: VectorStore, corpus: Corpus, modality: Modality, share: Share | None
) -> Iterator[MediaPlace]:
    for table, mine, rows in _rows(store, corpus, modality, share):
        yield from _places(table, np.flatnonzero(mine & (rows < 0)))


def _some_with_vector(store: VectorStore, corpus: Corpus, modality: Modality) -> list[MediaPlace]:
    """A few items that have one, spread over the parts."""
    found: list[MediaPlace] = []
    step = max(1, len(corpus.files) // _NUM_CHECKED)
    for number, (table, mine, rows) in enumerate(_rows(store, corpus, modality, None)):
        there = np.flatnonzero(mine & (rows >= 0))
        few = max(1, -(-_NUM_CHECKED // len(corpus.files)))
        if number % step == 0 and len(there) and len(found) < _NUM_CHECKED:
            spread = np.unique(np.linspace(0, len(there) - 1, few).astype(np.int64))
            found += _places(table, there[spread])
    return found[:_NUM_CHECKED]


def _places(table: object, rows: NDArray[np.int64]) -> Iterable[MediaPlace]:
    chosen = table.select(list(MediaPlace._fields)).take(rows)  # type: ignore[attr-defined]
    columns = [chosen.column(name).to_pylist() for name in MediaPlace._fields]
    return map(MediaPlace, *columns)


def _check_finite(vectors: Embeddings) -> None:
    if not np.isfinite(vectors).all():
        raise ModelError(
            "the model gave embeddings that are not finite numbers",
            hint="its training diverged: look at history.csv, lower train.lr and train again",
        )
