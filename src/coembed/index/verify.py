"""Proving a collection: that it holds what was embedded, and that the search finds it."""

from __future__ import annotations

import hashlib
import heapq
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coembed.errors import ServiceError
from coembed.index.base import DamagedError, Point, SearchParams, VectorIndex
from coembed.index.filters import payload_value
from coembed.index.queries import Query
from coembed.index.release import CanaryMet, Release, SearchMeasured, vector_of
from coembed.index.settings import IndexSettings
from coembed.types import Attribute, Hit

Matrix = NDArray[np.float32]
Vectors = Callable[[], Iterable[tuple[Sequence[str], Matrix]]]

# How far a score or a number of a vector may be off after the trip: float32 at unit length.
_TOLERANCE = 1e-4
_K = 10
# Of the nearest this many are kept, so that those as near as the tenth are known to be.
_KEPT = 50
_ROWS = 4096
# Made once: `json.dumps` makes an encoder a call, which takes as long as its work.
_PAYLOAD = json.JSONEncoder(
    sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str, check_circular=False
)


class UnverifiedError(ServiceError):
    """A collection that is not what was written into it, or is not searched well enough."""


class NotAsWrittenError(UnverifiedError, DamagedError):
    """A collection whose points are not those that were written. Loading it again mends it."""


class CanaryError(UnverifiedError):
    """A query of `embed.canaries` that does not find what it has to."""


def content_hash(point: Point) -> str:
    """What stands for a point's vector and payload: BLAKE2b, 128 bits in hexadecimal."""
    digest = hashlib.blake2b(point.vector.astype("<f4", copy=False).tobytes(), digest_size=16)
    digest.update(_PAYLOAD.encode(point.payload).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


@dataclass
class Expected:
    """What a collection should hold, gathered from its points as they go by.

    `contents` is item id → content hash. Of each modality a sample of `sample_size` points is kept,
    chosen by their ids, so that it is the same whatever the order.
    """

    sample_size: int
    contents: dict[str, str] = field(default_factory=dict)
    _samples: dict[str, list[tuple[int, str, Point]]] = field(default_factory=dict)

    @classmethod
    def of(cls, points: Iterable[Point], sample_size: int) -> Expected:
        """What these points are to be."""
        expected = cls(sample_size)
        for point in points:
            expected.see(point)
        return expected

    def see(self, point: Point) -> Point:
        """Take note of a point; returns it with its content hash."""
        hashed = Point(point.item_id, point.vector, point.payload, content_hash(point))
        self.contents[point.item_id] = hashed.content_hash
        sample = self._samples.setdefault(str(point.payload.get("modality") or "item"), [])
        digest = hashlib.blake2b(point.item_id.encode(), digest_size=8).digest()
        entry = (-int.from_bytes(digest, "big"), point.item_id, hashed)
        if len(sample) < self.sample_size:
            heapq.heappush(sample, entry)
        elif entry[:2] > sample[0][:2]:
            heapq.heapreplace(sample, entry)
        return hashed

    def sample(self) -> dict[str, list[Point]]:
        """The sample, by modality, in the order of item ids."""
        return {
            modality: [entry[2] for entry in sorted(entries, key=lambda entry: entry[1])]
            for modality, entries in sorted(self._samples.items())
        }


def in_batches(points: Iterable[Point]) -> Iterator[tuple[list[str], Matrix]]:
    """Item ids and vectors [n, dim] of points."""
    rest = iter(points)
    while batch := list(islice(rest, _ROWS)):
        yield [point.item_id for point in batch], np.stack([point.vector for point in batch])


def verify(
    index: VectorIndex,
    name: str,
    release: Release,
    expected: Expected,
    vectors: Vectors,
    settings: IndexSettings,
    *,
    queries: Sequence[Query] = (),
    strict: bool = True,
) -> SearchMeasured:
    """Prove a collection against the points it was made from, and measure its search.

    The count is exact, every item is there and no other, with `strict` each with the content it
    was written with; a sample comes back with the same vector and payload. Then the search: by
    modality of the query its Recall@10 is at least `settings.min_recall`, items are found by their
    own vector, and every canary finds what it has to. Raises NotAsWrittenError for the one,
    UnverifiedError for the other.
    """
    found = index.describe(name)
    vector_name = vector_of(found, release)
    count = index.count(name)
    if count != release.num_items:
        raise _lost(name, f"it has {count} points, the embeddings have {release.num_items} items")
    if found.dim != release.dim:
        raise _lost(name, f"its vectors have {found.dim} dimensions, expected {release.dim}")
    _check_contents(index, name, expected.contents, strict=strict)
    sample = expected.sample()
    _check_sample(index, name, [point for points in sample.values() for point in points])

    asked = Questions.of(sample, queries)
    answers = asked.ask(index, name, vector_name, asked.nearest(vectors))
    for modality, recall in answers.recall_by_modality.items():
        if recall < settings.min_recall - 1e-9:
            raise _bad(
                name,
                f"Recall@{_K} of {modality} queries is {recall:.3f}, expected at least "
                f"{settings.min_recall} (index.min_recall)",
                hint="`coembed index --tune` measures which settings reach it; or raise "
                "index.search_ef or index.hnsw_ef_construct",
            )
    if answers.num_own_found < settings.min_recall * answers.num_own:
        raise _bad(
            name,
            f"the search found {answers.num_own_found} of {answers.num_own} items by their own "
            "vector",
            hint="raise index.search_ef or index.hnsw_ef_construct",
        )
    canaries = _check_canaries(name, asked.queries, answers.hits)
    p50_ms, p95_ms = np.percentile(answers.times_ms, [50, 95])
    return SearchMeasured(
        recall_at_10=min(answers.recall_by_modality.values()),
        p50_ms=round(float(p50_ms), 3),
        p95_ms=round(float(p95_ms), 3),
        num_queries=len(asked.queries),
        recall_by_modality=answers.recall_by_modality,
        canaries=canaries,
        num_read_back=sum(map(len, sample.values())),
    )


# What was written


def _check_contents(
    index: VectorIndex, name: str, contents: Mapping[str, str], *, strict: bool
) -> None:
    """Every item once and no other."""
    there: set[str] = set()
    for batch in index.scroll(name, with_payload=False):
        for point in batch:
            wanted = contents.get(point.item_id)
            if wanted is None:
                raise _lost(name, f"item {point.item_id} is in it, but not in the embeddings")
            if point.item_id in there:
                raise _lost(name, f"item {point.item_id} is in it more than once")
            if strict and point.content_hash != wanted:
                raise _lost(name, f"item {point.item_id} is not as it was last written")
            there.add(point.item_id)
    missing = contents.keys() - there
    if missing:
        raise _lost(name, f"{len(missing)} items are not in it, such as {min(missing)}")


def _check_sample(index: VectorIndex, name: str, sample: Sequence[Point]) -> None:
    for start in range(0, len(sample), _K * 10):
        batch = sample[start : start + _K * 10]
        back = index.retrieve(name, [point.item_id for point in batch])
        for point in batch:
            stored = back.get(point.item_id)
            if stored is None:
                raise _lost(name, f"item {point.item_id} is not in it")
            if not np.allclose(stored.vector, point.vector, atol=_TOLERANCE):
                raise _lost(
                    name, f"the vector of item {point.item_id} is not the one that was written"
                )
            if dict(stored.payload) != dict(point.payload):
                raise _lost(
                    name, f"the payload of item {point.item_id} is not the one that was written"
                )


# How it is searched


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest items of each query by a full scan, nearest first: `scores` [queries, kept], and
    their `item_ids`. Fewer than `kept` where there are fewer items."""

    scores: Matrix
    item_ids: NDArray[np.object_]

    def share(self, number: int, hits: Sequence[Hit]) -> float:
        """The share of the ten nearest of a query that is among its hits.

        What is as near as the tenth is one of them.
        """
        scores = self.scores[number]
        num = min(_K, len(scores))
        least = scores[num - 1] - _TOLERANCE
        near = set(self.item_ids[number][scores >= least])
        # Where all that were kept are as near, more may be: then the score has to tell.
        more = scores[-1] >= least and len(scores) == _KEPT
        found = sum(hit.item_id in near or (more and hit.score >= least) for hit in hits)
        return min(1.0, found / num)

    def has_twins(self, number: int) -> bool:
        """Whether more items share a query's very vector than are asked for."""
        scores = self.scores[number]
        return len(scores) > _K and bool(scores[_K] >= 1.0 - _TOLERANCE)


@dataclass(frozen=True, slots=True)
class Answers:
    """What the search that serves answered. `hits` by number of the query."""

    recall_by_modality: dict[str, float]
    times_ms: list[float]
    hits: list[list[Hit]]
    num_own: int
    num_own_found: int


@dataclass(frozen=True, slots=True)
class Questions:
    """What a search is measured with: items' own vectors, and text queries."""

    queries: tuple[Query, ...]
    own: frozenset[int]  # numbers of the queries that are items' own vectors

    @classmethod
    def of(cls, sample: Mapping[str, Sequence[Point]], queries: Sequence[Query]) -> Questions:
        """The sampled items by modality, and further queries."""
        items = [
            Query("", point.vector, modality, point.item_id)
            for modality, points in sample.items()
            for point in points
        ]
        return cls((*items, *queries), frozenset(range(len(items))))

    def nearest(self, vectors: Vectors) -> Nearest:
        """A full scan over the embeddings themselves, in batches: no index has a part in it."""
        asked = np.stack([query.vector for query in self.queries])
        scores = np.empty((len(asked), 0), dtype=np.float32)
        item_ids = np.empty((len(asked), 0), dtype=object)
        for ids, matrix in vectors():
            scores, item_ids = _keep_best(asked, scores, item_ids, ids, matrix)
        order = np.argsort(-scores, axis=1, kind="stable")
        return Nearest(
            np.take_along_axis(scores, order, axis=1), np.take_along_axis(item_ids, order, axis=1)
        )

    def ask(
        self,
        index: VectorIndex,
        name: str,
        vector_name: str,
        nearest: Nearest,
        search: SearchParams | None = None,
    ) -> Answers:
        """Put the questions to the index, one after another."""
        shares: dict[str, list[float]] = {}
        times_ms, answered = [], []
        num_own_found = 0
        # The first query of all also loads what later ones find loaded.
        index.query(name, vector_name, self.queries[0].vector, limit=_K, search=search)
        for number, query in enumerate(self.queries):
            start = time.perf_counter()
            hits = index.query(name, vector_name, query.vector, limit=_K, search=search)
            times_ms.append(1000 * (time.perf_counter() - start))
            answered.append(hits)
            shares.setdefault(query.modality, []).append(nearest.share(number, hits))
            if number in self.own:
                found = any(hit.item_id == query.item_id for hit in hits)
                num_own_found += found or nearest.has_twins(number)
        recalls = {modality: float(np.mean(found)) for modality, found in sorted(shares.items())}
        return Answers(recalls, times_ms, answered, len(self.own), num_own_found)


def _keep_best(
    asked: Matrix,
    scores: Matrix,
    item_ids: NDArray[np.object_],
    ids: Sequence[str],
    matrix: Matrix,
) -> tuple[Matrix, NDArray[np.object_]]:
    """The best of what is kept and of further items `ids` with the vectors `matrix` [n, dim]."""
    new = asked @ matrix.T
    names = np.empty(len(ids), dtype=object)
    names[:] = ids
    if new.shape[1] > _KEPT:
        best = np.argpartition(new, -_KEPT, axis=1)[:, -_KEPT:]
        new, own = np.take_along_axis(new, best, axis=1), names[best]
    else:
        own = np.broadcast_to(names, new.shape)
    scores, item_ids = np.hstack([scores, new]), np.hstack([item_ids, own])
    if scores.shape[1] > _KEPT:
        best = np.argpartition(scores, -_KEPT, axis=1)[:, -_KEPT:]
        scores = np.take_along_axis(scores, best, axis=1)
        item_ids = np.take_along_axis(item_ids, best, axis=1)
    return scores, item_ids


def _check_canaries(
    name: str, queries: Sequence[Query], answered: Sequence[Sequence[Hit]]
) -> tuple[CanaryMet, ...]:
    met = []
    for query, hits in zip(queries, answered, strict=True):
        if query.kind != "canary":
            continue
        expect = dict(query.expect or {})
        ranks = [hit.rank for hit in hits if _has(hit.payload, expect)]
        if not ranks:
            raise CanaryError(
                f"collection {name!r} failed its check: the canary {query.text!r} expects "
                f"{_told(expect)} among the first {_K} hits; it found {_came(hits, expect)}",
                hint="the served collection is untouched; is the model worse, or is there no such "
                "item in the corpus any more? embed.canaries says what is expected",
            )
        met.append(CanaryMet(query.text, expect, ranks[0]))
    return tuple(met)


def _has(payload: Mapping[str, Any], expect: Mapping[str, Attribute]) -> bool:
    return all(payload_value(payload, column) == value for column, value in expect.items())


def _told(expect: Mapping[str, Attribute]) -> str:
    return " and ".join(f"{column}={value}" for column, value in expect.items())


def _came(hits: Sequence[Hit], expect: Mapping[str, Attribute]) -> str:
    """The values that the hits have in the columns that are asked for, best first."""
    found = ["/".join(str(payload_value(hit.payload, column)) for column in expect) for hit in hits]
    return ", ".join(found) or "nothing"


def _bad(name: str, what: str, *, hint: str) -> UnverifiedError:
    return UnverifiedError(f"collection {name!r} failed its check: {what}", hint=hint)


def _lost(name: str, what: str) -> NotAsWrittenError:
    return NotAsWrittenError(
        f"collection {name!r} failed its check: {what}",
        hint="the served collection is untouched; run `coembed index` again",
    )
