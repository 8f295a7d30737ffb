"""Who may ask, how much and how often: the guard in front of the application.

Plain ASGI: it sees every request before anything is read of it, and every answer's headers.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException
from pydantic_core import to_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coembed.search.settings import ServeSettings
from coembed.serve.metrics import Metrics
from coembed.serve.refusals import Refusal, busy

LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
# Anybody may know that the process lives; the page holds no data.
_OPEN_PATHS = frozenset({"/", "/health", "/ready"})
# Requests that cost nothing worth limiting, or must come through on a busy day.
_FREE_PATHS = frozenset({"/", "/health", "/ready", "/metrics", "/openapi.json"})
# A page of results asks for its pictures at once: together they count as some searches.
_MEDIA_COST = 0.1
_MAX_CLIENTS = 10_000
_BODY_WAIT_S = 30.0

HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
_STRICT_POLICY = (
    b"content-security-policy",
    b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; sandbox",
)
_NOT_KEPT = (b"cache-control", b"no-store")


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask. api_key: what a request must bring, None where anybody may ask. host_names:
    under which the service answers, None for any."""

    api_key: str | None = None
    host_names: frozenset[str] | None = LOOPBACK_NAMES


class Bucket:
    """Token buckets, one a client: `burst` at once, `rate_per_s` in the long run."""

    def __init__(self, rate_per_s: float, burst: float) -> None:
        self._rate, self._burst = rate_per_s, burst
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, cost: float, now: float) -> float:
        """Take `cost` tokens: 0.0, or the seconds until there are enough (and none are taken)."""
        tokens, before = self._clients.pop(client, (self._burst, now))
        tokens = min(self._burst, tokens + (now - before) * self._rate)
        enough = tokens >= cost
        self._clients[client] = (tokens - cost if enough else tokens, now)
        while len(self._clients) > _MAX_CLIENTS:
            self._clients.popitem(last=False)  # the one that was quiet for longest
        return 0.0 if enough else (cost - tokens) / self._rate


class Guard:
    """ASGI middleware. Refuses, limits, counts, and adds headers."""

    def __init__(
        self, app: ASGIApp, *, access: Access, settings: ServeSettings, metrics: Metrics
    ) -> None:
        self._app = app
        self._access, self._metrics = access, metrics
        self._key = None if access.api_key is None else _digest(access.api_key)
        self._bucket = Bucket(settings.rate_per_s, settings.burst)
        self._max_body = int(settings.max_upload_mb * 1e6)
        self._max_concurrent = settings.max_concurrent
        self._num_in_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _with_defaults(message.get("headers", ()))
            await send(message)

        is_work = scope["path"] not in _FREE_PATHS
        try:
            self._admit(scope, is_work)
        except Refusal as refusal:
            await _send(refusal, answer)
            self._count("refused", status, began)
            return
        self._num_in_work += is_work
        self._metrics.in_work.set(self._num_in_work)
        try:
            await self._app(scope, _bounded(receive, self._max_body), answer)
        finally:
            self._num_in_work -= is_work
            self._metrics.in_work.set(self._num_in_work)
            self._count(_route(scope), status or 500, began)

    def _admit(self, scope: Scope, is_work: bool) -> None:
        """Raises Refusal."""
        headers = _Headers(scope["headers"])
        self._check_names(headers)
        if self._key is not None and scope["path"] not in _OPEN_PATHS:
            self._check_key(headers)
        declared = headers.get(b"content-length")
        if declared.isdigit() and (len(declared) > 15 or int(declared) > self._max_body):
            raise _too_large(self._max_body)
        if not is_work:
            return
        client = scope.get("client")
        cost = _MEDIA_COST if scope["path"].startswith("/items/") else 1.0
        wait_s = self._bucket.take(client[0] if client else "", cost, time.monotonic())
        if wait_s:
            raise busy("too many requests from this address", retry_after_s=wait_s)
        if self._num_in_work >= self._max_concurrent:
            raise busy(f"{self._num_in_work} requests are in work", retry_after_s=1.0)

    def _check_names(self, headers: _Headers) -> None:
        """Another site must not reach the service through a person's browser, neither by a name of
        its own for this machine (DNS rebinding) nor from a page of its own."""
        host = headers.get(b"host")
        allowed = self._access.host_names
        if allowed is not None and _host_name(host) not in allowed:
            raise Refusal(
                403, "the service does not answer under this name",
                hint="serve.host_names names those it does, beside this machine's own",
            )  # fmt: skip
        origin = headers.get(b"origin")
        if origin and _origin_host(origin) != host.lower():
            raise Refusal(403, "pages of other sites may not ask")

    def _check_key(self, headers: _Headers) -> None:
        given = headers.get(b"x-api-key")
        scheme, _, token = headers.get(b"authorization").partition(" ")
        if not given and scheme.lower() == "bearer":
            given = token.strip()
        assert self._key is not None
        # Digests of one length, so that the time tells nothing of the key's.
        if not hmac.compare_digest(_digest(given), self._key):
            raise Refusal(
                401, "the API key is missing or wrong",
                hint="send it as `X-API-Key: KEY` or `Authorization: Bearer KEY`",
            )  # fmt: skip

    def _count(self, route: str, status: int, began: float) -> None:
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(time.perf_counter() - began)


class _Headers:
    """The first value of each header, as text."""

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self._values: dict[bytes, bytes] = {}
        for name, value in raw:
            self._values.setdefault(name, value)

    def get(self, name: bytes) -> str:
        return self._values.get(name, b"").decode("latin-1")


def refusal_response(refusal: Refusal) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    headers = {"content-type": "application/json"}
    if refusal.retry_after_s is not None:
        headers["retry-after"] = str(max(1, -int(-refusal.retry_after_s // 1)))
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    body = {"error": printable(refusal.message), "hint": refusal.hint and printable(refusal.hint)}
    return refusal.status, headers, to_json(body)


def printable(text: str) -> str:
    """`text` as it can be written in UTF-8: what came in may hold halves of characters."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _too_large(limit: int) -> Refusal:
    return Refusal(
        413, f"the request is too large: at most {limit:,} bytes are allowed",
        hint="serve.max_upload_mb",
    )  # fmt: skip


def _bounded(receive: Receive, limit: int) -> Receive:
    """`receive` that gives up on a body that is too large, or that does not come."""
    num_bytes = 0
    deadline = time.monotonic() + _BODY_WAIT_S
    is_whole = False

    async def bounded() -> Message:
        nonlocal num_bytes, is_whole
        if is_whole:  # what comes now is the word that the client is gone
            return await receive()
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 0.01)):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, "the request's body did not come") from None
        if message["type"] == "http.request":
            num_bytes += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if num_bytes > limit:
                # FastAPI takes nothing else for an answer while it reads a body.
                raise HTTPException(413, _too_large(limit).message)
        return message

    return bounded


def _with_defaults(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """`headers`, and the strict ones of those that are not in them."""
    own = list(headers)
    named = {name.lower() for name, _ in own}
    defaults = (*HEADERS, _STRICT_POLICY, _NOT_KEPT)
    return own + [(name, value) for name, value in defaults if name not in named]


async def _send(refusal: Refusal, send: Send) -> None:
    status, headers, body = refusal_response(refusal)
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    raw += [(b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _route(scope: Scope) -> str:
    route: Any = scope.get("route")
    return getattr(route, "path", "unmatched")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _origin_host(origin: str) -> str:
    """The host and port of an Origin header, in lower case; empty for "null" and the like."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
