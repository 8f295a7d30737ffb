"""The application: its routes and what is around them."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import Annotated, Any, cast

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from coembed.errors import CoembedError, ServiceError
from coembed.search.settings import ServeSettings
from coembed.serve import page, schemas
from coembed.serve.engine import Engine
from coembed.serve.keeper import Keeper
from coembed.serve.limits import Access, Guard, printable, refusal_response
from coembed.serve.media import MediaFile, MediaStore, read_range
from coembed.serve.metrics import Metrics
from coembed.serve.refusals import Refusal, away, invalid

_LOG = logging.getLogger("coembed.serve")
_JSON = "application/json"
_KEPT = "private, max-age=31536000, immutable"  # an item's id is the hash of its media
_ABOUT = """Cross-modal search: texts, pictures and sounds find pictures and sounds.

Every answer names the release that gave it: a model version, and the collection that it embedded.
"""

ItemId = Annotated[str, Path(pattern=schemas.ITEM_ID, description="SHA-256 of the item's media.")]


class Json(Response):
    """JSON that is bytes already."""

    media_type = _JSON


def create_app(
    engine: Engine,
    keeper: Keeper,
    media: MediaStore,
    *,
    settings: ServeSettings,
    access: Access,
    metrics: Metrics,
    workers: Executor,
    on_start: Callable[[], None] = lambda: None,
    on_stop: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The service as an ASGI application. `workers` is where media are read; `on_start` and
    `on_stop` are called in a thread before the first request and after the last."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG001
        await asyncio.to_thread(on_start)
        yield
        await asyncio.to_thread(on_stop)

    app = FastAPI(
        title="coembed", version="1", description=_ABOUT, lifespan=lifespan,
        docs_url=None, redoc_url=None, responses=_problems(422, 429),
    )  # fmt: skip
    app.state.keeper = keeper
    app.add_middleware(Guard, access=access, settings=settings, metrics=metrics)
    _explain_errors(app)
    _add_search(app, engine)
    _add_items(app, engine, media, workers)
    _add_operations(app, keeper, metrics)
    _add_page(app)
    _document_refusals(app, with_key=access.api_key is not None)
    return app


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    texts = {
        400: "The body is not JSON.",
        404: "There is no such item.",
        408: "The body did not come.",
        413: "The body is too large.",
        416: "There are no such bytes.",
        422: "Understood, and it cannot be: a limit, a filter, media that are not readable.",
        429: "Too much at once; Retry-After says when to come again.",
        503: "Nothing is served yet, or the index does not answer.",
    }
    return {status: {"model": schemas.Problem, "description": texts[status]} for status in statuses}


_ASKED = _problems(400, 404, 408, 413, 503)


def _add_search(app: FastAPI, engine: Engine) -> None:
    @app.post("/search", response_model=schemas.SearchAnswer, responses=_ASKED, tags=["search"])
    async def search(asked: schemas.SearchAsked) -> Response:
        """Find items by texts, pictures, sounds and items, or a weighted mix of them."""
        return Json(await engine.search(asked))

    @app.post("/classify", response_model=schemas.ClassifyAnswer, responses=_ASKED, tags=["search"])
    async def classify(asked: schemas.ClassifyAsked) -> Response:
        """Which of the labels a text, picture, sound or item belongs to, without training."""
        return Json(await engine.classify(asked))

    @app.post("/embed", response_model=schemas.EmbedAnswer, responses=_ASKED, tags=["search"])
    async def embed(asked: schemas.EmbedAsked) -> Response:
        """Embed texts, pictures and sounds with the model that is served."""
        return Json(await engine.embed(asked))

    @app.get(
        "/release", response_model=schemas.ReleaseShown, responses=_problems(503), tags=["search"]
    )
    async def release() -> Response:
        """The release that is served: model, corpus, columns to filter on, limits."""
        return Json(await engine.release())


def _add_items(app: FastAPI, engine: Engine, media: MediaStore, workers: Executor) -> None:
    problems = _problems(404, 503)
    unchanged: dict[int | str, dict[str, Any]] = {304: {"description": "Known already (ETag)."}}

    @app.get(
        "/items/{item_id}", response_model=schemas.ItemShown, responses=problems, tags=["items"]
    )
    async def item(item_id: ItemId) -> Response:
        """An indexed item."""
        return Json(await engine.item(item_id))

    @app.get(
        "/items/{item_id}/media",
        response_class=Response,
        responses={
            **problems, **unchanged, **_problems(416),
            200: {"description": "The file.", "content": {"*/*": {}}},
            206: {"description": "The part asked for with Range.", "content": {"*/*": {}}},
        },
        tags=["items"],
    )  # fmt: skip
    async def item_media(item_id: ItemId, request: Request) -> Response:
        """The item's own file, byte by byte as it was indexed."""
        point = await engine.find_item(item_id)
        if _is_known(request, f'"{item_id}"'):
            return _not_modified(f'"{item_id}"')
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(workers, media.media, point)
        return _send_media(found, f'"{item_id}"', request.headers.get("range"))

    @app.get(
        "/items/{item_id}/thumbnail",
        response_class=Response,
        responses={
            **problems, **unchanged,
            200: {"description": "A WebP picture.", "content": {"image/webp": {}}},
        },
        tags=["items"],
    )  # fmt: skip
    async def item_thumbnail(
        item_id: ItemId,
        request: Request,
        px: Annotated[int, Query(ge=16, le=1024, description="Its longest side.")] = 256,
    ) -> Response:
        """A small picture of the item: of a sound, its waveform and spectrogram."""
        point = await engine.find_item(item_id)
        etag = f'"{item_id}-{px}"'
        if _is_known(request, etag):
            return _not_modified(etag)
        found = media.known_thumbnail(item_id, px)
        if found is None:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(workers, media.thumbnail, point, px)
        return _send_media(found, etag, None)


def _add_operations(app: FastAPI, keeper: Keeper, metrics: Metrics) -> None:
    @app.get("/health", response_model=schemas.Health, tags=["operations"])
    async def health() -> Response:
        """The process lives."""
        return Json(b'{"status":"ok"}')

    @app.get(
        "/ready",
        response_model=schemas.Ready,
        responses={503: {"model": schemas.Ready, "description": "Nothing can be served yet."}},
        tags=["operations"],
    )
    async def ready() -> Response:
        """Whether searches can be answered, and with what."""
        current, failing = keeper.current, keeper.failing
        body = {
            "ready": current is not None,
            "release": None if current is None else current.named,
            "failing": None
            if failing is None
            else {
                "collection": failing.collection,
                "error": failing.error,
                "num_tries": failing.num_tries,
            },
        }
        return Json(to_json(body), status_code=200 if current is not None else 503)

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"description": "Prometheus' text.", "content": {"text/plain": {}}}},
        tags=["operations"],
    )
    async def show_metrics() -> Response:
        """Counters and timings for Prometheus."""
        return Response(
            await asyncio.to_thread(metrics.render), headers={"content-type": metrics.content_type}
        )


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def show_page() -> Response:
        nonce = secrets.token_urlsafe(16)
        return Response(
            page.render(nonce),
            media_type="text/html; charset=utf-8",
            headers={"content-security-policy": page.POLICY(nonce)},
        )


def _send_media(found: MediaFile, etag: str, wanted: str | None) -> Response:
    data = found.data
    headers = {"etag": etag, "cache-control": _KEPT, "accept-ranges": "bytes"}
    span = read_range(wanted, len(data))
    if span == "impossible":
        refusal = Refusal(416, f"the item has {len(data):,} bytes")
        response = _respond(refusal)
        response.headers["content-range"] = f"bytes */{len(data)}"
        return response
    status = 200
    if not isinstance(span, str):
        headers["content-range"] = f"bytes {span.first}-{span.last}/{len(data)}"
        data = data[span.first : span.last + 1]
        status = 206
    return Response(data, status_code=status, headers={**headers, "content-type": found.media_type})


def _is_known(request: Request, etag: str) -> bool:
    given = request.headers.get("if-none-match", "")
    return etag in (part.strip().removeprefix("W/") for part in given.split(","))


def _not_modified(etag: str) -> Response:
    return Response(status_code=304, headers={"etag": etag, "cache-control": _KEPT})


def _respond(refusal: Refusal) -> Response:
    status, headers, body = refusal_response(refusal)
    return Response(body, status_code=status, headers=headers)


def _explain_errors(app: FastAPI) -> None:
    @app.exception_handler(CoembedError)
    async def explain(request: Request, error: Exception) -> Response:  # noqa: ARG001
        if isinstance(error, Refusal):
            return _respond(error)
        known = cast(CoembedError, error)
        if isinstance(error, ServiceError):
            return _respond(away(known.message, hint=known.hint))
        return _respond(invalid(known.message, hint=known.hint))

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Request, error: Exception) -> Response:  # noqa: ARG001
        return _respond(_not_understood(cast(RequestValidationError, error).errors()))

    @app.exception_handler(HTTPException)
    async def name(request: Request, error: Exception) -> Response:  # noqa: ARG001
        found = cast(HTTPException, error)
        response = _respond(Refusal(found.status_code, str(found.detail)))
        response.headers.update(found.headers or {})
        return response

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return _respond(Refusal(500, "the service failed; its log says more"))


def _not_understood(problems: Sequence[Any]) -> Refusal:
    """One line for the first of pydantic's problems: where, and what was expected."""
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
    if first["type"] == "json_invalid":
        return Refusal(400, f"the body is not JSON: {first['ctx']['error']}")
    message = f"{where}: {first['msg']}"
    more = len(problems) - 1
    hint = "GET /openapi.json describes what can be asked"
    if first["loc"] == ("body",) and first["type"] in ("missing", "model_attributes_type"):
        hint = "send a JSON object with the content type application/json"
    return invalid(printable(message[:500]) + (f" (and {more} more)" if more else ""), hint=hint)


def _document_refusals(app: FastAPI, *, with_key: bool) -> None:
    """Put into the OpenAPI document what the guard answers before a route is found."""
    make = app.openapi
    problem = {"$ref": "#/components/schemas/Problem"}
    refused = {
        "403": "Asked under another name, or from another site's page.",
        **({"401": "The API key is missing or wrong."} if with_key else {}),
    }

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = make()
            for methods in document["paths"].values():
                for operation in methods.values():
                    for status, text in refused.items():
                        operation["responses"][status] = {
                            "description": text, "content": {_JSON: {"schema": problem}},
                        }  # fmt: skip
            if with_key:
                document["components"]["securitySchemes"] = {
                    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                    "bearer": {"type": "http", "scheme": "bearer"},
                }
                document["security"] = [{"key": []}, {"bearer": []}]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
