"""A way to a server that fails: a TCP proxy on loopback that knows where requests begin and end.

It stands before the stand-in, and before a real Qdrant where QDRANT_URL names one. For each request
it asks `decide` what is to become of it: passed on as it is, delayed on its way there or back, cut
off before it arrives or in the middle of its answer, or answered with a status of its own, before
the server sees it or instead of the server's answer. `refuse` closes the door altogether.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Literal
from urllib.parse import urlsplit

Kind = Literal["pass", "delay", "late", "drop", "cut", "answer", "replace"]


@dataclass(frozen=True)
class Fate:
    """What becomes of a request.

    delay: it reaches the server after `seconds`. late: its answer comes back after `seconds`, when
    the server has done the work. drop: the connection is reset before the server hears of it. cut:
    the server does the work, and the connection is reset in the middle of the answer. answer: the
    proxy answers with `status` and `headers`, the server hears nothing. replace: the server does
    the work, and the proxy answers so.
    """

    kind: Kind = "pass"
    seconds: float = 0.0
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)


PASS = Fate()
Headers = dict[str, str]
Decide = Callable[[str, str], Fate]


class Proxy:
    """Runs in threads on a free loopback port. `url` is where; `fates` counts what was done."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream)
        self.decide: Decide = lambda method, path: PASS  # noqa: ARG005
        self.fates: Counter[str] = Counter()
        self._guard = threading.Lock()
        self._deciding = threading.Lock()  # one of its own: a decision may be to `refuse`
        self._open: set[socket.socket] = set()
        self._closing = False
        self._listener = self._listen(0)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Proxy:
        self._start(self._listener)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._listener.close()
        self._cut_all()

    def script(self, pattern: str, *fates: Fate) -> None:
        """The first requests whose "METHOD path" matches get these fates, one each."""
        waiting = list(fates)

        def decide(method: str, path: str) -> Fate:
            if waiting and re.search(pattern, f"{method} {path}"):
                return waiting.pop(0)
            return PASS

        self.decide = decide

    @contextlib.contextmanager
    def refuse(self) -> Iterator[None]:
        """No connection is taken, and those that are open are cut."""
        # A listener that a thread waits on stays alive after `close` until it is shut down.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._cut_all()
        try:
            yield
        finally:
            self._listener = self._listen(self.port)
            self._start(self._listener)

    # The threads

    def _listen(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(64)
        return listener

    def _start(self, listener: socket.socket) -> None:
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _cut_all(self) -> None:
        with self._guard:
            for connection in self._open:
                # Whoever waits for its next request wakes up and closes it.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self._guard:
                self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection.makefile("rb") as reader:
                while (request := _read_request(reader)) is not None:
                    if not self._handle(connection, *request):
                        return
        except OSError:
            pass  # the client has gone, or the connection was cut
        finally:
            with self._guard:
                self._open.discard(connection)
            connection.close()

    def _handle(
        self, connection: socket.socket, method: str, path: str, headers: Headers, body: bytes
    ) -> bool:
        """Serve one request; False when the connection is no more."""
        with self._deciding:
            fate = self.decide(method, path.partition("?")[0])
            self.fates[fate.kind] += 1
        if fate.kind == "drop":
            _reset(connection)
            return False
        if fate.kind == "delay":
            time.sleep(fate.seconds)
        if fate.kind == "answer":
            connection.sendall(_own_answer(fate))
            return True
        answer = self._pass_on(method, path, headers, body)
        if fate.kind == "late":
            time.sleep(fate.seconds)
        if fate.kind == "replace":
            answer = _own_answer(fate)
        if fate.kind == "cut":
            connection.sendall(answer[: max(1, len(answer) // 2)])
            time.sleep(0.02)  # so that the half arrives before the reset
            _reset(connection)
            return False
        connection.sendall(answer)
        return True

    def _pass_on(self, method: str, path: str, headers: Headers, body: bytes) -> bytes:
        make = http.client.HTTPConnection
        if self._upstream.scheme == "https":
            make = http.client.HTTPSConnection
        upstream = make(self._upstream.hostname or "", self._upstream.port or 6333, timeout=60)
        try:
            given = {key: value for key, value in headers.items() if key != "connection"}
            upstream.request(method, self._upstream.path.rstrip("/") + path, body, given)
            found = upstream.getresponse()
            return _answer(found.status, dict(found.getheaders()), found.read())
        finally:
            upstream.close()


def _read_request(reader: BinaryIO) -> tuple[str, str, dict[str, str], bytes] | None:
    """Method, path, headers and body; None where the client has closed."""
    first = reader.readline()
    if not first.strip():
        return None
    method, path, _ = first.decode("latin-1").split(" ", 2)
    headers = {}
    while line := reader.readline().decode("latin-1").strip():
        key, _, value = line.partition(":")
        headers[key.strip().lower()] = value.strip()
    length = int(headers.get("content-length", 0))
    body = reader.read(length)
    return (method, path, headers, body) if len(body) == length else None


def _own_answer(fate: Fate) -> bytes:
    body = b'{"status": {"error": "fault of the proxy"}, "time": 0.0}'
    return _answer(fate.status, {"content-type": "application/json", **fate.headers}, body)


def _answer(status: int, headers: Headers, body: bytes) -> bytes:
    reason = http.client.responses.get(status, "")
    kept = {
        key: value
        for key, value in headers.items()
        if key.lower() not in ("content-length", "transfer-encoding", "connection")
    }
    lines = [f"HTTP/1.1 {status} {reason}", f"content-length: {len(body)}"]
    lines += [f"{key}: {value}" for key, value in kept.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def _reset(connection: socket.socket) -> None:
    """Close with a reset, as a broken network does, not with a farewell."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        connection.close()
