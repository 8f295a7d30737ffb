"""Does training keep up with its model, and is it ahead of open_clip's own trainer?

Ours is the train stage, whole, on curated pairs in shards; its rate is that of its own log from the
end of the warm-up, without validation and checkpoints. Two things stand beside it, in turns:

- a bare loop that does forward, backward, clipping and update on batches that lie ready in memory:
  same model, precision, optimiser and threads. The limit is 1.
- with --peers, `open_clip_train.main`, unaltered, on the same shards (or the same files by CSV)
  with the same model, batch, optimiser, crops and precision, in the best of its own set-ups: each
  format is tried with 0, 1 and 2 workers first. Its rate is taken between its own log lines.

Files are in the operating system's memory for both. Ours starts from its cache of decoded pictures;
how long that took to make is said too (`cache_s`), as is the rate without it (`photos_streamed`).
At the end, gradient caching: its time over the full batch's, and how far its gradients are from the
full batch's, beside open_clip's --accum-freq.

    python benchmarks/training.py [--quick] [--peers] [--rounds N] [--threads N]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

# Waiting threads that spin take the cores from the threads and workers that make the batches.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import yaml
from _open_clip_train import CHOICES, Choice, OpenClip, gradients
from _peers import PeerFailed
from _report import paired_ratio, report
from _training_pairs import write_pairs
from _training_runs import Length, Round, Setup, bare, ours, run_stage
from safetensors.torch import load_file

from coembed.training.device import choose_device, choose_precision

PARAMS = Path(__file__).parents[1] / "params.yaml"
OPEN_CLIP = "open_clip"
# What the ratios are held to, at least.
GOALS = {
    "demo_over_bare": 0.95, "small_over_bare": 0.95, "photos_over_bare": 0.95,
    "long_text_over_bare": 0.95, "small_over_open_clip": 1.25, "photos_over_open_clip": 1.3,
    "long_text_over_open_clip": 1.7, "frozen_over_open_clip": 1.7,
    "micro_batches_over_full_batch": 0.714,  # 1.4 times the time
}  # fmt: skip
SMALL_PX, PHOTO_PX = (128, 128), (427, 512)
NUM_MICRO = 4


@dataclass(frozen=True)
class Size:
    """How much is measured: `layers` of the image and the text tower, `choices` that open_clip's
    trainer has."""

    items: int
    batch_size: int
    length: Length
    rounds: int
    layers: tuple[int, int]
    choices: tuple[Choice, ...] = CHOICES


# A row of the log costs time (measures, the loss of wrong pairs): one falls into what is counted.
FULL = Size(
    items=1664, batch_size=128, length=Length(warm_steps=6, steps=6), rounds=2, layers=(6, 4)
)
QUICK = Size(
    items=64, batch_size=16, length=Length(warm_steps=2, steps=2), rounds=1, layers=(1, 1),
    choices=(("webdataset", 1), ("csv", 1)),
)  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """Set-ups of ours by name, and what stands beside them.

    beside_bare: whether the bare loop does. open_clip: further arguments of its trainer; None
    where it does not. choice_of: the scene whose best set-up it takes, as its data are the same;
    None to find its own.
    """

    ours: dict[str, Setup]
    beside_bare: bool = True
    open_clip: tuple[str, ...] | None = ()
    choice_of: str | None = None

    @property
    def name(self) -> str:
        """Of the first set-up, which the peers share."""
        return next(iter(self.ours))

    @property
    def setup(self) -> Setup:
        """The first set-up."""
        return self.ours[self.name]


def vit(size: Size, context_length: int = 32) -> dict[str, Any]:
    """A ViT at 64 px in patches of 8: the model with which open_clip's trainer was measured."""
    image_layers, text_layers = size.layers
    return {
        "embed_dim": 192,
        "vision_cfg": {
            "image_size": 64, "patch_size": 8, "layers": image_layers, "width": 192,
            "head_width": 64,
        },
        "text_cfg": {
            "context_length": context_length, "vocab_size": 49408, "width": 192, "heads": 3,
            "layers": text_layers,
        },
    }  # fmt: skip


def plain_settings(size: Size, threads: int | None) -> dict[str, Any]:
    """What most set-ups have in common: crops like open_clip's, and nothing that it does not do.

    The cache is asked for outright: so few steps would not pay for it, and what is measured stands
    for a run of many.
    """
    return {
        "batch_size": size.batch_size, "num_threads": threads, "cache": {"mode": "decoded"},
        "augment": {"image": {"crop_area": 0.8, "flip": False}},
    }  # fmt: skip


def make_scenes(home: Path, size: Size, threads: int | None) -> list[Scene]:
    """The scenes, their pairs written."""
    small = write_pairs(home / "small", size.items, SMALL_PX)
    photos = write_pairs(home / "photos", size.items, PHOTO_PX)
    params = yaml.safe_load(PARAMS.read_text())
    plain = plain_settings(size, threads)
    demo = {key: params["train"][key] for key in ("batch_size", "lr", "loss")}
    demo = {**plain, **demo, "batch_size": min(demo["batch_size"], size.batch_size)}
    streamed = {**plain, "cache": {"mode": "shards"}}
    frozen = {**plain, "towers": {"image": {"locked": True}}}
    length = size.length
    photo_setups = {
        "photos": Setup(vit(size), plain, photos, length),
        "photos_streamed": Setup(vit(size), streamed, photos, length),
    }
    return [
        Scene(
            {"demo": Setup(params["model"]["architecture"], demo, small, length)}, open_clip=None
        ),
        Scene({"small": Setup(vit(size), plain, small, length)}),
        Scene(photo_setups),
        Scene({"long_text": Setup(vit(size, 77), plain, small, length)}, choice_of="small"),
        Scene(
            {"frozen": Setup(vit(size), frozen, small, length)},
            beside_bare=False, open_clip=("--lock-image",),
        ),
    ]  # fmt: skip


@dataclass
class Results:
    """What `report` is given, and the set-ups that open_clip's trainer was best in, by scene."""

    ratios: dict[str, float] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    rows: list[list[str]] = field(default_factory=list)
    choices: dict[str, Choice] = field(default_factory=dict)

    def compare(self, key: str, over: Sequence[Round], under: Sequence[Round]) -> str:
        """Keep the ratio of two rates; returns it with its goal, for the table."""
        ratio = paired_ratio([r.rate for r in over], [r.rate for r in under])
        self.ratios[key] = ratio
        return f"{ratio:.3f}" + (f" (≥ {GOALS[key]:g})" if key in GOALS else "")

    def goals(self) -> dict[str, Any]:
        """The goals of the ratios that were measured."""
        return {
            key: {"at_least": goal, "met": self.ratios[key] >= goal}
            for key, goal in GOALS.items()
            if key in self.ratios
        }


def take_turns(
    contenders: Mapping[str, Callable[[], Round]], rounds: int, failed: dict[str, str]
) -> dict[str, list[Round]]:
    """Rounds of each, in turns and turned about, so that none always comes first.

    A peer that fails drops out; `failed` says how.
    """
    taken: dict[str, list[Round]] = {name: [] for name in contenders}
    for i in range(rounds):
        for name in list(contenders)[:: 1 if i % 2 else -1]:
            if name in failed:
                continue
            try:
                taken[name].append(contenders[name]())
            except PeerFailed as error:
                failed[name] = str(error)
                del taken[name]
    return taken


def measure_scene(scene: Scene, home: Path, size: Size, results: Results, *, peers: bool) -> None:
    """Ours, the bare loop and the peer in turns."""
    places = {name: home / "ours" / name for name in scene.ours}
    setup = scene.setup
    # Once with the decoding (and the features of locked towers), once without.
    once = replace(setup, length=Length(warm_steps=1, steps=1))
    cold, warm = (_seconds(partial(run_stage, once, places[scene.name])) for _ in range(2))
    contenders: dict[str, Callable[[], Round]] = {
        name: partial(ours, each, places[name]) for name, each in scene.ours.items()
    }
    if scene.beside_bare:
        contenders["bare"] = partial(bare, setup)
    peer = None
    if peers and scene.open_clip is not None:
        place = home / "open_clip" / scene.name
        known = results.choices.get(scene.choice_of or "")
        peer = OpenClip(setup, place, scene.open_clip, choices=size.choices, choice=known)
        contenders[OPEN_CLIP] = peer
    failed: dict[str, str] = {}
    taken = take_turns(contenders, size.rounds, failed)
    settings = setup.settings()
    about: dict[str, Any] = {
        "batch_size": settings.batch_size,
        "precision": choose_precision(settings, choose_device(settings)),
        "cache_s": round(max(0.0, cold - warm), 2),
        **_rates(taken),
    }
    if peer is not None:
        about["open_clip"] = {"choice": peer.choice, "tried": peer.tried} | failed
        if peer.choice is not None:
            results.choices[scene.name] = peer.choice
    for name in scene.ours:
        mine = taken[name]
        about[f"{name}_wait_share"] = wait = round(median(r.wait or 0.0 for r in mine), 4)
        row = [name, f"{about[f'{name}_per_s']:,}", f"{wait:.1%}"]
        for other in ("bare", OPEN_CLIP):
            if other in taken:
                ratio = results.compare(f"{name}_over_{other}", mine, taken[other])
                row += [f"{about[f'{other}_per_s']:,}", ratio]
            else:
                row += ["", ""]
        if scene.beside_bare:
            # On a machine that is busy with other things this is the steadier of the two.
            results.ratios[f"{name}_over_bare_by_processor_time"] = paired_ratio(
                [r.cpu_s or 0.0 for r in taken["bare"]], [r.cpu_s or 0.0 for r in mine]
            )
        results.rows.append(row)
    results.counts[scene.name] = about


def _rates(taken: Mapping[str, Sequence[Round]]) -> dict[str, int]:
    return {
        f"{name}_per_s": round(median(r.rate for r in rounds)) for name, rounds in taken.items()
    }


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure_gradient_caching(
    home: Path, size: Size, threads: int | None, results: Results, *, peers: bool
) -> None:
    """Time of a step in micro-batches over the full batch's, and how far its gradients are."""
    batch_size, train = size.batch_size, plain_settings(size, threads)
    full = Setup(vit(size), train, home / "small", size.length)
    micro = replace(full, train={**train, "micro_batch_size": batch_size // NUM_MICRO})
    contenders: dict[str, Callable[[], Round]] = {
        "full_batch": partial(ours, full, home / "ours" / "full"),
        "micro_batches": partial(ours, micro, home / "ours" / "micro"),
    }
    their_home = home / "open_clip" / "caching"
    choice = results.choices.get("small", ("webdataset", 1))
    if peers:
        whole = OpenClip(full, their_home, choice=choice)
        contenders["open_clip_full_batch"] = whole
        contenders["open_clip_micro_batches"] = replace(whole, accumulate=NUM_MICRO)
    failed: dict[str, str] = {}
    taken = take_turns(contenders, size.rounds, failed)
    place = home / "ours" / "gradients"
    errors = {"": compare_gradients(our_gradients(full, place), our_gradients(micro, place))}
    if peers:
        try:
            exact = replace(full, train={**train, "precision": "fp32", "grad_clip": None})
            theirs = gradients(exact, their_home / "gradients", accumulate=NUM_MICRO)
            errors["open_clip_"] = compare_gradients(*theirs)
        except PeerFailed as error:
            failed["open_clip_gradients"] = str(error)
    results.counts["gradient_caching"] = {
        "batch_size": batch_size, "micro_batches": NUM_MICRO, "failed": failed, **_rates(taken),
        **{f"{who}gradients_fp32": error for who, error in errors.items()},
    }  # fmt: skip
    for who in ("", "open_clip_"):
        parts, whole_batch = taken.get(f"{who}micro_batches"), taken.get(f"{who}full_batch")
        if not parts or not whole_batch:
            continue
        ratio = results.compare(f"{who}micro_batches_over_full_batch", parts, whole_batch)
        off = f"{errors[who]['largest_difference']:.0e}" if who in errors else "?"
        row = [f"{who}micro_batches", f"{median(r.rate for r in parts):,.0f}", f"gradients ± {off}"]
        row += [f"full batch {median(r.rate for r in whole_batch):,.0f}", ratio, "", ""]
        results.rows.append(row)


def our_gradients(setup: Setup, home: Path) -> dict[str, torch.Tensor]:
    """The gradients of the first step in fp32: AdamW's first moments after it are (1 − beta₁) times
    them, and the checkpoint holds these."""
    train = {
        **setup.train, "precision": "fp32", "grad_clip": None, "checkpoint": {"every_steps": 1},
    }  # fmt: skip
    once = replace(setup, train=train, length=Length(warm_steps=1, steps=0))
    (path,) = (run_stage(once, home) / "checkpoints").glob("*.safetensors")
    start, end = "optimiser/", "/exp_avg"
    scale = 1 - once.settings().betas[0]
    return {
        name.removeprefix(start).removesuffix(end): tensor / scale
        for name, tensor in load_file(path).items()
        if name.startswith(start) and name.endswith(end)
    }


def compare_gradients(
    exact: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    """How far two sets of gradients are apart: the largest difference of any two numbers, the
    largest number, and the ratio of the two for the logit scale (1 where they agree)."""
    differences = (float((exact[name] - other[name]).abs().max()) for name in exact)
    return {
        "largest_difference": max(differences),
        "largest_gradient": max(float(gradient.abs().max()) for gradient in exact.values()),
        "logit_scale_ratio": round(float(other["logit_scale"] / exact["logit_scale"]), 6),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps; not written to results")
    parser.add_argument("--peers", action="store_true", help="run open_clip's trainer as well")
    parser.add_argument("--rounds", type=int, help="turns of each; 2 without --quick")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch's arithmetic")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    size = replace(size, rounds=options.rounds or size.rounds)
    if options.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # the peer's
    results = Results()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        for scene in make_scenes(home, size, options.threads):
            measure_scene(scene, home, size, results, peers=options.peers)
        measure_gradient_caching(home, size, options.threads, results, peers=options.peers)
    results.counts |= {
        "rounds": size.rounds, "steps_a_round": size.length.steps, "items": size.items,
        "threads": options.threads or torch.get_num_threads(), "goals": results.goals(),
    }  # fmt: skip
    report(
        "training",
        question="training over a bare loop (limit 1), and over open_clip's trainer",
        columns=(
            "ours", "pairs/s", "waits", "bare", "ratio", "open_clip", "ratio",
        ),
        rows=results.rows,
        ratios=results.ratios,
        counts=results.counts,
        packages=("torch", "timm", "open_clip_torch", "numpy"),
        save=not options.quick,
    )  # fmt: skip


if __name__ == "__main__":
    main()
