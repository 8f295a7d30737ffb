"""Worker processes that are watched: one that dies or hangs is replaced, and its task is told."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from types import ModuleType
from typing import Any, Generic, TypeVar

from coembed.errors import ServiceError

T = TypeVar("T")
R = TypeVar("R")

# What a worker says of itself in shared memory: a count that moves with every word of it, the row
# it is at (IDLE: none) and what it does there.
_BEAT, _ROW, _PHASE = 0, 1, 2
_NUM_CELLS = 3
IDLE = -1
_POLL_S = 0.2
# The task that a worker runs and the next one, so that it need not wait for this process.
_TASKS_AHEAD = 2
_END_S = 5.0


class Watch:
    """Where a worker says which row it is at. Costs a fraction of a microsecond."""

    def __init__(self, cells: memoryview | None = None) -> None:
        self._cells = memoryview(bytearray(8 * _NUM_CELLS)).cast("q") if cells is None else cells

    def at(self, row: int, phase: int) -> None:
        """From now on the time limit runs for `row`."""
        cells = self._cells
        cells[_ROW] = row
        cells[_PHASE] = phase
        cells[_BEAT] += 1

    def idle(self) -> None:
        """No item is being worked on: no limit runs."""
        self._cells[_ROW] = IDLE


@dataclass(frozen=True, slots=True)
class Death:
    """How a worker process ended under a task. `row` is IDLE where it was at none."""

    timed_out: bool
    detail: str
    row: int
    phase: int


@dataclass(slots=True)
class _Entry(Generic[T]):
    task: T
    alone: bool


@dataclass
class _Process(Generic[T]):
    process: Any
    conn: connection.Connection
    cells: memoryview
    entries: deque[_Entry[T]] = field(default_factory=deque)
    is_ready: bool = False
    is_fresh: bool = True
    beat: int = -1
    since: float = 0.0
    late: Death | None = None


class Supervised(Generic[T, R]):
    """Runs tasks in up to `num_workers` processes. Each makes its function with `make(watch)`.

    `make`, the tasks and the results must be picklable. A context manager: the processes end with
    it, at once.
    """

    def __init__(
        self,
        num_workers: int,
        make: Callable[[Watch], Callable[[T], R]],
        *,
        seconds_per_item: float,
    ) -> None:
        self._num = max(num_workers, 1)
        self._make = make
        self._limit_s = seconds_per_item
        # "spawn": a forked copy of a process with threads (progress bars, Arrow) can deadlock.
        self._context = multiprocessing.get_context("spawn")
        self._processes: list[_Process[T]] = []

    def run(
        self, tasks: Iterable[T], mourn: Callable[[T, Death], list[T]]
    ) -> Iterator[tuple[T, R]]:
        """Each task with its result, as they come.

        When a process dies under a task, `mourn(task, death)` answers with the tasks to run
        instead; the first of them runs alone in a fresh process. An error of a task is raised
        here. Raises ServiceError when a process cannot even start.
        """
        waiting: deque[_Entry[T]] = deque()
        source = iter(tasks)
        more = True
        while True:
            while more and len(waiting) < self._num:
                try:
                    waiting.append(_Entry(next(source), alone=False))
                except StopIteration:
                    more = False
            self._hand_out(waiting)
            if not any(process.entries for process in self._processes):
                return
            for process, answer in self._listen():
                if not isinstance(answer, Death):
                    yield process.entries.popleft().task, answer
                    continue
                self._processes.remove(process)
                if process.entries:
                    instead = mourn(process.entries.popleft().task, answer)
                    again = [_Entry(task, alone=not at) for at, task in enumerate(instead)]
                    waiting.extendleft(reversed([*again, *process.entries]))

    def _hand_out(self, waiting: deque[_Entry[T]]) -> None:
        """Give the waiting tasks to idle processes, new ones first."""
        while waiting:
            chosen = self._choose(waiting[0])
            if chosen is None:
                return
            entry = waiting.popleft()
            with suppress(OSError):  # it has died: `_listen` will say so
                chosen.conn.send(entry.task)
            chosen.is_fresh = False
            chosen.entries.append(entry)

    def _choose(self, entry: _Entry[T]) -> _Process[T] | None:
        free = [process for process in self._processes if not process.entries]
        if entry.alone:
            fresh = [process for process in free if process.is_fresh]
            if not fresh and free and len(self._processes) >= self._num:
                self._end(free[0])
            elif fresh:
                return fresh[0]
        elif free:
            return free[0]
        if len(self._processes) < self._num:
            return self._start()
        if entry.alone:
            return None
        ahead = [
            process
            for process in self._processes
            if len(process.entries) < _TASKS_AHEAD and not any(e.alone for e in process.entries)
        ]
        return min(ahead, key=lambda process: len(process.entries), default=None)

    def _start(self) -> _Process[T]:
        shared = self._context.RawArray("q", _NUM_CELLS)
        cells = memoryview(shared).cast("B").cast("q")
        cells[_ROW] = IDLE
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(theirs, shared, self._make), daemon=True
        )
        with main_left_out():
            process.start()
        theirs.close()
        started = _Process[T](process, ours, cells)
        self._processes.append(started)
        return started

    def _listen(self) -> Iterator[tuple[_Process[T], R | Death]]:
        """Wait a moment; what has come, process by process."""
        ready = connection.wait([process.conn for process in self._processes], _POLL_S)
        for process in list(self._processes):
            if process.conn in ready:
                yield from self._receive(process)
            elif self._is_late(process):
                # Its pipe is read to the end first: what it had finished counts.
                process.late = Death(
                    True,
                    f"more than {self._limit_s:g} s",
                    process.cells[_ROW],
                    process.cells[_PHASE],
                )
                process.process.kill()

    def _receive(self, process: _Process[T]) -> Iterator[tuple[_Process[T], R | Death]]:
        try:
            kind, answer = process.conn.recv()
        except (EOFError, OSError):
            yield process, self._bury(process)
            return
        if kind == "error":
            raise answer
        if kind == "ready":
            process.is_ready = True
        else:
            process.late = None
            yield process, answer

    def _is_late(self, process: _Process[T]) -> bool:
        if process.late is not None:
            return False
        if process.cells[_ROW] == IDLE:
            process.beat = -1
            return False
        now, beat = time.monotonic(), process.cells[_BEAT]
        if beat != process.beat:
            process.beat, process.since = beat, now
        return now - process.since > self._limit_s

    def _bury(self, process: _Process[T]) -> Death:
        self._end(process, at_once=False)
        code = process.process.exitcode
        if not process.is_ready:
            raise ServiceError(
                f"a worker process of the curation could not start (it ended with {_how(code)})",
                hint="what it wrote above says why; free some memory, or lower curate.num_workers",
            )
        if process.late is not None and code == -signal.SIGKILL:
            return process.late
        return Death(False, _how(code), process.cells[_ROW], process.cells[_PHASE])

    def _end(self, process: _Process[T], *, at_once: bool = True) -> None:
        if not at_once:
            process.process.join(_END_S)
        if process.process.is_alive():
            process.process.kill()
            process.process.join()
        process.conn.close()
        if at_once and process in self._processes:
            self._processes.remove(process)

    def __enter__(self) -> Supervised[T, R]:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.process.kill()
        for process in list(self._processes):
            self._end(process)


def _how(code: int | None) -> str:
    """How a process ended, by its exit code."""
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"{name} (perhaps out of memory)" if name == "SIGKILL" else name


@contextmanager
def main_left_out() -> Iterator[None]:
    """Processes that are spawned here do not run the program's main module again: that takes as
    long as its imports do, and goes wrong where it is a notebook, or a script without a guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def begin_worker() -> None:
    """First thing in a worker: leave Ctrl-C to the parent, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _expect_to_crash() -> None:
    """A crash is survived: leave no core file, and out of memory let the worker go first."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
            file.write("500")


def _serve(
    conn: connection.Connection, shared: Any, make: Callable[[Watch], Callable[[Any], Any]]
) -> None:
    """The life of a worker process: make the function, answer tasks until the parent hangs up."""
    begin_worker()
    _expect_to_crash()
    watch = Watch(memoryview(shared).cast("B").cast("q"))
    try:
        function = make(watch)
    except Exception as error:
        conn.send(("error", _portable(error)))
        return
    conn.send(("ready", None))
    while True:
        try:
            task = conn.recv()
        except (EOFError, OSError):
            return
        try:
            answer = ("done", function(task))
        except Exception as error:
            answer = ("error", _portable(error))
        watch.idle()
        conn.send(answer)


def _portable(error: Exception) -> Exception:
    """`error` as it can be sent: with its traceback as a note, since that cannot."""
    text = "".join(traceback.format_exception(error))
    try:
        error.add_note(f"in a worker process:\n{text}")
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"in a worker process:\n{text}")
    return error
