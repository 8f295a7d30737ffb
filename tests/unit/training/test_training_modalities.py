"""Pictures and sounds in one training: they meet through their captions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_pairs import HEARING_MODEL, make_pairs
from training_runs import Run, same_weights, settings_of

from coembed.training.validation import validate

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed") / "pairs"
    return make_pairs(folder, sounds=(24, 12))


@pytest.fixture
def hearing(mixed: Path, tmp_path: Path) -> Run:
    return Run(mixed, tmp_path, settings_of(), architecture=HEARING_MODEL)


def test_all_three_towers_learn(hearing: Run) -> None:
    model, _ = hearing.model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    trained, _ = hearing.go()
    for modality in ("image", "text", "audio"):
        names = [n for n in before if n.startswith(f"towers.{modality}.")]
        changed = [n for n in names if not torch.equal(before[n], trained.get_parameter(n))]
        assert len(changed) > len(names) / 2, modality


def test_sounds_are_told_apart(hearing: Run) -> None:
    run = hearing.with_settings(steps=60, batch_size=12, log_every=20, mix={"image": 1, "audio": 2})
    model, spec = run.model()
    streams = run.streams(spec, "val")
    found = validate(3, model, spec, streams, device=CPU, precision="fp32")
    assert set(found) == {f"val_recall_at_3{end}" for end in ("", "_image", "_audio")}
    trained, _ = run.go()
    better = validate(3, trained, spec, streams, device=CPU, precision="fp32")
    assert better["val_recall_at_3_audio"] > found["val_recall_at_3_audio"] + 0.2
    mean = (better["val_recall_at_3_audio"] + better["val_recall_at_3_image"]) / 2
    assert better["val_recall_at_3"] == pytest.approx(mean)


def test_a_cut_off_run_of_both_ends_the_same(hearing: Run, tmp_path: Path) -> None:
    run = hearing.with_settings(micro_batch_size=3)
    whole, trained = run.go()
    broken = Run(run.pairs, tmp_path / "broken", run.settings, architecture=HEARING_MODEL)

    with pytest.MonkeyPatch.context() as patch:
        make = type(run.batches(run.model()[1])).micro_batch

        def stop(self: object, plan: object, first: int, last: int) -> object:
            if plan.step == 5 and first == 3:  # type: ignore[attr-defined]
                raise InterruptedError
            return make(self, plan, first, last)  # type: ignore[arg-type]

        patch.setattr("coembed.training.data.Batches.micro_batch", stop)
        with pytest.raises(InterruptedError):
            broken.go()
    again, resumed = broken.go()
    assert resumed.resumed_from == 4
    assert same_weights(whole, again) and resumed.history == trained.history


def test_what_becomes_of_gradients_is_said_by_tower(hearing: Run) -> None:
    _, trained = hearing.with_settings(log_every=1, steps=8).go()
    heard = [row.get("grad_norm_audio") is not None for row in trained.history]
    seen = [row.get("grad_norm_image") is not None for row in trained.history]
    assert any(heard) and any(seen)
    assert all(row["grad_norm_text"] for row in trained.history)
