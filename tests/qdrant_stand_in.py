"""A stand-in for a Qdrant server: the part of its REST interface that coembed uses.

It answers over real HTTP, so that the client, its time-outs and the retries are the real ones, and
hands the work to the client's own local mode in memory. It is not Qdrant: HNSW, payload indexes and
the loading states of a collection are not there. With QDRANT_URL set the contract tests run against
a real server as well.

Faults can be queued: each request whose path matches takes one and gets it instead of an answer,
before the work is done or, like an answer lost on the way, after it.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from qdrant_client import QdrantClient, models

_INFO_DEFAULTS: dict[str, Any] = {
    "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
    "optimizer_config": {
        "deleted_threshold": 0.2,
        "vacuum_min_vector_number": 1000,
        "default_segment_number": 0,
        "flush_interval_sec": 5,
    },
}
# What those sections are called where they are asked for.
_ASKED_AS = {"hnsw_config": "hnsw_config", "optimizer_config": "optimizers_config"}


@dataclass
class Fault:
    """What a request gets instead of its answer. `slow_s`: so late that the client gives up."""

    path: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    slow_s: float = 0.0
    after_work: bool = False


@dataclass
class Seen:
    """A request that came in."""

    method: str
    path: str
    at_s: float
    body: Any
    api_key: str | None


class StandIn:
    """Runs in a thread on a free loopback port. `url` is where; `seen` is what came.

    With a certificate and its key it speaks TLS.
    """

    def __init__(self, *, certificate: Path | None = None, key: Path | None = None) -> None:
        self.store = QdrantClient(":memory:")
        self.faults: deque[Fault] = deque()
        self.seen: list[Seen] = []
        self._configs: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()  # local mode is not thread-safe
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{port}"
        config = uvicorn.Config(
            self._app(), host="127.0.0.1", port=port, log_level="error", lifespan="off",
            ssl_certfile=certificate, ssl_keyfile=key,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> StandIn:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self.store.close()

    def count_requests(self, method: str, pattern: str) -> int:
        """How many requests of that method came to a path that matches."""
        return sum(one.method == method and bool(re.search(pattern, one.path)) for one in self.seen)

    def _take_fault(self, path: str) -> Fault | None:
        for fault in self.faults:
            if re.search(fault.path, path):
                self.faults.remove(fault)
                return fault
        return None

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.middleware("http")
        async def misbehave(
            request: Request, answer: Callable[[Request], Awaitable[Response]]
        ) -> Response:
            body = await request.body()
            self.seen.append(
                Seen(
                    request.method, request.url.path, time.monotonic(),
                    json.loads(body) if body else None, request.headers.get("api-key"),
                )
            )  # fmt: skip
            fault = self._take_fault(request.url.path)
            if fault is None:
                return await answer(request)
            if fault.after_work:
                await answer(request)
            if fault.slow_s:
                await asyncio.sleep(fault.slow_s)
            status = fault.status or 504
            return JSONResponse(
                {"status": {"error": f"fault {status}"}}, status, headers=fault.headers
            )

        @app.api_route("/{path:path}", methods=["GET", "PUT", "POST", "PATCH", "DELETE"])
        async def handle(request: Request, path: str) -> Response:
            body = await request.body()
            with self._lock:
                try:
                    result = self._work(request.method, path, json.loads(body) if body else {})
                except (ValueError, KeyError) as error:
                    return _refusal(str(error))
            return JSONResponse({"result": result, "status": "ok", "time": 0.0})

        return app

    def _work(self, method: str, path: str, body: dict[str, Any]) -> Any:
        store = self.store
        match method, path.split("/"):
            case "GET", ["collections"]:
                return _json(store.get_collections())
            case "GET", ["aliases"]:
                return _json(store.get_aliases())
            case "POST", ["collections", "aliases"]:
                actions = models.ChangeAliasesOperation(**body).actions
                return store.update_collection_aliases(actions)
            case "PUT", ["collections", name]:
                wanted = models.CreateCollection(**body)
                made = store.create_collection(
                    name, vectors_config=wanted.vectors, metadata=wanted.metadata
                )
                self._remember(name, body)
                return made
            case "GET", ["collections", name]:
                return self._describe(name)
            case "PATCH", ["collections", name]:
                change = models.UpdateCollection(**body)
                changed = store.update_collection(name, metadata=change.metadata)
                self._remember(name, body)
                return changed
            case "DELETE", ["collections", name]:
                self._configs.pop(name, None)
                return store.delete_collection(name)
            case "PUT", ["collections", name, "index"]:
                store.get_collection(name)
                return {"operation_id": 0, "status": "completed"}
            case "PUT", ["collections", name, "points"]:
                return _json(store.upsert(name, models.PointsList(**body).points))
            case "POST", ["collections", name, "points"]:
                ask = models.PointRequest(**body)
                return _json(store.retrieve(name, ask.ids, with_payload=True, with_vectors=True))
            case "POST", ["collections", name, "points", "delete"]:
                return _json(store.delete(name, models.PointIdsList(**body)))
            case "POST", ["collections", name, "points", "scroll"]:
                page = models.ScrollRequest(**body)
                points, after = store.scroll(
                    name, limit=page.limit or 10, offset=page.offset,
                    with_payload=page.with_payload,
                    with_vectors=bool(page.with_vector),
                )  # fmt: skip
                return {"points": _json(points), "next_page_offset": after}
            case "POST", ["collections", name, "points", "count"]:
                return _json(store.count(name, exact=True))
            case "POST", ["collections", name, "points", "query"]:
                query = models.QueryRequest(**body)  # refuses search parameters that are none
                return _json(
                    store.query_points(
                        name, query=query.query, using=query.using, query_filter=query.filter,
                        limit=query.limit or 10, with_payload=True,
                    )
                )  # fmt: skip
        raise ValueError(f"the stand-in does not know {method} /{path}")

    def _describe(self, name: str) -> Any:
        info = _json(self.store.get_collection(name))
        asked = self._configs.get(name, {})
        for section, values in _INFO_DEFAULTS.items():
            info["config"][section] = {**values, **asked.get(_ASKED_AS[section], {})}
        info["config"]["quantization_config"] = asked.get("quantization_config")
        return info

    def _remember(self, name: str, body: dict[str, Any]) -> None:
        """Keep the settings that local mode drops: a server says them again when it is asked."""
        known = self._configs.setdefault(name, {})
        for section in (*_ASKED_AS.values(), "quantization_config"):
            if body.get(section):
                known[section] = {**known.get(section, {}), **_given(body[section])}


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _json(value: Any) -> Any:
    if isinstance(value, list):
        return [_json(one) for one in value]
    return value.model_dump(mode="json")


def _refusal(error: str) -> Response:
    status = 404 if "not found" in error else 409 if "already exists" in error else 400
    return JSONResponse({"status": {"error": error}, "time": 0.0}, status)
