"""Does the training loop keep up with its model?

Ours, from the memory-mapped cache through crops, captions and checks to the update, against a bare
loop that does forward, backward, clipping and update on one batch that lies ready in memory: same
model, precision, optimiser and threads, taking turns in one process. Validation and checkpoints are
left out of both. The limit is 1.

    python benchmarks/training.py [--quick] [--threads N]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

# Waiting threads that spin take the cores from the thread that makes the batches.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import simplejpeg
import torch
import yaml
from _report import paired_ratio, report

from coembed.modalities.image import normalise, transform
from coembed.models.build import build_model
from coembed.models.settings import ModelSettings
from coembed.training.cache import CachedSplit, open_cached_split
from coembed.training.data import Batches, cache_side
from coembed.training.device import choose_device, choose_precision, repeatable
from coembed.training.loop import train
from coembed.training.optim import build_optimiser
from coembed.training.settings import TrainSettings
from coembed.types import Sample

PARAMS = Path(__file__).parents[1] / "params.yaml"
# A ViT at 64 px in patches of 8: the model that open_clip's trainer was measured with.
VIT = {
    "architecture": {
        "embed_dim": 192,
        "vision_cfg": {
            "image_size": 64, "patch_size": 8, "layers": 6, "width": 192, "head_width": 64,
        },
        "text_cfg": {
            "context_length": 32, "vocab_size": 49408, "width": 192, "heads": 3, "layers": 4,
        },
    }
}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """One model, and how long it is measured."""

    name: str
    model: ModelSettings
    settings: TrainSettings
    warm_steps: int


def make_samples(num: int) -> Iterator[Sample]:
    """Pictures of soft noise with captions of a shop's length; about one in thirty is repeated."""
    rng = np.random.default_rng(0)
    words = [
        "red",
        "blue",
        "striped",
        "plain",
        "wooden",
        "mug",
        "chair",
        "lamp",
        "boots",
        "on a table",
    ]
    for i in range(num):
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        media = simplejpeg.encode_jpeg(coarse.repeat(16, 0).repeat(16, 1), quality=90)
        caption = "a " + " ".join(rng.choice(words, 5)) + ("" if i % 30 == 0 else f" {i}")
        yield Sample(
            item_id=hashlib.sha256(media).hexdigest(), modality="image", path=f"{i}.jpg",
            media=media, extension="jpg", captions=(caption,), pair_ids=(str(i),),
        )  # fmt: skip


def open_split(bench: Bench, folder: Path, num: int) -> CachedSplit:
    """The split in a cache of its own."""
    _, spec = build_model(bench.model, seed=0)
    side = cache_side(spec.image.px, bench.settings.augment)
    at_side = spec.image.model_copy(update={"px": side})
    return open_cached_split(
        folder / "cache", lambda: make_samples(num), side=side,
        decode=lambda media: transform(media, at_side), tokenise=spec.loader("text").load,
        content={"model": bench.name}, label=bench.name,
    )  # fmt: skip


@dataclass(frozen=True)
class Round:
    """Pairs a second, processor seconds a pair, and the share of time spent waiting for data."""

    rate: float
    cpu_s: float
    wait: float = 0.0


def ours(bench: Bench, split: CachedSplit, folder: Path) -> Round:
    """A round of `train`, counted from the end of the warm-up."""
    settings = bench.settings
    device = choose_device(settings)
    model, spec = build_model(bench.model, seed=0)
    batches = Batches(split, settings, px=spec.image.px, seed=0, pin=device.type == "cuda")
    train(
        model, spec, batches, settings,
        loss=settings.loss.build(), seed=0, device=device,  # type: ignore[attr-defined]
        precision=choose_precision(settings, device), run_folder=folder,
    )  # fmt: skip
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    warm = next(line for line in log if line["step"] == bench.warm_steps)
    num = (log[-1]["step"] - warm["step"]) * settings.batch_size
    wait = float(np.mean([line["wait_share"] for line in log if line["step"] > warm["step"]]))
    cpu_s = (log[-1]["cpu_s"] - warm["cpu_s"]) / num
    return Round(num / (log[-1]["train_s"] - warm["train_s"]), cpu_s, wait)


def bare(bench: Bench, split: CachedSplit) -> Round:
    """A round of a loop that has nothing to do but the arithmetic."""
    settings = bench.settings
    device = choose_device(settings)
    bf16 = choose_precision(settings, device) == "bf16"
    model, spec = build_model(bench.model, seed=0)
    model.to(device).to(memory_format=torch.channels_last).train()
    optimiser = build_optimiser(model, settings)
    loss_of = settings.loss.build()  # type: ignore[attr-defined]
    batch = Batches(split, settings, px=spec.image.px, seed=0).make(0)
    pixels = normalise(batch.images.to(device), spec.image.mean, spec.image.std)
    tokens = model.trim("text", batch.tokens).to(device)
    positives = None if batch.positives is None else batch.positives.to(device)
    parameters = list(model.parameters())
    with repeatable(device, settings.num_threads):
        for step in range(settings.steps or 0):
            if step == bench.warm_steps:
                _wait_for(device)
                start, start_cpu = time.perf_counter(), time.process_time()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                z = model({"image": pixels, "text": tokens})
            loss = loss_of(
                z["image"], z["text"], logit_scale=model.logit_scale,
                logit_bias=model.logit_bias, positives=positives,
            )  # fmt: skip
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, settings.grad_clip or float("inf"))
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        _wait_for(device)
    num = ((settings.steps or 0) - bench.warm_steps) * settings.batch_size
    cpu_s = (time.process_time() - start_cpu) / num
    return Round(num / (time.perf_counter() - start), cpu_s)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def demo_and_vit(steps: int, warm: int, threads: int | None) -> list[Bench]:
    """The model of params.yaml, and the one that the peers were measured with."""
    params = yaml.safe_load(PARAMS.read_text())
    length = {
        "epochs": None, "steps": steps + warm, "log_every": warm, "validate_every_epochs": None,
        "num_threads": threads, "checkpoint": {"every_steps": None, "every_minutes": None},
    }  # fmt: skip
    demo = TrainSettings.model_validate({**params["train"], "warmup": 0.1, **length})
    vit = TrainSettings.model_validate({"batch_size": 128, **length})
    return [
        Bench("demo", ModelSettings.model_validate(params["model"]), demo, warm),
        Bench("vit", ModelSettings.model_validate(VIT), vit, warm),
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds; not written to results")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch's arithmetic")
    options = parser.parse_args()
    steps, warm, rounds, num = (8, 4, 3, 600) if options.quick else (24, 6, 7, 4000)
    rows: list[list[str]] = []
    ratios: dict[str, float] = {}
    counts: dict[str, Any] = {"rounds": rounds, "steps_a_round": steps, "items": num}
    for bench in demo_and_vit(steps, warm, options.threads):
        mine: list[Round] = []
        limit: list[Round] = []
        with tempfile.TemporaryDirectory() as name:
            split = open_split(bench, Path(name), num)
            for i in range(rounds):
                # Turn about, so that neither always comes first.
                for who in ("ours", "bare") if i % 2 else ("bare", "ours"):
                    if who == "bare":
                        limit.append(bare(bench, split))
                    else:
                        mine.append(ours(bench, split, Path(name) / f"run-{i}"))
        ratios[bench.name] = paired_ratio([r.rate for r in mine], [r.rate for r in limit])
        # On a machine that is busy with other things this is the steadier of the two.
        work = f"{bench.name}_processor_time"
        ratios[work] = paired_ratio([r.cpu_s for r in limit], [r.cpu_s for r in mine])
        device = choose_device(bench.settings)
        precision = choose_precision(bench.settings, device)
        counts[bench.name] = {"batch_size": bench.settings.batch_size, "precision": precision}
        rows.append([
            bench.name, f"{median(r.rate for r in mine):,.0f}",
            f"{median(r.rate for r in limit):,.0f}", f"{median(r.wait for r in mine):.1%}",
            f"{ratios[bench.name]:.3f}", f"{ratios[work]:.3f}",
        ])  # fmt: skip
    counts["threads"] = options.threads or torch.get_num_threads()
    report(
        "training",
        question="training loop over a bare in-memory loop (limit 1)",
        columns=[
            "model",
            "ours, pairs/s",
            "bare, pairs/s",
            "waits for data",
            "ratio",
            "by CPU time",
        ],
        rows=rows,
        ratios=ratios,
        counts=counts,
        packages=["torch", "timm", "open_clip_torch", "numpy"],
        save=not options.quick,
    )


if __name__ == "__main__":
    main()
