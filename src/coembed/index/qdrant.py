"""The index in Qdrant: a server (`url`) or the client's embedded store in a folder (`path`).

Only this file and `qdrant_store` and `qdrant_filters` beside it import qdrant_client. The embedded
store searches exactly, ignores HNSW and payload indexes, belongs to one process at a time and is
not thread-safe: one lock guards it.

The client never repeats a failed request (its own upload helpers loop for ever on 429), so every
request goes through `retry.call`: time-outs, lost connections, 429 and 5xx are tried again,
whatever else is wrong is an error at once.
"""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from coembed.errors import ServiceError, UserError
from coembed.index import retry
from coembed.index.base import (
    Collection,
    Point,
    check_vector,
    missing_collection,
    point_id,
    wrong_vector,
)
from coembed.index.filters import NO_FILTER, ColumnKind, Filter
from coembed.index.qdrant_filters import payload_key, to_qdrant
from coembed.index.qdrant_store import load_fast, open_store, settle
from coembed.index.settings import IndexSettings
from coembed.services import Services
from coembed.types import Hit

T = TypeVar("T")

_ITEM_ID = "item_id"
_INDEX_TYPES: dict[ColumnKind, models.PayloadSchemaType] = {
    "text": models.PayloadSchemaType.KEYWORD,
    # A whole-number index would round the bounds of `price<49.5`; a float index takes both.
    "number": models.PayloadSchemaType.FLOAT,
    "bool": models.PayloadSchemaType.BOOL,
}


def open_index(services: Services, settings: IndexSettings) -> QdrantIndex:
    """Open the index: the server at `services.qdrant_url`, or else the store in its folder.

    Raises ServiceError when the server refuses or another process has the store open.
    """
    where = services.qdrant_url or str(services.qdrant_path)
    if services.qdrant_url is None:
        client = open_store(services.qdrant_path, wait_s=settings.lock_wait_s)
    else:
        with warnings.catch_warnings():
            # "Api key is used with an insecure connection": said in the README, not at each start.
            warnings.simplefilter("ignore")
            client = QdrantClient(
                url=services.qdrant_url,
                api_key=services.qdrant_api_key,
                timeout=settings.timeout_s,
                check_compatibility=False,
            )
    index = QdrantIndex(client, settings, where=where, server=services.qdrant_url is not None)
    try:
        index.check_connection()
    except BaseException:
        index.close()
        raise
    return index


class QdrantIndex:
    """A VectorIndex in Qdrant. `where` is the address or folder, for messages."""

    def __init__(
        self, client: QdrantClient, settings: IndexSettings, *, where: str, server: bool
    ) -> None:
        self._client = client
        self._settings = settings
        self._where = where
        self._server = server
        self._backoff = retry.Backoff(
            settings.num_tries, settings.backoff_s, settings.backoff_max_s
        )
        # Vector name and dimension never change under a collection's name: asked for once.
        self._shapes: dict[str, Collection] = {}
        # A server's client may be used by many threads at once; the embedded store may not.
        self._lock: contextlib.AbstractContextManager[Any] = (
            contextlib.nullcontext() if server else threading.RLock()
        )

    # Requests

    def _call(
        self,
        function: Callable[[], T],
        *,
        name: str | None = None,
        backoff: retry.Backoff | None = None,
    ) -> T:
        """Make a request; `name` is the collection that it needs."""
        try:
            with self._lock:
                return retry.call(function, backoff=backoff or self._backoff, judge=_judge)
        except UnexpectedResponse as error:
            if name is not None and error.status_code == 404:
                raise self._missing(name) from None
            raise self._explain(error) from error
        except (ResponseHandlingException, QdrantException) as error:
            raise self._explain(error) from error
        except ValueError as error:  # how the embedded store says it
            if name is not None and f"Collection {name} not found" in str(error):
                raise self._missing(name) from None
            raise

    def _missing(self, name: str) -> UserError:
        self._shapes.pop(name, None)
        return missing_collection(name, self.collections())

    def _explain(self, error: Exception) -> ServiceError:
        if isinstance(error, UnexpectedResponse):
            status = error.status_code or 0
            text = error.content.decode("utf-8", "replace")[:300]
            hint = (
                "check QDRANT_API_KEY"
                if status in (401, 403)
                else "look at the server's log"
                if status >= 500
                else "this is a request that the server will not take: check its version (1.16 or "
                "newer) and limits"
            )
            return ServiceError(
                f"Qdrant at {self._where} answered {status} {error.reason_phrase}: {text}",
                hint=hint,
            )
        if isinstance(error, ResourceExhaustedResponse):
            return ServiceError(
                f"Qdrant at {self._where} is limiting requests (429): {error}",
                hint="run the same command again later, or raise index.num_tries",
            )
        cause = getattr(error, "source", None) or error
        return ServiceError(
            f"Qdrant at {self._where} does not answer ({type(cause).__name__}: {cause})",
            hint="is the server running, and is QDRANT_URL right? Unset QDRANT_URL to use the "
            "store in this project's folder",
        )

    def check_connection(self) -> None:
        """Raise ServiceError if the server does not answer. Two tries only: a person waits."""
        self._call(
            self._client.get_collections,
            backoff=retry.Backoff(min(2, self._backoff.num_tries), self._backoff.first_s, 1.0),
        )

    # Collections

    def create(
        self,
        name: str,
        *,
        vector_name: str,
        dim: int,
        metadata: Mapping[str, Any],
        columns: Mapping[str, ColumnKind],
    ) -> None:
        if self.exists(name) or name in self.aliases():
            raise UserError(f"the name {name!r} is taken in the index")
        wanted = Collection(name, vector_name, dim, dict(metadata))

        def make() -> None:
            try:
                self._client.create_collection(
                    name,
                    vectors_config={
                        vector_name: models.VectorParams(size=dim, distance=models.Distance.COSINE)
                    },
                    # No graph while loading: it is built once, by `finish`.
                    hnsw_config=models.HnswConfigDiff(m=0),
                    metadata=dict(metadata),
                )
            except UnexpectedResponse as error:
                # A try that timed out here may have gone through over there.
                if error.status_code not in (400, 409) or not self.exists(name):
                    raise
                if self.describe(name) != wanted:
                    raise

        self._call(make)
        if self.describe(name).metadata != wanted.metadata:
            self._call(lambda: self._client.delete_collection(name))
            raise ServiceError(
                f"Qdrant at {self._where} does not keep a collection's metadata",
                hint="it needs Qdrant 1.16 or newer",
            )
        if not self._server:
            return  # it accepts payload indexes with a warning and ignores them
        for column, kind in columns.items():
            if kind in _INDEX_TYPES:
                self._call(
                    lambda column=column, kind=kind: self._client.create_payload_index(  # type: ignore[misc]
                        name, payload_key(column), field_schema=_INDEX_TYPES[kind], wait=True
                    )
                )

    def describe(self, name: str) -> Collection:
        if not self.exists(name):
            raise self._missing(name)
        info = self._call(lambda: self._client.get_collection(name), name=name)
        vectors = info.config.params.vectors
        if not isinstance(vectors, dict) or len(vectors) != 1:
            raise UserError(
                f"collection {name!r} was not made by coembed: it has no single named vector"
            )
        ((vector_name, params),) = vectors.items()
        return Collection(name, vector_name, params.size, dict(info.config.metadata or {}))

    def _shape(self, name: str) -> Collection:
        if name not in self._shapes:
            self._shapes[name] = self.describe(name)
        return self._shapes[name]

    def exists(self, name: str) -> bool:
        # The client's own `collection_exists` also says yes to an alias.
        return name in self.collections()

    def collections(self) -> list[str]:
        answer = self._call(self._client.get_collections)
        return sorted(collection.name for collection in answer.collections)

    def delete(self, name: str) -> None:
        if name in self.aliases().values():
            raise UserError(f"collection {name!r} is served; point its alias elsewhere first")
        self._shapes.pop(name, None)
        if self.exists(name):
            self._call(lambda: self._client.delete_collection(name))

    def set_metadata(self, name: str, metadata: Mapping[str, Any]) -> None:
        self._call(lambda: self._client.update_collection(name, metadata=dict(metadata)), name=name)

    # Points

    def upsert(self, name: str, points: Sequence[Point]) -> None:
        if not points:
            return
        collection = self._shape(name)
        for point in points:
            check_vector(collection, point.vector, f"the vector of item {point.item_id}")
        structs = [
            models.PointStruct(
                id=point_id(point.item_id),
                vector={collection.vector_name: point.vector.tolist()},
                payload={_ITEM_ID: point.item_id, **point.payload},
            )
            for point in points
        ]
        if not self._server:
            with self._lock:
                load_fast(self._client, name)
        size = self._settings.batch_size
        for start in range(0, len(structs), size):
            batch = structs[start : start + size]
            self._call(
                lambda batch=batch: self._client.upsert(name, batch, wait=True),  # type: ignore[misc]
                name=name,
            )

    def finish(self, name: str) -> None:
        self._shape(name)
        if not self._server:
            with self._lock:
                settle(self._client, name)
            return
        settings = self._settings
        self._call(
            lambda: self._client.update_collection(
                name,
                hnsw_config=models.HnswConfigDiff(
                    m=settings.hnsw_m, ef_construct=settings.hnsw_ef_construct
                ),
            ),
            name=name,
        )
        deadline = time.monotonic() + settings.ready_wait_s
        while True:
            status = self._call(lambda: self._client.get_collection(name)).status
            if status == models.CollectionStatus.GREEN:
                return
            if status == models.CollectionStatus.RED or time.monotonic() >= deadline:
                raise ServiceError(
                    f"collection {name!r} at {self._where} is {status.value}, not ready",
                    hint="look at the server's log; index.ready_wait_s is how long to wait",
                )
            time.sleep(0.5)

    def count(self, name: str) -> int:
        return self._call(lambda: self._client.count(name, exact=True), name=name).count

    def retrieve(self, name: str, item_ids: Sequence[str]) -> dict[str, Point]:
        collection = self._shape(name)
        records = self._call(
            lambda: self._client.retrieve(
                name, [point_id(item_id) for item_id in item_ids], with_vectors=True
            ),
            name=name,
        )
        found: dict[str, Point] = {}
        for record in records:
            item_id, payload = _split_payload(record.payload)
            vector = record.vector[collection.vector_name]
            found[item_id] = Point(item_id, np.asarray(vector, dtype=np.float32), payload)
        return found

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
        collection = self._shape(name)
        if vector_name != collection.vector_name:
            raise wrong_vector(collection, vector_name)
        check_vector(collection, vector, "the query")
        answer = self._call(
            lambda: self._client.query_points(
                name,
                query=vector.tolist(),
                using=vector_name,
                query_filter=to_qdrant(where),
                search_params=models.SearchParams(
                    exact=exact, hnsw_ef=max(limit, self._settings.search_ef)
                )
                if self._server
                else None,
                limit=limit,
                with_payload=True,
            ),
            name=name,
        )
        hits = [(point.score, *_split_payload(point.payload)) for point in answer.points]
        hits.sort(key=lambda hit: (-hit[0], hit[1]))
        return [
            Hit(rank, float(score), item_id, payload)
            for rank, (score, item_id, payload) in enumerate(hits, start=1)
        ]

    # Aliases

    def aliases(self) -> dict[str, str]:
        answer = self._call(self._client.get_aliases)
        return {alias.alias_name: alias.collection_name for alias in answer.aliases}

    def set_alias(self, alias: str, collection: str) -> None:
        present = self.collections()
        if collection not in present:
            raise missing_collection(collection, present)
        if alias in present:
            raise UserError(f"{alias!r} is the name of a collection and cannot be an alias")
        now = self.aliases().get(alias)
        if now == collection:
            return
        point = models.CreateAliasOperation(
            create_alias=models.CreateAlias(collection_name=collection, alias_name=alias)
        )
        drop = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))
        # Both in one request: Qdrant applies them in one step, so no search falls between.
        self._call(
            lambda: self._client.update_collection_aliases([drop, point] if now else [point])
        )

    def close(self) -> None:
        with self._lock:
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _judge(error: Exception) -> retry.TryAgain | None:
    """Whether a failed request may succeed when it is sent again."""
    if isinstance(error, ResourceExhaustedResponse):
        return retry.TryAgain(after_s=float(error.retry_after_s))
    if isinstance(error, QdrantException):
        return retry.TryAgain()  # a 429 whose Retry-After is a date, which the client cannot read
    if isinstance(error, UnexpectedResponse):
        status = error.status_code or 0
        return retry.TryAgain() if status == 429 or status >= 500 else None
    if isinstance(error, ResponseHandlingException):
        # The other cause is an answer that the client cannot parse: it will be no better next time.
        passing = isinstance(error.source, httpx.TransportError)
        return retry.TryAgain() if passing else None
    return None


def _split_payload(payload: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    rest = dict(payload or {})
    return str(rest.pop(_ITEM_ID)), rest
