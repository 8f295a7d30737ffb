"""Checkpoints: the whole state of a run, so that a killed run goes on as if nothing had happened.

A checkpoint is two files under `runs/train/<key>/checkpoints/`: `step-N.safetensors` with the
weights, the optimiser's moments and the moving average in fp32, then `step-N.json` with everything
else and the SHA-256 of the first. The second is written last, so without it the checkpoint does not
exist. `best-N.safetensors` holds the weights of the best look at the val split. Nothing is pickled.
Data order, crops, captions and dropout need no state: they follow from (seed, step).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from coembed.files import atomic_path, sha256_file, sha256_json, sweep_partials, write_json
from coembed.training.distributed import World
from coembed.training.ema import Ema
from coembed.training.sharding import fill_, whole

_FORMAT: Final = 2
Row = dict[str, float | int | None]


@dataclass(frozen=True, slots=True)
class Best:
    """The weights of the best look at the val split: after `step`, in a file of that SHA-256."""

    step: int
    sha256: str


@dataclass
class State:
    """Where a run stands, besides its tensors.

    `step` counts the steps done. `history` are the rows of history.csv so far; `recent` the losses
    since its last row. `best_value` is the best that validation has seen, `gained_value` the one
    that last counted as a gain, `looks_without_gain` how many looks there were since, `stopped`
    whether that ended the run. `loss_scale` is fp16's.
    """

    step: int = 0
    history: list[Row] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    best_value: float | None = None
    gained_value: float | None = None
    looks_without_gain: int = 0
    stopped: bool = False
    best: Best | None = None
    loss_scale: tuple[float, int] | None = None


class Checkpoints:
    """The checkpoints of one run. `keep` newest ones stay. The main process writes them."""

    def __init__(self, folder: Path, *, keep: int, world: World) -> None:
        self._folder, self._keep, self._world = folder, keep, world

    def save(
        self, state: State, model: nn.Module, optimiser: torch.optim.Optimizer, average: Ema | None
    ) -> None:
        """Write a checkpoint and prune old ones."""
        tensors = self._gathered(_tensors(model, optimiser, average))
        if self._world.is_main:
            path = self._folder / f"step-{state.step:09d}.safetensors"
            with atomic_path(path) as partial:
                save_file(tensors, partial)
            about = {"format": _FORMAT, "tensors_sha256": sha256_file(path), **asdict(state)}
            write_json(path.with_suffix(".json"), {**about, "sha256": sha256_json(about)})
            self._prune()
        self._world.barrier()

    def load(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, average: Ema | None
    ) -> State:
        """Bring all to the newest sound checkpoint; a new State where none is.

        A torn or altered checkpoint is named on stderr, and the one before it is taken.
        """
        for path in sorted(self._folder.glob("step-*.json"), reverse=True):
            try:
                state, tensors = _read(path)
                if state.best is not None and not self._is_sound(state.best):
                    raise ValueError(f"the best weights, of step {state.best.step}, are damaged")
            except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
                if self._world.is_main:
                    print(f"passing over the damaged checkpoint {path}: {error}", file=sys.stderr)
                    with suppress(OSError):  # else it would count among those that are kept
                        path.rename(path.with_name(f"{path.name}.damaged"))
                continue
            _restore(tensors, model, optimiser, average)
            return state
        return State()

    def save_best(self, state: State, model: nn.Module) -> Best:
        """Write the weights that `model` has now. They count once a checkpoint names them."""
        tensors = self._gathered(model.state_dict().items())
        path = self._best_path(state.step)
        if self._world.is_main:
            with atomic_path(path) as partial:
                save_file(tensors, partial)
        # One process hashes: another machine need not see the file.
        digest = sha256_file(path) if self._world.is_main else None
        return Best(state.step, self._world.same(digest))

    def load_best(self, best: Best, model: nn.Module) -> None:
        """Give `model` the weights that `save_best` wrote."""
        saved = load_file(self._best_path(best.step))
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                fill_(tensor, saved[name])

    def _gathered(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors whole, on the host of the process that writes them; empty in the others."""
        found = {}
        for name, tensor in tensors:
            complete = whole(tensor)
            if self._world.is_main:
                found[name] = complete.cpu().contiguous()
        return found

    def _best_path(self, step: int) -> Path:
        return self._folder / f"best-{step:09d}.safetensors"

    def _is_sound(self, best: Best) -> bool:
        path = self._best_path(best.step)
        return path.is_file() and sha256_file(path) == best.sha256

    def _prune(self) -> None:
        numbered = sorted(self._folder.glob("step-*.json"), reverse=True)
        for path in numbered[self._keep :]:
            path.unlink()  # first what makes it exist
        kept = {path.stem for path in numbered[: self._keep]}
        for path in self._folder.glob("step-*.safetensors"):
            if path.stem not in kept:
                path.unlink()
        named = set()
        for path in numbered[: self._keep]:
            best = json.loads(path.read_text(encoding="utf-8")).get("best")
            named |= {self._best_path(best["step"])} if best else set()
        for path in self._folder.glob("best-*.safetensors"):
            if path not in named:
                path.unlink()
        sweep_partials(self._folder)


def _read(path: Path) -> tuple[State, dict[str, Tensor]]:
    """State and tensors of the checkpoint at `path`; ValueError or its like where it is damaged."""
    about = json.loads(path.read_text(encoding="utf-8"))
    if about.pop("sha256") != sha256_json(about):
        raise ValueError("its JSON does not have the SHA-256 that it states")
    if about.pop("format") != _FORMAT:
        raise ValueError("it is of another format")
    tensors = path.with_suffix(".safetensors")
    if about.pop("tensors_sha256") != sha256_file(tensors):
        raise ValueError(f"{tensors.name} does not have the SHA-256 that its JSON states")
    best, scale = about.pop("best"), about.pop("loss_scale")
    return (
        State(
            **about,
            best=Best(**best) if best else None,
            loss_scale=(float(scale[0]), int(scale[1])) if scale else None,
        ),
        load_file(tensors),
    )


def _restore(
    saved: Mapping[str, Tensor],
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    average: Ema | None,
) -> None:
    """Copy `saved` into all; every tensor keeps its place and memory layout."""
    for name, p in _optimised(model, optimiser).items():
        if f"optimiser/{name}/step" not in saved:
            continue  # it has had no gradient yet
        # AdamW makes its moments in the first step; here they are made as it would make them.
        optimiser.state[p] = {
            "step": torch.zeros((), dtype=torch.float32, device=p.device),
            "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
        }
    with torch.no_grad():
        for name, tensor in _tensors(model, optimiser, average):
            fill_(tensor, saved[name])


def _tensors(
    model: nn.Module, optimiser: torch.optim.Optimizer, average: Ema | None
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a run by name: weights, buffers, moments, averages."""
    for name, tensor in model.state_dict().items():
        yield f"model/{name}", tensor
    for name, p in _optimised(model, optimiser).items():
        moments: Mapping[str, Any] = optimiser.state[p]
        for key in sorted(moments):
            yield f"optimiser/{name}/{key}", moments[key]
    if average is not None:
        yield from average.tensors()


def _optimised(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimiser may change, locked for the time being or not, by name."""
    known = {id(p) for group in optimiser.param_groups for p in group["params"]}
    return {name: p for name, p in model.named_parameters() if id(p) in known}
