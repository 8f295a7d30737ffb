"""open_clip's trainer on a set-up of ours: its arguments, its best set-up, its gradients."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from _peers import PeerFailed, run_peer
from _training_runs import Length, Round, Setup

from coembed.pairs.shards import read_samples
from coembed.training.device import choose_precision

_MODEL = "bench-model"
_PRECISIONS = {"bf16": "amp_bf16", "fp32": "fp32"}
Choice = tuple[str, int]
"""Format of the data, and workers that read it."""
CHOICES: tuple[Choice, ...] = tuple(itertools.product(("webdataset", "csv"), (0, 1, 2)))


@dataclass
class OpenClip:
    """`open_clip_train.main` on `setup`, on a CPU.

    more: further arguments. accumulate: micro-batches a step. choices: what it may choose from.
    choice: None until `choose` was asked. tried: samples/s of every choice.
    """

    setup: Setup
    home: Path
    more: tuple[str, ...] = ()
    accumulate: int = 1
    choices: tuple[Choice, ...] = CHOICES
    choice: Choice | None = None
    tried: dict[str, float] = field(default_factory=dict)

    def choose(self) -> None:
        """Try every choice for a few steps and keep the fastest."""
        whole = self.setup.length
        # Not much shorter: what was made ahead at the start has to be used up in the warm-up.
        length = Length(max(1, 2 * whole.warm_steps // 3), max(2, 2 * whole.steps // 3))
        short = replace(self, setup=replace(self.setup, length=length))
        answers = short.launch([short.arguments(choice) for choice in self.choices])
        rates = [answer["samples_per_s"] or 0.0 for answer in answers]
        if not any(rates):
            raise PeerFailed(str(answers[0]["error"]))
        self.tried = {
            f"{kind}, {workers} workers": round(rate, 1)
            for (kind, workers), rate in zip(self.choices, rates, strict=True)
        }
        self.choice = self.choices[rates.index(max(rates))]

    def __call__(self) -> Round:
        """A run in a process of its own. Raises PeerFailed."""
        if self.choice is None:
            self.choose()
        assert self.choice is not None
        (answer,) = self.launch([self.arguments(self.choice)])
        if not answer["samples_per_s"]:
            raise PeerFailed(str(answer["error"]))
        return Round(answer["samples_per_s"])

    def launch(self, runs: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """What the peer's script says about each list of arguments. Raises PeerFailed."""
        self.home.mkdir(parents=True, exist_ok=True)
        model, wanted = self.home / f"{_MODEL}.json", self.home / "runs.json"
        model.write_text(json.dumps(self.setup.architecture))
        warm = self.setup.length.warm_steps
        wanted.write_text(json.dumps([{"arguments": a, "warm_steps": warm} for a in runs]))
        answer = run_peer("open_clip_train", "open_clip_train_runs", [str(model), str(wanted)])
        return list(answer["runs"])

    def arguments(self, choice: Choice) -> list[str]:
        """The trainer's arguments: what our settings say, in its words."""
        kind, workers = choice
        settings, length = self.setup.settings(), self.setup.length
        # It logs its first step, too, so its warm-up ends one step later than ours.
        num = (1 + length.warm_steps + length.steps) * settings.batch_size
        crops = settings.augment.image.crop_area
        own = {
            "--model": _MODEL, "--logs": self.home / "logs", "--name": _next_name(),
            "--device": "cpu", "--epochs": 1, "--save-frequency": 0, "--train-num-samples": num,
            "--precision": _PRECISIONS[choose_precision(settings, torch.device("cpu"))],
            "--batch-size": settings.batch_size // self.accumulate,
            "--accum-freq": self.accumulate, "--log-every-n-steps": length.warm_steps,
            "--workers": workers, "--dataset-type": kind,
            "--lr": settings.lr, "--beta1": settings.betas[0], "--beta2": settings.betas[1],
            "--eps": settings.eps, "--wd": settings.weight_decay, "--warmup": 2,
            "--aug-cfg": f"scale=({crops},1.0)",
        }  # fmt: skip
        if settings.grad_clip is not None:
            own["--grad-clip-norm"] = settings.grad_clip
        if kind == "csv":
            own["--train-data"] = write_csv(self.setup.pairs, num)
            resampled = []
        else:
            last = len(list(self.setup.pairs.glob("train-*.tar"))) - 1
            own["--train-data"] = f"{self.setup.pairs}/train-{{000000..{last:06d}}}.tar"
            resampled = ["--dataset-resampled"]  # as many samples as asked for, whatever there are
        return [*(str(word) for pair in own.items() for word in pair), *resampled, *self.more]


_names = itertools.count()


def _next_name() -> str:
    """A name that no run had before: the trainer refuses one that it has a log of."""
    return f"run-{next(_names)}"


def write_csv(pairs: Path, num: int) -> Path:
    """The pairs as files and a table of `num` rows, items repeated; what open_clip calls CSV."""
    files, table = pairs / "files", pairs / f"pairs-{num}.csv"
    if table.exists():
        return table
    files.mkdir(exist_ok=True)
    rows = []
    for sample in read_samples(pairs, "train"):
        path = files / f"{sample.item_id}.{sample.extension}"
        path.write_bytes(sample.media)
        rows.append((path, sample.captions[0]))
    with table.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(("filepath", "title"))
        writer.writerows(itertools.islice(itertools.cycle(rows), num))
    return table


def gradients(
    setup: Setup, home: Path, *, accumulate: int
) -> tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]:
    """Its gradients of one step, of the full batch and with --accum-freq `accumulate`.

    One step of plain gradient descent, its weights taken from those of a step at no rate, over the
    rate; a small one, because the trainer clamps the scale. Raises PeerFailed.
    """
    once = replace(setup, length=Length(warm_steps=1, steps=0))
    one_batch = write_csv(setup.pairs, setup.settings().batch_size)
    rate = 0.05
    # Later arguments win.
    descent = (
        "--opt", "timm/momentum", "--momentum", "0", "--skip-scheduler", "--wd", "0",
        "--train-data", str(one_batch),
    )  # fmt: skip
    runs, names = [], ("start", "full", "micro")
    for name, lr, parts in zip(names, (1e-30, rate, rate), (1, 1, accumulate), strict=True):
        peer = OpenClip(once, home, (*descent, "--lr", str(lr), "--name", name), accumulate=parts)
        runs.append(peer.arguments(("csv", 0)))  # without workers, random crops have one order
    OpenClip(once, home).launch(runs)
    weights = {}
    for name in names:
        path = home / "logs" / name / "checkpoints" / "epoch_1.pt"
        if not path.exists():
            raise PeerFailed(f"its run for gradients ({name}) left no checkpoint")
        weights[name] = torch.load(path, weights_only=True)["state_dict"]
    start = weights["start"]
    full, micro = ({key: (start[key] - weights[n][key]) / rate for key in start} for n in names[1:])
    return full, micro
