"""Answers requests: takes a lease of the current release, encodes, searches, and says which it was.

Everything of one answer comes from one release. If its collection is removed from the index under
it (an old release whose last request was late), the request is made again with the current one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from coembed.errors import CoembedError, DataError, ServiceError, UserError
from coembed.evaluation.zero_shot import class_embeddings
from coembed.index.base import Point, VectorIndex
from coembed.search.settings import ServeSettings
from coembed.serve import answers, finder
from coembed.serve.bound import BoundRelease
from coembed.serve.keeper import Keeper
from coembed.serve.metrics import Metrics
from coembed.serve.queries import (
    Query,
    QueryTerm,
    check_text,
    read_classified,
    read_media,
    read_search,
)
from coembed.serve.refusals import Refusal, away, invalid, not_found
from coembed.serve.schemas import ClassifyAsked, EmbedAsked, SearchAsked

T = TypeVar("T")
Vector = NDArray[np.float32]

# A body above this is taken apart in a thread: decoding base64 would hold up everybody.
_SMALL_CHARS = 64_000
_NUM_TRIES = 3
_CALLED = {"text": "texts", "image": "pictures", "audio": "sounds"}


class Engine:
    """Belongs to one event loop. `workers` run what waits for the index or decodes uploads."""

    def __init__(
        self,
        index: VectorIndex,
        keeper: Keeper,
        settings: ServeSettings,
        metrics: Metrics,
        workers: Executor,
    ) -> None:
        self._index, self._keeper = index, keeper
        self._settings, self._metrics = settings, metrics
        self._workers = workers

    # The endpoints

    async def search(self, asked: SearchAsked) -> bytes:
        """A `SearchAnswer` as JSON."""
        began = time.perf_counter()
        size = sum(len(term.image or term.audio or "") for term in asked.query or ())
        query = await self._checked(size, lambda: read_search(asked, self._settings))

        async def work(bound: BoundRelease) -> bytes:
            body = bound.results.get(query.key)
            self._count("result", body is not None)
            if body is not None:
                return _finish(body, began, encode_s=0.0, search_s=0.0, cached=True)
            where = query.where(dict(bound.release.columns))
            encode_from = time.perf_counter()
            vectors = await self._vectors(bound, query.terms)
            search_from = time.perf_counter()
            found = await self._in_thread(
                lambda: finder.find(self._index, bound, query, where, vectors, self._settings)
            )
            search_s = time.perf_counter() - search_from
            body = to_json({"release": bound.named, **found})
            bound.results.put(query.key, body, num_bytes=len(body) + _key_bytes(query))
            encode_s = search_from - encode_from
            stages = self._metrics.stage_seconds
            stages.labels("encode").observe(encode_s)
            stages.labels("search").observe(search_s)
            other_s = time.perf_counter() - began - encode_s - search_s
            stages.labels("other").observe(other_s)
            return _finish(body, began, encode_s=encode_s, search_s=search_s, cached=False)

        return await self._answer(work)

    async def classify(self, asked: ClassifyAsked) -> bytes:
        """A `ClassifyAnswer` as JSON."""
        size = len(asked.image or asked.audio or "")
        term = await self._checked(size, lambda: read_classified(asked, self._settings))

        async def work(bound: BoundRelease) -> bytes:
            if term.kind == "item":
                vector = (await self._item(bound, term.key)).vector
            else:
                vector = (await self._vectors(bound, [term]))[term.identity]
            sentences = [
                prompt.replace("{label}", label.replace("_", " "))
                for label in asked.labels
                for prompt in asked.prompts
            ]
            texts = await self._texts(bound, sentences)
            # The sentences are embedded by now, in the order that `class_embeddings` asks for.
            classes = class_embeddings(asked.labels, asked.prompts, lambda _: texts)
            scores = classes.astype(np.float64) @ vector.astype(np.float64)
            encoder = bound.encoding.encoder
            chances = _probabilities(scores, encoder.logit_scale, encoder.logit_bias)
            order = np.argsort(-chances, kind="stable").tolist()
            labels = [
                {
                    "label": asked.labels[at],
                    "probability": float(chances[at]),
                    "score": float(scores[at]),
                }
                for at in order
            ]
            return to_json({"release": bound.named, "labels": labels})

        return await self._answer(work)

    async def embed(self, asked: EmbedAsked) -> bytes:
        """An `EmbedAnswer` as JSON."""
        settings = self._settings
        num = len(asked.texts) + len(asked.images) + len(asked.sounds)
        if not 1 <= num <= settings.max_batch:
            raise invalid(
                f"{num} items to embed, expected 1 to {settings.max_batch}", hint="serve.max_batch"
            )
        texts = [check_text(text, "a text", settings) for text in asked.texts]
        size = sum(map(len, (*asked.images, *asked.sounds)))
        media = await self._checked(
            size,
            lambda: (
                [read_media("image", text, settings) for text in asked.images],
                [read_media("audio", text, settings) for text in asked.sounds],
            ),
        )

        async def work(bound: BoundRelease) -> bytes:
            rows: dict[str, list[list[float]]] = {}
            kinds: tuple[tuple[str, str, Sequence[Any]], ...] = (
                ("texts", "text", texts),
                ("images", "image", media[0]),
                ("sounds", "audio", media[1]),
            )
            for name, modality, items in kinds:
                vectors = await self._encode(bound, modality, items) if items else np.empty((0, 0))
                rows[name] = vectors.tolist()
            return to_json({"release": bound.named, **rows})

        return await self._answer(work)

    async def release(self) -> bytes:
        """A `ReleaseShown` as JSON."""
        with self._keeper.lease() as bound:
            return to_json(answers.release(bound, self._settings))

    async def item(self, item_id: str) -> bytes:
        """An `ItemShown` as JSON."""
        return to_json(answers.item(item_id, (await self.find_item(item_id)).payload))

    async def find_item(self, item_id: str) -> Point:
        """An item of the current release. Raises Refusal (404)."""
        return await self._answer(lambda bound: self._item(bound, item_id))

    # Their parts

    async def _answer(self, work: Callable[[BoundRelease], Awaitable[T]]) -> T:
        """Do `work` with the current release; again, if its collection is gone from the index."""
        for num_left in reversed(range(_NUM_TRIES)):
            with self._keeper.lease() as bound:
                try:
                    return await work(bound)
                except Refusal:
                    raise
                except (UserError, ServiceError) as error:
                    if not await self._is_gone(bound):
                        raise _explained(error) from error
                    if not num_left:
                        raise away(
                            "the collection that is served is gone from the index"
                        ) from error
            await self._in_thread(self._keeper.look)
        raise AssertionError  # the last try returns or raises

    async def _is_gone(self, bound: BoundRelease) -> bool:
        try:
            return not await self._in_thread(lambda: self._index.exists(bound.collection))
        except CoembedError:
            return False

    async def _checked(self, num_chars: int, check: Callable[[], T]) -> T:
        return check() if num_chars <= _SMALL_CHARS else await self._in_thread(check)

    async def _vectors(
        self, bound: BoundRelease, terms: Sequence[QueryTerm]
    ) -> dict[tuple[str, str], Vector]:
        """The embedding [dim] of each term but items, by its identity."""
        wanted: dict[str, dict[tuple[str, str], QueryTerm]] = {}
        found: dict[tuple[str, str], Vector] = {}
        cache = bound.encoding.embeddings
        for term in terms:
            if term.kind == "item":
                continue
            known = cache.get(term.identity)
            self._count("embedding", known is not None)
            if known is not None:
                found[term.identity] = known
            else:
                wanted.setdefault(term.kind, {})[term.identity] = term
        for kind, missing in wanted.items():
            made = await self._encode(bound, kind, [term.content for term in missing.values()])
            for identity, vector in zip(missing, made, strict=True):
                # A copy, or the cache would hold on to the whole batch.
                found[identity] = vector = vector.copy()
                cache.put(identity, vector, num_bytes=vector.nbytes + len(identity[1]))
        return found

    async def _texts(self, bound: BoundRelease, texts: Sequence[str]) -> Vector:
        """Embeddings [len(texts), dim] of texts, which may be known."""
        terms = [QueryTerm("text", text, text) for text in texts]
        found = await self._vectors(bound, terms)
        return np.stack([found[term.identity] for term in terms])

    async def _encode(self, bound: BoundRelease, modality: str, items: Sequence[Any]) -> Vector:
        encoder = bound.encoding.encoder
        if modality not in encoder.modalities:
            raise invalid(
                f"the model that is served encodes {' and '.join(encoder.modalities)}: it cannot "
                f"search with {_CALLED[modality]}"
            )
        try:
            return await bound.encoding.batcher.encode(modality, items)
        except DataError as error:
            _, colon, reason = error.message.partition(": ")
            what = reason if colon else error.message
            raise invalid(f"the {modality} cannot be used: {what}") from None

    async def _item(self, bound: BoundRelease, item_id: str) -> Point:
        found = await self._in_thread(lambda: self._index.retrieve(bound.collection, [item_id]))
        if item_id not in found:
            raise not_found(f"no item {item_id} in the release that is served")
        return found[item_id]

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._workers, function)

    def _count(self, cache: Literal["embedding", "result"], hit: bool) -> None:
        self._metrics.cache.labels(cache, "hit" if hit else "miss").inc()


def _finish(body: bytes, began: float, *, encode_s: float, search_s: float, cached: bool) -> bytes:
    """An answer: its JSON with the times and `cached` added."""
    all_ms = 1000 * (time.perf_counter() - began)
    return b'%b,"took_ms":{"encode":%.3f,"search":%.3f,"all":%.3f},"cached":%b}' % (
        body[:-1], 1000 * encode_s, 1000 * search_s, all_ms, b"true" if cached else b"false",
    )  # fmt: skip


def _key_bytes(query: Query) -> int:
    return sum(len(term.key) for term in query.terms) + sum(map(len, query.filters))


def _probabilities(
    scores: NDArray[np.float64], scale: float, bias: float | None
) -> NDArray[np.float64]:
    """Of cosines with labels: a softmax over them (CLIP, arXiv 2103.00020), or each by itself for a
    model with a bias (SigLIP, arXiv 2303.15343)."""
    if bias is not None:
        chances: NDArray[np.float64] = 1 / (1 + np.exp(-(scale * scores + bias)))
        return chances
    powers = np.exp(scale * (scores - scores.max()))
    shares: NDArray[np.float64] = powers / powers.sum()
    return shares


def _explained(error: UserError | ServiceError) -> Exception:
    if isinstance(error, ServiceError):
        return away(error.message, hint=error.hint)
    return invalid(error.message, hint=error.hint)
