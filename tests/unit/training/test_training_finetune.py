"""Locks, layer-wise rates, adapters and averages in whole runs: exact, and merged at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import Run, same_weights

from coembed.models.joint import JointModel
from coembed.models.lora import has_lora, merge_lora
from coembed.training.data import Batches, MicroBatch, Plan

_FINE = {
    "steps": 9,
    "ema": 0.9,
    "towers": {
        "image": {"locked": True, "unlock_at": 5, "layer_decay": 0.7, "lr_scale": 0.5},
        "text": {"lora": {"rank": 2, "alpha": 4.0}},
    },
}


class CutError(Exception):
    """Stands for the end of a process at a step."""


def _cut_at(step: int):
    def change(_: JointModel, batches: Batches) -> None:
        make = batches.micro_batch

        def cut(plan: Plan, first: int, last: int) -> MicroBatch:
            if plan.step == step:
                raise CutError
            return make(plan, first, last)

        batches.micro_batch = cut  # type: ignore[method-assign]

    return change


def _last_checkpoint(run: Run) -> dict[str, torch.Tensor]:
    return load_file(sorted((run.folder / "run/checkpoints").glob("*.safetensors"))[-1])


@pytest.mark.parametrize("step", [3, 5, 7])
def test_a_cut_off_run_ends_the_same(run: Run, tmp_path: Path, step: int) -> None:
    """Cut off while a tower is locked, in the step that unlocks it, and after."""
    run = run.with_settings(**_FINE)
    whole, trained = run.go()
    broken = Run(run.pairs, tmp_path / "broken", run.settings)
    with pytest.raises(CutError):
        broken.go(change=_cut_at(step))
    resumed, again = broken.go()
    assert again.resumed_from == step // 2 * 2
    assert same_weights(whole, resumed) and again.history == trained.history
    expected, found = _last_checkpoint(run), _last_checkpoint(broken)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    # Five steps passed before the image tower had its first gradient.
    assert expected["optimiser/towers.image.head.proj.weight/step"].item() == 4
    assert expected["optimiser/logit_scale/step"].item() == 9
    assert "ema/towers.image.head.proj.weight" in expected


def test_what_is_locked_stays_and_what_is_merged_bears_the_old_names(run: Run) -> None:
    run = run.with_settings(**{**_FINE, "ema": None})
    start = run.model()[0].state_dict()
    model, _ = run.go()
    assert has_lora(model)
    merge_lora(model)
    state = model.state_dict()
    assert state.keys() == start.keys()
    moved = {name for name in state if not torch.equal(state[name], start[name])}
    text = {name for name in moved if name.startswith("towers.text.")}
    assert "towers.text.encoder.text_projection" in text
    blocks = {"in_proj_weight", "out_proj.weight", "c_fc.weight", "c_proj.weight"}
    rest = text - {"towers.text.encoder.text_projection"}
    assert rest and all(name.endswith(tuple(blocks)) for name in rest)


def test_a_tower_locked_to_the_end_is_as_it_started(run: Run) -> None:
    towers = {"image": {"locked": True, "cache_features": False}}
    run = run.with_settings(towers=towers)
    start = run.model()[0].state_dict()
    state = run.go()[0].state_dict()
    moved = {name for name in state if not torch.equal(state[name], start[name])}
    assert moved and not any(name.startswith("towers.image.") for name in moved)
