"""A step in micro-batches is the step of the whole batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import Run, same_weights, settings_of

from coembed.losses.base import Loss
from coembed.training.data import MicroBatch
from coembed.training.distributed import World
from coembed.training.optim import build_optimiser
from coembed.training.step import Stepper

# Without batch norm, whose statistics are a micro-batch's own, the two agree to rounding.
VIT = {
    "architecture": {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16,
        },
        "text_cfg": {
            "context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1,
        },
    },
    "init_logit_bias": -2.0,
}  # fmt: skip


def gradients(run: Run, **changes: Any) -> dict[str, torch.Tensor]:
    """What the first step adds up, before any update."""
    run = run.with_settings(**changes)
    model, spec = run.model()
    model.train()
    batches = run.batches(spec)
    optimiser = build_optimiser(model, run.settings, num_steps=6)
    loss: Loss = run.settings.loss.build()  # type: ignore[attr-defined]
    stepper = Stepper(
        model, spec, optimiser, loss, batches, run.settings, device=torch.device("cpu"),
        precision="fp32", seed=1, run_folder=run.folder, world=World(),
    )  # fmt: skip
    found: dict[str, torch.Tensor] = {}

    def keep(*_: Any, **__: Any) -> None:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[name] = parameter.grad.clone()

    optimiser.step = keep  # type: ignore[method-assign,assignment]
    feed: Iterator[MicroBatch] = batches.ahead(0)
    outcome = stepper(batches.plan(0), feed, 1e-3, logged=True)
    feed.close()  # type: ignore[attr-defined]
    assert outcome.mismatched_loss is not None and outcome.seen
    found["loss"] = torch.tensor(outcome.loss)
    return found


@pytest.mark.parametrize("loss", ["softmax", "sigmoid", "triplet"])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_the_gradients_of_micro_batches_are_the_whole_batch_s(
    pairs: Path, tmp_path: Path, loss: str, size: int
) -> None:
    run = Run(pairs, tmp_path, settings_of(), architecture=VIT)
    common: dict[str, Any] = {"loss": {"name": loss}, "batch_size": 12, "grad_clip": None}
    whole = gradients(run, **common)
    parts = gradients(run, micro_batch_size=size, **common)
    assert whole.keys() == parts.keys()
    scale = max(float(grad.abs().max()) for grad in whole.values())
    for name, grad in whole.items():
        assert float((grad - parts[name]).abs().max()) <= 1e-5 * max(1.0, scale), name
    if loss != "triplet":
        assert "logit_scale" in whole
    if loss == "sigmoid":
        assert "logit_bias" in whole


def test_running_statistics_move_once_a_step(run: Run, tmp_path: Path) -> None:
    """The first pass of gradient caching must not move the norms' statistics too."""
    one, _ = run.with_settings(steps=1).go()
    cached, _ = Run(run.pairs, tmp_path / "b", settings_of(steps=1, micro_batch_size=4)).go()
    counted = {n: b for n, b in cached.named_buffers() if n.endswith("num_batches_tracked")}
    assert counted and all(int(number) == 2 for number in counted.values())
    counted = {n: b for n, b in one.named_buffers() if n.endswith("num_batches_tracked")}
    assert all(int(number) == 1 for number in counted.values())


def test_dropout_is_the_same_in_both_passes(pairs: Path, tmp_path: Path) -> None:
    """With dropout in the tower, the second pass must drop what the first one dropped."""
    run = Run(pairs, tmp_path, settings_of(micro_batch_size=3, steps=2), architecture=VIT)
    seen: dict[tuple[int, int], list[torch.Tensor]] = {}

    def watch(model: Any, batches: Any) -> None:
        make = batches.micro_batch
        current: list[tuple[int, int]] = []

        def told(plan: Any, first: int, last: int) -> Any:
            return make(plan, first, last)

        batches.micro_batch = told
        tower = model.towers["image"]

        def drop(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
            dropped = torch.nn.functional.dropout(output, 0.5)
            seen.setdefault((len(output), int(output.sum() * 1e4)), []).append(dropped.detach())
            return dropped

        tower.register_forward_hook(drop)
        del current

    run.go(change=watch)
    twice = [found for found in seen.values() if len(found) == 2]
    assert len(twice) >= 2
    assert all(torch.equal(first, second) for first, second in twice)


def test_a_run_in_micro_batches_repeats_itself(run: Run, tmp_path: Path) -> None:
    run = run.with_settings(micro_batch_size=3)
    one, _ = run.go()
    two, _ = Run(run.pairs, tmp_path / "two", run.settings).go()
    assert same_weights(one, two)
