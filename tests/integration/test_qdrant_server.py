"""The index over HTTP when the server or the way to it fails: nothing lost, nothing doubled."""

from __future__ import annotations

import os
import random
import re
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_proxy import PASS, Fate, Proxy
from qdrant_stand_in import Fault, StandIn

from coembed.errors import ServiceError, UserError
from coembed.index.base import Point, SearchParams
from coembed.index.build import Built, build
from coembed.index.qdrant import QdrantIndex, open_server
from coembed.index.release import Layout, Release
from coembed.index.settings import IndexSettings
from coembed.index.verify import content_hash
from coembed.services import Services

DIM, NUM = 8, 40
RELEASE = Release(
    model="shop",
    version=3,
    fingerprint="ab" * 32,
    precision="fp32",
    corpus="cd" * 32,
    num_items=NUM,
    dim=DIM,
    columns={"colour": "text", "price": "number"},
)
NAME = "items__v3__abababab_cdcdcdcd"
UPSERT = r"/points$"


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with StandIn() as running:
        yield running


def connect(
    at: StandIn | Proxy | str, key: str | None = None, grpc_port: int | None = None, **changes: Any
) -> QdrantIndex:
    settings = IndexSettings.model_validate(
        {"batch_size": 10, "backoff_s": 0.01, "backoff_max_s": 0.05, "timeout_s": 1, **changes}
    )
    url = at if isinstance(at, str) else at.url
    return open_server(Services("", None, url, key, Path("unused"), grpc_port), settings)


def hashed(point: Point) -> Point:
    """As a build writes it."""
    return replace(point, content_hash=content_hash(point))


def make_points() -> list[Point]:
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(NUM, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [
        Point(
            f"{i:064x}",
            vector,
            {"path": f"{i}.jpg", "captions": ["a"], "attributes": {"colour": "red", "price": i}},
        )
        for i, vector in enumerate(vectors.astype(np.float32))
    ]


def build_all(
    index: QdrantIndex, points: list[Point] | None = None, *, alias: str = "items", **changes: Any
) -> Built:
    chosen = make_points() if points is None else points
    settings = IndexSettings(batch_size=10, verify_sample=NUM)
    release = replace(RELEASE, num_items=len(chosen), **changes)
    built = build(index, release, lambda: iter(chosen), alias=alias, settings=settings)
    assert built.num_items == built.search.num_queries == len(chosen)
    return built


def assert_whole(stand_in: StandIn) -> None:
    """The store itself holds exactly what was written, however often it was sent."""
    records, _ = stand_in.store.scroll(NAME, limit=1000, with_vectors=True)
    found = {record.payload["item_id"]: record for record in records}
    assert len(records) == len(found) == NUM
    for point in make_points():
        record = found[point.item_id]
        np.testing.assert_allclose(record.vector[RELEASE.vector_name], point.vector, atol=1e-5)
        own = {"item_id": point.item_id, "content_hash": content_hash(point)}
        assert record.payload == {**own, **point.payload}


@pytest.mark.parametrize(
    "fault",
    [
        Fault(UPSERT, 503),
        Fault(UPSERT, 500, after_work=True),
        Fault(UPSERT, 429),
        Fault(UPSERT, 429, {"Retry-After": "1"}),
        Fault(UPSERT, 429, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
        Fault(UPSERT, slow_s=1.4),
        Fault(UPSERT, slow_s=1.4, after_work=True),
    ],
    ids=lambda f: f"{f.status or 'slow'}{'-after' if f.after_work else ''}-{len(f.headers)}",
)
def test_a_passing_fault_costs_a_second_try_and_nothing_else(
    stand_in: StandIn, fault: Fault
) -> None:
    with connect(stand_in) as index:
        stand_in.faults.append(fault)
        build_all(index)
    assert not stand_in.faults
    assert_whole(stand_in)
    uploads = [one for one in stand_in.seen if one.method == "PUT" and one.path.endswith("/points")]
    assert len(uploads) == NUM // 10 + 1
    if fault.headers.get("Retry-After") == "1":
        # The two streams begin at once; the one that was put off comes back after the others.
        assert uploads[-1].at_s - uploads[0].at_s >= 1.0


def test_requests_whose_answers_were_lost_are_known_to_be_done(stand_in: StandIn) -> None:
    lost = [
        Fault(rf"/collections/{NAME}$", slow_s=1.4, after_work=True),
        Fault(r"/collections/aliases$", slow_s=1.4, after_work=True),
    ]
    with connect(stand_in) as index:
        # The first request to that very path is the one that makes the collection.
        stand_in.faults.append(lost[0])
        build_all(index)
        stand_in.faults.append(lost[1])
        index.set_alias("items", NAME)
        assert index.aliases() == {"items": NAME}
    assert not stand_in.faults
    assert_whole(stand_in)


@pytest.mark.parametrize("seed", range(4))
def test_a_build_through_a_storm_of_faults_is_whole(stand_in: StandIn, seed: int) -> None:
    rng = random.Random(seed)
    with connect(stand_in, num_tries=8) as index:
        paths = [UPSERT, rf"/collections/{NAME}$", r"/count$", r"/query$", r"/collections$"]
        for _ in range(15):
            stand_in.faults.append(
                Fault(
                    rng.choice(paths),
                    rng.choice([429, 500, 502, 503]),
                    after_work=rng.random() < 0.5,
                )
            )
        build_all(index)
    assert_whole(stand_in)


def test_the_server_stays_away_and_the_error_says_where(stand_in: StandIn) -> None:
    slow = {"backoff_s": 0.2, "backoff_max_s": 2.0}
    with connect(stand_in, num_tries=4, num_streams=1, **slow) as index:
        index.create("c", vector_name="item@x", dim=DIM, metadata={}, columns={})
        stand_in.faults.extend(Fault(UPSERT, 503) for _ in range(9))
        with pytest.raises(ServiceError, match=re.escape(f"{stand_in.url} answered 503")):
            index.upsert("c", make_points())
    assert len(stand_in.faults) == 5
    times = [one.at_s for one in stand_in.seen if one.path.endswith("/points")]
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses[-1] > pauses[0]


@pytest.mark.parametrize("status", [400, 401, 403, 413, 422])
def test_what_the_server_will_not_take_is_not_sent_twice(stand_in: StandIn, status: int) -> None:
    with connect(stand_in, num_streams=1) as index:
        index.create("c", vector_name="item@x", dim=DIM, metadata={}, columns={})
        stand_in.faults.append(Fault(UPSERT, status))
        with pytest.raises(ServiceError, match=f"answered {status}") as caught:
            index.upsert("c", make_points())
    assert stand_in.count_requests("PUT", UPSERT) == 1
    assert ("QDRANT_API_KEY" in str(caught.value)) == (status in (401, 403))


def test_a_limit_that_stays_is_named(stand_in: StandIn) -> None:
    with connect(stand_in, num_tries=2, num_streams=1) as index:
        index.create("c", vector_name="item@x", dim=DIM, metadata={}, columns={})
        stand_in.faults.extend(Fault(UPSERT, 429, {"Retry-After": "0"}) for _ in range(3))
        with pytest.raises(ServiceError, match=r"limiting requests \(429\)"):
            index.upsert("c", make_points())


def test_no_server_is_one_clear_error() -> None:
    with pytest.raises(ServiceError, match=r"http://127\.0\.0\.1:9 does not answer") as caught:
        connect("http://127.0.0.1:9")
    assert "Unset QDRANT_URL" in str(caught.value)


def test_a_server_that_is_something_else_is_one_clear_error(stand_in: StandIn) -> None:
    stand_in.faults.append(Fault(r"/collections$", 200))
    with pytest.raises(ServiceError, match="does not answer"):
        connect(stand_in)
    assert stand_in.count_requests("GET", "/collections$") == 1


def test_the_key_is_sent_and_no_upload_without_waiting(stand_in: StandIn) -> None:
    with connect(stand_in, key="secret") as index:
        build_all(index)
    assert {one.api_key for one in stand_in.seen} == {"secret"}


def test_payload_indexes_come_before_the_points_and_the_graph_after(stand_in: StandIn) -> None:
    with connect(stand_in) as index:
        build_all(index)
    calls = [(one.method, one.path.removeprefix(f"/collections/{NAME}")) for one in stand_in.seen]
    first_upload = calls.index(("PUT", "/points"))
    indexes = [place for place, call in enumerate(calls) if call == ("PUT", "/index")]
    asked = [stand_in.seen[place].body for place in indexes]
    assert asked == [
        {"field_name": "modality", "field_schema": "keyword"},
        {"field_name": "attributes.colour", "field_schema": "keyword"},
        {"field_name": "attributes.price", "field_schema": "float"},
    ]
    assert max(indexes) < first_upload
    created = next(one.body for one in stand_in.seen if one.method == "PUT")
    assert created["hnsw_config"]["m"] == 0
    assert created["optimizers_config"]["indexing_threshold"] == 0
    assert created.get("quantization_config") is None
    place, graph = next(
        (place, one.body) for place, one in enumerate(stand_in.seen) if one.method == "PATCH"
    )
    assert place > max(place for place, call in enumerate(calls) if call == ("PUT", "/points"))
    assert graph["hnsw_config"] == {"m": 16, "ef_construct": 128}
    assert graph["optimizers_config"] == {"indexing_threshold": 10_000}


def test_threads_share_one_connection(stand_in: StandIn) -> None:
    with connect(stand_in) as index:
        build_all(index)
        points = make_points()
        failures: list[BaseException] = []

        def ask(number: int) -> None:
            try:
                for point in points[number::4]:
                    hits = index.query(NAME, RELEASE.vector_name, point.vector, limit=1)
                    assert hits[0].item_id == point.item_id
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures


def test_a_collection_made_by_another_release_is_refused(stand_in: StandIn) -> None:
    with connect(stand_in) as index:
        metadata = {**RELEASE.to_metadata(), "model": "another"}
        index.create(NAME, vector_name=RELEASE.vector_name, dim=DIM, metadata=metadata, columns={})
        with pytest.raises(UserError, match="holds another release"):
            build_all(index)


@pytest.mark.parametrize(
    ("quantization", "asked"),
    [
        ("int8", {"scalar": {"type": "int8", "quantile": 0.99, "always_ram": True}}),
        ("binary", {"binary": {"always_ram": True}}),
    ],
)
def test_quantisation_is_asked_for_and_searched_with_rescoring(
    stand_in: StandIn, quantization: str, asked: dict[str, Any]
) -> None:
    with connect(stand_in, quantization=quantization, oversampling=3.0) as index:
        built = build_all(index, layout=Layout(quantization))  # type: ignore[arg-type]
        assert built.collection == f"{NAME}_{quantization}"
        vector = make_points()[0].vector
        index.query(built.collection, RELEASE.vector_name, vector, exact=True)
        index.query(
            built.collection, RELEASE.vector_name, vector, limit=20,
            search=SearchParams(ef=16, oversampling=1.5, rescore=False),
        )  # fmt: skip
    created = next(one.body for one in stand_in.seen if one.method == "PUT")
    assert created["quantization_config"] == asked
    ((vectors,),) = [created["vectors"].values()]
    assert vectors["on_disk"] is True
    params = [one.body["params"] for one in stand_in.seen if one.path.endswith("/query")]
    usual = {"ignore": False, "rescore": True, "oversampling": 3.0}
    assert params[0] == {"hnsw_ef": 128, "exact": False, "quantization": usual}
    # A full scan is one of the vectors themselves.
    assert params[-2] == {
        "hnsw_ef": 128, "exact": True, "quantization": {**usual, "ignore": True},
    }  # fmt: skip
    # A walk narrower than the hits that are asked for would find fewer.
    assert params[-1] == {
        "hnsw_ef": 20, "exact": False,
        "quantization": {"ignore": False, "rescore": False, "oversampling": 1.5},
    }  # fmt: skip


def test_streams_load_at_once_and_stop_at_the_first_refusal(stand_in: StandIn) -> None:
    with connect(stand_in, num_streams=4, batch_size=1, timeout_s=20) as index:
        index.create("c", vector_name="item@x", dim=DIM, metadata={}, columns={})
        stand_in.faults.extend(Fault(UPSERT, slow_s=2.0, status=503) for _ in range(4))
        index.upsert("c", make_points())
        times = [one.at_s for one in stand_in.seen if one.path.endswith("/points")]
        # The fourth was sent before the first was answered.
        assert times[3] - times[0] < 2.0
        assert index.count("c") == NUM
        sent = stand_in.count_requests("PUT", UPSERT)
        stand_in.faults.append(Fault(UPSERT, 400))
        with pytest.raises(ServiceError, match="answered 400"):
            index.upsert("c", make_points())
        assert stand_in.count_requests("PUT", UPSERT) - sent < NUM


def test_a_load_goes_on_where_a_killed_one_stopped(stand_in: StandIn) -> None:
    def cut_short(num: int) -> Iterator[Point]:
        yield from make_points()[:num]
        raise KeyboardInterrupt

    settings = IndexSettings(batch_size=4, num_streams=2, verify_sample=NUM)
    with connect(stand_in, batch_size=4) as index, pytest.raises(KeyboardInterrupt):
        build(index, RELEASE, lambda: cut_short(35), alias="items", settings=settings)
    assert stand_in.store.count(NAME).count == 32
    with connect(stand_in, batch_size=4) as index:
        built = build(index, RELEASE, lambda: iter(make_points()), alias="items", settings=settings)
    assert (built.loaded.num_copied, built.loaded.num_written) == (32, 8)
    assert_whole(stand_in)
    written = [
        point["id"] for one in stand_in.seen if one.method == "PUT" and one.path.endswith("/points")
        for point in one.body["points"]
    ]  # fmt: skip
    assert len(written) == len(set(written)) == NUM


# Over a way that fails. The server is the stand-in, and a real one where QDRANT_URL is set.


@dataclass
class Way:
    """A server behind a proxy. `direct` opens an index past the proxy."""

    proxy: Proxy
    url: str
    alias: str
    key: str | None

    def connect(self, **changes: Any) -> QdrantIndex:
        return connect(self.proxy, self.key, **changes)

    def direct(self) -> QdrantIndex:
        return connect(self.url, self.key, timeout_s=30)

    def assert_whole(self, name: str, points: list[Point]) -> None:
        """Nothing is lost and nothing doubled, as the server itself says."""
        with self.direct() as index:
            assert index.count(name) == len(points)
            found = [one for batch in index.scroll(name, with_vectors=True) for one in batch]
            there = {one.item_id: one for one in found}
            assert len(found) == len(there) == len(points)
            for point in points:
                assert there[point.item_id].content_hash == content_hash(point)
                assert dict(there[point.item_id].payload) == dict(point.payload)
                np.testing.assert_allclose(there[point.item_id].vector, point.vector, atol=1e-5)


SERVERS = ["stand-in", *(["real"] if os.environ.get("QDRANT_URL") else [])]


@pytest.fixture(params=SERVERS)
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    real = request.param == "real"
    url = os.environ["QDRANT_URL"] if real else request.getfixturevalue("stand_in").url
    key = os.environ.get("QDRANT_API_KEY") if real else None
    with Proxy(url) as proxy:
        made = Way(proxy, url, f"t{secrets.token_hex(4)}", key)
        yield made
    with made.direct() as index:
        ours = [name for name in index.collections() if name.startswith(made.alias)]
        if made.alias in index.aliases():
            index._client.update_collection_aliases(
                [{"delete_alias": {"alias_name": made.alias}}]  # type: ignore[list-item]
            )
        for name in ours:
            index.delete(name)


FATES = {
    "drop": Fate("drop"),
    "cut": Fate("cut"),
    "delay": Fate("delay", seconds=1.5),
    "late": Fate("late", seconds=1.5),
    "429": Fate("answer", status=429),
    "429-asks": Fate("answer", status=429, headers={"Retry-After": "1"}),
    "429-date": Fate(
        "answer", status=429, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}
    ),
    "500-done": Fate("replace", status=500),
    "502": Fate("answer", status=502),
    "503": Fate("answer", status=503),
    "504-done": Fate("replace", status=504),
}
STEPS = {
    "create": r"PUT /collections/[^/]+$",
    "payload index": r"PUT /collections/[^/]+/index",
    "upsert": r"PUT /collections/[^/]+/points",
    "serve": r"PATCH /collections/[^/]+$",
    "scroll": r"POST /collections/[^/]+/points/scroll",
    "query": r"POST /collections/[^/]+/points/query",
}


@pytest.mark.parametrize("fate", FATES)
def test_a_build_over_a_way_that_fails_once_at_every_step_is_whole(way: Way, fate: str) -> None:
    left = dict(STEPS)

    def decide(method: str, path: str) -> Fate:
        for step, pattern in left.items():
            if re.search(pattern, f"{method} {path}"):
                del left[step]
                return FATES[fate]
        return PASS

    with way.connect() as index:
        way.proxy.decide = decide
        built = build_all(index, alias=way.alias)
        assert not left
        assert way.proxy.fates[FATES[fate].kind] == len(STEPS)
    way.assert_whole(built.collection, make_points())


@pytest.mark.parametrize("seed", range(3))
def test_a_build_a_change_and_a_swap_through_a_storm(way: Way, seed: int) -> None:
    rng = random.Random(seed)
    kinds = [
        Fate("drop"), Fate("cut"), Fate("delay", seconds=0.02), Fate("late", seconds=0.02),
        Fate("answer", status=429), Fate("answer", status=503), Fate("replace", status=502),
    ]  # fmt: skip

    def decide(method: str, path: str) -> Fate:  # noqa: ARG001
        return rng.choice(kinds) if rng.random() < 0.3 else PASS

    points = make_points()
    other = replace(points[0], payload={**points[0].payload, "path": "new.jpg"})
    changed = [hashed(point) for point in (other, *points[2:])]
    with way.connect(num_tries=20, timeout_s=10, batch_size=3, num_streams=3) as index:
        way.proxy.decide = decide
        first = build_all(index, alias=way.alias)
        index.set_alias(way.alias, first.collection)
        second = build_all(index, changed, alias=way.alias, corpus="ee" * 32)
        index.set_alias(way.alias, second.collection)
        # One more build of the first, of other items: what is there is changed in place.
        index.delete_points(first.collection, [points[1].item_id])
        index.upsert(first.collection, changed)
        way.proxy.decide = lambda method, path: PASS  # noqa: ARG005
    assert sum(num for kind, num in way.proxy.fates.items() if kind != "pass") > 20
    way.assert_whole(second.collection, changed)
    way.assert_whole(first.collection, changed)
    with way.direct() as index:
        assert index.aliases()[way.alias] == second.collection


def test_a_server_that_is_away_for_a_while_is_waited_for(way: Way) -> None:
    closed = threading.Event()

    def close_door() -> None:
        with way.proxy.refuse():
            closed.set()
            time.sleep(1.0)

    def decide(method: str, path: str) -> Fate:
        if not closed.is_set() and re.search(STEPS["upsert"], f"{method} {path}"):
            threading.Thread(target=close_door).start()
            closed.wait()
            return Fate("drop")
        return PASS

    with way.connect(num_tries=12, backoff_s=0.1, backoff_max_s=1.0) as index:
        way.proxy.decide = decide
        built = build_all(index, alias=way.alias)
        assert closed.is_set()
    way.assert_whole(built.collection, make_points())


def test_a_refusal_is_not_repeated_and_an_outage_has_an_end(way: Way) -> None:
    some = [hashed(point) for point in make_points()[:5]]
    with way.connect(num_tries=3, num_streams=1) as index:
        built = build_all(index, alias=way.alias)
        way.proxy.script("PUT .*/points", *[Fate("answer", status=403)] * 3)
        way.proxy.fates.clear()
        with pytest.raises(ServiceError, match="answered 403"):
            index.upsert(built.collection, some)
        assert way.proxy.fates["answer"] == 1
        way.proxy.script("PUT .*/points", *[Fate("cut")] * 9)
        with pytest.raises(ServiceError, match="does not answer"):
            index.upsert(built.collection, some)
        assert way.proxy.fates["cut"] == 3
    way.assert_whole(built.collection, make_points())
