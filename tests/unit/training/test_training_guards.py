"""What stops a training, and what it is warned of."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from coembed.errors import DataError
from coembed.training.guards import Watch, non_finite
from coembed.training.settings import TrainSettings

_IDS = [f"item-{number}" for number in range(11)]


def test_a_step_that_is_not_finite_is_told_whole(tmp_path: Path) -> None:
    report = tmp_path / "run" / "non-finite-step-7.json"
    error = non_finite(
        "loss", math.nan, step=7, lr=1e-3, scale=14.5, item_ids=_IDS, report=report,
        precision="bf16",
    )  # fmt: skip
    assert isinstance(error, DataError)
    assert error.message == (
        "the loss of step 7 is nan; the weights were left as they were. lr 0.001, logit scale "
        "14.5, precision bf16; items: item-0, item-1, item-2, item-3, item-4, item-5, item-6, "
        f"item-7 and 3 more (all 11 items are in {report})"
    )
    assert error.hint is not None
    assert "train.grad_clip" in error.hint
    assert json.loads(report.read_text(encoding="utf-8"), parse_constant=pytest.fail) == {
        "what": "loss", "value": "nan", "step": 7, "lr": 1e-3, "logit_scale": 14.5,
        "precision": "bf16", "loss": "nan", "item_ids": _IDS,
    }  # fmt: skip


def test_a_gradient_that_is_not_finite_tells_the_loss(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    error = non_finite(
        "gradient", math.inf, step=1, lr=1.0, scale=math.inf, item_ids=_IDS[:2], report=report,
        precision="fp32", loss=2.5,
    )  # fmt: skip
    assert "items: item-0, item-1 (all 2 items" in error.message
    found = json.loads(report.read_text(encoding="utf-8"))
    assert (found["value"], found["loss"], found["logit_scale"]) == ("inf", 2.5, "inf")


def test_a_report_that_cannot_be_written_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    report = tmp_path / "file" / "report.json"
    error = non_finite("loss", math.nan, step=1, lr=1, scale=1, item_ids=_IDS, report=report)
    assert "the loss of step 1 is nan" in error.message
    assert "report.json could not be written" in error.message


def _watch() -> Watch:
    settings = TrainSettings(log_every=10, max_logit_scale=100.0, batch_size=64)
    return Watch(settings, 20, settings.batch_size)


def test_a_model_that_does_not_tell_pairs_apart_is_named_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    watch = _watch()
    flat = {"loss": 4.16, "mismatched_loss": 4.16}
    for step in (10, 20):  # within the warm-up
        watch.look(step, flat)
    assert capsys.readouterr().err == ""
    for step in (30, 40):
        watch.look(step, flat)
    said = capsys.readouterr().err
    assert said.startswith("warning: after 30 steps the model does not tell pairs apart: the loss")
    assert "ln(64) = 4.159" in said
    assert "train.lr" in said
    assert said.count("warning") == 1


def test_the_loss_of_the_same_batch_is_what_wrong_pairs_are_held_against(
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = {"loss": 4.2, "mismatched_loss": 4.2, "mean_cosine_item": 0.9, "logit_scale": 14.0}
    watch = _watch()
    watch.look(30, row, batch_loss=3.0)
    watch.look(35, {"loss": 4.2, "mismatched_loss": None, "val_recall_at_10": 0.1})
    assert capsys.readouterr().err == ""
    watch.look(40, row, batch_loss=4.19)
    assert "the loss is 4.190" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("column", "side"), [("mean_cosine_item", "items"), ("mean_cosine_text", "captions")]
)
def test_a_collapse_is_named_once_it_lasts(
    capsys: pytest.CaptureFixture[str], column: str, side: str
) -> None:
    watch = _watch()
    row = {"mean_cosine_item": 0.5, "mean_cosine_text": 0.5}
    fallen = {**row, column: 0.9951}
    for step, seen in ((10, fallen), (20, fallen), (30, fallen), (40, row), (50, fallen)):
        watch.look(step, seen)
    assert capsys.readouterr().err == ""
    for step in (60, 70):
        watch.look(step, fallen)
    said = capsys.readouterr().err
    assert f"at step 60 the embeddings of different {side} are all but the same" in said
    assert "mean cosine is 0.9951" in said
    assert said.count("warning") == 1


def test_a_scale_that_stays_at_its_maximum_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    watch = _watch()
    for step in range(10, 2000, 10):
        watch.look(step, {"logit_scale": 50.0 if step < 500 else 99.9999})
        if step < 1000:
            assert capsys.readouterr().err == ""
    said = capsys.readouterr().err
    assert "at its maximum, 100, since step 500, half of the run so far (step 1000)" in said
    assert said.count("warning") == 1


def test_a_scale_that_touches_its_maximum_or_starts_there_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    touching, fine_tuned = _watch(), _watch()
    for step in range(10, 2000, 10):
        touching.look(step, {"logit_scale": 90.0 if step % 100 == 0 else 100.0})
        fine_tuned.look(step, {"logit_scale": 100.0})
    unbounded = Watch(TrainSettings(max_logit_scale=None), 0, 64)
    unbounded.look(1000, {"logit_scale": 1e6})
    assert capsys.readouterr().err == ""
