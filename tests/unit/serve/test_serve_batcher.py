"""Queries that go through a tower together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest

from coembed.errors import DataError
from coembed.serve.batcher import Batcher
from coembed.serve.refusals import Refusal


class Tower:
    """Encodes a number as [number, its batch's size]; waits for `go`; -1 cannot be decoded."""

    def __init__(self, *, open_: bool = True) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.go = threading.Event()
        if open_:
            self.go.set()

    def __call__(self, modality: str, items: Sequence[int]) -> np.ndarray:
        self.batches.append((modality, list(items)))
        assert self.go.wait(30)
        if -1 in items:
            raise DataError(f"{modality} {list(items).index(-1)}: not readable")
        return np.asarray([[item, len(items)] for item in items], dtype=np.float32)


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_a_single_query_goes_in_at_once() -> None:
    async def work() -> None:
        tower = Tower()
        batcher = Batcher(tower, max_batch=8, max_queue=8)
        assert (await batcher.encode("text", [7])).tolist() == [[7, 1]]
        assert tower.batches == [("text", [7])]
        batcher.close()

    run(work)


def test_those_that_come_while_the_tower_works_go_in_together() -> None:
    async def work() -> None:
        tower = Tower(open_=False)
        sizes: list[int] = []
        batcher = Batcher(
            tower, max_batch=8, max_queue=99, on_batch=lambda _modality, num: sizes.append(num)
        )
        asked = [asyncio.ensure_future(batcher.encode("text", [n])) for n in range(12)]
        await until(lambda: len(tower.batches) == 1)
        await asyncio.sleep(0.01)
        tower.go.set()
        answers = await asyncio.gather(*asked)
        # Everyone gets their own, whoever they went with.
        assert [int(answer[0, 0]) for answer in answers] == list(range(12))
        assert sizes == [1, 8, 3]
        batcher.close()

    run(work)


def test_modalities_do_not_wait_for_one_another() -> None:
    async def work() -> None:
        tower = Tower(open_=False)
        batcher = Batcher(tower, max_batch=8, max_queue=8)
        asked = [asyncio.ensure_future(batcher.encode(m, [1])) for m in ("image", "text")]
        await until(lambda: len(tower.batches) == 2)
        tower.go.set()
        await asyncio.gather(*asked)
        batcher.close()

    run(work)


def test_a_long_list_goes_in_piece_by_piece_and_lets_others_in_between() -> None:
    async def work() -> None:
        tower = Tower(open_=False)
        batcher = Batcher(tower, max_batch=4, max_queue=8)
        long = asyncio.ensure_future(batcher.encode("text", list(range(10, 20))))
        await until(lambda: len(tower.batches) == 1)
        other = asyncio.ensure_future(batcher.encode("text", [1]))
        await asyncio.sleep(0.01)
        tower.go.set()
        assert (await long)[:, 0].tolist() == list(range(10, 20))
        assert (await other)[0, 0] == 1
        order = [item for _, items in tower.batches for item in items]
        assert order.index(1) < order.index(19)
        batcher.close()

    run(work)


def test_one_bad_item_fails_alone() -> None:
    async def work() -> None:
        tower = Tower(open_=False)
        batcher = Batcher(tower, max_batch=8, max_queue=8)
        first = asyncio.ensure_future(batcher.encode("image", [0]))
        await until(lambda: len(tower.batches) == 1)
        asked = [asyncio.ensure_future(batcher.encode("image", [n])) for n in (1, -1, 3)]
        await asyncio.sleep(0.01)
        tower.go.set()
        answers = await asyncio.gather(first, *asked, return_exceptions=True)
        assert isinstance(answers[2], DataError)
        assert [float(a[0, 0]) for a in answers if not isinstance(a, BaseException)] == [0, 1, 3]
        assert (await batcher.encode("image", [5])).tolist() == [[5, 1]]  # and it goes on
        batcher.close()

    run(work)


def test_too_many_that_wait_are_told_to_come_again() -> None:
    async def work() -> None:
        tower = Tower(open_=False)
        batcher = Batcher(tower, max_batch=2, max_queue=3)
        asked = [asyncio.ensure_future(batcher.encode("text", [n])) for n in range(4)]
        await until(lambda: len(tower.batches) == 1)
        with pytest.raises(Refusal) as refused:
            await batcher.encode("text", [9])
        assert refused.value.status == 429 and refused.value.retry_after_s
        tower.go.set()
        await asyncio.gather(*asked)
        assert (await batcher.encode("text", [9]))[0, 0] == 9
        batcher.close()

    run(work)


def test_one_who_gave_up_holds_nobody_up() -> None:
    async def work() -> None:
        tower = Tower(open_=False)
        batcher = Batcher(tower, max_batch=8, max_queue=8)
        asked = [asyncio.ensure_future(batcher.encode("text", [n])) for n in range(4)]
        await until(lambda: len(tower.batches) == 1)
        asked[0].cancel()
        asked[2].cancel()
        await asyncio.sleep(0.01)
        tower.go.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [float(a[0, 0]) for a in answers if not isinstance(a, BaseException)] == [1, 3]
        assert tower.batches[1] == ("text", [1, 3])
        batcher.close()

    run(work)


def test_a_bug_reaches_everyone_who_waits_and_ends_nothing() -> None:
    async def work() -> None:
        def broken(modality: str, items: Sequence[int]) -> np.ndarray:  # noqa: ARG001
            raise RuntimeError("a bug")

        batcher = Batcher(broken, max_batch=8, max_queue=8)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="a bug"):
                await batcher.encode("text", [1])
        batcher.close()

    run(work)
