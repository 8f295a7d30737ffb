"""Real runs of a small model, for the tests of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from training_pairs import SMALL_MODEL

from coembed.modalities.image import transform
from coembed.models.build import build_model
from coembed.models.joint import JointModel
from coembed.models.settings import ModelSettings
from coembed.models.spec import ModelSpec
from coembed.pairs.shards import read_samples
from coembed.training.cache import CachedSplit, open_cached_split
from coembed.training.data import Batches, cache_side
from coembed.training.loop import Trained, train
from coembed.training.settings import TrainSettings


def settings_of(**changes: Any) -> TrainSettings:
    """Six steps of eight pairs, checkpointed at every other one."""
    values = {
        "epochs": None, "steps": 6, "batch_size": 8, "lr": 2e-3, "log_every": 4,
        "precision": "fp32", "device": "cpu", "checkpoint": {"every_steps": 2},
    }  # fmt: skip
    return TrainSettings.model_validate({**values, **changes})


def open_split(pairs: Path, cache: Path, spec: ModelSpec, name: str, side: int) -> CachedSplit:
    """A split as the stage opens it."""
    at_side = spec.image.model_copy(update={"px": side})
    return open_cached_split(
        cache,
        lambda: read_samples(pairs, name),  # type: ignore[arg-type]
        side=side,
        decode=lambda media: transform(media, at_side),
        tokenise=spec.loader("text").load,
        content={"pairs": str(pairs), "split": name},
        label=name,
    )


@dataclass(frozen=True)
class Run:
    """A run that can be started, cut off and taken up again."""

    pairs: Path
    folder: Path
    settings: TrainSettings
    seed: int = 7

    def with_settings(self, **changes: Any) -> Run:
        return replace(self, settings=settings_of(**changes))

    def model(self) -> tuple[JointModel, ModelSpec]:
        return build_model(ModelSettings.model_validate(SMALL_MODEL), seed=self.seed)

    def split(self, spec: ModelSpec, name: str = "train") -> CachedSplit:
        px = spec.image.px
        side = cache_side(px, self.settings.augment) if name == "train" else px
        return open_split(self.pairs, self.folder / "cache", spec, name, side)

    def go(
        self,
        *,
        change: Callable[[JointModel, Batches], None] | None = None,
        **options: Any,
    ) -> tuple[JointModel, Trained]:
        """Train to the end; `change` may put something in the way first."""
        model, spec = self.model()
        split = self.split(spec)
        batches = Batches(split, self.settings, px=spec.image.px, seed=self.seed)
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
