"""SIGKILL in the middle of training, and the same command again: the same bytes as without it."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from training_pairs import SMALL_MODEL, make_pairs

from coembed.files import sha256_file, sha256_tree

STEPS = 30
PROGRAM = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
from coembed.models.settings import ModelSettings
from coembed.stages import train
from coembed.training.settings import TrainSettings

place, pairs, settings = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
cfg = SimpleNamespace(
    seed=5,
    model=ModelSettings.model_validate(settings["model"]),
    train=TrainSettings.model_validate(settings["train"]),
)
result = train.run(cfg, root=place, pairs=pairs, out=place / "model", runs=place / "runs")
print(json.dumps(dict(result.rows)))
"""


# Whole batches out of the cache; and micro-batches out of the shards with dropout, more of the
# random changes, an average of the weights and the best ones kept.
PLAIN: dict[str, Any] = {"precision": "bf16"}
RICH: dict[str, Any] = {
    "precision": "fp32", "micro_batch_size": 3, "ema": 0.9, "save_weights": "best",
    "augment": {"image": {"crop_area": 0.5, "brightness": 0.3}}, "cache": {"mode": "shards"},
}  # fmt: skip


def start(
    place: Path, pairs: Path, train: dict[str, Any], *, num_threads: int = 1
) -> subprocess.Popen[str]:
    architecture = copy.deepcopy(SMALL_MODEL["architecture"])
    architecture["vision_cfg"]["timm_drop"] = 0.3
    cache = {**train.get("cache", {}), "num_threads": num_threads}
    settings = {
        "model": {"architecture": architecture},
        "train": {
            "epochs": None, "steps": STEPS, "batch_size": 8, "lr": 2e-3, "log_every": 7,
            "num_threads": 1, "checkpoint": {"every_steps": 3}, **train, "cache": cache,
        },
    }  # fmt: skip
    command = [sys.executable, "-c", PROGRAM, str(place), str(pairs), json.dumps(settings)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> dict[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out)


def final_state(place: Path) -> dict[str, str]:
    """Hashes of everything a run leaves: the model directory and the last checkpoint."""
    (last,) = place.glob(f"runs/train/*/checkpoints/step-{STEPS:09d}.safetensors")
    return {"model": sha256_tree(place / "model"), "optimiser": sha256_file(last)}


def checkpoints(place: Path) -> set[str]:
    return {path.name for path in place.glob("runs/train/*/checkpoints/step-*.json")}


def kill_after_new_checkpoint(process: subprocess.Popen[str], place: Path, delay_s: float) -> bool:
    """SIGKILL `delay_s` after the process wrote a checkpoint; False where it ended by itself."""
    before = checkpoints(place)
    deadline = time.monotonic() + 200
    while process.poll() is None and checkpoints(place) <= before:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("train", [PLAIN, RICH], ids=["plain", "rich"])
def test_killed_runs_end_with_the_same_bytes(tmp_path: Path, train: dict[str, Any]) -> None:
    pairs = make_pairs(tmp_path / "pairs")
    whole = tmp_path / "whole"
    assert finish(start(whole, pairs, train))["steps"] == str(STEPS)
    broken = tmp_path / "broken"
    rng = random.Random(7)
    kills = 0
    for num_threads in (1, 3, 2):
        # Within a step, within an accumulated batch, while a checkpoint is written, between them:
        # wherever it falls.
        process = start(broken, pairs, train, num_threads=num_threads)
        kills += kill_after_new_checkpoint(process, broken, rng.uniform(0, 0.25))
    assert kills >= 2
    table = finish(start(broken, pairs, train, num_threads=2))
    assert "taken up at" in table["steps"]
    assert final_state(broken) == final_state(whole)


@pytest.mark.slow
def test_killed_before_the_first_step(tmp_path: Path) -> None:
    """While it decodes or builds: what is half written is made again."""
    pairs = make_pairs(tmp_path / "pairs", train=400)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(start(whole, pairs, PLAIN))
    process = start(broken, pairs, PLAIN)
    while process.poll() is None and not list((broken / "runs").glob("cache/.*.partial")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    finish(start(broken, pairs, PLAIN))
    assert final_state(broken) == final_state(whole)
    assert not list((broken / "runs").glob("cache/.*.partial"))
