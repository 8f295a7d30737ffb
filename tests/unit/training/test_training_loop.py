from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import Run, same_weights, settings_of

from coembed.errors import ConfigError, DataError
from coembed.modalities.image import normalise
from coembed.models.joint import JointModel
from coembed.training.data import Batches, MicroBatch, Plan
from coembed.training.optim import learning_rate


def test_agrees_with_a_plain_loop(run: Run) -> None:
    """The same six steps again with torch's own unfused AdamW and clipping, written out."""
    run = run.with_settings(grad_clip=0.5, steps=4)
    trained_model, trained = run.go()
    settings = run.settings
    model, spec = run.model()
    batches = run.batches(spec)
    spared = model.no_weight_decay()
    named = dict(model.named_parameters())
    optimiser = torch.optim.AdamW(
        [
            {
                "params": [p for name, p in named.items() if name not in spared],
                "weight_decay": settings.weight_decay,
            },
            {"params": [p for name, p in named.items() if name in spared], "weight_decay": 0.0},
        ],
        lr=1.0, betas=settings.betas, eps=settings.eps, fused=False, foreach=False,
    )  # fmt: skip
    model.train()
    losses = []
    for step in range(4):
        plan = batches.plan(step)
        batch = batches.micro_batch(plan, 0, 8)
        za = model.embed("image", normalise(batch.media, spec.image.mean, spec.image.std))
        zb = model.embed("text", batch.texts)
        logits = model.logit_scale.exp() * za @ zb.T
        if plan.positives is not None:
            logits = logits.index_put(tuple(plan.positives.T), torch.tensor(-1e30))
        diagonal = torch.arange(8)
        loss = torch.nn.functional.cross_entropy(logits, diagonal) / 2
        loss = loss + torch.nn.functional.cross_entropy(logits.T, diagonal) / 2
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, 4, settings)
        optimiser.step()
        losses.append(loss.item())
    assert trained.history[-1]["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert trained.history[-1]["grad_norm"] == pytest.approx(norm.item(), rel=1e-2)
    for name, p in model.named_parameters():
        assert torch.allclose(p, dict(trained_model.named_parameters())[name], atol=2e-4), name


def test_learns_to_tell_pairs_apart(run: Run) -> None:
    run = run.with_settings(steps=60, batch_size=16, log_every=20)
    _, trained = run.go()
    first, last = trained.history[0], trained.history[-1]
    assert last["loss"] is not None and first["loss"] is not None
    assert last["loss"] < 1.0 < first["loss"]
    assert last["mismatched_loss"] is not None and last["mismatched_loss"] > math.log(16)


def test_history_has_a_row_every_so_often_and_at_the_end(run: Run) -> None:
    run = run.with_settings(steps=14, log_every=4)
    seen: list[int] = []

    def validate(model: JointModel) -> dict[str, float]:
        assert model.training
        seen.append(1)
        return {"val_recall_at_10": 0.5}

    _, trained = run.go(validate=validate)
    rows = trained.history
    assert [row["step"] for row in rows] == [4, 6, 8, 12, 14]  # an epoch is 6 steps
    assert [row["epoch"] for row in rows] == [0.6667, 1.0, 1.3333, 2.0, 2.3333]
    assert ["val_recall_at_10" in row for row in rows] == [False, True, False, True, True]
    assert len(seen) == 3


def test_log_holds_the_rates(run: Run) -> None:
    run.go()
    lines = [json.loads(line) for line in (run.folder / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 6]
    assert all(line["pairs_per_s"] > 0 and 0 <= line["wait_share"] <= 1 for line in lines)


def spoil(step: int, what: str):
    """Make the loss or the gradient of `step` infinite."""

    def change(model: JointModel, batches: Batches) -> None:
        make = batches.micro_batch

        def hook(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
            if what == "loss":
                return output * float("nan")
            # Forward this adds nothing; backward the slope of the root at zero is infinite.
            return output + (output * 0).sqrt()

        def spoiled(number: int) -> MicroBatch:
            if number == step:
                model.towers["text"].register_forward_hook(hook)
            return make(batches.plan(number), 0, 8)

        batches.ahead = lambda start, **_: (  # type: ignore[method-assign,assignment,misc]
            spoiled(i) for i in range(start, batches.num_steps)
        )

    return change


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_stops_before_a_step_that_is_not_finite(run: Run, what: str, tmp_path: Path) -> None:
    models: list[JointModel] = []

    def change(model: JointModel, batches: Batches) -> None:
        models.append(model)
        spoil(2, what)(model, batches)

    with pytest.raises(DataError, match=rf"the {what} of step 3 is (nan|inf)") as caught:
        run.go(change=change)
    _, spec = run.model()
    batches = run.batches(spec)
    ids = batches.streams["image"].items.item_ids(batches.plan(2).rows)
    assert ids[0] in str(caught.value)
    report = json.loads((run.folder / "run/non-finite-step-3.json").read_text())
    assert report["item_ids"] == ids
    assert "lower train.lr" in str(caught.value)
    short = Run(run.pairs, tmp_path / "short", run.settings)

    def two_steps(_: JointModel, batches: Batches) -> None:
        batches.num_steps = 2

    # The weights are those after two steps, running statistics of norms aside.
    after_two, _ = short.go(change=two_steps)
    expected = dict(after_two.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in models[0].named_parameters())


def test_scale_stays_below_its_limit(run: Run) -> None:
    model, trained = run.with_settings(max_logit_scale=5.0).go()
    assert model.logit_scale.item() <= math.log(5.0) + 1e-6
    free, _ = Run(run.pairs, run.folder / "free", settings_of(max_logit_scale=None)).go()
    assert free.logit_scale.item() > math.log(5.0)
    assert all(row["logit_scale"] <= 5.0001 for row in trained.history)  # type: ignore[operator]


def test_warns_when_nothing_is_learnt(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    def blind(_: JointModel, batches: Batches) -> None:
        make = batches.micro_batch

        def grey(plan: Plan, first: int, last: int) -> MicroBatch:
            batch = make(plan, first, last)
            return replace(batch, media=torch.full_like(batch.media, 128))

        batches.micro_batch = grey  # type: ignore[method-assign]

    run.with_settings(steps=20, warmup=2, log_every=4).go(change=blind)
    said = capsys.readouterr().err
    assert said.count("does not tell pairs apart") == 1 and "ln(8) = 2.079" in said


def test_does_not_warn_when_it_learns(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.with_settings(steps=40, warmup=2, log_every=10).go()
    assert "does not tell" not in capsys.readouterr().err


def test_sigmoid_needs_a_bias(run: Run) -> None:
    with pytest.raises(ConfigError, match="needs a logit bias"):
        run.with_settings(loss={"name": "sigmoid"}).go()


def test_leaves_torch_as_it_was(run: Run) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run.with_settings(num_threads=2, steps=1).go()
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == 1


def test_dropout_follows_from_seed_and_step(run: Run, tmp_path: Path) -> None:
    """Whatever was drawn before, and wherever the run was taken up, a step drops the same units."""

    def with_dropout(model: JointModel, _: Batches) -> None:
        tower = model.towers["text"]
        tower.register_forward_hook(lambda _, __, output: torch.nn.functional.dropout(output, 0.3))
        torch.rand(np.random.default_rng().integers(1, 50))

    one, _ = run.go(change=with_dropout)
    half = Run(run.pairs, tmp_path / "half", run.settings)

    def stops(model: JointModel, batches: Batches) -> None:
        with_dropout(model, batches)
        make = batches.micro_batch

        def cut(plan: Plan, first: int, last: int) -> MicroBatch:
            if plan.step == 4:
                raise InterruptedError
            return make(plan, first, last)

        batches.micro_batch = cut  # type: ignore[method-assign]

    with pytest.raises(InterruptedError):
        half.go(change=stops)
    two, trained = half.go(change=with_dropout)
    without, _ = Run(run.pairs, tmp_path / "without", run.settings).go()
    assert trained.resumed_from == 4
    assert same_weights(one, two) and not same_weights(one, without)


def test_precision_is_bf16_where_asked(run: Run) -> None:
    fp32, _ = run.go()
    bf16, _ = Run(run.pairs, run.folder / "b", settings_of(precision="bf16")).go()
    assert not same_weights(fp32, bf16)
    assert all(p.dtype == torch.float32 for p in bf16.parameters())
