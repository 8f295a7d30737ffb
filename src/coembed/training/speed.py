"""How fast a run goes and how much of its time it waits for data. Never part of an output."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from coembed.training.data import Batch


@dataclass
class _Count:
    steps: int = 0
    train_s: float = 0.0
    wait_s: float = 0.0

    def pairs_per_s(self, batch_size: int) -> float:
        return self.steps * batch_size / self.train_s if self.train_s else 0.0

    def wait_share(self) -> float:
        return self.wait_s / self.train_s if self.train_s else 0.0


class Speed:
    """Counts steps, seconds, and seconds spent waiting for data; appends them to a JSON Lines log.

    What runs inside `aside` (validation, checkpoints) does not count as training time.
    """

    def __init__(self, log: Path, batch_size: int) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._file = log.open("a", encoding="utf-8")
        self._batch_size = batch_size
        self._all, self._window = _Count(), _Count()
        self._mark = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def pairs_per_s(self) -> float:
        """Pairs a second of this process's training time."""
        return self._all.pairs_per_s(self._batch_size)

    @property
    def wait_share(self) -> float:
        """Share of this process's training time spent waiting for data."""
        return self._all.wait_share()

    def waiting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield `batches`; count how long each was waited for and how long its step took."""
        rest = iter(batches)
        self._mark = time.perf_counter()
        while True:
            before = time.perf_counter()
            batch = next(rest, None)
            waited = time.perf_counter() - before
            if batch is None:
                return
            yield batch
            self._count(waited)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the time spent inside out of the rates."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self._mark += time.perf_counter() - before

    def log(self, step: int, loss: float) -> str:
        """Log the steps since the last call; returns them in a few words."""
        rate, wait = self._window.pairs_per_s(self._batch_size), self._window.wait_share()
        line = {"step": step, "loss": loss, "pairs_per_s": rate, "wait_share": wait}
        so_far = {"train_s": self._all.train_s, "cpu_s": time.process_time()}
        self._file.write(json.dumps({**line, **so_far}) + "\n")
        self._file.flush()
        self._window = _Count()
        return f"loss {loss:.3f}, {rate:,.0f} pairs/s, waits {wait:.0%}"

    def _count(self, waited: float) -> None:
        now = time.perf_counter()
        for count in (self._all, self._window):
            count.steps += 1
            count.wait_s += waited
            count.train_s += now - self._mark
        self._mark = now
