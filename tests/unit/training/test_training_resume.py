from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import Run, same_weights, settings_of

from coembed.models.joint import JointModel
from coembed.training.data import Batches, MicroBatch, Plan
from coembed.training.distributed import World
from coembed.training.optim import build_optimiser
from coembed.training.resume import Checkpoints, State


class CutError(Exception):
    """Stands for the end of a process at a step."""


def cut_at(step: int, part: int = 0):
    """Something for `Run.go` that ends it when it asks for the pairs of `step` from `part` on."""

    def change(_: JointModel, batches: Batches) -> None:
        make = batches.micro_batch

        def cut(plan: Plan, first: int, last: int) -> MicroBatch:
            if plan.step == step and first == part:
                raise CutError
            return make(plan, first, last)

        batches.micro_batch = cut  # type: ignore[method-assign]

    return change


def final_tensors(run: Run) -> dict[str, torch.Tensor]:
    return load_file(sorted((run.folder / "run/checkpoints").glob("*.safetensors"))[-1])


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("step", "precision"), [(1, "fp32"), (5, "fp32"), (4, "bf16"), (8, "bf16")]
)
def test_a_run_cut_off_at_any_step_ends_the_same(
    run: Run, tmp_path: Path, step: int, precision: str
) -> None:
    run = run.with_settings(precision=precision, steps=9)
    whole, trained = run.go()
    expected = final_tensors(run)
    broken = Run(run.pairs, tmp_path / "broken", run.settings)
    with pytest.raises(CutError):
        broken.go(change=cut_at(step))
    resumed, again = broken.go()
    assert again.resumed_from == step // 2 * 2
    assert same_weights(whole, resumed)
    assert again.history == trained.history
    assert equal(final_tensors(broken), expected)
    assert any(name.endswith("exp_avg_sq") for name in expected)


def test_the_same_run_twice_is_the_same_and_another_seed_is_not(run: Run, tmp_path: Path) -> None:
    one, _ = run.go()
    two, _ = Run(run.pairs, tmp_path / "two", run.settings).go()
    other, _ = Run(run.pairs, tmp_path / "three", run.settings, seed=8).go()
    assert same_weights(one, two) and not same_weights(one, other)


def test_a_finished_run_is_taken_as_it_is(run: Run) -> None:
    one, _ = run.go()
    again, trained = run.go()
    assert trained.resumed_from == 6 and same_weights(one, again)


def test_how_often_state_is_saved_changes_nothing(run: Run, tmp_path: Path) -> None:
    one, _ = run.go()
    rare = Run(run.pairs, tmp_path / "rare", settings_of(checkpoint={"every_steps": None}))
    two, _ = rare.go()
    assert same_weights(one, two)


@pytest.fixture
def cut_run(run: Run) -> Run:
    """A run cut off with checkpoints of step 2 and 4."""
    with pytest.raises(CutError):
        run.go(change=cut_at(5))
    return run


def checkpoint(run: Run, name: str) -> Path:
    return run.folder / "run/checkpoints" / name


@pytest.mark.parametrize("damage", ["truncate", "flip", "missing", "json", "edited"])
def test_a_damaged_checkpoint_is_passed_over(
    cut_run: Run, damage: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tensors = checkpoint(cut_run, "step-000000004.safetensors")
    about = tensors.with_suffix(".json")
    if damage == "truncate":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    elif damage == "flip":
        data = bytearray(tensors.read_bytes())
        data[len(data) // 2] ^= 1
        tensors.write_bytes(data)
    elif damage == "missing":
        tensors.unlink()
    elif damage == "json":
        about.write_text(about.read_text()[:50])
    else:
        values = json.loads(about.read_text())
        about.write_text(json.dumps({**values, "step": 3}))
    resumed, trained = cut_run.go()
    assert trained.resumed_from == 2
    assert "passing over the damaged checkpoint" in capsys.readouterr().err
    whole, _ = Run(cut_run.pairs, tmp_path / "whole", cut_run.settings).go()
    assert same_weights(whole, resumed)


def test_with_no_sound_checkpoint_a_run_starts_over(cut_run: Run) -> None:
    for path in checkpoint(cut_run, "").glob("*.safetensors"):
        path.write_bytes(b"")
    _, trained = cut_run.go()
    assert trained.resumed_from == 0


def test_old_checkpoints_and_leftovers_go(run: Run) -> None:
    leftover = checkpoint(run, ".step-000000002.safetensors.1234.partial")
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    orphan = checkpoint(run, "step-000000001.safetensors")
    orphan.write_bytes(b"without its json")
    run.go()
    names = sorted(path.name for path in leftover.parent.iterdir())
    assert names == [
        f"step-00000000{step}.{ending}" for step in (4, 6) for ending in ("json", "safetensors")
    ]


def test_state_and_moments_survive_the_round_trip(run: Run, tmp_path: Path) -> None:
    model, _ = run.model()
    optimiser = build_optimiser(model, run.settings, num_steps=6)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    model.logit_scale.grad = None  # one that has had no gradient has no moments
    optimiser.step()
    state = State(3, [{"step": 3, "loss": 0.1 + 0.2, "x": None}], [1 / 3])
    Checkpoints(tmp_path, keep=1, world=World()).save(state, model, optimiser, None)
    other, _ = Run(run.pairs, run.folder, run.settings, seed=99).model()
    other = other.to(memory_format=torch.channels_last)
    their = build_optimiser(other, run.settings, num_steps=6)
    assert Checkpoints(tmp_path, keep=1, world=World()).load(other, their, None) == state
    assert same_weights(model, other)
    for mine, yours in zip(model.parameters(), other.parameters(), strict=True):
        assert optimiser.state[mine].keys() == their.state[yours].keys()
        for key, value in optimiser.state[mine].items():
            assert torch.equal(value, their.state[yours][key])
            if key != "step":
                assert their.state[yours][key].stride() == yours.stride()


def test_a_damaged_checkpoint_does_not_count_among_those_that_are_kept(run: Run) -> None:
    run = run.with_settings(checkpoint={"every_steps": 2, "keep": 1})
    with pytest.raises(CutError):
        run.go(change=cut_at(3))
    ahead = checkpoint(run, "step-000000005.json")
    ahead.write_text("{")
    with pytest.raises(CutError):
        run.go(change=cut_at(5))
    _, trained = run.go()
    assert trained.resumed_from == 4
