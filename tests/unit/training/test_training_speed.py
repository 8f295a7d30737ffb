"""Rates and the log of a run, on a clock that the test moves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coembed.training import speed as speed_module
from coembed.training.speed import Speed


class _Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s

    def process_time(self) -> float:
        return 7.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(speed_module, "time", clock)
    return clock


def _slowly(clock: _Clock, each_s: float, num: int) -> Iterator[int]:
    for number in range(num):
        clock.now_s += each_s
        yield number


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_step_of_several_micro_batches_is_one_step(tmp_path: Path, clock: _Clock) -> None:
    with Speed(tmp_path / "run" / "log.jsonl") as speed:
        clock.now_s += 50  # building the model is not training
        feed = speed.waiting(_slowly(clock, 0.5, 6))
        for step in (1, 2):
            for _ in range(3):
                next(feed)
                clock.now_s += 1.5
            speed.step_done(30)
            if step == 1:
                with speed.aside():
                    clock.now_s += 1000
            speed.log(step, {"step": step, "loss": 2.0})
        assert next(feed, None) is None
        assert speed.pairs_per_s == pytest.approx(60 / 12)
        assert speed.wait_share == pytest.approx(3 / 12)
    first, second = _lines(tmp_path / "run" / "log.jsonl")
    assert first == {
        "step": 1, "loss": 2.0, "pairs_per_s": 5.0, "wait_share": 0.25, "train_s": 6.0,
        "cpu_s": 7.0,
    }  # fmt: skip
    assert second["train_s"] == 12.0
    assert second["pairs_per_s"] == 5.0


def test_the_log_has_all_numbers_of_the_row_and_the_words_the_main_ones(
    tmp_path: Path, clock: _Clock
) -> None:
    row = {
        "step": 50, "epoch": 0.5, "loss": 3.1234, "mismatched_loss": None, "logit_scale": 14.28,
        "grad_norm": 0.912, "grad_norm_image": 0.8, "grad_norm_text": 0.4, "modality_gap": 0.8,
        "alignment": 1.25, "uniformity_item": -2.5, "uniformity_text": -3.25, "bad": math.nan,
    }  # fmt: skip
    with Speed(tmp_path / "log.jsonl") as speed:
        feed = speed.waiting(_slowly(clock, 1, 1))
        next(feed)
        clock.now_s += 3
        speed.step_done(4096)
        words = speed.log(50, row)
    (line,) = _lines(tmp_path / "log.jsonl")
    kept = {name: value for name, value in row.items() if name not in ("mismatched_loss", "bad")}
    assert {name: line[name] for name in kept} == kept
    assert not {"mismatched_loss", "bad"} & line.keys()
    assert words == (
        "loss 3.123, scale 14.3, grad 0.91 (image 0.8, text 0.4), gap 0.80, align 1.25, "
        "uniform -2.50/-3.25, 1,024 pairs/s, waits 25%"
    )


def test_a_line_that_a_kill_tore_is_closed(tmp_path: Path, clock: _Clock) -> None:
    log = tmp_path / "log.jsonl"
    for _ in range(2):
        with Speed(log) as speed:
            assert speed.log(1, {"loss": 1.0}) == "loss 1.000, 0 pairs/s, waits 0%"
        with log.open("ab") as file:
            file.write(b'{"step": 2, "lo')
    assert clock.now_s == 100.0
    texts = log.read_text(encoding="utf-8").split("\n")
    assert [text.startswith('{"step": 1, ') for text in texts] == [True, False, True, False]
    assert texts[1] == texts[3] == '{"step": 2, "lo'


def test_only_the_main_process_writes(tmp_path: Path, clock: _Clock) -> None:
    with Speed(tmp_path / "log.jsonl", main=False) as speed:
        list(speed.waiting(_slowly(clock, 1, 2)))
        speed.step_done(10)
        assert speed.log(1, {"loss": 1.0}).endswith("5 pairs/s, waits 100%")
    assert list(tmp_path.iterdir()) == []
