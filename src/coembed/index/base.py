"""The interface of an index backend, and the values that pass through it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from coembed.errors import ServiceError, UserError
from coembed.index.filters import NO_FILTER, ColumnKind, Filter
from coembed.types import Hit

# A namespace of coembed's own, so that the same item has the same point id in every index.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://coembed.dev/item")


def point_id(item_id: str) -> str:
    """The point id of an item: UUIDv5 of its item id."""
    return str(uuid.uuid5(_NAMESPACE, item_id))


@dataclass(frozen=True, slots=True)
class Point:
    """One item of a collection. `vector` is float32 [dim], unit L2.

    `content_hash` stands for vector and payload as they were to be written, so that a load need not
    write again what is there. It is kept beside the payload like the item id, and is in no hit.
    """

    item_id: str
    vector: NDArray[np.float32]
    payload: Mapping[str, Any]
    content_hash: str = ""


NO_VECTOR: NDArray[np.float32] = np.empty(0, dtype=np.float32)

# Keys of a stored payload that are no part of `Point.payload`.
_ITEM_ID, _CONTENT_HASH = "item_id", "content_hash"
OWN_KEYS = (_ITEM_ID, _CONTENT_HASH)


def stored_payload(point: Point) -> dict[str, Any]:
    """What a backend keeps with the vector: the payload, and what `split_payload` takes out."""
    own = {_ITEM_ID: point.item_id}
    if point.content_hash:
        own[_CONTENT_HASH] = point.content_hash
    return {**own, **point.payload}


def split_payload(stored: Mapping[str, Any] | None) -> tuple[str, str, dict[str, Any]]:
    """Item id, content hash and payload of what `stored_payload` made."""
    rest = dict(stored or {})
    return str(rest.pop(_ITEM_ID)), str(rest.pop(_CONTENT_HASH, "")), rest


@dataclass(frozen=True, slots=True)
class Collection:
    """What a collection says of itself. `metadata` is what `create` and `set_metadata` gave."""

    name: str
    vector_name: str
    dim: int
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SearchParams:
    """How one query is searched; None is what the index's settings say.

    `ef` is the breadth of the walk through the HNSW graph. `oversampling` (how many times `limit`
    candidates are taken) and `rescore` (score those again with the full vectors) are for quantised
    collections. A backend that always scans everything has no use for them.
    """

    ef: int | None = None
    oversampling: float | None = None
    rescore: bool | None = None


class DamagedError(ServiceError):
    """A collection whose files are not what was written. Loading it again mends it."""


class VectorIndex(Protocol):
    """Collections of unit vectors under one cosine score, with aliases and metadata.

    Every method but `create` may be called again with the same arguments to no further effect. A
    collection that does not exist is a UserError that names those that do; a store that is locked,
    away or failing is a ServiceError, and a damaged collection a DamagedError.

    A load is `create`, then any `upsert` and `delete_points`, then `finish`. What a load wrote can
    be relied on to be found after `finish`, and an alias to be taken then; until then a backend
    may show it to this index alone, and forget it when the index is closed or killed. A collection
    that is finished may be loaded again in the same way: what was there stays until `finish`.
    """

    def create(
        self,
        name: str,
        *,
        vector_name: str,
        dim: int,
        metadata: Mapping[str, Any],
        columns: Mapping[str, ColumnKind],
        base: str | None = None,
    ) -> bool:
        """Make a collection; `columns` get payload indexes. A taken name is a UserError.

        It is empty, and the answer False, unless the backend can start cheaply from a copy of
        `base`, a finished collection of the same vectors: then it holds the points of `base`, and
        the answer is True.
        """

    def describe(self, name: str) -> Collection:
        """What the collection of that name says of itself. Aliases are not followed."""

    def exists(self, name: str) -> bool:
        """Whether there is a collection of that name. Aliases are not followed."""

    def collections(self) -> list[str]:
        """Names of all collections, sorted."""

    def delete(self, name: str) -> None:
        """Remove a collection, if it is there. One that an alias points at is a UserError."""

    def set_metadata(self, name: str, metadata: Mapping[str, Any]) -> None:
        """Set these keys of a collection's metadata; the others stay."""

    def upsert(self, name: str, points: Sequence[Point]) -> None:
        """Write points; those already there are replaced."""

    def delete_points(self, name: str, item_ids: Sequence[str]) -> None:
        """Remove the points of these items, as far as they are there."""

    def finish(self, name: str) -> None:
        """Say that the load is over; returns when the collection is ready to be searched.

        All that was written is then safe from a power cut. Without a load there is nothing to do.
        """

    def count(self, name: str) -> int:
        """The exact number of points."""

    def size_bytes(self, name: str) -> int | None:
        """Bytes that the collection takes on the disk; None where the backend cannot say."""

    def retrieve(self, name: str, item_ids: Sequence[str]) -> dict[str, Point]:
        """The points of these items; those that are not there are left out."""

    def scroll(
        self,
        name: str,
        *,
        with_vectors: bool = False,
        with_payload: bool = True,
        batch_size: int = 1024,
    ) -> Iterator[list[Point]]:
        """Every point once, in any order, in lists of at most `batch_size`.

        Without vectors, `Point.vector` is NO_VECTOR; without payload, `Point.payload` is empty.
        """

    def query(
        self,
        name: str,
        vector_name: str,
        vector: NDArray[np.float32],
        *,
        where: Filter = NO_FILTER,
        limit: int = 10,
        exact: bool = False,
        search: SearchParams | None = None,
    ) -> list[Hit]:
        """The `limit` nearest points to `vector` [dim], best first; equal scores by item id.

        A `vector_name` that the collection does not have is a UserError: the query was made by
        another model than the collection's vectors. `exact` asks for a full scan with the full
        vectors, whatever `search` says.
        """

    def aliases(self) -> dict[str, str]:
        """Alias → collection."""

    def set_alias(self, alias: str, collection: str) -> None:
        """Point `alias` at `collection` in one atomic step, from wherever it pointed before."""

    def close(self) -> None:
        """Let go of the store. Idempotent."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def missing_collection(name: str, present: Sequence[str]) -> UserError:
    """The error for a collection that is not there."""
    return UserError(
        f"no collection {name!r} in the index; present: {', '.join(present) or 'none'}",
        hint="`coembed index` builds one from artifacts/embeddings",
    )


def wrong_vector(collection: Collection, vector_name: str) -> UserError:
    """The error for a query that another model's encoder made."""
    return UserError(
        f"collection {collection.name!r} holds vectors {collection.vector_name!r} of "
        f"{collection.dim} dimensions; the query was made for {vector_name!r}",
        hint="encode the query with the model version that the collection names",
    )


def check_vector(collection: Collection, vector: NDArray[np.float32], what: str) -> None:
    """Refuse a vector of another dimension, or one with NaN or infinity in it."""
    if vector.shape != (collection.dim,):
        raise UserError(
            f"{what} has the shape {list(vector.shape)}; collection {collection.name!r} holds "
            f"vectors of {collection.dim} dimensions",
            hint="it was made by another model than this collection's",
        )
    if not np.isfinite(vector).all():
        raise UserError(
            f"{what} holds NaN or infinity", hint="embed again; the model may have diverged"
        )


def check_vectors(collection: Collection, points: Sequence[Point]) -> None:
    """Refuse points with a vector that `check_vector` refuses."""
    vectors = [point.vector for point in points]
    if any(vector.shape != (collection.dim,) for vector in vectors) or not (
        np.isfinite(np.stack(vectors)).all()
    ):
        for point in points:
            check_vector(collection, point.vector, f"the vector of item {point.item_id}")
