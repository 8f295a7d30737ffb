"""A small world for the tests of registry and index: pairs, models, evaluations, embeddings."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluated_pairs import THREE_TOWERS, sounds, write_pairs
from training_pairs import SMALL_MODEL, make_pairs, make_samples

from coembed.config import Config, parse_config
from coembed.models.build import build_model
from coembed.models.checkpoint import save_model
from coembed.pairs.shards import read_samples
from coembed.services import Services, find_services
from coembed.stages import embed, evaluate, gate, index, promote, register
from coembed.stages.evaluations import Places
from coembed.stages.result import Listing, Result
from coembed.stages.trained_on import write_trained_on

METRIC = "retrieval/text_to_image/recall_at_10"


@dataclass(frozen=True)
class World:
    """A project's folders without DVC or git: stages are called as the commands call them."""

    root: Path
    cfg: Config
    services: Services

    def path(self, name: str) -> Path:
        return self.root / name

    def with_settings(self, **sections: dict[str, Any]) -> World:
        values = self.cfg.model_dump(mode="json", by_alias=True)
        for section, settings in sections.items():
            values[section] = {**values[section], **settings}
        return replace(self, cfg=parse_config(values))

    def make_model(self, name: str, seed: int) -> Path:
        """A model directory `name` with random weights of its own, evaluated and embedded."""
        folder = self.path(name)
        folder.mkdir()
        model, spec = build_model(self.cfg.model, seed=seed)
        save_model(folder, model, spec, {"seed": seed})
        (folder / "history.csv").write_text(
            "step,epoch,loss,logit_scale\n10,0,2.5,2.66\n20,1,1.5,2.7\n", encoding="utf-8"
        )
        pairs = self.path("pairs")
        write_trained_on(folder, pairs, num_val=0, val_decides=False, ancestors=(), num_threads=1)
        evaluate.run(self.cfg, model=folder, pairs=pairs, out=self.path(f"{name}-evaluation"))
        embed.run(
            self.cfg, model=folder, pairs=pairs, out=self.path(f"{name}-embeddings"),
            runs=self.path("runs"),
        )  # fmt: skip
        return folder

    def register(self, name: str, **changes: Any) -> Result:
        arguments = {
            "services": self.services,
            "model": self.path(name),
            "evaluation": self.path(f"{name}-evaluation"),
            "lineage": register.Lineage("c0ffee" * 6, "d" * 32),
            "out": self.path("runs") / "register.json",
        }
        return register.run(self.cfg, **(arguments | changes))

    def index(self, name: str, version: int) -> Result:
        return index.run(
            self.cfg, services=self.services, embeddings=self.path(f"{name}-embeddings"),
            version=version, out=self.path("runs") / "index.json",
        )  # fmt: skip

    def promote(self, name: str, version: int, collection: str, **changes: Any) -> Result:
        arguments = {
            "services": self.services,
            "places": self.places(name),
            "version": version,
            "collection": collection,
            "by": "Ada",
            "out": self.path("runs") / "promote.json",
        }
        return promote.run(self.cfg, **(arguments | changes))

    def gate(self, name: str, version: int, **changes: Any) -> Listing:
        arguments = {
            "services": self.services,
            "places": self.places(name),
            "version": version,
            "out": self.path("runs") / "gate.json",
        }
        return gate.run(self.cfg, **(arguments | changes))

    def places(self, name: str) -> Places:
        """A project in which the model `name` was evaluated last."""
        return Places(self.path(f"{name}-evaluation"), self.path("pairs"), self.path("runs"))

    def release(self, name: str) -> tuple[int, str, Result]:
        """Register, index and promote; version, collection and the promotion's result."""
        version = int(self.register(name).receipt["version"])
        collection = str(self.index(name, version).receipt["collection"])
        return version, collection, self.promote(name, version, collection)


def make_world(
    root: Path,
    *,
    store: Path | None = None,
    train: int = 24,
    val: int = 16,
    num_sounds: int = 0,
) -> World:
    """Curated pairs and the pool's media; no model yet. `store` is an empty registry to copy.

    With sounds in both splits, `num_sounds` each, models have three towers.
    """
    root.mkdir(parents=True, exist_ok=True)
    if num_sounds:
        write_pairs(
            root / "pairs",
            train=[*make_samples(train, seed=0), *sounds(num_sounds, seed=10)],
            val=[*make_samples(val, seed=1), *sounds(num_sounds, seed=11)],
        )
    else:
        make_pairs(root / "pairs", train=train, val=val)
    for split in ("train", "val"):
        for sample in read_samples(root / "pairs", split):
            target = root / "data" / sample.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(sample.media)
    if store is not None:
        copy_store(store, root)
    cfg = parse_config(
        {
            "seed": 1,
            "model": THREE_TOWERS if num_sounds else SMALL_MODEL,
            "curate": {},
            "train": {},
            "evaluate": {"split": "val"},
            "embed": {},
            "register": {"model": "shop", "experiment": "tests"},
            "index": {"collection": "items", "lock_wait_s": 0.2, "backoff_s": 0.01},
            # The drawn shapes look alike: nearly every one is a near duplicate of another.
            "promote": {"metric": METRIC, "margin": 1.0, "leakage": "allow"},
        }
    )
    return World(root, cfg, find_services(root, {}))


def copy_store(store: Path, root: Path) -> None:
    """Start a world with a copy of an empty registry: making its tables takes seconds."""
    target = root / "mlflow" / "store"
    target.mkdir(parents=True)
    shutil.copy(store, target / "mlflow.db")
