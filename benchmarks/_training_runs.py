"""Runs of the train stage for the benchmarks, and the bare loop beside them."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from coembed.config import Config
from coembed.models.build import build_model
from coembed.models.settings import ModelSettings
from coembed.pairs.shards import read_samples
from coembed.stages import train as stage
from coembed.training.device import choose_device, choose_precision, prepare_model, repeatable
from coembed.training.optim import build_optimiser
from coembed.training.settings import TrainSettings

_NUM_READY = 4  # batches that the bare loop has


@dataclass(frozen=True)
class Length:
    """Steps before the clock starts, and steps that count."""

    warm_steps: int
    steps: int


@dataclass(frozen=True)
class Round:
    """Pairs a second, processor seconds a pair, and the share of time spent waiting for data."""

    rate: float
    cpu_s: float | None = None
    wait: float | None = None


@dataclass(frozen=True)
class Setup:
    """A model in open_clip's format, how it is trained (`train:`), on what, and for how long."""

    architecture: Any
    train: dict[str, Any]
    pairs: Path
    length: Length

    def model(self) -> ModelSettings:
        """The `model:` section."""
        return ModelSettings.model_validate({"architecture": self.architecture})

    def settings(self) -> TrainSettings:
        """The `train:` section: no validation, no checkpoints on the way, and a row of the log at
        the end of the warm-up."""
        length = {
            "epochs": None, "steps": self.length.warm_steps + self.length.steps,
            "log_every": self.length.warm_steps, "warmup": 0.1, "validate_every_epochs": None,
            "checkpoint": {"every_steps": None, "every_minutes": None},
        }  # fmt: skip
        return TrainSettings.model_validate({**length, **self.train})

    def config(self) -> Config:
        """What the stage reads of a params file; the other sections are left out."""
        return Config.model_construct(seed=0, model=self.model(), train=self.settings())


def run_stage(setup: Setup, home: Path) -> Path:
    """The train stage from its start; what it left under runs/train. Decoded pairs are kept."""
    shutil.rmtree(home / "runs" / "train", ignore_errors=True)
    stage.run(setup.config(), root=home, pairs=setup.pairs, out=home / "model", runs=home / "runs")
    (log,) = (home / "runs" / "train").glob("*/log.jsonl")
    return log.parent


def ours(setup: Setup, home: Path) -> Round:
    """A run of the stage, counted from the end of the warm-up."""
    log = run_stage(setup, home) / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    warm = next(line for line in lines if line["step"] == setup.length.warm_steps)
    last, after = lines[-1], [line for line in lines if line["step"] > warm["step"]]
    num = (last["step"] - warm["step"]) * setup.settings().batch_size
    return Round(
        rate=num / (last["train_s"] - warm["train_s"]),
        cpu_s=(last["cpu_s"] - warm["cpu_s"]) / num,
        wait=sum(line["wait_share"] for line in after) / len(after),
    )


def bare(setup: Setup) -> Round:
    """A loop that has nothing to do but the arithmetic: forward, backward, clipping and update on
    batches that lie ready on the device; the same model, precision and optimiser.

    There are a few batches of noise with captions of the pairs, in turns, because steps differ in
    the length of their longest caption.
    """
    settings, length = setup.settings(), setup.length
    device = choose_device(settings)
    bf16 = choose_precision(settings, device) == "bf16"
    model, spec = build_model(setup.model(), seed=0)
    compiled = prepare_model(model, settings, device)
    num_steps = length.warm_steps + length.steps
    optimiser = build_optimiser(model, settings, num_steps=num_steps)
    loss_of = settings.loss.build()  # type: ignore[attr-defined]
    captions = itertools.cycle(s.captions[0] for s in read_samples(setup.pairs, "train"))
    texts, images = spec.loader("text"), spec.loader("image")
    ready = []
    for _ in range(_NUM_READY):
        tokens = texts.load(list(itertools.islice(captions, settings.batch_size)))
        tokens = model.trim("text", tokens, multiple=16 if compiled else 1)
        noise = torch.randint(0, 256, (len(tokens), *images.example().shape[1:]), dtype=torch.uint8)
        ready.append({"image": images.to_inputs(noise.to(device)), "text": tokens.to(device)})
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    with repeatable(device, settings.num_threads):
        for step in range(num_steps):
            if step == length.warm_steps:
                _wait_for(device)
                start, start_cpu = time.perf_counter(), time.process_time()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                z = model(ready[step % _NUM_READY])
            loss = loss_of(
                z["image"], z["text"], logit_scale=model.logit_scale, logit_bias=model.logit_bias
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, settings.grad_clip or float("inf"))
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        _wait_for(device)
    num = length.steps * settings.batch_size
    cpu_s = (time.process_time() - start_cpu) / num
    return Round(num / (time.perf_counter() - start), cpu_s)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
