"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

T = TypeVar("T")

_LINE_EVERY_S = 10.0


class Tracker:
    """A task under way. `advance` moves it; `note` sets the short text shown beside the bar."""

    def advance(self, num: int = 1) -> None:
        """Say that `num` more units are done."""

    def note(self, text: str) -> None:
        """Show `text` (a loss, a rate) beside the progress."""

    def close(self) -> None:
        """End the task. Idempotent."""


class _RateColumn(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {self._unit}/s" if speed else "", style="progress.data.speed")


class _Bar(Tracker):
    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            _RateColumn(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task(label, total=total, note="")
        self._progress.start()

    def advance(self, num: int = 1) -> None:
        self._progress.advance(self._task, num)

    def note(self, text: str) -> None:
        self._progress.update(self._task, note=text)

    def close(self) -> None:
        self._progress.stop()


class _Lines(Tracker):
    """One line at most every ten seconds: what a log file or a flow's log can hold."""

    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done, self._printed, self._note = 0, 0, ""
        self._start = self._last = time.monotonic()

    def advance(self, num: int = 1) -> None:
        self._done += num
        if time.monotonic() - self._last >= _LINE_EVERY_S:
            self._print()

    def note(self, text: str) -> None:
        self._note = text

    def close(self) -> None:
        if self._done > self._printed:
            self._print()

    def _print(self) -> None:
        self._last, self._printed = time.monotonic(), self._done
        elapsed = max(self._last - self._start, 1e-9)
        rate = self._done / elapsed
        of = f"/{self._total:,}" if self._total else ""
        left = (
            f", {(self._total - self._done) / rate:.0f} s left"
            if self._total and rate > 0 and self._done < self._total
            else ""
        )
        note = f" | {self._note}" if self._note else ""
        print(
            f"{self._label}: {self._done:,}{of} {self._unit}, {rate:,.1f}/s, "
            f"{elapsed:.0f} s{left}{note}",
            file=sys.stderr,
            flush=True,
        )


def tracker(*, total: int | None, label: str, unit: str = "it") -> Tracker:
    """Start a task of `total` units (None: unknown) shown under `label`. Close it when done."""
    make = _Bar if sys.stderr.isatty() else _Lines
    return make(label, total, unit)


def track(
    iterable: Iterable[T], *, total: int | None = None, label: str, unit: str = "it"
) -> Iterator[T]:
    """Yield from `iterable`, showing the progress."""
    task = tracker(total=total, label=label, unit=unit)
    try:
        for item in iterable:
            yield item
            task.advance()
    finally:
        task.close()
