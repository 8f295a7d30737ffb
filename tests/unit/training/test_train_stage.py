from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_pairs import SMALL_MODEL, make_pairs
from training_runs import settings_of

from coembed.errors import DataError, ServiceError
from coembed.files import read_json, sha256_tree
from coembed.models.checkpoint import load_model
from coembed.models.settings import ModelSettings
from coembed.stages import train as stage
from coembed.stages.result import Result


def config(**changes: Any) -> Any:
    """What of a Config the stage reads."""
    model = ModelSettings.model_validate(SMALL_MODEL)
    return SimpleNamespace(seed=3, model=model, train=settings_of(**changes))


def go(pairs: Path, place: Path, *, name: str = "model", **changes: Any) -> Result:
    return stage.run(
        config(**changes), root=place, pairs=pairs, out=place / name, runs=place / "runs"
    )


def test_writes_a_model_that_loads(pairs: Path, tmp_path: Path) -> None:
    result = go(pairs, tmp_path)
    out = tmp_path / "model"
    assert {path.name for path in out.iterdir()} == {
        "model.safetensors", "model.json", "history.csv", "trained_on.parquet", "receipt.json",
    }  # fmt: skip
    model, spec = load_model(out)
    assert spec.image.px == 32 and not model.training
    identity = read_json(out / "model.json", what="model")["identity"]
    assert identity["seed"] == 3 and len(identity["pairs"]) == len(identity["code"]) == 64
    rows = list(csv.DictReader((out / "history.csv").open()))
    assert [row["step"] for row in rows] == ["4", "6"]
    assert rows[0]["val_recall_at_10"] == "" and 0 <= float(rows[1]["val_recall_at_10"]) <= 1
    table = dict(result.rows)
    assert table["steps"] == "6" and table["samples seen"] == "48"
    assert "rate" in table and not any("rate" in key for key in result.receipt)


def test_same_bytes_every_time_wherever_it_runs(pairs: Path, tmp_path: Path) -> None:
    go(pairs, tmp_path / "a")
    go(pairs, tmp_path / "b", checkpoint={"every_steps": 1, "keep": 1})
    assert sha256_tree(tmp_path / "a/model") == sha256_tree(tmp_path / "b/model")
    go(pairs, tmp_path / "c", lr=1e-3)
    assert sha256_tree(tmp_path / "a/model") != sha256_tree(tmp_path / "c/model")


def test_runs_of_other_settings_do_not_mix(pairs: Path, tmp_path: Path) -> None:
    go(pairs, tmp_path)
    go(pairs, tmp_path, name="other", lr=1e-3)
    assert len(list((tmp_path / "runs/train").iterdir())) == 2
    go(pairs, tmp_path / "alone", lr=1e-3)
    assert sha256_tree(tmp_path / "other") == sha256_tree(tmp_path / "alone/model")


def test_a_finished_run_is_not_trained_again(pairs: Path, tmp_path: Path) -> None:
    go(pairs, tmp_path)
    first = sha256_tree(tmp_path / "model")
    table = dict(go(pairs, tmp_path).rows)
    assert table["steps"] == "6 (taken up at 6)" and "rate" not in table
    assert sha256_tree(tmp_path / "model") == first


def test_trains_without_a_val_split(tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path / "pairs", train=10, val=0)
    table = dict(go(pairs, tmp_path, steps=1).rows)
    assert table["val Recall@10"] == "no val split"


def test_pairs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="curated pairs") as caught:
        go(tmp_path / "nowhere", tmp_path)
    assert "coembed curate" in str(caught.value)


def test_an_empty_train_split(tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path / "pairs", train=0, val=4)
    with pytest.raises(DataError, match="train split holds no items"):
        go(pairs, tmp_path)


def test_nothing_is_left_where_training_fails(tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path / "pairs", train=20, val=0, broken=3)
    with pytest.raises(DataError, match=r"media/0-3\.jpg"):
        go(pairs, tmp_path)
    assert not (tmp_path / "model").exists()


HOLD = """
import pathlib, sys
from coembed.locking import exclusive
with exclusive(pathlib.Path(sys.argv[1]), doing="training", wait=False):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_train_the_same_model(pairs: Path, tmp_path: Path) -> None:
    go(pairs, tmp_path)
    (lock,) = (tmp_path / "runs/train").glob("*/lock")
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(ServiceError, match="another process is training"):
            go(pairs, tmp_path)
        other.kill()  # a killed process holds nothing
    go(pairs, tmp_path)


def test_needs_no_service_package() -> None:
    code = (
        "import sys\n"
        "for name in ('prefect', 'mlflow', 'dvc', 'qdrant_client'): sys.modules[name] = None\n"
        "import coembed.stages.train"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_weights_do_not_depend_on_what_torch_drew_before(pairs: Path, tmp_path: Path) -> None:
    go(pairs, tmp_path / "a")
    torch.rand(17)
    go(pairs, tmp_path / "b")
    a, b = (tmp_path / name / "model/model.safetensors" for name in "ab")
    assert a.read_bytes() == b.read_bytes()
