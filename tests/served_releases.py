"""Releases for the tests of the service: models with random weights and the collections they made.

No registry is needed: each model lies where the service would have downloaded it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from evaluated_pairs import THREE_TOWERS, catalogue, sounds, write_pairs

from coembed.config import Config, parse_config
from coembed.files import read_receipt
from coembed.index.base import VectorIndex
from coembed.index.build import build
from coembed.index.opening import open_index
from coembed.index.points import read_columns, read_points
from coembed.index.queries import read_calibration
from coembed.index.release import Layout, Release
from coembed.models.build import build_model
from coembed.models.checkpoint import save_model
from coembed.models.encoder import Encoder, load_encoder
from coembed.services import Services, find_services
from coembed.stages import embed
from coembed.types import Sample


@dataclass(frozen=True)
class Shop:
    """A project at `root`. `releases`: collection → what it holds; `models`: its model's folder."""

    root: Path
    cfg: Config
    services: Services
    samples: Mapping[str, Sample]
    releases: Mapping[str, Release]
    models: Mapping[str, Path]

    def with_settings(self, **settings: Any) -> Shop:
        """The same with other settings of `serve`."""
        values = self.cfg.model_dump(mode="json", by_alias=True)
        values["serve"] |= settings
        return replace(self, cfg=parse_config(values))

    def encoder(self, collection: str) -> Encoder:
        """The encoder that made a collection: the reference."""
        return load_encoder(self.models[collection], num_threads=1)

    def of(self, modality: str) -> list[Sample]:
        """The items of a modality."""
        return [one for one in self.samples.values() if one.modality == modality]

    @contextmanager
    def opened(self) -> Iterator[VectorIndex]:
        """The index."""
        with open_index(self.services, self.cfg.index) as index:
            yield index


def make_releases(
    root: Path,
    *,
    num: int = 1,
    num_images: int = 24,
    num_sounds: int = 8,
    calibrations: Mapping[int, Mapping[str, Any]] | None = None,
    **serve: Any,
) -> Shop:
    """A pool, and `num` releases of it, each by a model of its own. The first one is served.

    `calibrations` are given to releases by number, in place of what was measured.
    """
    root.mkdir(parents=True, exist_ok=True)
    cfg = parse_config(
        {
            "seed": 1,
            "model": THREE_TOWERS,
            "curate": {},
            "train": {},
            "evaluate": {"split": "val"},
            "embed": {},
            "register": {"model": "shop", "experiment": "tests"},
            "index": {"collection": "items", "backoff_s": 0.01},
            "promote": {"metric": "retrieval/text_to_image/recall_at_10"},
            # Tests ask faster than people do, and compare with torch's own embeddings.
            "serve": {"engine": "torch", "rate_per_s": 1e6, "burst": 1_000_000, **serve},
        }
    )
    services = find_services(root, {})
    train = [*catalogue(num_images, seed=0), *sounds(num_sounds, seed=10)]
    val = [*catalogue(8, seed=1), *sounds(4, seed=11)]
    write_pairs(root / "pairs", train=train, val=val)
    for sample in (*train, *val):
        target = root / "data" / sample.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(sample.media)
    samples = {sample.item_id: sample for sample in (*train, *val)}
    releases: dict[str, Release] = {}
    models: dict[str, Path] = {}
    with open_index(services, cfg.index) as index:
        for number in range(1, num + 1):
            given = (calibrations or {}).get(number)
            collection, release, model = _make(root, cfg, index, number, given)
            releases[collection], models[collection] = release, model
        index.set_alias("items", next(iter(releases)))
    return Shop(root, cfg, services, samples, releases, models)


def _make(
    root: Path, cfg: Config, index: VectorIndex, number: int, calibration: Any
) -> tuple[str, Release, Path]:
    folder, embeddings = root / f"model-{number}", root / f"embeddings-{number}"
    folder.mkdir()
    model, spec = build_model(cfg.model, seed=number)
    save_model(folder, model, spec, {"seed": number})
    embed.run(cfg, model=folder, pairs=root / "pairs", out=embeddings, runs=root / "runs")
    embedded = read_receipt(embeddings, what="embeddings", made_by="coembed embed")
    release = Release(
        model="shop",
        version=number,
        fingerprint=embedded["fingerprint"],
        precision=embedded["precision"],
        corpus=embedded["corpus_hash"],
        num_items=embedded["num_items"],
        dim=embedded["dim"],
        columns=read_columns(embeddings),
        calibration=read_calibration(embeddings) if calibration is None else calibration,
        layout=Layout.of(cfg.index),
    )
    built = build(
        index, release, lambda: read_points(embeddings), alias="items", settings=cfg.index
    )
    shutil.copytree(folder, root / "runs" / "models" / release.fingerprint)
    return built.collection, release, folder


def evenly(low: float, high: float) -> dict[str, Any]:
    """A calibration in which true matches' scores lie evenly between two scores."""
    return {"quantiles": np.linspace(low, high, 101).tolist(), "num": 1000}
