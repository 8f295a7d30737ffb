"""`coembed pairs review`: a page on this machine that shows pairs one by one, to keep or to drop.

Who may use it: only this machine can reach it (loopback), only a browser that was given the secret
token gets the page, and only under this machine's own name, so that another site can neither read
it, post to it, nor come in under a name of its own (DNS rebinding). The page loads nothing from
elsewhere, and shows text as text.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from pydantic import BaseModel

from coembed.config import Config
from coembed.curation.overrides import Decision
from coembed.curation.report.look import Manifest
from coembed.curation.report.report import MANIFEST, build_filters
from coembed.errors import CoembedError, ServiceError
from coembed.serve.decisions import Review, choose_entries
from coembed.serve.review_media import PairViews

_HOST = "127.0.0.1"
_OWN_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
_TOKEN_HEADER = "x-review-token"

Answer = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Reviewed:
    """What a review came to."""

    num_kept: int
    num_dropped: int
    num_left: int
    overrides: Path

    def rows(self) -> tuple[tuple[str, str], ...]:
        """For the table at the end."""
        num = self.num_kept + self.num_dropped
        rows = [("decided", f"{num:,}: {self.num_kept:,} to keep, {self.num_dropped:,} to drop")]
        if self.num_left:
            rows.append(("not decided", f"{self.num_left:,}"))
        if num:
            rows.append(("written to", str(self.overrides)))
            rows.append(("next", "run `coembed curate`: it goes by what was decided"))
        return tuple(rows)


class _Decision(BaseModel):
    pair_id: str
    decision: Decision


class _Pair(BaseModel):
    pair_id: str


def run(
    cfg: Config,
    *,
    pairs: Path,
    pool: Path,
    overrides: Path,
    reason: str | None,
    limit: int,
    port: int = 0,
    browser: bool = True,
) -> Reviewed:
    """Serve the page until it is finished with or interrupted (Ctrl-C).

    Raises UserError when there is nothing to review, DataError when the manifest or overrides.csv
    cannot be read, ServiceError when the port is taken.
    """
    with Manifest(pairs / MANIFEST, build_filters(cfg.curate)) as manifest:
        entries = choose_entries(manifest, reason=reason, limit=limit)
        views = PairViews(manifest, pool, cfg.curate)
    review = Review(entries, overrides)
    what = "the most doubtful kept pairs" if reason is None else f"pairs dropped as {reason}"
    token = secrets.token_urlsafe(24)
    with _bind(port) as listener:
        place = f"{_HOST}:{listener.getsockname()[1]}"
        app = create_app(review, views, token=token, title=what)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
            server_header=False,
        )
        server = uvicorn.Server(config)
        app.state.finish = lambda: setattr(server, "should_exit", True)
        _announce(f"http://{place}/?token={token}", review, browser=browser)
        # uvicorn closes everything at Ctrl-C, and then passes the signal on.
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    kept, dropped = review.count("keep"), review.count("drop")
    return Reviewed(kept, dropped, len(review.entries) - kept - dropped, overrides)


def create_app(review: Review, views: PairViews, *, token: str, title: str) -> FastAPI:
    """The page and what it asks for. `token` is the secret that lets a browser in."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.finish = lambda: None
    cookie = f"coembed-review-{secrets.token_hex(4)}"  # cookies of all ports are in one jar
    page = (files("coembed.serve") / "review.html").read_text(encoding="utf-8")

    @app.middleware("http")
    async def guard(request: Request, answer: Answer) -> Response:
        refusal = _refuse(request, token=token, cookie=cookie)
        response = refusal or await answer(request)
        response.headers.update(_HEADERS)
        return response

    @app.exception_handler(CoembedError)
    async def explain(request: Request, error: CoembedError) -> Response:  # noqa: ARG001
        return JSONResponse({"error": error.message, "hint": error.hint}, status_code=409)

    @app.exception_handler(KeyError)
    async def unknown(request: Request, error: KeyError) -> Response:  # noqa: ARG001
        return JSONResponse({"error": "that pair is not in this review"}, status_code=404)

    @app.get("/")
    def show(request: Request) -> Response:
        given = request.query_params.get("token")
        if given is not None:
            # Out of the address bar, the history and whatever is copied from them.
            response: Response = RedirectResponse("/", status_code=303)
            response.set_cookie(cookie, token, httponly=True, samesite="strict", path="/")
            return response
        nonce = secrets.token_urlsafe(16)
        html = page.replace("{{nonce}}", nonce).replace("{{token}}", token)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            "img-src 'self' data:; media-src 'self'; connect-src 'self'; base-uri 'none'; "
            "form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(html, headers={"content-security-policy": policy})

    @app.get("/api/state")
    def state() -> dict[str, Any]:
        return _state(review, views, title)

    @app.post("/api/decide")
    def decide(asked: _Decision) -> dict[str, Any]:
        review.decide(asked.pair_id, asked.decision)
        return _state(review, views, title)

    @app.post("/api/skip")
    def skip(asked: _Pair) -> dict[str, Any]:
        review.skip(asked.pair_id)
        return _state(review, views, title)

    @app.post("/api/undo")
    def undo() -> dict[str, Any]:
        review.undo()
        return _state(review, views, title)

    @app.post("/api/skipped")
    def take_up_skipped() -> dict[str, Any]:
        review.take_up_skipped()
        return _state(review, views, title)

    @app.post("/api/finish")
    def finish() -> dict[str, bool]:
        app.state.finish()
        return {"finished": True}

    @app.get("/media/{number}")
    def media(number: int) -> Response:
        found = views.media(number, review)
        if found is None:
            return Response(status_code=404)
        kind, data = found
        return Response(data, media_type=kind)

    return app


_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


def _refuse(request: Request, *, token: str, cookie: str) -> Response | None:
    """Why this request gets no answer; None where it may have one."""
    host = request.headers.get("host", "")
    if _host_name(host) not in _OWN_NAMES:
        return _refusal(403, "this page answers under this machine's own name only")
    origin = request.headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return _refusal(403, "another site may not ask")
    given = request.cookies.get(cookie, "")
    if request.method == "GET" and request.url.path == "/":
        given = request.query_params.get("token", given)
    if not _equal(given, token):
        return _refusal(401, "open the whole address that `coembed pairs review` printed")
    if request.method not in ("GET", "HEAD") and not _equal(
        request.headers.get(_TOKEN_HEADER, ""), token
    ):
        return _refusal(403, "only the page itself may decide")
    return None


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _equal(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode(), secret.encode())


def _refusal(code: int, message: str) -> Response:
    return Response(f"{message}\n", status_code=code, media_type="text/plain")


def _state(review: Review, views: PairViews, title: str) -> dict[str, Any]:
    """All that the page needs to draw itself."""
    upcoming = review.upcoming(2)
    kept, dropped, skipped = (review.count(mark) for mark in ("keep", "drop", "skip"))
    return {
        "title": title,
        "total": len(review.entries),
        "keep": kept,
        "drop": dropped,
        "skip": skipped,
        "before": review.num_decided_before,
        "can_undo": review.can_undo,
        "current": views.view(upcoming[0]) if upcoming else None,
        "next_media": views.media_urls(upcoming[1]) if len(upcoming) > 1 else [],
    }


def _bind(port: int) -> socket.socket:
    """A listening socket of this machine only. Raises ServiceError when the port is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_HOST, port))
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise ServiceError(
            f"port {port} of {_HOST} cannot be listened on: {error.strerror}",
            hint="name another --port, or leave it out: any free one is taken",
        ) from error
    return listener


def _announce(url: str, review: Review, *, browser: bool) -> None:
    print(f"{len(review.entries):,} pairs to look at", flush=True)
    if review.num_decided_before:
        print(f"{review.num_decided_before:,} more were decided before", flush=True)
    print(f"open  {url}", flush=True)
    print("Ctrl-C ends it; every decision is in overrides.csv at once", flush=True)
    if browser and _has_screen():
        # A browser may not come back before it is closed.
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def _has_screen() -> bool:
    """Whether a browser would have a window. Without one, a browser of letters would take over the
    terminal."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
