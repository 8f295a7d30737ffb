"""Rollback and promotion while searches come in: none fails, none meets another model's vectors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from qdrant_stand_in import StandIn
from release_case import World
from release_shelf import fill_shelf

from coembed.index.base import VectorIndex
from coembed.index.opening import open_index
from coembed.index.points import read_points
from coembed.index.release import vector_of
from coembed.models.encoder import load_encoder
from coembed.services import find_services
from coembed.stages import rollback
from coembed.stages.rollback import roll_back
from coembed.stages.search import find_release

QUERY = "a red disc"
NUM_SEARCHERS = 4
NUM_ROUNDS = 3


@dataclass(frozen=True)
class Expected:
    """The query as one model encodes it, and the items that its own embeddings answer with."""

    vector: NDArray[np.float32]
    items: list[str]


@dataclass
class Searches:
    """What the searchers saw: how many answers of which model, and every failure."""

    answers: dict[str, int] = field(default_factory=dict)
    failures: list[BaseException] = field(default_factory=list)
    switches: int = 0


def _expect(world: World, name: str) -> tuple[str, Expected]:
    encoder = load_encoder(world.path(name), device="cpu")
    vector = encoder.encode_texts([QUERY])[0]
    ranked = sorted(
        (-float(np.dot(point.vector, vector)), point.item_id)
        for point in read_points(world.path(f"{name}-embeddings"))
    )
    return encoder.fingerprint, Expected(vector, [item for _, item in ranked[:10]])


@pytest.fixture
def known(fresh_world: World) -> dict[str, Expected]:
    found = dict(_expect(fresh_world, name) for name in "ab")
    first, second = found.values()
    assert first.items != second.items, "an answer tells which model gave it"
    return found


def _search(index: VectorIndex, known: dict[str, Expected]) -> str:
    """One search as `coembed search` makes it, with the query encoded before; the fingerprint."""
    collection, release = find_release(index, alias="items")
    vector_name = vector_of(index.describe(collection), release)
    expected = known[release.fingerprint]
    hits = index.query(collection, vector_name, expected.vector, limit=10)
    assert [hit.item_id for hit in hits] == expected.items
    return release.fingerprint


@contextmanager
def searching(
    index_of: Callable[[], VectorIndex], known: dict[str, Expected]
) -> Iterator[Searches]:
    """Search without a pause from several threads while the block runs."""
    seen, over = Searches(), threading.Event()
    lock = threading.Lock()

    def keep_on() -> None:
        last: str | None = None
        try:
            index = index_of()
            while not over.is_set():
                now = _search(index, known)
                with lock:
                    seen.answers[now] = seen.answers.get(now, 0) + 1
                    seen.switches += last not in (None, now)
                last = now
        except BaseException as error:
            seen.failures.append(error)

    threads = [threading.Thread(target=keep_on) for _ in range(NUM_SEARCHERS)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join(timeout=60)


def _check(seen: Searches, known: dict[str, Expected]) -> None:
    assert seen.failures == []
    assert seen.answers.keys() == known.keys(), "both models answered"
    assert min(seen.answers.values()) > NUM_SEARCHERS
    assert seen.switches >= NUM_ROUNDS, "the searchers saw the switches"


def test_in_the_embedded_store(fresh_world: World, known: dict[str, Expected]) -> None:
    """One process holds that store: searches and switches share its index."""
    shelf = fill_shelf(fresh_world, "ab", serve=2)
    with shelf.open() as stores:
        with searching(lambda: stores.index, known) as seen:
            for _ in range(NUM_ROUNDS):
                assert roll_back(stores, version=None, by="Ada")["version"] == 1
                _wait_for_answers(seen)
                shelf.switch(stores, 2)
                _wait_for_answers(seen)
        assert len(stores.journal.entries()) == 2 + 2 * NUM_ROUNDS
        assert stores.registry.aliases() == {"champion": 2, "previous": 1}
    _check(seen, known)


def test_on_a_server_with_a_client_each(fresh_world: World, known: dict[str, Expected]) -> None:
    with StandIn() as server:
        services = find_services(fresh_world.root, {"QDRANT_URL": server.url})
        world = replace(fresh_world, services=services)
        shelf = fill_shelf(world, "ab", serve=2)
        undo = partial(
            rollback.run, world.cfg, services=services, runs=world.path("runs"),
            out=world.path("runs") / "rollback.json", by="Ada", why="it is a bad day",
        )  # fmt: skip
        with searching(lambda: open_index(services, world.cfg.index), known) as seen:
            for _ in range(NUM_ROUNDS):
                started = time.monotonic()
                assert undo().receipt["version"] == 1
                assert time.monotonic() - started < 60, "a rollback takes seconds"
                _wait_for_answers(seen)
                with shelf.open() as stores:
                    shelf.switch(stores, 2)
                _wait_for_answers(seen)
    _check(seen, known)


def _wait_for_answers(seen: Searches) -> None:
    """Until every searcher may have seen what is served now."""
    wanted = sum(seen.answers.values()) + 2 * NUM_SEARCHERS
    deadline = time.monotonic() + 60
    while sum(seen.answers.values()) < wanted and not seen.failures:
        assert time.monotonic() < deadline, "the searchers stand still"
        time.sleep(0.005)
