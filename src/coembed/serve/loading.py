"""Loads a release: its encoder, its catalogue, its calibration; and warms it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from coembed.config import Config
from coembed.errors import UserError
from coembed.index.base import VectorIndex
from coembed.index.release import Release, read_release, read_search, vector_of
from coembed.search.calibration import read_calibration
from coembed.serve.batcher import Batcher
from coembed.serve.bound import BoundEncoder, BoundRelease
from coembed.serve.cache import Cache
from coembed.serve.catalogue import open_catalogue, sweep_catalogues
from coembed.serve.metrics import Metrics
from coembed.services import Services
from coembed.stages.search import load_query_encoder_of

_CATALOGUES = "search"


class Loader:
    """Loads and unloads releases for the keeper, which calls it from one thread at a time.

    models: the folder of downloaded models. runs: the project's folder of runs.
    """

    def __init__(
        self,
        cfg: Config,
        services: Services,
        index: VectorIndex,
        *,
        runs: Path,
        metrics: Metrics,
    ) -> None:
        self._cfg, self._services, self._index = cfg, services, index
        self._runs = runs
        self._metrics = metrics
        self._encoders: dict[str, tuple[BoundEncoder, int]] = {}

    def load(self, collection: str, stop: Callable[[], bool]) -> BoundRelease:
        """The release of a collection. Raises CoembedError."""
        found = self._index.describe(collection)
        release = read_release(found)
        if found.metadata.get("state") == "loading":
            raise UserError(
                f"collection {collection!r} is not whole: its build was cut short",
                hint="run `coembed index` again",
            )
        vector_name = vector_of(found, release)
        measured = read_search(found)
        calibration = read_calibration(release.calibration)
        encoding = self._take_encoder(release, collection)
        try:
            self._warm(collection, vector_name, encoding)
            settings = self._cfg.serve
            folder = self._runs / _CATALOGUES
            catalogue = open_catalogue(
                self._index, collection, release,
                folder=folder, keyword_items=settings.keyword_items, stop=stop,
            )  # fmt: skip
            sweep_catalogues(folder, self._index.collections())
        except BaseException:
            self._give_encoder(release.fingerprint)
            raise
        return BoundRelease(
            collection=collection,
            vector_name=vector_name,
            release=release,
            recall_at_10=None if measured is None else measured.recall_at_10,
            calibration=calibration,
            encoding=encoding,
            catalogue=catalogue,
            results=self._cache(),
        )

    def unload(self, bound: BoundRelease) -> None:
        """Let go of a release that nobody has a lease of any more."""
        bound.catalogue.close()
        self._give_encoder(bound.release.fingerprint)

    def _take_encoder(self, release: Release, collection: str) -> BoundEncoder:
        """The encoder of a release: the one that is loaded, where another release has the same."""
        key = release.fingerprint
        if key not in self._encoders:
            settings = self._cfg.serve
            encoder = load_query_encoder_of(
                self._cfg, self._services, release, collection=collection,
                models=self._runs / "models",
            )  # fmt: skip
            batcher = Batcher(
                encoder.encode,
                max_batch=settings.batch_queries,
                max_queue=settings.max_queue,
                on_batch=lambda modality, num: self._metrics.batch_size.labels(modality).observe(
                    num
                ),
                on_queue=lambda modality, num: self._metrics.queue.labels(modality).set(num),
            )
            self._encoders[key] = (BoundEncoder(encoder, batcher, self._cache()), 0)
        encoding, num_users = self._encoders[key]
        self._encoders[key] = (encoding, num_users + 1)
        return encoding

    def _give_encoder(self, fingerprint: str) -> None:
        encoding, num_users = self._encoders.pop(fingerprint)
        if num_users > 1:
            self._encoders[fingerprint] = (encoding, num_users - 1)
            return
        encoding.batcher.close()
        encoding.encoder.close()

    def _warm(self, collection: str, vector_name: str, encoding: BoundEncoder) -> None:
        """Go once through what a query goes through: a first query loads and compiles."""
        encoding.encoder.warm()
        vector = encoding.encoder.encode("text", ["a first query"])[0]
        self._index.query(collection, vector_name, np.asarray(vector), limit=10)

    def _cache(self) -> Cache:  # type: ignore[type-arg]
        settings = self._cfg.serve
        half = int(settings.cache_mb * 1e6 / 2)  # embeddings the one, answers the other
        return Cache(max_entries=settings.cache_entries, max_bytes=half)
