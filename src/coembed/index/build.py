"""Building a collection: load, finish, verify. Nothing here moves an alias."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from coembed.errors import ServiceError, UserError
from coembed.index.base import Collection, Point, VectorIndex, wrong_vector
from coembed.index.filters import BASE_COLUMNS, ColumnKind
from coembed.index.settings import IndexSettings
from coembed.progress import tracker
from coembed.types import Hit

# How far a score or a number of a vector may be off after the trip: float32 at unit length.
_TOLERANCE = 1e-4
# The least share of the sample that the serving search (an approximate graph on a server) must
# find. A full scan must find all of it.
_LEAST_FOUND = 0.95
_K = 10
_SEARCH = "search"  # the key of a collection's metadata that holds its `SearchMeasured`


class UnverifiedError(ServiceError):
    """A collection that is not what was written into it."""


@dataclass(frozen=True, slots=True)
class Release:
    """What a collection holds, and the model version that made it. Stored as its metadata."""

    model: str
    version: int
    fingerprint: str
    precision: str
    corpus: str
    num_items: int
    dim: int
    columns: Mapping[str, ColumnKind]

    def collection_name(self, alias: str) -> str:
        """The physical collection's name: it carries the model version and the corpus."""
        return f"{alias}__v{self.version}__{self.fingerprint[:8]}_{self.corpus[:8]}"

    @property
    def vector_name(self) -> str:
        """Named after the fingerprint, so that another model's query fails, not misleads."""
        return f"item@{self.fingerprint[:8]}"

    def to_metadata(self) -> dict[str, Any]:
        """As a collection keeps it."""
        return {
            "model": self.model,
            "version": self.version,
            "fingerprint": self.fingerprint,
            "precision": self.precision,
            "corpus": self.corpus,
            "num_items": self.num_items,
            "dim": self.dim,
            "columns": dict(self.columns),
        }


def read_release(collection: Collection) -> Release:
    """The release that a collection holds. Raises UserError if coembed did not make it."""
    data = collection.metadata
    try:
        return Release(
            model=str(data["model"]),
            version=int(data["version"]),
            fingerprint=str(data["fingerprint"]),
            precision=str(data["precision"]),
            corpus=str(data["corpus"]),
            num_items=int(data["num_items"]),
            dim=int(data["dim"]),
            columns=dict(data["columns"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"collection {collection.name!r} does not say which model version made it ({error})",
            hint="it was not made by coembed; build one with `coembed index`",
        ) from None


def vector_of(collection: Collection, release: Release) -> str:
    """The name of the vectors of the collection that holds `release`.

    Those made before there were sounds are called `image@...`, and stay searchable. Raises
    UserError where the vectors are another model's.
    """
    if not _names_the_model(collection, release):
        raise wrong_vector(collection, release.vector_name)
    return collection.vector_name


def _names_the_model(collection: Collection, release: Release) -> bool:
    return collection.vector_name.rpartition("@")[2] == release.fingerprint[:8]


@dataclass(frozen=True, slots=True)
class SearchMeasured:
    """How well and how fast a collection is searched, over a sample of its own vectors.

    `recall_at_10` is the mean share of the ten nearest items (by a full scan) that the search that
    serves finds; an item as near as the tenth counts as one of them, as in ann-benchmarks
    (arXiv 1807.05614). The milliseconds are percentiles of one query from this machine, one after
    another: the network to a server is in them, the encoder and other people's load are not.
    """

    recall_at_10: float
    p50_ms: float
    p95_ms: float
    num_queries: int


def read_search(collection: Collection) -> SearchMeasured | None:
    """What was measured when the collection was last verified; None for one of an older coembed."""
    found: Any = collection.metadata.get(_SEARCH)
    try:
        return SearchMeasured(
            recall_at_10=float(found["recall_at_10"]),
            p50_ms=float(found["p50_ms"]),
            p95_ms=float(found["p95_ms"]),
            num_queries=int(found["num_queries"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class Built:
    """A verified collection: a sample of its points was read back and searched for."""

    collection: str
    num_items: int
    search: SearchMeasured
    already_built: bool


def build(
    index: VectorIndex,
    release: Release,
    points: Callable[[], Iterator[Point]],
    *,
    alias: str,
    settings: IndexSettings,
) -> Built:
    """Make the collection of `release`, or complete it, or find it built; then verify it.

    `points()` starts over at each call. What a killed run left is completed: points have fixed
    ids, so writing them again changes nothing. Raises UserError when the name is taken by another
    release, UnverifiedError when the check fails; the alias never moves.
    """
    _check_columns(settings.payload_indexes, release.columns)
    name = release.collection_name(alias)
    if index.exists(name):
        found = index.describe(name)
        _check_same(found, release)
        if found.metadata.get("state") == "built":
            # What fails its check now was damaged since: it is loaded again.
            with contextlib.suppress(UnverifiedError):
                search = verify(index, name, release, points(), settings)
                index.set_metadata(name, {_SEARCH: asdict(search)})
                return Built(name, release.num_items, search, already_built=True)
        if index.count(name) > release.num_items:
            index.delete(name)
    if not index.exists(name):
        wanted = settings.payload_indexes
        index.create(
            name,
            vector_name=release.vector_name,
            dim=release.dim,
            metadata={**release.to_metadata(), "state": "loading"},
            columns={
                # Whatever attributes there are, hits can be asked for by modality.
                "modality": BASE_COLUMNS["modality"],
                **{
                    column: kind
                    for column, kind in release.columns.items()
                    if wanted == "auto" or column in wanted
                },
            },
        )
    _load(index, name, points(), release, settings)
    index.finish(name)
    search = verify(index, name, release, points(), settings)
    index.set_metadata(name, {_SEARCH: asdict(search), "state": "built"})
    return Built(name, release.num_items, search, already_built=False)


def _check_same(found: Collection, release: Release) -> None:
    held = {key: found.metadata.get(key) for key in release.to_metadata()}
    if held != release.to_metadata() or not _names_the_model(found, release):
        raise UserError(
            f"collection {found.name!r} holds another release than the one to be built: "
            f"version {held['version']} of {held['model']!r}, {held['num_items']} items",
            hint="remove it from the index if the registry was started anew",
        )


def _check_columns(wanted: str | Sequence[str], columns: Mapping[str, ColumnKind]) -> None:
    unknown = [] if isinstance(wanted, str) else sorted(set(wanted) - set(columns))
    if unknown:
        raise UserError(
            f"index.payload_indexes names {', '.join(unknown)}; the embeddings have the columns "
            f"{', '.join(columns) or '(none)'}"
        )


def _load(
    index: VectorIndex,
    name: str,
    points: Iterator[Point],
    release: Release,
    settings: IndexSettings,
) -> None:
    progress = tracker(total=release.num_items, label="index", unit="items")
    try:
        while batch := list(islice(points, settings.batch_size)):
            index.upsert(name, batch)
            progress.advance(len(batch))
    finally:
        progress.close()


def verify(
    index: VectorIndex,
    name: str,
    release: Release,
    points: Iterable[Point],
    settings: IndexSettings,
) -> SearchMeasured:
    """Prove a collection against the points it was made from, and measure its search.

    The count is exact, the dimension is right, and an evenly spread sample of points comes back
    with the same vector and payload and is its own best hit. Raises UnverifiedError otherwise.
    """
    found = index.describe(name)
    vector_name = vector_of(found, release)
    count = index.count(name)
    if count != release.num_items:
        raise _bad(name, f"it has {count} points, the embeddings have {release.num_items} items")
    if found.dim != release.dim:
        raise _bad(name, f"its vectors have {found.dim} dimensions, expected {release.dim}")
    step = max(1, release.num_items // settings.verify_sample)
    sample = list(islice(points, 0, step * settings.verify_sample, step))
    num_found = 0
    recalls, times_ms = [], []
    # The first query of all also loads what later ones find loaded.
    index.query(name, vector_name, sample[0].vector, limit=_K)
    for point in sample:
        back = index.retrieve(name, [point.item_id]).get(point.item_id)
        if back is None:
            raise _bad(name, f"item {point.item_id} is not in it")
        if not np.allclose(back.vector, point.vector, atol=_TOLERANCE):
            raise _bad(name, f"the vector of item {point.item_id} is not the one that was written")
        if dict(back.payload) != dict(point.payload):
            raise _bad(name, f"the payload of item {point.item_id} is not the one that was written")
        start = time.perf_counter()
        hits = index.query(name, vector_name, point.vector, limit=_K)
        times_ms.append(1000 * (time.perf_counter() - start))
        nearest = index.query(name, vector_name, point.vector, limit=_K, exact=True)
        if _is_own_hit(point, hits):
            num_found += 1
        elif not _is_own_hit(point, nearest):
            raise _bad(name, f"item {point.item_id} is not the best hit for its own vector")
        recalls.append(_recall(hits, nearest))
    if num_found < _LEAST_FOUND * len(sample):
        raise _bad(
            name,
            f"the search found {num_found} of {len(sample)} items by their own vector",
            hint="raise index.search_ef or index.hnsw_ef_construct",
        )
    p50_ms, p95_ms = np.percentile(times_ms, [50, 95])
    return SearchMeasured(
        recall_at_10=float(np.mean(recalls)),
        p50_ms=round(float(p50_ms), 3),
        p95_ms=round(float(p95_ms), 3),
        num_queries=len(sample),
    )


def _recall(hits: Sequence[Hit], nearest: Sequence[Hit]) -> float:
    """The share of the nearest that the search found. What scores like the last of them is one."""
    least = nearest[-1].score - _TOLERANCE
    return min(1.0, sum(hit.score >= least for hit in hits) / len(nearest))


def _is_own_hit(point: Point, hits: Sequence[Hit]) -> bool:
    if not hits or abs(hits[0].score - 1.0) > _TOLERANCE:
        return False
    if any(
        hit.item_id == point.item_id and hit.score >= hits[0].score - _TOLERANCE for hit in hits
    ):
        return True
    # More items share this very vector than were asked for: any of them is as good a hit.
    return len(hits) == _K and abs(hits[-1].score - 1.0) <= _TOLERANCE


def _bad(name: str, what: str, hint: str | None = None) -> UnverifiedError:
    return UnverifiedError(
        f"collection {name!r} failed its check: {what}",
        hint=hint or "the served collection is untouched; run `coembed index` again",
    )
