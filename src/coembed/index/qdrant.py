"""The index in a Qdrant server, over REST or gRPC; for tests also the client's own local mode.

Only this file and `qdrant_filters` beside it import qdrant_client. The local mode searches exactly,
ignores HNSW, quantisation and payload indexes, and is not thread-safe: one lock guards it.

The client never repeats a failed request (its own upload helpers loop for ever on 429), so every
request goes through `retry.call`: time-outs, lost connections, 429 and 5xx are tried again,
whatever else is wrong is an error at once.
"""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc  # type: ignore[import-untyped]
import httpx
import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from coembed.errors import ServiceError, UserError
from coembed.index import retry
from coembed.index.base import (
    NO_VECTOR,
    OWN_KEYS,
    Collection,
    Point,
    SearchParams,
    check_vector,
    missing_collection,
    point_id,
    split_payload,
    stored_payload,
    wrong_vector,
)
from coembed.index.filters import NO_FILTER, ColumnKind, Filter, payload_key
from coembed.index.qdrant_filters import to_qdrant
from coembed.index.settings import IndexSettings
from coembed.services import Services
from coembed.types import Hit

T = TypeVar("T")

_INDEX_TYPES: dict[ColumnKind, models.PayloadSchemaType] = {
    "text": models.PayloadSchemaType.KEYWORD,
    # A whole-number index would round the bounds of `price<49.5`; a float index takes both.
    "number": models.PayloadSchemaType.FLOAT,
    "bool": models.PayloadSchemaType.BOOL,
}


# Qdrant's own default, to be set again after a load that turned indexing off: segments smaller than
# this many kilobytes of vectors are scanned, larger ones get an HNSW graph.
_INDEXING_KB = 10_000
_LOOK_EVERY_S = 0.2
_NUM_DELETED = 1000  # points in one request
# gRPC's words for what HTTP says with 429, 5xx, and by not answering.
_PASSING = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)
_REFUSING = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})


def open_server(services: Services, settings: IndexSettings) -> QdrantIndex:
    """Open the index in the server at `services.qdrant_url`, https included.

    With `services.qdrant_grpc_port` requests go over gRPC. Raises ServiceError when the server
    refuses or does not answer.
    """
    if services.qdrant_url is None:
        raise ValueError("services name no Qdrant server")
    with warnings.catch_warnings():
        # "Api key is used with an insecure connection": said in the README, not at each start.
        warnings.simplefilter("ignore")
        client = QdrantClient(
            url=services.qdrant_url,
            api_key=services.qdrant_api_key,
            timeout=settings.timeout_s,
            check_compatibility=False,
            prefer_grpc=services.qdrant_grpc_port is not None,
            grpc_port=services.qdrant_grpc_port or 6334,
        )
    index = QdrantIndex(client, settings, where=services.qdrant_url, server=True)
    try:
        index.check_connection()
    except BaseException:
        index.close()
        raise
    return index


def open_local(path: Path | None, settings: IndexSettings) -> QdrantIndex:
    """The client's local mode in a folder, or in memory (None). For tests only.

    It keeps points as pickles: a folder that coembed did not write itself must never be opened.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "not recommended for more than 20,000 points"
        client = QdrantClient(
            path=None if path is None else str(path),
            location=":memory:" if path is None else None,
            force_disable_check_same_thread=True,
        )
    return QdrantIndex(client, settings, where=str(path or "memory"), server=False)


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
        stop: threading.Event | None = None,
    ) -> T:
        """Make a request; `name` is the collection that it needs. `stop` ends the trying again."""
        stop = stop or threading.Event()
        try:
            with self._lock:
                return retry.call(
                    function,
                    backoff=backoff or self._backoff,
                    judge=lambda error: None if stop.is_set() else _judge(error),
                    sleep=stop.wait,
                )
        except UnexpectedResponse as error:
            if name is not None and error.status_code == 404:
                raise self._missing(name) from None
            raise self._explain(error) from error
        except grpc.RpcError as error:
            if name is not None and error.code() == grpc.StatusCode.NOT_FOUND:
                raise self._missing(name) from None
            raise self._explain(error) from error
        except (ResponseHandlingException, QdrantException) as error:
            raise self._explain(error) from error
        except ValueError as error:  # how the local mode says it
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
        if isinstance(error, grpc.RpcError) and error.code() not in _PASSING:
            return ServiceError(
                f"Qdrant at {self._where} answered {error.code().name}: {error.details()}",
                hint="check QDRANT_API_KEY"
                if error.code() in _REFUSING
                else "this is a request that the server will not take: check its version (1.16 or "
                "newer) and limits",
            )
        cause = getattr(error, "source", None) or error
        if isinstance(error, grpc.RpcError):
            cause = ConnectionError(f"{error.code().name}: {error.details()}")
        return ServiceError(
            f"Qdrant at {self._where} does not answer ({type(cause).__name__}: {cause})",
            hint="is the server running, and are QDRANT_URL and QDRANT_GRPC_PORT right? Unset "
            "QDRANT_URL to use the store in this project's folder",
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
        base: str | None = None,  # noqa: ARG002  (a server cannot copy a collection)
    ) -> bool:
        if self.exists(name) or name in self.aliases():
            raise UserError(f"the name {name!r} is taken in the index")
        wanted = Collection(name, vector_name, dim, dict(metadata))

        def make() -> None:
            try:
                self._client.create_collection(
                    name,
                    vectors_config={
                        vector_name: models.VectorParams(
                            size=dim,
                            distance=models.Distance.COSINE,
                            # The small copies are what is searched, and stay in memory.
                            on_disk=True if self._settings.quantization != "none" else None,
                        )
                    },
                    # Nothing is indexed while loading: the graph is built once, by `finish`.
                    hnsw_config=models.HnswConfigDiff(m=0),
                    optimizers_config=models.OptimizersConfigDiff(indexing_threshold=0),
                    quantization_config=_quantization(self._settings),
                    metadata=dict(metadata),
                )
            except (UnexpectedResponse, grpc.RpcError) as error:
                # A try that timed out here may have gone through over there.
                if not _says_taken(error) or not self.exists(name):
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
            return False  # it accepts payload indexes with a warning and ignores them
        for column, kind in columns.items():
            if kind in _INDEX_TYPES:
                self._call(
                    lambda column=column, kind=kind: self._client.create_payload_index(  # type: ignore[misc]
                        name, payload_key(column), field_schema=_INDEX_TYPES[kind], wait=True
                    )
                )
        return False

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
                payload=stored_payload(point),
            )
            for point in points
        ]
        size = self._settings.batch_size
        batches = [structs[start : start + size] for start in range(0, len(structs), size)]

        stop = threading.Event()

        def send(batch: list[models.PointStruct]) -> None:
            if stop.is_set():
                return
            try:
                self._call(
                    lambda: self._client.upsert(name, batch, wait=True), name=name, stop=stop
                )
            except BaseException:
                stop.set()  # the other streams need not go on
                raise

        if not self._server or len(batches) == 1:
            for batch in batches:
                send(batch)
            return
        with ThreadPoolExecutor(self._settings.num_streams) as streams:
            try:
                for sent in [streams.submit(send, batch) for batch in batches]:
                    sent.result()
            except BaseException:
                stop.set()
                raise

    def delete_points(self, name: str, item_ids: Sequence[str]) -> None:
        size = _NUM_DELETED
        for start in range(0, len(item_ids), size):
            ids = [point_id(item_id) for item_id in item_ids[start : start + size]]
            self._call(
                lambda ids=ids: self._client.delete(  # type: ignore[misc]
                    name, models.PointIdsList(points=ids), wait=True
                ),
                name=name,
            )

    def finish(self, name: str) -> None:
        self._shape(name)
        if not self._server:
            return
        self._serve(name)
        deadline = time.monotonic() + self._settings.ready_wait_s
        # One green may still be from before the optimiser saw the change.
        num_green = 0
        while num_green < 2:
            info = self._call(lambda: self._client.get_collection(name), name=name)
            broken = info.optimizer_status != models.OptimizersStatusOneOf.OK
            num_green = num_green + 1 if info.status == models.CollectionStatus.GREEN else 0
            if broken or info.status == models.CollectionStatus.RED:
                raise ServiceError(
                    f"collection {name!r} at {self._where} is {info.status.value}, its optimiser "
                    f"says {info.optimizer_status}",
                    hint="look at the server's log",
                )
            if info.status == models.CollectionStatus.GREY:
                # A server that was started anew leaves the rest undone until something changes.
                self._serve(name)
            if time.monotonic() >= deadline:
                raise ServiceError(
                    f"collection {name!r} at {self._where} is {info.status.value}, not ready",
                    hint="look at the server's log; index.ready_wait_s is how long to wait",
                )
            time.sleep(_LOOK_EVERY_S)

    def _serve(self, name: str) -> None:
        """Ask for what a collection that is searched has: a graph."""
        settings = self._settings
        self._call(
            lambda: self._client.update_collection(
                name,
                hnsw_config=models.HnswConfigDiff(
                    m=settings.hnsw_m, ef_construct=settings.hnsw_ef_construct
                ),
                optimizers_config=models.OptimizersConfigDiff(indexing_threshold=_INDEXING_KB),
            ),
            name=name,
        )

    def count(self, name: str) -> int:
        return self._call(lambda: self._client.count(name, exact=True), name=name).count

    def size_bytes(self, name: str) -> int | None:
        self._shape(name)
        return None

    def retrieve(self, name: str, item_ids: Sequence[str]) -> dict[str, Point]:
        collection = self._shape(name)
        records = self._call(
            lambda: self._client.retrieve(
                name, [point_id(item_id) for item_id in item_ids], with_vectors=True
            ),
            name=name,
        )
        points = [_to_point(record, collection.vector_name) for record in records]
        return {point.item_id: point for point in points}

    def scroll(
        self,
        name: str,
        *,
        with_vectors: bool = False,
        with_payload: bool = True,
        batch_size: int = 1024,
    ) -> Iterator[list[Point]]:
        collection = self._shape(name)
        start: Any = None
        while True:
            records, start = self._call(
                lambda start=start: self._client.scroll(  # type: ignore[misc]
                    name,
                    limit=batch_size,
                    offset=start,
                    with_payload=with_payload or list(OWN_KEYS),
                    with_vectors=with_vectors,
                ),
                name=name,
            )
            if records:
                vector_name = collection.vector_name if with_vectors else None
                yield [_to_point(record, vector_name) for record in records]
            if start is None:
                return

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
                search_params=self._search_params(search or SearchParams(), limit, exact=exact),
                limit=limit,
                with_payload=True,
            ),
            name=name,
        )
        hits = [(point.score, *split_payload(point.payload)) for point in answer.points]
        hits.sort(key=lambda hit: (-hit[0], hit[1]))
        return [
            Hit(rank, float(score), item_id, payload)
            for rank, (score, item_id, _, payload) in enumerate(hits, start=1)
        ]

    def _search_params(
        self, search: SearchParams, limit: int, *, exact: bool
    ) -> models.SearchParams | None:
        if not self._server:
            return None
        own = self._settings
        quantized = None
        if own.quantization != "none":
            quantized = models.QuantizationSearchParams(
                ignore=exact,
                rescore=own.rescore if search.rescore is None else search.rescore,
                oversampling=search.oversampling or own.oversampling,
            )
        ef = max(limit, search.ef or own.search_ef)
        return models.SearchParams(exact=exact, hnsw_ef=ef, quantization=quantized)

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
    if isinstance(error, grpc.RpcError):
        return retry.TryAgain() if error.code() in _PASSING else None
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


def _says_taken(error: Exception) -> bool:
    """Whether a refusal may mean that the collection is there."""
    if isinstance(error, UnexpectedResponse):
        return error.status_code in (400, 409)
    codes = (grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.INVALID_ARGUMENT)
    return isinstance(error, grpc.RpcError) and error.code() in codes


def _quantization(settings: IndexSettings) -> models.QuantizationConfig | None:
    if settings.quantization == "int8":
        return models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(
                # Rare large numbers would coarsen all others: Qdrant's own advice.
                type=models.ScalarType.INT8, quantile=0.99, always_ram=True,
            )
        )  # fmt: skip
    if settings.quantization == "binary":
        return models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True))
    return None


def _to_point(record: models.Record, vector_name: str | None) -> Point:
    item_id, content_hash, payload = split_payload(record.payload)
    vector = NO_VECTOR
    if vector_name is not None:
        vector = np.asarray(record.vector[vector_name], dtype=np.float32)
    return Point(item_id, vector, payload, content_hash)
