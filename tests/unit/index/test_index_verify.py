"""Verification: what it proves of a collection, and what it says when that fails."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from index_cases import (
    DIM,
    NAME,
    NUM,
    SETTINGS,
    build_with,
    make_points,
    make_queries,
    unit,
    verify_with,
)  # fmt: skip

from coembed.index.base import DamagedError, Point
from coembed.index.exact import ExactIndex
from coembed.index.queries import Query
from coembed.index.release import read_search
from coembed.index.verify import (
    CanaryError,
    Expected,
    NotAsWrittenError,
    Questions,
    UnverifiedError,
    content_hash,
    in_batches,
)


def _short(index: ExactIndex) -> None:
    del index._shelves[NAME].points[make_points()[3].item_id]


def _other_item(index: ExactIndex) -> None:
    points = index._shelves[NAME].points
    taken = points.pop(make_points()[3].item_id)
    points["f" * 64] = replace(taken, item_id="f" * 64)


def _old_content(index: ExactIndex) -> None:
    points = index._shelves[NAME].points
    item_id = make_points()[3].item_id
    points[item_id] = replace(points[item_id], content_hash="0" * 32)


def _other_vector(index: ExactIndex) -> None:
    points = index._shelves[NAME].points
    item_id = make_points()[3].item_id
    points[item_id] = replace(points[item_id], vector=make_points(1, seed=5)[0].vector)


def _other_payload(index: ExactIndex) -> None:
    points = index._shelves[NAME].points
    item_id = make_points()[3].item_id
    points[item_id] = replace(points[item_id], payload={"path": "other.jpg"})


def _swapped(index: ExactIndex) -> None:
    points = index._shelves[NAME].points
    first, second = (points[point.item_id] for point in make_points()[3:5])
    points[first.item_id] = replace(first, vector=second.vector)
    points[second.item_id] = replace(second, vector=first.vector)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_short, "it has 49 points, the embeddings have 50 items"),
        (_other_item, f"item {'f' * 64} is in it, but not in the embeddings"),
        (_old_content, "item 0{63}3 is not as it was last written"),
        (_other_vector, "the vector of item 0{63}3 is not the one that was written"),
        (_other_payload, "the payload of item 0{63}3 is not"),
        (_swapped, "the vector of item 0{63}3 is not"),
    ],
)
def test_verification_sees_damage(damage: Any, message: str) -> None:
    index = ExactIndex()
    build_with(index)
    verify_with(index)
    damage(index)
    with pytest.raises(NotAsWrittenError, match=message) as caught:
        verify_with(index)
    assert isinstance(caught.value, UnverifiedError)
    assert isinstance(caught.value, DamagedError)


def test_what_another_machine_embedded_nearly_the_same_passes_where_that_is_allowed() -> None:
    index = ExactIndex()
    build_with(index)
    noisy = [replace(point, vector=unit(point.vector + 1e-7)) for point in make_points()]
    with pytest.raises(NotAsWrittenError, match="not as it was last written"):
        verify_with(index, noisy)
    verify_with(index, noisy, strict=False)


class Doubling(ExactIndex):
    """Shows an item twice, as a store does that lost track of its points."""

    def scroll(self, name: str, **changes: Any) -> Any:
        batches = list(super().scroll(name, **changes))
        yield from batches
        if getattr(self, "doubled", False):
            yield batches[0][:1]


def test_an_item_that_is_there_twice_is_seen() -> None:
    index = Doubling()
    build_with(index)
    index.doubled = True  # type: ignore[attr-defined]
    with pytest.raises(NotAsWrittenError, match="is in it more than once"):
        verify_with(index)


class Blind(ExactIndex):
    """Searches as a broken graph does: it never reaches the items of `unreachable`."""

    unreachable: frozenset[str] = frozenset()

    def query(self, *arguments: Any, **changes: Any) -> Any:
        hits = super().query(*arguments, **changes)
        return [hit for hit in hits if hit.item_id not in self.unreachable]


def test_a_graph_that_misses_items_fails_the_check() -> None:
    index = Blind()
    points = make_points()
    index.unreachable = frozenset(point.item_id for point in points[:2])
    build_with(index)  # 48 of 50: an approximate search may miss as much
    index.unreachable = frozenset(point.item_id for point in points[:5])
    with pytest.raises(UnverifiedError, match=r"Recall@10 of item queries is 0\.\d+, expected"):
        verify_with(index)
    lenient = SETTINGS.model_copy(update={"min_recall": 0.5})
    assert verify_with(index, settings=lenient).recall_at_10 < 0.95


def test_items_that_lie_alone_must_be_found_by_their_own_vector() -> None:
    """They are near to no other item: that the graph misses them costs hardly any recall."""
    index = Blind()
    points = [
        replace(point, vector=unit(np.eye(DIM)[0] + 0.1 * point.vector)) for point in make_points()
    ]
    for place in range(5):
        points[place] = replace(points[place], vector=np.eye(DIM, dtype=np.float32)[place + 3])
    index.unreachable = frozenset(point.item_id for point in points[:5])
    with pytest.raises(UnverifiedError, match="found 45 of 50 items by their own vector"):
        build_with(index, points)


def test_recall_is_measured_by_modality_of_the_query_and_the_lowest_counts() -> None:
    index = Blind()
    points = make_points()
    queries = make_queries(points)
    built = build_with(index, points, queries=queries)
    assert built.search.recall_by_modality == {"item": 1.0, "text": 1.0}
    assert (built.search.num_queries, built.search.num_read_back) == (NUM + 10, NUM)
    lost = index.unreachable = frozenset(
        hit.item_id for hit in ExactIndex.query(index, NAME, "item@abababab", queries[0].vector)
    )
    settings = SETTINGS.model_copy(update={"min_recall": 0.1})
    found = verify_with(index, points, queries=queries, settings=settings)
    for modality, vectors in (
        ("item", [point.vector for point in points]),
        ("text", [query.vector for query in queries]),
    ):
        shares = []
        for vector in vectors:
            nearest = ExactIndex.query(index, NAME, "item@abababab", vector)
            shares.append(1 - len(lost & {hit.item_id for hit in nearest}) / 10)
        assert found.recall_by_modality[modality] == pytest.approx(np.mean(shares))
    assert found.recall_at_10 == min(found.recall_by_modality.values())
    assert found.recall_by_modality["text"] < found.recall_by_modality["item"]
    with pytest.raises(UnverifiedError, match="Recall@10 of text queries"):
        verify_with(
            index, points, queries=queries,
            settings=settings.model_copy(update={"min_recall": found.recall_by_modality["item"]}),
        )  # fmt: skip


def test_the_report_is_kept_with_the_collection() -> None:
    index = ExactIndex()
    queries = [*make_queries(make_points()), canary(make_points()[7], {"price": 7})]
    built = build_with(index, queries=queries)
    assert 0 < built.search.p50_ms <= built.search.p95_ms
    assert read_search(index.describe(NAME)) == built.search
    index.set_metadata(NAME, {"search": None})  # a collection of an older coembed
    assert read_search(index.describe(NAME)) is None
    old = {"recall_at_10": 1.0, "p50_ms": 1.0, "p95_ms": 2.0, "num_queries": 3}
    index.set_metadata(NAME, {"search": old})
    found = read_search(index.describe(NAME))
    assert found is not None
    assert (found.num_queries, found.canaries, dict(found.recall_by_modality)) == (3, (), {})


def canary(point: Point, expect: dict[str, Any], text: str = "something at 7") -> Query:
    return Query(text, point.vector, "text", None, "canary", expect)


def test_a_canary_must_find_what_it_expects() -> None:
    index = ExactIndex()
    points = make_points()
    built = build_with(index, points, queries=[canary(points[7], {"price": 7})])
    (met,) = built.search.canaries
    assert (met.text, dict(met.expect), met.rank) == ("something at 7", {"price": 7}, 1)
    with pytest.raises(CanaryError) as caught:
        build_with(index, points, queries=[canary(points[7], {"price": 1000})])
    message = str(caught.value)
    assert "the canary 'something at 7' expects price=1000 among the first 10 hits" in message
    assert "it found 7, " in message
    assert "embed.canaries" in message
    # All expected attributes must meet in one hit.
    with pytest.raises(CanaryError, match="expects price=7 and split=val among"):
        build_with(index, points, queries=[canary(points[7], {"price": 7, "split": "val"})])


def test_a_canary_that_fails_does_not_have_the_collection_loaded_again() -> None:
    index = ExactIndex()
    points = make_points()
    build_with(index, points)
    before = index.describe(NAME)
    index.upsert = None  # type: ignore[method-assign, assignment]
    with pytest.raises(CanaryError):
        build_with(index, points, queries=[canary(points[7], {"price": 1000})])
    assert index.describe(NAME) == before


def test_items_with_one_and_the_same_vector_are_no_failure() -> None:
    same = make_points(1)[0].vector
    for num in (NUM, 200):  # more than are kept of a full scan
        twins = [replace(point, vector=same) for point in make_points(num)]
        built = build_with(ExactIndex(), twins)
        assert built.search.recall_at_10 == 1.0


def test_a_corpus_of_fewer_items_than_are_asked_for_is_found_whole() -> None:
    built = build_with(ExactIndex(), make_points(3))
    assert (built.num_items, built.search.recall_at_10) == (3, 1.0)


def test_the_sample_takes_of_every_modality_and_not_of_the_order() -> None:
    points = [
        replace(point, payload={**point.payload, "modality": "audio" if i % 25 == 0 else "image"})
        for i, point in enumerate(make_points(500))
    ]
    sample = Expected.of(points, 10).sample()
    assert {modality: len(found) for modality, found in sample.items()} == {
        "audio": 10, "image": 10,
    }  # fmt: skip
    backwards = Expected.of(reversed(points), 10).sample()
    assert {one.item_id for found in sample.values() for one in found} == {
        one.item_id for found in backwards.values() for one in found
    }


def test_the_full_scan_is_that_of_the_exact_index() -> None:
    points = make_points(3000)
    index = ExactIndex()
    index.create(NAME, vector_name="v", dim=DIM, metadata={}, columns={})
    index.upsert(NAME, points)
    questions = Questions.of({}, make_queries(points, 20))
    nearest = questions.nearest(lambda: in_batches(points))
    for number, query in enumerate(questions.queries):
        hits = index.query(NAME, "v", query.vector, limit=50)
        assert list(nearest.item_ids[number]) == [hit.item_id for hit in hits]
        assert nearest.share(number, hits[:10]) == 1.0
        assert nearest.share(number, hits[10:20]) == 0.0
        assert nearest.share(number, [*hits[:4], *hits[20:26]]) == pytest.approx(0.4)


def test_a_content_hash_stands_for_vector_and_payload() -> None:
    point = make_points(1)[0]
    hashes = {
        content_hash(point),
        content_hash(replace(point, vector=unit(point.vector + 1e-6))),
        content_hash(replace(point, payload={**point.payload, "path": "b.jpg"})),
        content_hash(replace(point, payload={**point.payload, "attributes": {"price": 0.5}})),
    }
    assert len(hashes) == 4
    # Written down: another hash would have every collection loaded anew.
    one = Point("a", np.asarray([0.6, 0.8], dtype=np.float32), {"b": 1, "a": ["ü"]})
    assert content_hash(one) == content_hash(replace(one, payload={"a": ["ü"], "b": 1}))
    assert content_hash(one) == "3d13daf0bfdeb43af9c1eee0ce7c4e05"
