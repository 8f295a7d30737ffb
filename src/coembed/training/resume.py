"""Checkpoints: the whole state of a run, so that a killed run goes on as if nothing had happened.

A checkpoint is two files under `runs/train/<key>/checkpoints/`: `step-N.safetensors` with the
weights and the optimiser's moments in fp32, then `step-N.json` with everything else and the SHA-256
of the first. The second is written last, so without it the checkpoint does not exist. Nothing is
pickled. Data order, crops, captions and dropout need no state: they follow from (seed, step).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from coembed.files import atomic_path, sha256_file, sha256_json, sweep_partials, write_json

_FORMAT: Final = 1
Row = dict[str, float | int | None]


@dataclass
class State:
    """Where a run stands, besides its tensors.

    `step` counts the steps done. `history` are the rows of history.csv so far; `recent` the losses
    since its last row.
    """

    step: int = 0
    history: list[Row] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)


class Checkpoints:
    """The checkpoints of one run. `keep` newest ones stay."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def save(self, state: State, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        """Write a checkpoint and prune old ones."""
        tensors = {name: t.detach().cpu().contiguous() for name, t in _tensors(model, optimiser)}
        path = self._folder / f"step-{state.step:09d}.safetensors"
        with atomic_path(path) as partial:
            save_file(tensors, partial)
        about = {"format": _FORMAT, "tensors_sha256": sha256_file(path), **asdict(state)}
        write_json(path.with_suffix(".json"), {**about, "sha256": sha256_json(about)})
        self._prune()

    def load(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> State:
        """Bring model and optimiser to the newest sound checkpoint; a new State where none is.

        A torn or altered checkpoint is named on stderr, and the one before it is taken.
        """
        for path in sorted(self._folder.glob("step-*.json"), reverse=True):
            try:
                state, tensors = _read(path)
            except (ValueError, KeyError, TypeError, OSError) as error:
                print(f"passing over the damaged checkpoint {path}: {error}", file=sys.stderr)
                continue
            _restore(tensors, model, optimiser)
            return state
        return State()

    def _prune(self) -> None:
        numbered = sorted(self._folder.glob("step-*.json"), reverse=True)
        for path in numbered[self._keep :]:
            path.unlink()  # first what makes it exist
        kept = {path.stem for path in numbered[: self._keep]}
        for path in self._folder.glob("step-*.safetensors"):
            if path.stem not in kept:
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
    return State(**about), load_file(tensors)


def _restore(
    saved: Mapping[str, Tensor], model: nn.Module, optimiser: torch.optim.Optimizer
) -> None:
    """Copy `saved` into model and optimiser; every tensor keeps its place and memory layout."""
    for name, p in _parameters(model).items():
        if f"optimiser/{name}/step" not in saved:
            continue  # it has had no gradient yet
        # AdamW makes its moments in the first step; here they are made as it would make them.
        optimiser.state[p] = {
            "step": torch.zeros((), dtype=torch.float32, device=p.device),
            "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
        }
    with torch.no_grad():
        for name, tensor in _tensors(model, optimiser):
            tensor.copy_(saved[name])


def _tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a run by name: weights, buffers, moments."""
    for name, tensor in model.state_dict().items():
        yield f"model/{name}", tensor
    for name, p in _parameters(model).items():
        moments: Mapping[str, Any] = optimiser.state[p]
        for key in sorted(moments):
            yield f"optimiser/{name}/{key}", moments[key]


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
