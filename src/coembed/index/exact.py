"""The slow, obvious index: every vector in memory, every query a full scan.

It is the reference that other backends are compared with. Nothing is kept when it is closed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from coembed.errors import UserError
from coembed.index.base import (
    NO_VECTOR,
    Collection,
    Point,
    SearchParams,
    check_vector,
    missing_collection,
    wrong_vector,
)
from coembed.index.filters import NO_FILTER, ColumnKind, Filter, matches
from coembed.types import Hit


@dataclass
class _Shelf:
    collection: Collection
    points: dict[str, Point] = field(default_factory=dict)


class ExactIndex:
    """A VectorIndex in memory."""

    def __init__(self) -> None:
        self._shelves: dict[str, _Shelf] = {}
        self._aliases: dict[str, str] = {}

    def _shelf(self, name: str) -> _Shelf:
        if name not in self._shelves:
            raise missing_collection(name, self.collections())
        return self._shelves[name]

    def create(
        self,
        name: str,
        *,
        vector_name: str,
        dim: int,
        metadata: Mapping[str, Any],
        columns: Mapping[str, ColumnKind],  # noqa: ARG002  (a full scan needs no payload index)
        base: str | None = None,  # noqa: ARG002  (nothing is saved by a copy)
    ) -> bool:
        if name in self._shelves or name in self._aliases:
            raise UserError(f"the name {name!r} is taken in the index")
        self._shelves[name] = _Shelf(Collection(name, vector_name, dim, dict(metadata)))
        return False

    def describe(self, name: str) -> Collection:
        return self._shelf(name).collection

    def exists(self, name: str) -> bool:
        return name in self._shelves

    def collections(self) -> list[str]:
        return sorted(self._shelves)

    def delete(self, name: str) -> None:
        if name in self._aliases.values():
            raise UserError(f"collection {name!r} is served; point its alias elsewhere first")
        self._shelves.pop(name, None)

    def set_metadata(self, name: str, metadata: Mapping[str, Any]) -> None:
        shelf = self._shelf(name)
        merged = {**shelf.collection.metadata, **metadata}
        shelf.collection = replace(shelf.collection, metadata=merged)

    def upsert(self, name: str, points: Sequence[Point]) -> None:
        shelf = self._shelf(name)
        for point in points:
            check_vector(shelf.collection, point.vector, f"the vector of item {point.item_id}")
        shelf.points.update((point.item_id, point) for point in points)

    def delete_points(self, name: str, item_ids: Sequence[str]) -> None:
        points = self._shelf(name).points
        for item_id in item_ids:
            points.pop(item_id, None)

    def finish(self, name: str) -> None:
        self._shelf(name)

    def count(self, name: str) -> int:
        return len(self._shelf(name).points)

    def size_bytes(self, name: str) -> int | None:
        self._shelf(name)
        return None

    def retrieve(self, name: str, item_ids: Sequence[str]) -> dict[str, Point]:
        points = self._shelf(name).points
        return {item_id: points[item_id] for item_id in item_ids if item_id in points}

    def scroll(
        self,
        name: str,
        *,
        with_vectors: bool = False,
        with_payload: bool = True,
        batch_size: int = 1024,
    ) -> Iterator[list[Point]]:
        points = list(self._shelf(name).points.values())
        if not with_vectors:
            points = [replace(point, vector=NO_VECTOR) for point in points]
        if not with_payload:
            points = [replace(point, payload={}) for point in points]
        for start in range(0, len(points), batch_size):
            yield points[start : start + batch_size]

    def query(
        self,
        name: str,
        vector_name: str,
        vector: NDArray[np.float32],
        *,
        where: Filter = NO_FILTER,
        limit: int = 10,
        exact: bool = False,  # noqa: ARG002  (it always is)
        search: SearchParams | None = None,  # noqa: ARG002  (there is no graph)
    ) -> list[Hit]:
        shelf = self._shelf(name)
        if vector_name != shelf.collection.vector_name:
            raise wrong_vector(shelf.collection, vector_name)
        check_vector(shelf.collection, vector, "the query")
        scored = [
            (-float(np.dot(point.vector, vector)), item_id)
            for item_id, point in shelf.points.items()
            if matches(where, point.payload)
        ]
        return [
            Hit(rank, -negative, item_id, dict(shelf.points[item_id].payload))
            for rank, (negative, item_id) in enumerate(sorted(scored)[:limit], start=1)
        ]

    def aliases(self) -> dict[str, str]:
        return dict(self._aliases)

    def set_alias(self, alias: str, collection: str) -> None:
        self._shelf(collection)
        if alias in self._shelves:
            raise UserError(f"{alias!r} is the name of a collection and cannot be an alias")
        self._aliases[alias] = collection

    def close(self) -> None:
        self._shelves.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
