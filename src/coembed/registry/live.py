"""A training's numbers in its run while it trains, and not only at its end.

A thread of the process that started the training reads the log that the training writes anyway
(`training.speed`), so training itself knows nothing of a registry, imports none, and waits for
none. The names are those under which `Registry.log_history` logs the finished history; it leaves
out what is there already.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from coembed.registry.store import Registry

_LOG = "train/*/log.jsonl"  # below the runs' folder
_PATIENCE_S = 10.0  # for a slow server to take the last numbers, once the training is over


@contextmanager
def follow_training(
    open_registry: Callable[[], Registry], run_id: str, *, interval_s: float = 1.0
) -> Iterator[None]:
    """Log the numbers of the training that runs inside into the run, within about `interval_s`.

    The training is this process's own or that of one it started, at whatever distance. A registry
    that fails or is slow costs a warning and the rest of the live numbers, and the training
    nothing; `open_registry` is called in the thread for the same reason. A training that is over
    before its log is seen, which is looked for every `interval_s`, is left to `log_history`.
    """
    follower = _Follower(open_registry, run_id, interval_s)
    follower.start()
    try:
        yield
    finally:
        follower.finish()


class _Follower(Thread):
    def __init__(
        self, open_registry: Callable[[], Registry], run_id: str, interval_s: float
    ) -> None:
        super().__init__(name="live-metrics", daemon=True)
        self._open_registry, self._run_id, self._interval_s = open_registry, run_id, interval_s
        self._ended, self._given_up = Event(), Event()

    def run(self) -> None:
        try:
            log = self._wait_for_log()
            if log is not None:
                self._pass_on(log)
        # Whatever a registry, its client or its database come up with: the training goes on.
        except Exception as error:
            self._warn(str(getattr(error, "message", error)) or type(error).__name__)

    def _wait_for_log(self) -> _Log | None:
        """The log, once it is there; None where the block ends first."""
        while (path := _find_open_log()) is None:
            if self._ended.wait(self._interval_s):
                return None
        return _Log(path)

    def _pass_on(self, log: _Log) -> None:
        """Log the rows as they come, until the block ends."""
        registry = self._open_registry()
        last_step = registry.last_training_step(self._run_id)
        ended = False
        while not ended:
            ended = self._ended.wait(self._interval_s)
            points = []
            for row in log.new_rows():
                # A training that was taken up again repeats the steps since its checkpoint.
                if row["step"] > last_step:
                    last_step = row["step"]
                    points += _points(row)
            if points and not self._given_up.is_set():
                registry.log_points(self._run_id, points)

    def finish(self) -> None:
        """Log the last numbers, if the registry takes them soon, and stop."""
        self._ended.set()
        self.join(_PATIENCE_S)
        if self.is_alive():
            self._warn(f"it has not answered for {_PATIENCE_S:.0f} s")

    def _warn(self, why: str) -> None:
        if not self._given_up.is_set():
            self._given_up.set()
            print(
                f"warning: the registry takes no numbers of this training any more: {why}\n"
                "  → the training goes on; registering the model logs its whole history",
                file=sys.stderr, flush=True,
            )  # fmt: skip


class _Log:
    """The rows of a log that others append to, each once; a torn line is passed over."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._rest = path, 0, b""

    def new_rows(self) -> list[dict[str, Any]]:
        with self._path.open("rb") as file:
            file.seek(self._offset)
            read = file.read()
        self._offset += len(read)
        *lines, self._rest = (self._rest + read).split(b"\n")
        rows = []
        for line in lines:
            with suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("step"), int):
                    rows.append(row)
        return rows


def _points(row: dict[str, Any]) -> list[tuple[str, float, int]]:
    """The finite numbers of a row as metrics."""
    from coembed.registry.store import TRAINING

    return [
        (f"{TRAINING}{name}", float(value), row["step"])
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    ]


def _find_open_log() -> Path | None:
    """The training log that this process, or one that it started, has open.

    Several trainings may write under one folder of runs at the same time; this one is ours.
    """
    here = psutil.Process()
    for process in (here, *here.children(recursive=True)):
        with suppress(psutil.Error):
            for file in process.open_files():
                if Path(file.path).match(_LOG):
                    return Path(file.path)
    return None
