"""Real runs of a small model, for the tests of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from training_pairs import SMALL_MODEL

from coembed.models.build import build_model
from coembed.models.joint import JointModel
from coembed.models.settings import ModelSettings
from coembed.models.spec import ModelSpec
from coembed.training.cache_folder import CacheFolder
from coembed.training.data import Batches, Stream
from coembed.training.loop import Trained, train
from coembed.training.optim import add_adapters
from coembed.training.settings import CacheSettings, TrainSettings
from coembed.training.sources import Source, open_stream


def settings_of(**changes: Any) -> TrainSettings:
    """Six steps of eight pairs, checkpointed at every other one."""
    values = {
        "epochs": None, "steps": 6, "batch_size": 8, "lr": 2e-3, "log_every": 4,
        "precision": "fp32", "device": "cpu", "checkpoint": {"every_steps": 2},
    }  # fmt: skip
    return TrainSettings.model_validate({**values, **changes})


def open_source(pairs: Path, cache: Path, spec: ModelSpec, split: str) -> Source:
    """A split as the stage opens it."""
    folder = CacheFolder(cache, max_bytes=10**9)
    return Source(pairs, split, spec, folder, {"pairs": str(pairs)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Run:
    """A run that can be started, cut off and taken up again."""

    pairs: Path
    folder: Path
    settings: TrainSettings
    seed: int = 7
    architecture: dict[str, Any] = field(default_factory=lambda: SMALL_MODEL)

    def with_settings(self, **changes: Any) -> Run:
        return replace(self, settings=settings_of(**changes))

    def model(self) -> tuple[JointModel, ModelSpec]:
        return build_model(ModelSettings.model_validate(self.architecture), seed=self.seed)

    def streams(self, spec: ModelSpec, split: str = "train") -> list[Stream]:
        source = open_source(self.pairs, self.folder / "cache", spec, split)
        settings = self.settings
        return [
            open_stream(
                source, modality,
                augment=getattr(settings.augment, modality) if split == "train" else None,
                cache=CacheSettings(mode="decoded") if split == "val" else settings.cache,
                passes=2, hard_negatives=settings.hard_negatives if split == "train" else None,
                device=torch.device("cpu"), frozen={}, teacher=None,
            )[0]
            for modality in source.modalities
        ]  # fmt: skip

    def batches(self, spec: ModelSpec) -> Batches:
        return Batches(self.streams(spec), self.settings, seed=self.seed)

    def go(
        self,
        *,
        change: Callable[[JointModel, Batches], None] | None = None,
        **options: Any,
    ) -> tuple[JointModel, Trained]:
        """Train to the end; `change` may put something in the way first."""
        model, spec = self.model()
        add_adapters(model, self.settings, seed=self.seed)
        batches = self.batches(spec)
        if change is not None:
            change(model, batches)
        trained = train(
            model, spec, batches, self.settings,
            loss=self.settings.loss.build(),  # type: ignore[attr-defined]
            seed=self.seed, device=torch.device("cpu"),
            precision=self.settings.precision,  # type: ignore[arg-type]
            run_folder=self.folder / "run", **options,
        )  # fmt: skip
        return model, trained


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether two models agree bit for bit."""
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
