"""`coembed train` in several processes: the same training as in one, also when processes die."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from training_pairs import make_pairs

from coembed.files import sha256_tree
from coembed.lineage.dvc import EXIT_FOLDER
from coembed.stages.trained_on import read_trained_on

REPOSITORY = Path(__file__).parents[2]
STEPS = 16
# No batch norms: their statistics are a micro-batch's, and so depend on how rows are divided.
MODEL = {
    "architecture": {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16,
        },
        "text_cfg": {
            "context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2,
        },
    }
}  # fmt: skip
TRAIN = {
    "epochs": None, "steps": STEPS, "batch_size": 8, "micro_batch_size": 2, "lr": 1e-3,
    "log_every": 1, "precision": "fp32", "device": "cpu", "num_threads": 1, "ema": 0.9,
    "checkpoint": {"every_steps": 3},
}  # fmt: skip


def make_project(place: Path, pairs: Path) -> Path:
    """A project with curated pairs; `coembed train` needs no more."""
    place.mkdir()
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    params |= {"seed": 5, "model": MODEL, "train": TRAIN}
    (place / "params.yaml").write_text(yaml.safe_dump(params))
    (place / "artifacts").mkdir()
    (place / "artifacts" / "pairs").symlink_to(pairs)
    return place


def start(place: Path, *, stage: str = "", **distributed: Any) -> subprocess.Popen[str]:
    """The verb; `stage` is what DVC says in the environment."""
    command = [sys.executable, "-P", "-m", "coembed.cli", "train", "--project", str(place)]
    for name, value in distributed.items():
        command += ["--set", f"train.distributed.{name}={value}"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DVC_STAGE": stage},
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return out, err


def history(place: Path) -> list[dict[str, float]]:
    with (place / "artifacts" / "model" / "history.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def assert_same_history(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(found) == len(expected) == STEPS
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.keys() == theirs.keys()
        # The loss of a step says which samples it saw: of others it differs in the first digits.
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


def wait_for_checkpoint(process: subprocess.Popen[str], place: Path) -> None:
    deadline = time.monotonic() + 300
    while not list(place.glob("runs/train/*/checkpoints/step-*.json")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ranks_of(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    return {
        int(child.environ()["RANK"]): child
        for child in psutil.Process(process.pid).children()
        if "RANK" in child.environ()
    }


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("ranks") / "pairs")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, pairs: Path) -> list[dict[str, float]]:
    """The history of one process."""
    place = make_project(tmp_path_factory.mktemp("alone") / "project", pairs)
    finish(start(place))
    return history(place)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, pairs: Path) -> tuple[Path, str]:
    """An uninterrupted run of two processes, and what it printed."""
    place = make_project(tmp_path_factory.mktemp("together") / "project", pairs)
    out, _ = finish(start(place, num_processes=2))
    return place, out


@pytest.mark.slow
def test_two_processes_train_as_one(
    alone: list[dict[str, float]], together: tuple[Path, str]
) -> None:
    place, out = together
    assert_same_history(history(place), alone)
    assert out.count("Trained model") == 1
    # What each of them saw, the whole saw.
    record = read_trained_on(place / "artifacts" / "model")
    assert record is not None and len(record.learned()) == 48


@pytest.mark.slow
def test_a_killed_process_is_started_again(
    tmp_path: Path, pairs: Path, together: tuple[Path, str]
) -> None:
    place = make_project(tmp_path / "project", pairs)
    process = start(place, num_processes=2, max_restarts=1)
    wait_for_checkpoint(process, place)
    ranks_of(process)[1].send_signal(signal.SIGKILL)
    out, err = finish(process)
    assert "training process 1 was ended by SIGKILL" in err
    assert "(taken up at" in out
    assert sha256_tree(place / "artifacts/model") == sha256_tree(together[0] / "artifacts/model")


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_another_number_of_processes_goes_on(
    tmp_path: Path, pairs: Path, alone: list[dict[str, float]], sharding: str
) -> None:
    """Killed whole; what the first process leaves behind ends with it."""
    place = make_project(tmp_path / "project", pairs)
    process = start(place, num_processes=4, sharding=sharding)
    wait_for_checkpoint(process, place)
    ranks = ranks_of(process)
    assert sorted(ranks) == [0, 1, 2, 3]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    psutil.wait_procs(ranks.values(), timeout=60)
    assert not any(rank.is_running() for rank in ranks.values())
    out, _ = finish(start(place, num_processes=2, sharding=sharding))
    assert "(taken up at" in out
    assert_same_history(history(place), alone)


def test_a_mistake_is_said_once(tmp_path: Path, pairs: Path) -> None:
    """To the user, and to the flow that had DVC call the verb."""
    place = make_project(tmp_path / "project", pairs)
    process = start(place, stage="train", num_processes=3)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert err.count("train.batch_size is 8") == 1
    assert "restart" not in err
    left = json.loads((place / EXIT_FOLDER / "train.json").read_text())
    assert left["kind"] == "user"
    assert "train.batch_size is 8" in left["error"]
    assert "Traceback" not in err
