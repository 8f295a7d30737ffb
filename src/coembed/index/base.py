"""The interface of an index backend, and the values that pass through it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from coembed.errors import UserError
from coembed.index.filters import NO_FILTER, ColumnKind, Filter
from coembed.types import Hit

# A namespace of coembed's own, so that the same item has the same point id in every index.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://coembed.dev/item")


def point_id(item_id: str) -> str:
    """The point id of an item: UUIDv5 of its item id."""
    return str(uuid.uuid5(_NAMESPACE, item_id))


@dataclass(frozen=True, slots=True)
class Point:
    """One item of a collection. `vector` is float32 [dim], unit L2."""

    item_id: str
    vector: NDArray[np.float32]
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Collection:
    """What a collection says of itself. `metadata` is what `create` and `set_metadata` gave."""

    name: str
    vector_name: str
    dim: int
    metadata: Mapping[str, Any]


class VectorIndex(Protocol):
    """Collections of unit vectors under one cosine score, with aliases and metadata.

    Every method but `create` may be called again with the same arguments to no further effect. A
    collection that does not exist is a UserError that names those that do; a store that is locked,
    away or failing is a ServiceError.
    """

    def create(
        self,
        name: str,
        *,
        vector_name: str,
        dim: int,
        metadata: Mapping[str, Any],
        columns: Mapping[str, ColumnKind],
    ) -> None:
        """Make an empty collection; `columns` get payload indexes. A taken name is a UserError."""

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
        """Write points; those already there are replaced. They can be searched on return.

        They are safe from a killed process at once, from a power cut after `finish`.
        """

    def finish(self, name: str) -> None:
        """Say that the load is over; returns when the collection is ready to be searched."""

    def count(self, name: str) -> int:
        """The exact number of points."""

    def retrieve(self, name: str, item_ids: Sequence[str]) -> dict[str, Point]:
        """The points of these items; those that are not there are left out."""

    def query(
        self,
        name: str,
        vector_name: str,
        vector: NDArray[np.float32],
        *,
        where: Filter = NO_FILTER,
        limit: int = 10,
        exact: bool = False,
    ) -> list[Hit]:
        """The `limit` nearest points to `vector` [dim], best first; equal scores by item id.

        A `vector_name` that the collection does not have is a UserError: the query was made by
        another model than the collection's vectors. `exact` asks for a full scan.
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
