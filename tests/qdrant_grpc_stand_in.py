"""The gRPC side of the stand-in: the calls that coembed makes, answered by the same store.

It runs beside a `StandIn` and takes its faults: `Fault.path` is matched with the name of the call
("Upsert"), and `status` is a gRPC status code.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from qdrant_client import grpc as proto
from qdrant_client import models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc, grpc_to_payload
from qdrant_client.grpc import collections_service_pb2_grpc, points_service_pb2_grpc
from qdrant_stand_in import Fault, StandIn


class GrpcStandIn:
    """Runs on a free loopback port. `calls` are the names of the calls that came, `keys` the API
    keys they brought."""

    def __init__(self, stand_in: StandIn) -> None:
        self._stand_in = stand_in
        self._guard = threading.Lock()
        self.faults: list[Fault] = []
        self.calls: list[str] = []
        self.keys: set[str | None] = set()
        self._server = grpc.server(ThreadPoolExecutor(8))
        collections_service_pb2_grpc.add_CollectionsServicer_to_server(
            self._servicer(collections_service_pb2_grpc.CollectionsServicer, _COLLECTIONS),
            self._server,
        )
        points_service_pb2_grpc.add_PointsServicer_to_server(
            self._servicer(points_service_pb2_grpc.PointsServicer, _POINTS), self._server
        )
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    def __enter__(self) -> GrpcStandIn:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(grace=None).wait()

    def _servicer(self, base: type, calls: dict[str, Any]) -> Any:
        made = type("Answering", (base,), {})
        for name, work in calls.items():
            setattr(made, name, self._answer(name, work))
        return made()

    def _answer(self, name: str, work: Any) -> Any:
        def answer(_: Any, request: Any, context: grpc.ServicerContext) -> Any:
            with self._guard:
                self.calls.append(name)
                self.keys.add(dict(context.invocation_metadata()).get("api-key"))
                fault = next((one for one in self.faults if one.path == name), None)
                if fault is not None:
                    self.faults.remove(fault)
            if fault is not None and not fault.after_work:
                self._fail(fault, context)
            with self._stand_in._lock:
                try:
                    result = work(self._stand_in, request)
                except (ValueError, KeyError) as error:
                    context.abort(_code(str(error)), str(error))
            if fault is not None:
                self._fail(fault, context)
            return result

        return answer

    @staticmethod
    def _fail(fault: Fault, context: grpc.ServicerContext) -> None:
        if fault.slow_s:
            time.sleep(fault.slow_s)
        if fault.headers:
            context.set_trailing_metadata(tuple(fault.headers.items()))
        code = next(code for code in grpc.StatusCode if code.value[0] == fault.status)
        context.abort(code, "fault of the stand-in")


def _code(error: str) -> grpc.StatusCode:
    if "not found" in error:
        return grpc.StatusCode.NOT_FOUND
    if "already exists" in error:
        return grpc.StatusCode.ALREADY_EXISTS
    return grpc.StatusCode.INVALID_ARGUMENT


def _done(result: bool) -> Any:
    return proto.CollectionOperationResponse(result=result)


def _list(at: StandIn, _: Any) -> Any:
    names = [one.name for one in at.store.get_collections().collections]
    described = [proto.CollectionDescription(name=name) for name in names]
    return proto.ListCollectionsResponse(collections=described)


def _get(at: StandIn, request: Any) -> Any:
    info = models.CollectionInfo(**at._describe(request.collection_name))
    return proto.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info))


def _create(at: StandIn, request: Any) -> Any:
    at._remember(
        request.collection_name,
        {
            "hnsw_config": GrpcToRest.convert_hnsw_config_diff(request.hnsw_config).model_dump(),
            "optimizers_config": GrpcToRest.convert_optimizers_config_diff(
                request.optimizers_config
            ).model_dump(),
        },
    )
    return _done(
        at.store.create_collection(
            request.collection_name,
            vectors_config=GrpcToRest.convert_vectors_config(request.vectors_config),
            metadata=grpc_to_payload(request.metadata),
        )
    )


def _update(at: StandIn, request: Any) -> Any:
    metadata = grpc_to_payload(request.metadata) or None
    return _done(at.store.update_collection(request.collection_name, metadata=metadata))


def _delete_collection(at: StandIn, request: Any) -> Any:
    return _done(at.store.delete_collection(request.collection_name))


def _update_aliases(at: StandIn, request: Any) -> Any:
    actions = [GrpcToRest.convert_alias_operations(action) for action in request.actions]
    return _done(at.store.update_collection_aliases(actions))


def _aliases(at: StandIn, _: Any) -> Any:
    found = at.store.get_aliases().aliases
    return proto.ListAliasesResponse(
        aliases=[RestToGrpc.convert_alias_description(one) for one in found]
    )


def _updated() -> Any:
    result = proto.UpdateResult(operation_id=0, status=proto.UpdateStatus.Completed)
    return proto.PointsOperationResponse(result=result)


def _upsert(at: StandIn, request: Any) -> Any:
    points = [GrpcToRest.convert_point_struct(point) for point in request.points]
    at.store.upsert(request.collection_name, points)
    return _updated()


def _delete(at: StandIn, request: Any) -> Any:
    at.store.delete(request.collection_name, GrpcToRest.convert_points_selector(request.points))
    return _updated()


def _field_index(at: StandIn, request: Any) -> Any:
    at.store.get_collection(request.collection_name)
    return _updated()


def _get_points(at: StandIn, request: Any) -> Any:
    ids = [GrpcToRest.convert_point_id(one) for one in request.ids]
    found = at.store.retrieve(request.collection_name, ids, with_vectors=True)
    return proto.GetResponse(result=[RestToGrpc.convert_retrieved_point(one) for one in found])


def _scroll(at: StandIn, request: Any) -> Any:
    start = GrpcToRest.convert_point_id(request.offset) if request.HasField("offset") else None
    found, after = at.store.scroll(
        request.collection_name, limit=request.limit, offset=start,
        with_payload=GrpcToRest.convert_with_payload_selector(request.with_payload),
        with_vectors=request.with_vectors.enable,
    )  # fmt: skip
    return proto.ScrollResponse(
        result=[RestToGrpc.convert_retrieved_point(one) for one in found],
        next_page_offset=None if after is None else RestToGrpc.convert_extended_point_id(after),
    )


def _count(at: StandIn, request: Any) -> Any:
    count = at.store.count(request.collection_name).count
    return proto.CountResponse(result=proto.CountResult(count=count))


def _query(at: StandIn, request: Any) -> Any:
    asked = GrpcToRest.convert_query_points(request)
    found = at.store.query_points(
        request.collection_name, query=asked.query, using=asked.using,
        query_filter=asked.filter, limit=asked.limit, with_payload=True,
    )  # fmt: skip
    return proto.QueryResponse(
        result=[RestToGrpc.convert_scored_point(point) for point in found.points]
    )


_COLLECTIONS = {
    "List": _list, "Get": _get, "Create": _create, "Update": _update,
    "Delete": _delete_collection, "UpdateAliases": _update_aliases, "ListAliases": _aliases,
}  # fmt: skip
_POINTS = {
    "Upsert": _upsert, "Delete": _delete, "CreateFieldIndex": _field_index, "Get": _get_points,
    "Scroll": _scroll, "Count": _count, "Query": _query,
}  # fmt: skip
