"""Queries to prove a search with, and how true matches score: from items held out of training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coembed import draws
from coembed.embedding.corpus import Corpus, as_ids, ids_of, rows_of
from coembed.embedding.settings import Canary
from coembed.embedding.store import Embeddings, VectorStore, vector_column, write_vectors
from coembed.files import sha256_bytes, write_json
from coembed.types import Modality, Split

QUERIES: Final = "queries.parquet"
CALIBRATION: Final = "calibration.json"

# Items a modality whose scores make up the calibration: a percentile then rests on five of them.
_NUM_CALIBRATED = 500
# Neighbours of an item are looked for among so many items of its modality, spread over the parts.
# Among more they would be a little nearer; beyond this it is not worth the reading.
_NUM_SCANNED = 100_000
# Held out of training first; where a corpus has nothing else, even its training items will do.
_HELD_OUT: Final[tuple[Split, ...]] = ("val", "test", "train")
_PERCENTILES = np.arange(101)
_DIGITS = 4


@dataclass(frozen=True, slots=True)
class HeldOut:
    """An item of the split that queries are taken from. `caption` is one of its own, chosen by
    hash; None where it has none. `rank` orders the items at random, always the same."""

    item_id: str
    modality: Modality
    caption: str | None
    rank: int


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a search to prove it: some items of a split, by modality in order of rank,
    and the canaries. `split` is None where the corpus is empty."""

    split: Split | None
    items: tuple[HeldOut, ...]
    canaries: tuple[Canary, ...]
    num_queries: int

    def texts(self) -> dict[str, str]:
        """All texts to embed, by their ids."""
        captions = [item.caption for item in self.items if item.caption is not None]
        wanted = [*captions, *(canary.text for canary in self.canaries)]
        return {text_id(text): text for text in wanted}

    def samples(self) -> list[HeldOut]:
        """The items whose captions are queries."""
        with_caption = [item for item in self.items if item.caption is not None]
        return sorted(with_caption, key=lambda item: item.rank)[: self.num_queries]


def text_id(text: str) -> str:
    """By what the store knows a text."""
    return sha256_bytes(text.encode())


def choose_queries(
    corpus: Corpus,
    unreadable: Mapping[str, str],
    *,
    num_queries: int,
    canaries: Sequence[Canary],
    with_texts: bool,
) -> Asked:
    """Choose held-out items by hash: of val, else of test, else of train.

    An item's hash decides, so a corpus that grows keeps nearly all of its queries. Without
    `with_texts` (a model without a text tower) there are no captions.
    """
    most = max(_NUM_CALIBRATED, num_queries)
    for split in _HELD_OUT:
        items: list[HeldOut] = []
        for modality in corpus.num_items:
            items += _smallest(corpus, split, modality, unreadable, most, with_texts)
        if items:
            return Asked(split, tuple(items), tuple(canaries), num_queries)
    return Asked(None, (), tuple(canaries), num_queries)


def _smallest(
    corpus: Corpus,
    split: Split,
    modality: Modality,
    unreadable: Mapping[str, str],
    most: int,
    with_texts: bool,
) -> list[HeldOut]:
    """The `most` items of a modality with the lowest rank."""
    chosen: list[HeldOut] = []
    for table in corpus.tables():
        mine = rows_of(table, modality) & (
            table.column("split").to_numpy(zero_copy_only=False) == split
        )
        rows = table.select(["item_id", "captions"]).take(np.flatnonzero(mine)).to_pylist()
        rows = [row for row in rows if row["item_id"] not in unreadable]
        keys = draws.sample_keys([row["item_id"] for row in rows])
        ranks = draws.bits(0, "queries", 0, keys).tolist()
        for row, rank in zip(rows, ranks, strict=True):
            captions = [text for text in row["captions"] if text.strip()] if with_texts else []
            caption = captions[rank % len(captions)] if captions else None
            chosen.append(HeldOut(row["item_id"], modality, caption, rank))
        chosen = sorted(chosen, key=lambda item: item.rank)[:most]
    return chosen


def write_queries(file: Path, asked: Asked, store: VectorStore, *, dim: int) -> int:
    """Write the queries with their vectors, samples by rank, then canaries in order; how many."""
    samples = [item for item in asked.samples() if item.caption is not None]
    texts = [*(str(item.caption) for item in samples), *(one.text for one in asked.canaries)]
    kinds = ["sample"] * len(samples) + ["canary"] * len(asked.canaries)
    expected = [*([{}] * len(samples)), *(dict(one.expect) for one in asked.canaries)]
    vectors = _text_vectors(store, texts, dim)
    table = pa.table(
        {
            "text": pa.array(texts, pa.string()),
            "vector": vector_column(vectors),
            "item_id": pa.array(
                [item.item_id for item in samples] + [None] * len(asked.canaries), pa.string()
            ),
            "modality": pa.array(["text"] * len(texts), pa.string()),
            "kind": pa.array(kinds, pa.string()),
            "expect": pa.array(
                [json.dumps(one, sort_keys=True, ensure_ascii=False) for one in expected],
                pa.string(),
            ),
        }
    )
    write_vectors(file, table)
    return len(texts)


def write_calibration(file: Path, asked: Asked, corpus: Corpus, store: VectorStore) -> None:
    """Write how true matches score, as percentiles of cosines by query and item modality.

    Of a text: with its own item. Of an image or a sound: with its nearest neighbour of the same
    modality, itself left out.
    """
    scores: dict[str, dict[str, Any]] = {}
    for modality in corpus.num_items:
        items = [item for item in asked.items if item.modality == modality]
        vectors = store.take(store.find(modality, as_ids([item.item_id for item in items])))
        told = [place for place, item in enumerate(items) if item.caption is not None]
        if told:
            texts = [str(items[place].caption) for place in told]
            matches = _cosines(_text_vectors(store, texts, vectors.shape[1]), vectors[told])
            scores.setdefault("text", {})[modality] = _percentiles(matches)
        nearest = _nearest(items, vectors, corpus, store, modality)
        if len(nearest):
            scores.setdefault(modality, {})[modality] = _percentiles(nearest)
    write_json(file, {"version": 1, **scores})


def _text_vectors(store: VectorStore, texts: Sequence[str], dim: int) -> Embeddings:
    if not texts:
        return np.empty((0, dim), dtype=np.float32)
    return store.take(store.find("text", as_ids([text_id(text) for text in texts])))


def _nearest(
    items: Sequence[HeldOut],
    vectors: Embeddings,
    corpus: Corpus,
    store: VectorStore,
    modality: Modality,
) -> NDArray[np.float64]:
    """The score of each item with the nearest other one: [len(items)], empty if there is none."""
    own = store.find(modality, as_ids([item.item_id for item in items]))
    best = np.full(len(items), -np.inf, dtype=np.float32)
    neighbours = np.zeros_like(vectors)
    parts = -(-corpus.num_items[modality] // _NUM_SCANNED)
    for number, table in enumerate(corpus.tables()):
        if number % parts:
            continue
        rows = store.find(modality, ids_of(table)[rows_of(table, modality)])
        rows = rows[rows >= 0]
        if not len(items) or not len(rows):
            continue
        others = store.take(rows)
        near = vectors @ others.T
        near[own[:, None] == rows[None]] = -np.inf  # itself
        place = near.argmax(axis=1)
        found = near[np.arange(len(items)), place]
        better = found > best
        best[better] = found[better]
        neighbours[better] = others[place[better]]
    there = np.isfinite(best)
    return _cosines(vectors[there], neighbours[there])


def _cosines(one: Embeddings, other: Embeddings) -> NDArray[np.float64]:
    """Of rows with rows, summed in float64: the same whatever matrix product found them."""
    return np.einsum("nd,nd->n", one.astype(np.float64), other.astype(np.float64))


def _percentiles(scores: NDArray[np.float64]) -> dict[str, Any]:
    found = np.percentile(scores, _PERCENTILES)
    return {"quantiles": [round(value, _DIGITS) for value in found.tolist()], "num": len(scores)}
