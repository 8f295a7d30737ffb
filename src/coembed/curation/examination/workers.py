"""Worker processes: run a function over tasks, results in the order of the tasks."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from types import TracebackType
from typing import Self, TypeVar

from coembed.curation.examination.supervise import begin_worker, main_left_out
from coembed.errors import ServiceError

T = TypeVar("T")
R = TypeVar("R")


def choose_num_workers(setting: int) -> int:
    """`setting`, or for 0 the cores that this process may use."""
    if setting:
        return setting
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Up to `num_workers` processes, started with the first work; one means this process.

    A context manager: the processes end with it.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self._pool: ProcessPoolExecutor | None = None

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """`function` of each task, in order; at most a few results wait in memory.

        `function` and the tasks must be picklable. An error of the function is raised here. Raises
        ServiceError when a worker process dies.
        """
        if self.num_workers <= 1:
            yield from map(function, tasks)
            return
        remaining = iter(tasks)
        try:
            running: deque[Future[R]] = deque()
            running.extend(self._submit(function, islice(remaining, 3 * self.num_workers)))
            while running:
                result = running.popleft().result()
                running.extend(self._submit(function, islice(remaining, 1)))
                yield result
        except BrokenProcessPool as error:
            raise ServiceError(
                "a worker process of the curation died (out of memory, or a crash in a decoder)",
                hint="try `--set curate.num_workers=1`, or a lower curate.max_pixels",
            ) from error

    def _submit(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[Future[R]]:
        if self._pool is None:
            # "spawn": a forked copy of a process with threads (progress bars, Arrow) can deadlock.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                self.num_workers, mp_context=context, initializer=begin_worker
            )
        for task in tasks:
            with main_left_out():  # the pool starts its processes when there is work for them
                future = self._pool.submit(function, task)
            yield future

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
