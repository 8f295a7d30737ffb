"""Do the tiled losses give open_clip's answers in less memory and no more time?

The softmax and sigmoid losses against `open_clip.loss`'s ClipLoss and SigLipLoss, on the same
embeddings in fp32: seconds and extra peak memory of one forward and backward pass, and the largest
difference of the loss and of every gradient, relative to the largest element. Every measurement has
a process of its own, in which nothing else has been allocated before; ours and theirs take turns.

    python benchmarks/losses.py [--quick] [--rounds N] [--threads N]
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _cost import cost
from _report import paired_ratio, report
from open_clip.loss import ClipLoss, SigLipLoss
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from coembed.losses.sigmoid import Sigmoid
from coembed.losses.softmax import Softmax

LOG_SCALE = {"softmax": math.log(1 / 0.07), "sigmoid": math.log(10.0)}  # where CLIP, SigLIP begin
BIAS = -10.0
Run = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
RUNS: dict[str, dict[str, Run]] = {
    "softmax": {
        "ours": lambda za, zb, scale, _: Softmax()(za, zb, logit_scale=scale),
        "theirs": lambda za, zb, scale, _: ClipLoss()(za, zb, scale.exp()),
    },
    "sigmoid": {
        "ours": lambda za, zb, scale, bias: Sigmoid()(
            za, zb, logit_scale=scale, logit_bias=bias
        ),
        "theirs": lambda za, zb, scale, bias: SigLipLoss()(za, zb, scale.exp(), bias),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Of one forward and backward pass: seconds, processor seconds, extra peak MB, and what came
    out by name."""

    wall_s: float
    cpu_s: float
    extra_mb: float
    out: dict[str, Tensor]


def inputs(loss: str, rows: int, dim: int) -> tuple[Tensor, ...]:
    """Embeddings of pairs that have begun to find each other, and the scalars, all leaves."""
    generator = torch.Generator().manual_seed(0)
    za, noise = (torch.randn(rows, dim, generator=generator) for _ in range(2))
    zb = normalize(za.add(noise, alpha=2.0), dim=1)
    leaves = normalize(za, dim=1), zb, torch.tensor(LOG_SCALE[loss]), torch.tensor(BIAS)
    return tuple(leaf.requires_grad_() for leaf in leaves)


def measure_here(loss: str, who: str, rows: int, dim: int, out: Path) -> None:
    """In a process of its own: measure, and write what came out."""
    run = RUNS[loss][who]
    run(*inputs(loss, 256, dim)).backward()  # threads, code and workspaces come up
    leaves = inputs(loss, rows, dim)

    def there_and_back() -> Tensor:
        value = run(*leaves)
        value.backward()
        return value

    value, spent = cost(there_and_back)
    tensors = {"loss": value.detach().reshape(1)}
    for name, leaf in zip(("za", "zb", "logit_scale", "logit_bias"), leaves, strict=True):
        if leaf.grad is not None:
            tensors[name] = leaf.grad.reshape(-1)
    tensors["measured"] = torch.tensor(
        [spent.wall_s, spent.cpu_s, spent.extra_mb], dtype=torch.float64
    )
    save_file(tensors, out)


def measure(loss: str, who: str, options: argparse.Namespace) -> Measured:
    """One pass in a child process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.safetensors"
        sizes = [str(options.rows), str(options.dim), str(options.threads)]
        subprocess.run(
            [sys.executable, __file__, "--child", loss, who, *sizes, str(out)], check=True
        )
        tensors = load_file(out)
    wall_s, cpu_s, extra = tensors.pop("measured").tolist()
    return Measured(wall_s, cpu_s, extra, tensors)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of two tensors, relative to the largest element."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def main() -> None:
    """Measure, print, write."""
    if sys.argv[1:2] == ["--child"]:
        loss, who, rows, dim, threads, out = sys.argv[2:]
        torch.set_num_threads(int(threads))
        measure_here(loss, who, int(rows), int(dim), Path(out))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller; not written to results")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    options.rows, options.dim = (4096, 256) if options.quick else (16384, 512)

    ratios: dict[str, float] = {}
    counts: dict[str, Any] = {
        "rows": options.rows, "dim": options.dim, "dtype": "float32",
        "rounds": options.rounds, "threads": options.threads,
    }  # fmt: skip
    table: list[list[str]] = []
    for loss in RUNS:
        found: dict[str, list[Measured]] = {"ours": [], "theirs": []}
        for i in range(options.rounds):
            # Turn about, so that neither always comes first.
            for who in ("ours", "theirs") if i % 2 else ("theirs", "ours"):
                found[who].append(measure(loss, who, options))
        seconds = {who: [m.wall_s for m in all_of] for who, all_of in found.items()}
        memory = {who: max(m.extra_mb for m in all_of) for who, all_of in found.items()}
        one, other = found["ours"][0].out, found["theirs"][0].out
        apart = {name: difference(one[name], other[name]) for name in other}
        ratios[f"{loss}_speed"] = paired_ratio(seconds["theirs"], seconds["ours"])
        # On a machine that is busy with other things this is the steadier of the two.
        work = {who: [m.cpu_s for m in all_of] for who, all_of in found.items()}
        ratios[f"{loss}_processor_time"] = paired_ratio(work["theirs"], work["ours"])
        ratios[f"{loss}_memory"] = memory["theirs"] / memory["ours"]
        counts[loss] = {
            "seconds": {who: round(median(values), 2) for who, values in seconds.items()},
            "processor_seconds": {who: round(median(values), 2) for who, values in work.items()},
            "extra_peak_mb": {who: round(value) for who, value in memory.items()},
            "relative_difference": {name: float(f"{value:.1e}") for name, value in apart.items()},
        }
        table.append([
            loss,
            *(f"{median(seconds[who]):.1f} s, {memory[who]:,.0f} MB" for who in found),
            f"{ratios[f'{loss}_speed']:.2f}", f"{ratios[f'{loss}_processor_time']:.2f}",
            f"{ratios[f'{loss}_memory']:.0f}", f"{max(apart.values()):.1e}",
        ])  # fmt: skip
    report(
        "losses",
        question=f"tiled losses over open_clip's, batch {options.rows:,}, dim {options.dim}, fp32",
        columns=["loss", "ours", "open_clip's", "speed", "by CPU time", "memory", "difference"],
        rows=table,
        ratios=ratios,
        counts=counts,
        packages=["torch", "open_clip_torch"],
        save=not options.quick,
    )


if __name__ == "__main__":
    main()
