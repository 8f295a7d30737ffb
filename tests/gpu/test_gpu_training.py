"""Training on a CUDA device in bf16: learns, repeats itself, and goes on after a cut."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_pairs import SMALL_MODEL, make_pairs

from coembed.files import sha256_tree
from coembed.models.settings import ModelSettings
from coembed.stages import train as stage
from coembed.training import data
from coembed.training.settings import TrainSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
VIT = {
    "architecture": {
        "embed_dim": 64,
        "vision_cfg": {
            "image_size": 32, "patch_size": 8, "layers": 3, "width": 64, "head_width": 32,
        },
        "text_cfg": {
            "context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2,
        },
    }
}  # fmt: skip


def config(model: dict[str, Any], **changes: Any) -> Any:
    values = {
        "epochs": None, "steps": 40, "batch_size": 64, "lr": 2e-3, "log_every": 10,
        "device": "cuda", "checkpoint": {"every_steps": 10},
    }  # fmt: skip
    return SimpleNamespace(
        seed=3,
        model=ModelSettings.model_validate(model),
        train=TrainSettings.model_validate({**values, **changes}),
    )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("gpu-training") / "pairs", train=256, val=64)


class CutError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("model", [SMALL_MODEL, VIT], ids=["convnet", "vit"])
@pytest.mark.filterwarnings("error:.*deterministic:UserWarning")
def test_learns_repeats_and_resumes(
    pairs: Path, tmp_path: Path, model: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(model)
    result = stage.run(
        cfg, root=tmp_path, pairs=pairs, out=tmp_path / "a/model", runs=tmp_path / "a/runs"
    )
    assert result.receipt["identity"]["precision"] == "bf16"
    last = result.receipt["last"]
    assert last["loss"] < 2.5 and last["mismatched_loss"] > last["loss"] + 1  # it has learnt

    stage.run(cfg, root=tmp_path, pairs=pairs, out=tmp_path / "b/model", runs=tmp_path / "b/runs")
    assert sha256_tree(tmp_path / "a/model") == sha256_tree(tmp_path / "b/model")

    make = data.Batches.micro_batch

    def cut(self: data.Batches, plan: data.Plan, first: int, last: int) -> data.MicroBatch:
        if plan.step == 25:
            raise CutError
        return make(self, plan, first, last)

    place = tmp_path / "c"
    with monkeypatch.context() as patch:
        patch.setattr(data.Batches, "micro_batch", cut)
        with pytest.raises(CutError):
            stage.run(cfg, root=tmp_path, pairs=pairs, out=place / "model", runs=place / "runs")
    table = dict(
        stage.run(cfg, root=tmp_path, pairs=pairs, out=place / "model", runs=place / "runs").rows
    )
    assert table["steps"] == "40 (taken up at 20)"
    assert sha256_tree(tmp_path / "a/model") == sha256_tree(place / "model")


def test_batches_arrive_in_pinned_memory_and_rates_are_logged(pairs: Path, tmp_path: Path) -> None:
    stage.run(
        config(VIT), root=tmp_path, pairs=pairs, out=tmp_path / "model", runs=tmp_path / "runs"
    )
    (log,) = (tmp_path / "runs/train").glob("*/log.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {10, 20, 30, 40} <= {line["step"] for line in lines}  # and one at each epoch's end


def test_fp32_close_to_the_processor(pairs: Path, tmp_path: Path) -> None:
    """Few steps, so that rounding has not grown: GPU and CPU compute the same thing."""
    losses = []
    for device in ("cpu", "cuda"):
        cfg = config(VIT, device=device, precision="fp32", steps=3, log_every=1)
        result = stage.run(
            cfg,
            root=tmp_path,
            pairs=pairs,
            out=tmp_path / device / "model",
            runs=tmp_path / device / "runs",
        )
        losses.append(result.receipt["last"]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
