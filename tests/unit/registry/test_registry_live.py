"""A training's numbers reach its run while it trains, once each, and never at its cost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from coembed.errors import ServiceError
from coembed.registry import live
from coembed.registry.live import follow_training
from coembed.registry.settings import RegisterSettings
from coembed.registry.store import Registry
from coembed.training.speed import Speed


@pytest.fixture
def registry(empty_store: Path, tmp_path: Path) -> Registry:
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    return Registry(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "files", RegisterSettings())


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "train" / "0123abcd" / "log.jsonl"


def _points(registry: Registry, run_id: str, name: str) -> list[tuple[int, float]]:
    found = registry._client.get_metric_history(run_id, name)
    return [(point.step, point.value) for point in found]


def _followers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "live-metrics"]


def _until(is_so: Callable[[], bool]) -> None:
    for _ in range(1500):
        if is_so():
            return
        time.sleep(0.02)
    pytest.fail("it never came to that")


def test_numbers_arrive_while_the_training_runs_and_are_not_logged_again(
    registry: Registry, log: Path, tmp_path: Path
) -> None:
    run_id = registry.start_run("live")
    rows = [
        {"step": 10 * n, "loss": 3.0 - n / 7, "mismatched_loss": None, "grad_norm_text": 0.1 * n}
        for n in range(1, 5)
    ]
    with follow_training(lambda: registry, run_id, interval_s=0.02), Speed(log) as speed:
        for row in rows[:2]:
            speed.log(int(row["step"] or 0), row)
        _until(lambda: len(_points(registry, run_id, "train/loss")) == 2)
        speed.log(30, rows[2])
        with log.open("ab") as file:
            file.write(b'{"step": 35, "lo')  # half a line: the other half may still come
    assert _points(registry, run_id, "train/loss") == [
        (row["step"], row["loss"]) for row in rows[:3]
    ]
    assert {"train/pairs_per_s", "train/wait_share", "train/grad_norm_text"} <= set(
        registry.metrics(run_id)
    )
    assert "train/mismatched_loss" not in registry.metrics(run_id)

    history = tmp_path / "history.csv"
    lines = [f"{row['step']},{row['loss']!r},{row['grad_norm_text']!r},{n}" for n, row in
             enumerate(rows)]  # fmt: skip
    history.write_text(
        "\n".join(["step,loss,grad_norm_text,val_recall", *lines, ""]), encoding="utf-8"
    )
    for _ in range(2):
        registry.log_history(run_id, history)
        for name in ("loss", "grad_norm_text"):
            wanted = [(row["step"], row[name]) for row in rows]
            assert _points(registry, run_id, f"train/{name}") == wanted
        assert len(_points(registry, run_id, "train/val_recall")) == 4


def test_a_training_that_is_taken_up_again_repeats_no_step(registry: Registry, log: Path) -> None:
    run_id = registry.start_run("resumed")
    for _ in range(2):  # the second time with the same run, as a plain `coembed train` may
        with follow_training(lambda: registry, run_id, interval_s=0.02):
            for steps in ((10, 20, 30), (20, 30, 40)):
                with Speed(log) as speed:
                    for step in steps:
                        speed.log(step, {"loss": 1.0 / step})
                    seen = [(n, 1.0 / n) for n in range(10, max(steps) + 1, 10)]
                    _until(lambda seen=seen: _points(registry, run_id, "train/loss") >= seen)
        assert [step for step, _ in _points(registry, run_id, "train/loss")] == [10, 20, 30, 40]


_TRAINING = """
import subprocess, sys
from pathlib import Path
from coembed.training.speed import Speed

if sys.argv[2] == "outer":  # as DVC stands between a flow and its stage
    sys.exit(subprocess.call([sys.executable, *sys.orig_argv[1:-1], "inner"]))
with Speed(Path(sys.argv[1])) as speed:
    speed.log(1, {"loss": 2.0})
    print("logged", flush=True)
    sys.stdin.readline()
    speed.log(2, {"loss": 1.0})
"""


def test_the_training_of_a_process_further_down_is_found_and_no_other(
    registry: Registry, log: Path
) -> None:
    stranger = log.parents[1] / "ffff" / "log.jsonl"
    stranger.parent.mkdir(parents=True)
    stranger.write_text(json.dumps({"step": 5, "loss": 9.0}) + "\n", encoding="utf-8")
    run_id = registry.start_run("child")
    with follow_training(lambda: registry, run_id, interval_s=0.02):
        child = subprocess.Popen(
            [sys.executable, "-c", _TRAINING, str(log), "outer"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "logged\n"
        _until(lambda: _points(registry, run_id, "train/loss") == [(1, 2.0)])
        child.communicate("\n")
        assert child.returncode == 0
    assert _points(registry, run_id, "train/loss") == [(1, 2.0), (2, 1.0)]


def test_no_registry_is_opened_where_nothing_trains() -> None:
    code = """
import sys
from coembed.registry.live import follow_training
with follow_training(lambda: print("opened"), "run", interval_s=0.01):
    pass
assert "mlflow" not in sys.modules  # a training process can go without it
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_registry_that_fails_costs_one_warning(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def away() -> Registry:
        raise ServiceError("the registry does not answer", hint="is it running?")

    with follow_training(away, "run", interval_s=0.01), Speed(log) as speed:
        speed.log(1, {"loss": 1.0})
        _until(lambda: not _followers())
    said = capsys.readouterr().err
    assert said.count("warning") == 1
    assert "takes no numbers of this training any more: the registry does not answer" in said
    assert "the training goes on" in said


def test_a_run_that_is_gone_costs_one_warning(
    registry: Registry, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with follow_training(lambda: registry, "0" * 32, interval_s=0.01), Speed(log) as speed:
        speed.log(1, {"loss": 1.0})
        _until(lambda: not _followers())
        speed.log(2, {"loss": 1.0})
    said = capsys.readouterr().err
    assert said.count("warning") == 1
    assert "Run with id=" in said


def test_a_slow_registry_is_left_behind(
    registry: Registry,
    log: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(live, "_PATIENCE_S", 0.1)
    asked, answers = threading.Event(), threading.Event()
    sent: list[object] = []

    def slow(*_: object) -> int:
        asked.set()
        answers.wait(30)
        return 0

    monkeypatch.setattr(registry, "last_training_step", slow)
    monkeypatch.setattr(registry, "log_points", lambda *points: sent.append(points))
    with follow_training(lambda: registry, "run", interval_s=0.01), Speed(log) as speed:
        speed.log(1, {"loss": 1.0})
        assert asked.wait(30)
    assert "it has not answered" in capsys.readouterr().err
    answers.set()
    _until(lambda: not _followers())
    assert sent == []
