"""Which release answers, while the alias moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import pytest

from coembed.errors import ServiceError
from coembed.index.base import VectorIndex
from coembed.serve.bound import BoundRelease
from coembed.serve.keeper import Keeper, Swap
from coembed.serve.refusals import Refusal


@dataclass(eq=False)
class Loaded:
    """A release as the keeper sees one."""

    collection: str
    is_open: bool = True


class Aliases:
    """An index of nothing but an alias."""

    def __init__(self) -> None:
        self.target: str | None = "one"
        self.away = False

    def aliases(self) -> dict[str, str]:
        if self.away:
            raise ServiceError("the index is away")
        return {} if self.target is None else {"items": self.target}


class World:
    """An alias, what was loaded and closed, and a keeper that looks only when it is told."""

    def __init__(self, *, keep_warm: int = 2, poll_s: float = 0.001) -> None:
        self.index = Aliases()
        self.loads: list[str] = []
        self.made: list[Loaded] = []
        self.broken: set[str] = set()
        self.swaps: list[Swap] = []
        self.failing: list[bool] = []
        self.keeper = Keeper(
            cast(VectorIndex, self.index),
            alias="items",
            load=cast(Any, self.load),
            unload=cast(Any, self.unload),
            poll_s=poll_s,
            keep_warm=keep_warm,
            on_swap=self.swaps.append,
            on_failing=self.failing.append,
        )

    def load(self, collection: str, stop: Callable[[], bool]) -> Loaded:  # noqa: ARG002
        self.loads.append(collection)
        if collection in self.broken:
            raise ServiceError(f"{collection} cannot be read")
        self.made.append(Loaded(collection))
        return self.made[-1]

    def unload(self, loaded: Loaded) -> None:
        assert loaded.is_open, "closed twice"
        loaded.is_open = False

    def go(self, collection: str | None) -> None:
        self.index.target = collection
        self.keeper.look()

    def served(self) -> str | None:
        current = self.keeper.current
        return None if current is None else current.collection

    def open(self) -> list[str]:
        return [loaded.collection for loaded in self.made if loaded.is_open]


@contextmanager
def lease(world: World) -> Iterator[BoundRelease]:
    with world.keeper.lease() as bound:
        yield bound


def test_a_release_is_loaded_once_and_followed() -> None:
    world = World()
    world.keeper.look()
    world.keeper.look()
    assert (world.served(), world.loads) == ("one", ["one"])
    world.go("two")
    assert (world.served(), world.loads) == ("two", ["one", "two"])
    assert [(swap.before and swap.before.collection, swap.warm) for swap in world.swaps] == [
        (None, False), ("one", False),
    ]  # fmt: skip


def test_the_way_back_loads_nothing() -> None:
    world = World(keep_warm=2)
    for collection in ("one", "two", "one", "two"):
        world.go(collection)
    assert world.loads == ["one", "two"]
    assert [swap.warm for swap in world.swaps] == [False, False, True, True]


def test_only_the_last_few_stay_loaded() -> None:
    world = World(keep_warm=2)
    for collection in ("one", "two", "three"):
        world.go(collection)
    assert world.open() == ["two", "three"]
    world.go("two")
    world.go("four")
    assert sorted(world.open()) == ["four", "two"]


def test_a_release_is_closed_behind_the_last_request_that_has_it() -> None:
    world = World(keep_warm=1)
    world.keeper.look()
    with lease(world) as first, lease(world) as second:
        assert first is second and first.collection == "one"
        world.go("two")
        assert world.open() == ["one", "two"]
        with lease(world) as third:
            assert third.collection == "two"
    world.keeper.look()
    assert world.open() == ["two"]


def test_a_drained_release_that_comes_back_is_loaded_anew() -> None:
    world = World(keep_warm=1)
    world.keeper.look()
    with lease(world) as old:
        world.go("two")
        world.go("one")
        assert world.loads == ["one", "two", "one"]
        with lease(world) as new:
            assert new is not old and new.collection == "one"
    world.keeper.look()
    assert world.open() == ["one"]


def test_what_cannot_be_loaded_leaves_the_old_one_serving_and_is_said() -> None:
    world = World(poll_s=0.02)
    world.keeper.look()
    world.broken = {"two"}
    world.go("two")
    assert world.served() == "one"
    failing = world.keeper.failing
    assert failing is not None
    assert (failing.collection, failing.error, failing.num_tries) == (
        "two",
        "two cannot be read",
        1,
    )
    world.keeper.look()
    assert world.loads == ["one", "two"]  # not at every look
    time.sleep(0.06)
    world.keeper.look()
    assert world.loads == ["one", "two", "two"]
    assert world.keeper.failing is not None and world.keeper.failing.num_tries == 2
    world.broken = set()
    time.sleep(0.1)
    world.keeper.look()
    assert (world.served(), world.keeper.failing, world.failing) == ("two", None, [True, False])


def test_another_release_is_tried_at_once_after_one_that_failed() -> None:
    world = World(poll_s=60)
    world.keeper.look()
    world.broken = {"two"}
    world.go("two")
    world.go("three")
    assert (world.served(), world.keeper.failing) == ("three", None)


def test_going_back_from_one_that_failed_ends_the_failure() -> None:
    world = World(poll_s=60)
    world.keeper.look()
    world.broken = {"two"}
    world.go("two")
    world.go("one")
    assert (world.served(), world.keeper.failing, world.loads) == ("one", None, ["one", "two"])


def test_nothing_served_is_a_503_that_says_what_to_do() -> None:
    world = World()
    world.go(None)
    said = r"nothing is served as 'items' yet(.|\n)*retrain"
    with pytest.raises(Refusal, match=said) as refused, lease(world):
        pass
    assert refused.value.status == 503 and refused.value.retry_after_s
    world.broken = {"one"}
    world.go("one")
    with pytest.raises(Refusal, match="one cannot be read"), lease(world):
        pass


def test_an_index_that_is_away_changes_nothing() -> None:
    world = World()
    world.keeper.look()
    world.index.away = True
    world.keeper.look()
    assert (world.served(), world.keeper.failing) == ("one", None)
    world.index.away = False
    world.go(None)  # nor does an alias that is gone
    assert world.served() == "one"


def test_a_bug_while_loading_does_not_end_the_watch() -> None:
    world = World(poll_s=0.001)

    def bug(collection: str, stop: Callable[[], bool]) -> Loaded:  # noqa: ARG001
        raise RuntimeError("a bug")

    world.keeper.look()
    world.keeper._load = cast(Any, bug)
    world.go("two")
    assert world.served() == "one"
    assert world.keeper.failing is not None and "a bug" in world.keeper.failing.error


def test_stopping_closes_everything() -> None:
    world = World(keep_warm=3)
    world.keeper.start()
    for collection in ("two", "three"):
        world.index.target = collection
        while world.served() != collection:
            time.sleep(0.001)
    world.keeper.stop()
    assert len(world.made) == 3 and world.open() == []


def test_under_many_threads_a_lease_is_always_of_an_open_release() -> None:
    world = World(keep_warm=1, poll_s=0.0005)
    world.keeper.start()
    done = threading.Event()
    wrong: list[str] = []
    num = [0] * 4

    def ask(place: int) -> None:
        while not done.is_set():
            with lease(world) as bound:
                if not cast(Any, bound).is_open:
                    wrong.append(bound.collection)
                num[place] += 1

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(200):
        world.index.target = ("one", "two", "three")[turn % 3]
        time.sleep(0.001)
    done.set()
    for thread in threads:
        thread.join()
    world.keeper.stop()
    assert not wrong and min(num) > 100
    assert world.open() == [] and len(world.swaps) > 20
