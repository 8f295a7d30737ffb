"""The index over HTTP when the server or the way to it fails: nothing lost, nothing doubled."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from qdrant_stand_in import Fault, StandIn

from coembed.errors import ServiceError, UserError
from coembed.index.base import Point
from coembed.index.build import Release, build
from coembed.index.qdrant import QdrantIndex, open_index
from coembed.index.settings import IndexSettings
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


def connect(stand_in: StandIn, key: str | None = None, **changes: float) -> QdrantIndex:
    settings = IndexSettings.model_validate(
        {"batch_size": 10, "backoff_s": 0.01, "backoff_max_s": 0.05, "timeout_s": 1, **changes}
    )
    return open_index(Services("", None, stand_in.url, key, Path("unused")), settings)


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


def build_all(index: QdrantIndex) -> None:
    points = make_points()
    settings = IndexSettings(batch_size=10, verify_sample=NUM)
    built = build(index, RELEASE, lambda: iter(points), alias="items", settings=settings)
    assert built.num_items == built.search.num_queries == NUM


def assert_whole(stand_in: StandIn) -> None:
    """The store itself holds exactly what was written, however often it was sent."""
    records, _ = stand_in.store.scroll(NAME, limit=1000, with_vectors=True)
    found = {record.payload["item_id"]: record for record in records}
    assert len(records) == len(found) == NUM
    for point in make_points():
        record = found[point.item_id]
        np.testing.assert_allclose(record.vector[RELEASE.vector_name], point.vector, atol=1e-5)
        assert record.payload == {"item_id": point.item_id, **point.payload}


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
        assert uploads[1].at_s - uploads[0].at_s >= 1.0


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
    with connect(stand_in, num_tries=4) as index:
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
    with connect(stand_in) as index:
        index.create("c", vector_name="item@x", dim=DIM, metadata={}, columns={})
        stand_in.faults.append(Fault(UPSERT, status))
        with pytest.raises(ServiceError, match=f"answered {status}") as caught:
            index.upsert("c", make_points())
    assert stand_in.count_requests("PUT", UPSERT) == 1
    assert ("QDRANT_API_KEY" in str(caught.value)) == (status in (401, 403))


def test_a_limit_that_stays_is_named(stand_in: StandIn) -> None:
    with connect(stand_in, num_tries=2) as index:
        index.create("c", vector_name="item@x", dim=DIM, metadata={}, columns={})
        stand_in.faults.extend(Fault(UPSERT, 429, {"Retry-After": "0"}) for _ in range(3))
        with pytest.raises(ServiceError, match=r"limiting requests \(429\)"):
            index.upsert("c", make_points())


def test_no_server_is_one_clear_error() -> None:
    services = Services("", None, "http://127.0.0.1:9", None, Path("unused"))
    with pytest.raises(ServiceError, match=r"http://127\.0\.0\.1:9 does not answer") as caught:
        open_index(services, IndexSettings(backoff_s=0.01))
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
    graph = next(one.body for one in stand_in.seen if one.method == "PATCH")
    assert graph["hnsw_config"] == {"m": 16, "ef_construct": 128}


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
        index.create(NAME, vector_name="item@zzzzzzzz", dim=DIM, metadata={}, columns={})
        with pytest.raises(UserError, match="holds another release"):
            build_all(index)
