"""Every index backend by the same cases, compared with the exact one.

Backends: exact (in memory), edge (the embedded store), local (the client's local mode), server (the
stand-in over HTTP), and a real server where QDRANT_URL is set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from qdrant_stand_in import StandIn

from coembed.errors import UserError
from coembed.index.base import Point, SearchParams, VectorIndex, point_id
from coembed.index.exact import ExactIndex
from coembed.index.filters import ColumnKind, Filter, column_kinds, matches, parse_filters
from coembed.index.opening import open_index
from coembed.index.qdrant import open_local
from coembed.index.settings import IndexSettings
from coembed.services import Services

DIM = 24
VECTOR = "item@0123abcd"
SETTINGS = IndexSettings(batch_size=7, backoff_s=0.01, backoff_max_s=0.05)
BACKENDS = ["exact", "edge", "local", "server", *(["real"] if os.environ.get("QDRANT_URL") else [])]
NAMES = ("contract__v1", "contract__v2")


@pytest.fixture(scope="module")
def stand_in() -> Iterator[StandIn]:
    with StandIn() as running:
        yield running


@pytest.fixture(params=BACKENDS)
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VectorIndex]:
    backend = request.param
    if backend == "exact":
        yield ExactIndex()
        return
    if backend == "local":
        with open_local(tmp_path / "local", SETTINGS) as local:
            yield local
        return
    url = None
    if backend == "server":
        url = request.getfixturevalue("stand_in").url
    elif backend == "real":
        url = os.environ["QDRANT_URL"]
    services = Services("", None, url, os.environ.get("QDRANT_API_KEY"), tmp_path / "qdrant")
    with open_index(services, SETTINGS) as opened:
        yield opened
        if url is not None:
            clear(opened)


def clear(index: VectorIndex) -> None:
    """Take away what a case left on a server."""
    index.create("contract__park", vector_name="x", dim=1, metadata={}, columns={})
    for alias, collection in index.aliases().items():
        if collection in NAMES:
            index.set_alias(alias, "contract__park")
    for name in NAMES:
        index.delete(name)
    raw = index._client  # type: ignore[attr-defined]
    raw.delete_collection("contract__park")


def make_points(num: int, *, seed: int = 0) -> list[Point]:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(num, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    points = []
    for i, vector in enumerate(vectors.astype(np.float32)):
        attributes: dict[str, object] = {
            "colour": ["red", "blue", "green"][i % 3],
            "price": [9.5, 20, 49.99][i % 3] + i // 10,
            "num_left": i,
            "sale": i % 4 == 0,
            "list price": i / 2,
            "code": str(i) if i % 2 else i,
        }
        if i % 5 == 0:
            del attributes["colour"]
        payload = {
            "path": f"media/{i}.jpg",
            "modality": "audio" if i % 7 == 2 else "image",
            "captions": [f"caption {i}", "zweiter – 名前"],
            "split": ["train", "val"][i % 2],
            "attributes": attributes,
        }
        points.append(Point(f"{i:064x}", vector, payload))
    return points


def fill(index: VectorIndex, name: str, points: Sequence[Point]) -> None:
    kinds: dict[str, ColumnKind] = {
        "modality": "text",
        **column_kinds([point.payload for point in points]),
    }
    index.create(name, vector_name=VECTOR, dim=DIM, metadata={"version": 1}, columns=kinds)
    index.upsert(name, points)
    index.finish(name)


def parse(points: Sequence[Point], *texts: str) -> Filter:
    return parse_filters(texts, column_kinds([point.payload for point in points]))


def test_points_come_back_as_written_and_writing_twice_changes_nothing(index: VectorIndex) -> None:
    points = make_points(30)
    fill(index, NAMES[0], points)
    index.upsert(NAMES[0], points)
    index.finish(NAMES[0])
    assert index.count(NAMES[0]) == 30
    back = index.retrieve(NAMES[0], [points[3].item_id, "f" * 64, points[29].item_id])
    assert sorted(back) == [points[3].item_id, points[29].item_id]
    for number in (3, 29):
        found = back[points[number].item_id]
        assert dict(found.payload) == dict(points[number].payload)
        np.testing.assert_allclose(found.vector, points[number].vector, atol=1e-6)


def test_a_point_written_again_is_replaced(index: VectorIndex) -> None:
    points = make_points(5)
    fill(index, NAMES[0], points)
    changed = Point(points[0].item_id, points[1].vector, {**points[0].payload, "path": "new.jpg"})
    index.upsert(NAMES[0], [changed])
    index.finish(NAMES[0])
    assert index.count(NAMES[0]) == 5
    back = index.retrieve(NAMES[0], [changed.item_id])[changed.item_id]
    assert back.payload["path"] == "new.jpg"
    np.testing.assert_allclose(back.vector, points[1].vector, atol=1e-6)


def test_points_are_removed_and_removing_twice_changes_nothing(index: VectorIndex) -> None:
    points = make_points(30)
    fill(index, NAMES[0], points)
    gone = [points[3].item_id, points[17].item_id]
    for _ in range(2):
        index.delete_points(NAMES[0], [*gone, "f" * 64])
        index.finish(NAMES[0])
        assert index.count(NAMES[0]) == 28
        assert sorted(index.retrieve(NAMES[0], [points[4].item_id, *gone])) == [points[4].item_id]
    hits = index.query(NAMES[0], VECTOR, points[3].vector, limit=30)
    assert {hit.item_id for hit in hits} == {point.item_id for point in points} - set(gone)
    index.upsert(NAMES[0], [points[3]])
    index.finish(NAMES[0])
    assert index.query(NAMES[0], VECTOR, points[3].vector)[0].item_id == points[3].item_id


@pytest.mark.parametrize("batch_size", [1, 7, 30, 1024])
def test_a_scroll_gives_every_point_once(index: VectorIndex, batch_size: int) -> None:
    points = make_points(30)
    fill(index, NAMES[0], points)
    for with_vectors in (False, True):
        batches = list(index.scroll(NAMES[0], with_vectors=with_vectors, batch_size=batch_size))
        assert all(0 < len(batch) <= batch_size for batch in batches)
        found = sorted((point for batch in batches for point in batch), key=lambda p: p.item_id)
        assert [point.item_id for point in found] == [point.item_id for point in points]
        for there, written in zip(found, points, strict=True):
            assert dict(there.payload) == dict(written.payload)
            if with_vectors:
                np.testing.assert_allclose(there.vector, written.vector, atol=1e-6)
            else:
                assert there.vector.shape == (0,) and there.vector.dtype == np.float32
    assert list(index.scroll(NAMES[0])) != []


def test_a_content_hash_is_kept_and_no_part_of_the_payload(index: VectorIndex) -> None:
    points = [replace(point, content_hash=f"h{i}") for i, point in enumerate(make_points(3))]
    fill(index, NAMES[0], points)
    found = [point for batch in index.scroll(NAMES[0]) for point in batch]
    assert {point.item_id: point.content_hash for point in found} == {
        point.item_id: point.content_hash for point in points
    }
    back = index.retrieve(NAMES[0], [points[1].item_id])[points[1].item_id]
    assert back.content_hash == "h1"
    hit = index.query(NAMES[0], VECTOR, points[1].vector, limit=1)[0]
    assert dict(hit.payload) == dict(points[1].payload) == dict(back.payload)


def test_a_collection_that_may_start_from_another_ends_the_same(index: VectorIndex) -> None:
    points = make_points(30)
    fill(index, NAMES[0], points[:25])
    kinds: dict[str, ColumnKind] = {
        "modality": "text",
        **column_kinds([point.payload for point in points]),
    }
    copied = index.create(
        NAMES[1], vector_name=VECTOR, dim=DIM, metadata={"v": 2}, columns=kinds, base=NAMES[0]
    )
    there = {p.item_id for batch in index.scroll(NAMES[1]) for p in batch}
    assert there == ({point.item_id for point in points[:25]} if copied else set())
    assert index.count(NAMES[1]) == len(there)
    index.upsert(NAMES[1], [point for point in points[5:] if point.item_id not in there])
    index.delete_points(NAMES[1], [point.item_id for point in points[:5]])
    index.finish(NAMES[1])
    assert index.count(NAMES[1]) == 25
    hits = index.query(NAMES[1], VECTOR, points[0].vector, limit=30)
    assert {hit.item_id for hit in hits} == {point.item_id for point in points[5:]}
    assert index.describe(NAMES[1]).metadata == {"v": 2}
    # What it started from is as it was.
    assert index.count(NAMES[0]) == 25
    assert index.query(NAMES[0], VECTOR, points[0].vector)[0].item_id == points[0].item_id
    index.delete(NAMES[0])
    assert index.query(NAMES[1], VECTOR, points[7].vector)[0].item_id == points[7].item_id


def test_an_unfit_base_is_not_started_from(index: VectorIndex) -> None:
    fill(index, NAMES[0], make_points(3))
    for vector_name, base in (("item@ffffffff", NAMES[0]), (VECTOR, "contract__v9")):
        assert not index.create(
            NAMES[1], vector_name=vector_name, dim=DIM, metadata={}, columns={}, base=base
        )
        assert index.count(NAMES[1]) == 0
        index.finish(NAMES[1])
        assert index.count(NAMES[1]) == 0
        index.delete(NAMES[1])


def test_how_a_query_is_searched_does_not_change_a_small_answer(index: VectorIndex) -> None:
    points = make_points(40)
    fill(index, NAMES[0], points)
    query = make_points(1, seed=9)[0].vector
    plain = index.query(NAMES[0], VECTOR, query, limit=5)
    for search in (
        SearchParams(),
        SearchParams(ef=16),
        SearchParams(ef=64, oversampling=3.0, rescore=True),
        SearchParams(rescore=False),
    ):
        for exact in (False, True):
            found = index.query(NAMES[0], VECTOR, query, limit=5, exact=exact, search=search)
            assert [hit.item_id for hit in found] == [hit.item_id for hit in plain]


FILTERS: tuple[tuple[str, ...], ...] = (
    (),
    ("colour=red",),
    ("colour=red,blue",),
    ("colour!=red",),
    ("colour!=red,blue",),
    ("price<20",),
    ("price<=9.5",),
    ("price>49.5",),
    ("price>=20",),
    ("price=9.5",),
    ("num_left<7.5",),
    ("num_left>7.5", "num_left<=12"),
    ("num_left=3,4,5",),
    ("num_left!=3,4,5",),
    ("sale=true",),
    ("sale!=true", "colour=red"),
    ("split=val",),
    ("modality=audio",),
    ("modality=image", "colour=red"),
    ("list price<=3",),
    ("code=3,4",),
    ("code<9",),
    ("colour=red", "price<30", "sale=false"),
    ("colour=purple",),
)


def test_a_filtered_query_gives_the_exact_order(index: VectorIndex) -> None:
    points = make_points(60)
    fill(index, NAMES[0], points)
    query = make_points(1, seed=9)[0].vector
    for texts in FILTERS:
        where = parse(points, *texts)
        scored = sorted(
            (-float(point.vector @ query), point.item_id)
            for point in points
            if matches(where, point.payload)
        )
        for limit in (1, 10, 100):
            hits = index.query(NAMES[0], VECTOR, query, where=where, limit=limit)
            expected = [item_id for _, item_id in scored[:limit]]
            assert [hit.item_id for hit in hits] == expected, texts
            assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
            for hit, (negative, _) in zip(hits, scored, strict=False):
                assert hit.score == pytest.approx(-negative, abs=1e-5)
                assert "item_id" not in hit.payload


def test_equal_scores_come_in_the_order_of_item_ids(index: VectorIndex) -> None:
    points = make_points(6)
    twins = [Point(point.item_id, points[0].vector, point.payload) for point in points]
    fill(index, NAMES[0], twins)
    hits = index.query(NAMES[0], VECTOR, points[0].vector, limit=6)
    assert [hit.item_id for hit in hits] == sorted(point.item_id for point in points)


def test_an_alias_moves_in_one_step_and_never_back_by_itself(index: VectorIndex) -> None:
    for name in NAMES:
        fill(index, name, make_points(3))
    index.set_alias("contract", NAMES[0])
    assert index.aliases()["contract"] == NAMES[0]
    index.set_alias("contract", NAMES[0])
    index.set_alias("contract", NAMES[1])
    assert index.aliases()["contract"] == NAMES[1]
    with pytest.raises(UserError, match="no collection 'contract__v9'"):
        index.set_alias("contract", "contract__v9")
    with pytest.raises(UserError, match="is the name of a collection"):
        index.set_alias(NAMES[0], NAMES[1])
    assert index.aliases()["contract"] == NAMES[1]


def test_a_served_collection_is_not_deleted_another_is(index: VectorIndex) -> None:
    for name in NAMES:
        fill(index, name, make_points(3))
    index.set_alias("contract", NAMES[0])
    with pytest.raises(UserError, match="is served"):
        index.delete(NAMES[0])
    index.delete(NAMES[1])
    index.delete(NAMES[1])
    assert index.exists(NAMES[0])
    assert not index.exists(NAMES[1])
    assert not index.exists("contract")
    fill(index, NAMES[1], make_points(2))
    assert index.count(NAMES[1]) == 2


def test_metadata_comes_back_and_keys_are_added(index: VectorIndex) -> None:
    metadata = {"model": "shop", "version": 3, "columns": {"price": "number"}, "state": "loading"}
    index.create(NAMES[0], vector_name=VECTOR, dim=DIM, metadata=metadata, columns={})
    index.set_metadata(NAMES[0], {"state": "built"})
    found = index.describe(NAMES[0])
    assert (found.name, found.vector_name, found.dim) == (NAMES[0], VECTOR, DIM)
    assert dict(found.metadata) == {**metadata, "state": "built"}
    with pytest.raises(UserError, match="is taken"):
        index.create(NAMES[0], vector_name=VECTOR, dim=DIM, metadata={}, columns={})


def test_what_is_not_there_is_named_beside_what_is(index: VectorIndex) -> None:
    fill(index, NAMES[0], make_points(2))
    vector = make_points(1)[0].vector
    for ask in (
        lambda: index.count("nope"),
        lambda: index.describe("nope"),
        lambda: index.query("nope", VECTOR, vector),
        lambda: index.upsert("nope", make_points(1)),
        lambda: index.retrieve("nope", ["a"]),
        lambda: index.set_metadata("nope", {"a": 1}),
        lambda: index.finish("nope"),
        lambda: index.delete_points("nope", ["a"]),
        lambda: list(index.scroll("nope")),
        lambda: index.size_bytes("nope"),
    ):
        with pytest.raises(UserError, match=r"no collection 'nope' in the index; present: .*__v1"):
            ask()


def test_a_query_of_another_model_or_dimension_is_refused(index: VectorIndex) -> None:
    fill(index, NAMES[0], make_points(2))
    vector = make_points(1)[0].vector
    with pytest.raises(UserError, match=r"holds vectors 'item@0123abcd'.*made for 'item@ffff"):
        index.query(NAMES[0], "item@ffffffff", vector)
    with pytest.raises(UserError, match=r"shape \[23\].* 24 dimensions"):
        index.query(NAMES[0], VECTOR, vector[:-1])
    bad = np.full(DIM, np.nan, dtype=np.float32)
    with pytest.raises(UserError, match="NaN"):
        index.query(NAMES[0], VECTOR, bad)
    with pytest.raises(UserError, match=f"item {'a' * 64} holds NaN"):
        index.upsert(NAMES[0], [Point("a" * 64, bad, {})])


def test_point_ids_are_the_same_everywhere_and_always() -> None:
    assert point_id("a" * 64) == point_id("a" * 64)
    assert point_id("a" * 64) != point_id("b" * 64)
    # Written down: a change would double every collection that is upserted into.
    assert point_id("0" * 64) == "67db676d-8a1e-5432-8888-e989e3ab8a9b"
