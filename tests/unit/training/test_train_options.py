"""The options of training, each through the stage: what it changes and what it must not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_pairs import SMALL_MODEL, make_pairs, make_samples
from training_runs import Run, settings_of

from coembed.errors import ConfigError, DataError, ModelError
from coembed.files import read_receipt, write_receipt
from coembed.models.checkpoint import load_model
from coembed.models.settings import ModelSettings
from coembed.pairs.shards import ShardWriter
from coembed.stages import train as stage
from coembed.stages.result import Result
from coembed.training.optim import locked_to_the_end

VIT = {
    "architecture": {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16,
        },
        "text_cfg": {
            "context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1,
        },
    }
}  # fmt: skip


def go(
    pairs: Path, place: Path, *, model: dict[str, Any] = SMALL_MODEL, **changes: Any
) -> tuple[Result, dict[str, torch.Tensor]]:
    cfg: Any = SimpleNamespace(
        seed=3, model=ModelSettings.model_validate(model), train=settings_of(**changes)
    )
    result = stage.run(cfg, root=place, pairs=pairs, out=place / "model", runs=place / "runs")
    return result, load_file(place / "model/model.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def plain(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return go(pairs, tmp_path_factory.mktemp("plain"))[1]


def test_where_the_pictures_come_from_changes_nothing(
    pairs: Path, tmp_path: Path, plain: dict[str, torch.Tensor]
) -> None:
    result, weights = go(pairs, tmp_path, cache={"mode": "shards", "num_threads": 3})
    assert "from the shards" in dict(result.rows)["data"]
    assert equal(weights, plain)


def test_a_locked_tower_stays_and_runs_once(pairs: Path, tmp_path: Path) -> None:
    result, weights = go(pairs, tmp_path, towers={"image": {"locked": True}})
    assert "frozen tower" in dict(result.rows)["data"]
    _, start = go(pairs, tmp_path / "s", steps=1, lr=1e-12)
    image = [name for name in weights if name.startswith("towers.image.")]
    assert all(
        torch.allclose(weights[name], start[name], atol=1e-6)
        for name in image
        if "running" not in name and "num_batches" not in name
    )
    assert any(not torch.equal(weights[n], start[n]) for n in weights if "towers.text" in n)


def test_cached_features_train_the_other_tower_alike(pairs: Path, tmp_path: Path) -> None:
    """Without random changes, running the locked tower in every step gives the same."""
    augment = {"image": {"crop_area": 1.0, "flip": False}}
    _, cached = go(pairs, tmp_path / "a", towers={"image": {"locked": True}}, augment=augment)
    running = {"image": {"locked": True, "cache_features": False}}
    _, each = go(pairs, tmp_path / "b", towers=running, augment=augment)
    for name, tensor in cached.items():
        assert torch.allclose(tensor, each[name], atol=2e-5), name


def test_a_tower_unlocks_when_it_should(pairs: Path, tmp_path: Path) -> None:
    _, late = go(pairs, tmp_path / "a", towers={"image": {"locked": True, "unlock_at": 4}})
    _, never = go(pairs, tmp_path / "b", towers={"image": {"locked": True, "unlock_at": 6}})
    assert not equal(late, never)
    assert locked_to_the_end(settings_of(towers={"image": {"locked": True}}), 6) == {"image"}


@pytest.mark.parametrize("loss", ["sigmoid", "triplet"])
def test_every_loss_trains(
    pairs: Path, tmp_path: Path, plain: dict[str, torch.Tensor], loss: str
) -> None:
    model = {**SMALL_MODEL, "init_logit_bias": -10.0, "init_logit_scale": 2.3}
    _, weights = go(pairs, tmp_path, model=model, loss={"name": loss})
    text = "towers.text.encoder.text_projection"
    assert torch.isfinite(weights[text]).all() and not torch.equal(weights[text], plain[text])


def test_a_student_takes_after_its_teacher(pairs: Path, tmp_path: Path) -> None:
    """Distilled from a trained model alone, a student comes closer to it than it was."""
    go(pairs, tmp_path / "teacher", steps=60, batch_size=16)
    teacher, _ = load_model(tmp_path / "teacher/model")
    loss = {"name": "distillation", "teacher": "teacher/model", "weight": 1.0}
    student = {"batch_size": 16, "lr": 2e-3, "loss": loss}

    def gap(place: Path) -> float:
        """How far the similarities of pictures and captions are from the teacher's."""
        model, spec = load_model(place / "model")
        run = Run(pairs, tmp_path / "gap", settings_of())
        (stream,) = run.streams(spec, "val")
        found = []
        for each in (teacher, model):
            rows = torch.arange(16).numpy()
            pixels = torch.from_numpy(
                stream.media.fetch(rows, stream.items.keys[rows], seed=0, epoch=0)
            )
            tokens = torch.from_numpy(stream.items.tokens[:16].astype("int64"))
            with torch.no_grad():
                za = each.embed("image", spec.loader("image").to_inputs(pixels))
                zb = each.embed("text", tokens)
            found.append(torch.softmax(10 * za @ zb.T, dim=1))
        return float((found[0] - found[1]).abs().mean())

    for steps in (1, 60):
        cfg: Any = SimpleNamespace(
            seed=9, model=ModelSettings.model_validate(SMALL_MODEL),
            train=settings_of(**student, steps=steps),
        )  # fmt: skip
        stage.run(
            cfg, root=tmp_path, pairs=pairs, out=tmp_path / f"s{steps}/model",
            runs=tmp_path / f"s{steps}/runs",
        )  # fmt: skip
    assert gap(tmp_path / "s60") < 0.8 * gap(tmp_path / "s1")


def test_a_teacher_that_is_not_there(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model directory is there") as caught:
        go(pairs, tmp_path, loss={"name": "distillation", "teacher": "nowhere"})
    assert "coembed fetch" in str(caught.value)


def test_averaged_weights_are_what_is_saved(
    pairs: Path, tmp_path: Path, plain: dict[str, torch.Tensor]
) -> None:
    _, averaged = go(pairs, tmp_path, ema=0.9)
    assert averaged.keys() == plain.keys() and not equal(averaged, plain)


def test_adapters_are_merged_into_what_is_saved(pairs: Path, tmp_path: Path) -> None:
    towers = {"image": {"lora": {"rank": 2}}}
    _, weights = go(pairs, tmp_path, model=VIT, towers=towers, lr=0.05)
    model, _ = load_model(tmp_path / "model")
    assert set(weights) == set(model.state_dict())
    block = "towers.image.transformer.resblocks.0.mlp.c_fc"
    _, start = go(pairs, tmp_path / "start", model=VIT, steps=1, lr=1e-12)
    assert not torch.allclose(weights[f"{block}.weight"], start[f"{block}.weight"], atol=1e-5)
    assert torch.allclose(weights[f"{block}.bias"], start[f"{block}.bias"], atol=1e-6)


def looking(run: Run, values: list[float], tmp_path: Path, **changes: Any) -> tuple[Any, list[int]]:
    """A run whose looks at the val split find `values`."""
    run = replace(run.with_settings(steps=30, batch_size=8, **changes), folder=tmp_path)
    steps: list[int] = []

    def validate(_: Any) -> dict[str, float]:
        steps.append(len(steps))
        return {"val_recall_at_10": values[len(steps) - 1]}

    _, trained = run.go(validate=validate, headline="val_recall_at_10")
    return trained, steps


def test_stops_where_nothing_is_gained(run: Run, tmp_path: Path) -> None:
    stopping = {"patience": 2, "min_gain": 0.01}
    trained, looks = looking(
        run, [0.2, 0.3, 0.305, 0.29, 0.9], tmp_path, early_stopping=stopping, save_weights="best"
    )
    assert len(looks) == 4 and trained.num_steps == 24
    assert trained.best is not None and trained.best.step == 18  # the highest, gain or not
    again, looks = looking(run, [], tmp_path, early_stopping=stopping, save_weights="best")
    assert not looks and again.num_steps == 24 and again.history == trained.history


def test_keeps_the_best_weights(run: Run, tmp_path: Path) -> None:
    trained, _ = looking(run, [0.2, 0.5, 0.4, 0.3, 0.1], tmp_path, save_weights="best")
    assert trained.num_steps == 30 and trained.best is not None and trained.best.step == 12
    (best,) = (tmp_path / "run/checkpoints").glob("best-*")
    assert best.name == "best-000000012.safetensors"


def test_best_weights_need_looks() -> None:
    with pytest.raises(ValueError, match="save_weights: best needs looks at the val split"):
        settings_of(save_weights="best", validate_every_epochs=None)


def test_fp16_needs_cuda(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fp16, which needs CUDA"):
        go(pairs, tmp_path, precision="fp16")


def test_hard_negatives_reach_the_loss(tmp_path: Path) -> None:
    """A column of captions that do not fit: every item has one, and training sees it."""
    pairs = make_pairs(tmp_path / "pairs", train=1, val=0)
    (old,) = pairs.glob("train-*.tar")
    old.unlink()
    samples = [
        replace(sample, attributes={"negative": f"not {sample.captions[0]}"} if i % 3 else {})
        for i, sample in enumerate(make_samples(24, seed=4))
    ]
    with ShardWriter(pairs, "train", max_samples=50, max_bytes=1 << 30) as writer:
        for sample in samples:
            writer.write(sample)
    receipt = read_receipt(pairs, what="pairs", made_by="")
    shards = [shard.as_dict() for shard in writer.shards]
    receipt["splits"]["train"] = {"num_items": 24, "shards": shards}
    write_receipt(pairs, receipt)
    _, without = go(pairs, tmp_path / "a")
    _, with_them = go(pairs, tmp_path / "b", hard_negatives="negative")
    _, cached = go(pairs, tmp_path / "c", hard_negatives="negative", micro_batch_size=3, model=VIT)
    _, whole = go(pairs, tmp_path / "d", hard_negatives="negative", model=VIT)
    assert not equal(without, with_them)
    assert all(torch.allclose(cached[n], whole[n], atol=2e-4) for n in whole)


def test_another_architecture_in_the_same_file_is_another_run(pairs: Path, tmp_path: Path) -> None:
    """Its path stays and its weights have the same shapes, so neither tells the two apart."""
    file = tmp_path / "model.json"
    file.write_text(json.dumps(VIT["architecture"]))
    model = {"architecture": "model.json"}
    go(pairs, tmp_path, model=model)
    file.write_text(json.dumps({**VIT["architecture"], "quick_gelu": True}))
    result, _ = go(pairs, tmp_path, model=model)
    assert "taken up" not in dict(result.rows)["steps"]


def test_best_weights_need_a_val_split(tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path / "pairs", train=10, val=0)
    with pytest.raises(ConfigError, match="the val split holds no items"):
        go(pairs, tmp_path, save_weights="best")


def test_a_column_that_nobody_has_is_refused(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'nope', in which no item"):
        go(pairs, tmp_path, hard_negatives="nope")


def test_recomputing_batch_norms_is_refused(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the image tower has batch norms"):
        go(pairs, tmp_path, activation_checkpointing=True)
    result, _ = go(pairs, tmp_path, model=VIT, activation_checkpointing=True)
    _, plain = go(pairs, tmp_path / "plain", model=VIT)
    weights = load_file(tmp_path / "model/model.safetensors")
    assert all(torch.allclose(weights[name], plain[name], atol=1e-5) for name in plain)
    assert dict(result.rows)["steps"] == "6"
