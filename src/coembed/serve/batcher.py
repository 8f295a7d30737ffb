"""Queries go through a tower together.

One batch of a modality is in work at a time. A query that finds the tower idle goes in at once;
those that come while it works wait, and go in together when it is done: the window in which
queries gather is as long as the tower is busy, so nobody waits for company.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coembed.errors import DataError
from coembed.serve.refusals import busy

Embeddings = NDArray[np.float32]
Encode = Callable[[str, Sequence[Any]], Embeddings]
Seen = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class _Job:
    items: Sequence[Any]
    answer: asyncio.Future[Embeddings]


@dataclass
class _Lane:
    """The queries of one modality."""

    modality: str
    worker: ThreadPoolExecutor
    waiting: deque[_Job] = field(default_factory=deque)
    num_waiting: int = 0
    working: bool = False


class Batcher:
    """Encodes for many at once. Belongs to one event loop; only `encode` works in other threads.

    encode: (modality, items) → unit embeddings. max_batch: items in a batch. max_queue: items that
    may wait for a tower; more are refused with 429. on_batch, on_queue: hear of (modality, items)
    of every batch, and of what waits by then.
    """

    def __init__(
        self,
        encode: Encode,
        *,
        max_batch: int,
        max_queue: int,
        on_batch: Seen = lambda _modality, _num: None,
        on_queue: Seen = lambda _modality, _num: None,
    ) -> None:
        self._encode = encode
        self._max_batch, self._max_queue = max_batch, max_queue
        self._on_batch, self._on_queue = on_batch, on_queue
        self._lanes: dict[str, _Lane] = {}

    async def encode(self, modality: str, items: Sequence[Any]) -> Embeddings:
        """Unit embeddings [len(items), dim].

        What is more than a batch goes in piece by piece, so that others get in between. Raises
        DataError for what cannot be decoded, and Refusal where too many wait.
        """
        pieces = [
            await self._encode_piece(modality, items[start : start + self._max_batch])
            for start in range(0, len(items), self._max_batch)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    async def _encode_piece(self, modality: str, items: Sequence[Any]) -> Embeddings:
        lane = self._lane(modality)
        if lane.num_waiting + len(items) > self._max_queue:
            raise busy(f"{lane.num_waiting} queries wait to be encoded", retry_after_s=1.0)
        job = _Job(items, asyncio.get_running_loop().create_future())
        lane.waiting.append(job)
        lane.num_waiting += len(items)
        self._pump(lane)
        return await job.answer

    def close(self) -> None:
        """Let the threads end. Nothing may be waiting."""
        for lane in self._lanes.values():
            lane.worker.shutdown(wait=False)

    def _lane(self, modality: str) -> _Lane:
        if modality not in self._lanes:
            worker = ThreadPoolExecutor(1, thread_name_prefix=f"encode-{modality}")
            self._lanes[modality] = _Lane(modality, worker)
        return self._lanes[modality]

    def _pump(self, lane: _Lane) -> None:
        """Send the next batch in, if the tower is idle and somebody waits."""
        if lane.working:
            return
        jobs: list[_Job] = []
        num = 0
        while lane.waiting and num + len(lane.waiting[0].items) <= self._max_batch:
            job = lane.waiting.popleft()
            lane.num_waiting -= len(job.items)
            if not job.answer.cancelled():  # whoever asked may have gone
                jobs.append(job)
                num += len(job.items)
        self._on_queue(lane.modality, lane.num_waiting)
        if not jobs:
            return
        lane.working = True
        self._on_batch(lane.modality, num)
        batch = [item for job in jobs for item in job.items]
        work = asyncio.get_running_loop().run_in_executor(
            lane.worker, self._encode, lane.modality, batch
        )
        work.add_done_callback(lambda done: self._deliver(lane, jobs, done))

    def _deliver(self, lane: _Lane, jobs: list[_Job], done: asyncio.Future[Embeddings]) -> None:
        error = done.exception()
        if isinstance(error, DataError) and len(jobs) > 1:
            # One of them cannot be decoded: each is tried by itself, so that the others get theirs.
            work = asyncio.ensure_future(self._one_by_one(lane, jobs))
            work.add_done_callback(lambda _: self._resume(lane))
            return
        start = 0
        for job in jobs:
            if error is not None:
                _fail(job, error)
            else:
                _succeed(job, done.result()[start : start + len(job.items)])
            start += len(job.items)
        self._resume(lane)

    def _resume(self, lane: _Lane) -> None:
        lane.working = False
        self._pump(lane)

    async def _one_by_one(self, lane: _Lane, jobs: list[_Job]) -> None:
        loop = asyncio.get_running_loop()
        for job in jobs:
            try:
                answer = await loop.run_in_executor(
                    lane.worker, self._encode, lane.modality, job.items
                )
            except Exception as error:  # whatever it is goes to whoever asked
                _fail(job, error)
            else:
                _succeed(job, answer)


def _succeed(job: _Job, answer: Embeddings) -> None:
    if not job.answer.done():  # whoever asked may have gone
        job.answer.set_result(answer)


def _fail(job: _Job, error: BaseException) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)
