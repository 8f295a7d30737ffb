"""How fast a run goes and how much of its time it waits for data. Never part of an output."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

T = TypeVar("T")


@dataclass
class _Count:
    pairs: int = 0
    train_s: float = 0.0
    wait_s: float = 0.0

    def pairs_per_s(self) -> float:
        return self.pairs / self.train_s if self.train_s else 0.0

    def wait_share(self) -> float:
        return self.wait_s / self.train_s if self.train_s else 0.0


class Speed:
    """Counts pairs, seconds, and seconds spent waiting for data; appends them to a JSON Lines log.

    The clock starts where the first micro-batch is waited for. What runs inside `aside`
    (validation, checkpoints) does not count as training time. Of several processes only the `main`
    one writes.
    """

    def __init__(self, log: Path, *, main: bool = True) -> None:
        self._file = None
        if main:
            log.parent.mkdir(parents=True, exist_ok=True)
            self._file = log.open("a+b")
            self._end_torn_line()
        self._all, self._window = _Count(), _Count()
        self._mark: float | None = None
        self._waited = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def pairs_per_s(self) -> float:
        """Pairs a second of this process's training time."""
        return self._all.pairs_per_s()

    @property
    def wait_share(self) -> float:
        """Share of this process's training time spent waiting for data."""
        return self._all.wait_share()

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """Yield `items` (micro-batches), counting how long each is waited for."""
        rest = iter(items)
        while True:
            before = time.perf_counter()
            if self._mark is None:
                self._mark = before
            try:
                item = next(rest)
            except StopIteration:
                return
            self._waited += time.perf_counter() - before
            yield item

    def step_done(self, num_pairs: int) -> None:
        """Say that a step is over, and how many pairs it saw."""
        now = time.perf_counter()
        took = 0.0 if self._mark is None else now - self._mark
        for count in (self._all, self._window):
            count.pairs += num_pairs
            count.wait_s += self._waited
            count.train_s += took
        self._mark, self._waited = now, 0.0

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the time spent inside out of the rates."""
        before = time.perf_counter()
        try:
            yield
        finally:
            if self._mark is not None:
                self._mark += time.perf_counter() - before

    def log(self, step: int, row: Mapping[str, float | int | None]) -> str:
        """Log a row of the history with the rates of the steps since the last call.

        Returns it in a few words, for the progress line.
        """
        rate, wait = self._window.pairs_per_s(), self._window.wait_share()
        numbers = {
            name: value
            for name, value in row.items()
            if value is not None and math.isfinite(value) and name != "step"
        }
        line = {
            "step": step, **numbers, "pairs_per_s": rate, "wait_share": wait,
            "train_s": self._all.train_s, "cpu_s": time.process_time(),
        }  # fmt: skip
        if self._file is not None:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
        self._window = _Count()
        return ", ".join([*_in_words(numbers), f"{rate:,.0f} pairs/s", f"waits {wait:.0%}"])

    def _end_torn_line(self) -> None:
        """Close the line that a killed process may have left half written."""
        assert self._file is not None
        if self._file.tell() > 0:
            self._file.seek(-1, 2)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")


def _in_words(row: Mapping[str, float | int]) -> Iterator[str]:
    """What the progress line tells of a row; columns that it lacks are left out."""
    towers = [
        f"{name.removeprefix('grad_norm_')} {value:.2g}"
        for name, value in row.items()
        if name.startswith("grad_norm_")
    ]
    for name, words in (
        ("loss", "loss {:.3f}"),
        ("logit_scale", "scale {:.3g}"),
        ("grad_norm", "grad {:.2g}"),
        ("modality_gap", "gap {:.2f}"),
        ("alignment", "align {:.2f}"),
    ):
        if name in row:
            by_tower = f" ({', '.join(towers)})" if name == "grad_norm" and towers else ""
            yield words.format(row[name]) + by_tower
    uniformity = [row[name] for name in ("uniformity_item", "uniformity_text") if name in row]
    if uniformity:
        yield "uniform " + "/".join(f"{value:.2f}" for value in uniformity)
