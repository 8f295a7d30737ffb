"""search: a text, a picture or a sound finds items, with the very model of the collection.

The alias leads to a collection, the collection names its model version, and that version's encoder
makes the query: vectors of two models never meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from coembed.config import Config
from coembed.errors import DataError, ModelError, UserError
from coembed.index.base import VectorIndex
from coembed.index.filters import parse_filters, restrict
from coembed.index.opening import open_index
from coembed.index.release import Release, read_release, vector_of
from coembed.locking import exclusive
from coembed.models.encoder import Encoder, Precision, load_encoder
from coembed.models.query_encoder import QueryEncoder, load_query_encoder
from coembed.search.calibration import read_calibration
from coembed.services import Services
from coembed.stages.contact_sheet import draw_sheet
from coembed.types import Hit

MAX_LIMIT = 1000
_MAX_QUERY_CHARS = 10_000
_CALLED: dict[str, str] = {"text": "text", "image": "picture", "audio": "sound"}
_FORMATS = {"image": "JPEG, PNG or WebP", "audio": "WAV, FLAC, OGG or MP3"}
_GIVEN_AS = {"text": "words", "image": "--image FILE", "audio": "--audio FILE"}


@dataclass(frozen=True, slots=True)
class MediaQuery:
    """A file to find the like of."""

    modality: Literal["image", "audio"]
    path: Path


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search answers. `query` is the text, or the name of the file.

    `matches` are the hits' shares of true matches that score no higher (`search.calibration`), None
    where nothing was measured; `weak` says that even the best hits score below nearly all of those.
    """

    query: str
    release: Release
    collection: str
    hits: tuple[Hit, ...]
    matches: tuple[float | None, ...]
    weak: bool
    sheet: Path | None

    def to_json(self) -> dict[str, Any]:
        """The same for a program."""
        return {
            "query": self.query,
            "release": {
                "model": self.release.model,
                "version": self.release.version,
                "fingerprint": self.release.fingerprint,
                "collection": self.collection,
            },
            "nothing_matches_well": self.weak,
            "hits": [
                {
                    "rank": hit.rank,
                    "score": hit.score,
                    "match": match,
                    "item_id": hit.item_id,
                    **hit.payload,
                }
                for hit, match in zip(self.hits, self.matches, strict=True)
            ],
        }


def run(
    cfg: Config,
    *,
    services: Services,
    pool: Path,
    models: Path,
    query: str | MediaQuery,
    filters: Sequence[str] = (),
    modality: Literal["image", "audio"] | None = None,
    limit: int = 10,
    sheet: Path | None = None,
) -> SearchResult:
    """Search for a text, or with a picture or a sound; `modality` is what hits must be of.

    `pool` holds the media for the contact sheet `sheet` (a PNG to write); `models` is the folder
    for downloaded models. Raises UserError for what the person can put right.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise UserError(f"--limit {limit} is out of range", hint=f"expected 1 to {MAX_LIMIT}")
    asked = _read_query(query)
    with open_index(services, cfg.index) as index:
        collection, release = find_release(index, alias=cfg.index.collection)
        where = parse_filters(filters, release.columns)
        if modality is not None:
            where = restrict(where, "modality", modality)
        encoder = load_release(cfg, services, release, collection=collection, models=models)
        vector = _encode(encoder, asked, query, release)
        vector_name = vector_of(index.describe(collection), release)
        hits = index.query(collection, vector_name, vector, where=where, limit=limit)
    shown = query.path.name if isinstance(query, MediaQuery) else query.strip()
    if sheet is not None:
        draw_sheet(hits, title=shown, pool=pool, out=sheet)
    asked_with = query.modality if isinstance(query, MediaQuery) else "text"
    calibration = read_calibration(release.calibration)
    matches = tuple(
        calibration.match(hit.score, query=asked_with, item=str(hit.payload.get("modality")))
        for hit in hits
    )
    weak = all(match is not None and match < cfg.serve.weak_share for match in matches)
    return SearchResult(shown, release, collection, tuple(hits), matches, weak, sheet)


def find_release(index: VectorIndex, *, alias: str) -> tuple[str, Release]:
    """The collection that is served under `alias`, by its own name, and what it holds."""
    collection = index.aliases().get(alias)
    if collection is None:
        raise UserError(
            f"nothing is served as {alias!r} yet",
            hint="`coembed retrain` trains, registers, indexes and promotes a first model",
        )
    return collection, read_release(index.describe(collection))


def load_release(
    cfg: Config, services: Services, release: Release, *, collection: str, models: Path
) -> Encoder:
    """The encoder that made a collection: downloaded from the registry once, then kept in `models`.

    Raises ModelError if the registry's version is not the model that made the vectors.
    """
    folder = fetch_model(cfg, services, release, collection=collection, models=models)
    encoder = load_encoder(folder, precision=cast(Precision, release.precision))
    if encoder.fingerprint != release.fingerprint:
        raise _other_model(release, collection, encoder.fingerprint)
    return encoder


def load_query_encoder_of(
    cfg: Config, services: Services, release: Release, *, collection: str, models: Path
) -> QueryEncoder:
    """The same for queries only, in the engine that `serve.engine` says: it stays loaded."""
    folder = fetch_model(cfg, services, release, collection=collection, models=models)
    encoder = load_query_encoder(
        folder,
        precision=cast(Precision, release.precision),
        cache=models,
        num_threads=cfg.serve.num_threads,
        engine=cfg.serve.engine,
    )
    if encoder.fingerprint != release.fingerprint:
        encoder.close()
        raise _other_model(release, collection, encoder.fingerprint)
    return encoder


def fetch_model(
    cfg: Config, services: Services, release: Release, *, collection: str, models: Path
) -> Path:
    """The folder of a release's model: downloaded from the registry once, then kept in `models`."""
    folder = models / release.fingerprint
    if not folder.is_dir():
        # Only here: a search with a known model needs no registry, and importing it takes seconds.
        from coembed.registry.store import open_registry

        registry = open_registry(services, cfg.register_)
        version = registry.version(release.version)
        if version.fingerprint != release.fingerprint:
            raise _other_model(release, collection, version.fingerprint)
        # Several processes of a service see a new release at once: one of them downloads it.
        with exclusive(models / f"{release.fingerprint}.lock", doing="downloading it", wait=True):
            registry.download(version, folder)
    return folder


def _other_model(release: Release, collection: str, fingerprint: str) -> ModelError:
    return ModelError(
        f"collection {collection!r} was made by the model {release.fingerprint[:12]}; version "
        f"{release.version} of {release.model!r} is {fingerprint[:12]} here",
        hint="its answers would mean nothing; index the version again, or remove the copy under "
        "runs/models and try again",
    )


def _read_query(query: str | MediaQuery) -> str | bytes:
    if isinstance(query, MediaQuery):
        try:
            return query.path.read_bytes()
        except OSError as error:
            raise DataError(
                f"the {_CALLED[query.modality]} {query.path} cannot be read: "
                f"{error.strerror or error}",
                hint=f"name a {_FORMATS[query.modality]} file",
            ) from None
    if not query.strip():
        raise UserError("the query is empty", hint='for example: coembed search "red sneakers"')
    if len(query) > _MAX_QUERY_CHARS:
        raise UserError(
            f"the query has {len(query):,} characters, expected at most {_MAX_QUERY_CHARS:,}"
        )
    return query.strip()


def _encode(
    encoder: Encoder, asked: str | bytes, query: str | MediaQuery, release: Release
) -> NDArray[np.float32]:
    """The query's embedding [dim], by the tower of its modality."""
    modality = query.modality if isinstance(query, MediaQuery) else "text"
    if modality not in encoder.modalities:
        ways = [_GIVEN_AS[name] for name in encoder.modalities]
        raise UserError(
            f"the model that is served, version {release.version} of {release.model!r}, encodes "
            f"{' and '.join(encoder.modalities)}: it cannot search with a {_CALLED[modality]}",
            hint=f"search with {' or '.join(ways)}",
        )
    try:
        return encoder.encode(modality, [asked])[0]
    except DataError as error:
        if not isinstance(query, MediaQuery):
            raise
        raise DataError(
            f"the {_CALLED[modality]} {query.path} cannot be searched with: "
            f"{error.message.removeprefix(f'{modality} 0: ')}",
            hint=f"name a {_FORMATS[modality]} file",
        ) from None
