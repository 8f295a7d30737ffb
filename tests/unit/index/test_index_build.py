"""Building a collection: complete, completed after a kill, verified, or refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from coembed.errors import DataError, ServiceError, UserError
from coembed.index.base import Point
from coembed.index.build import (
    Release,
    UnverifiedError,
    build,
    read_release,
    read_search,
    vector_of,
    verify,
)
from coembed.index.exact import ExactIndex
from coembed.index.points import read_columns, read_points
from coembed.index.qdrant import open_index
from coembed.index.settings import IndexSettings
from coembed.services import Services

DIM, NUM = 8, 50
SETTINGS = IndexSettings(batch_size=16, verify_sample=NUM, lock_wait_s=0.3)
RELEASE = Release("shop", 2, "ab" * 32, "fp32", "cd" * 32, NUM, DIM, {"price": "number"})
NAME = "items__v2__abababab_cdcdcdcd"


def make_points(num: int = NUM, *, seed: int = 1) -> list[Point]:
    vectors = np.random.default_rng(seed).normal(size=(num, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [
        Point(f"{i:064x}", vector, {"path": f"{i}.jpg", "attributes": {"price": i}})
        for i, vector in enumerate(vectors.astype(np.float32))
    ]


def build_with(index: Any, points: list[Point] | None = None, **changes: Any) -> Any:
    chosen = make_points() if points is None else points
    return build(
        index, changes.pop("release", RELEASE), lambda: iter(chosen), alias="items",
        settings=SETTINGS, **changes,
    )  # fmt: skip


def services(path: Path) -> Services:
    return Services("", None, None, None, path)


def test_built_once_verified_twice() -> None:
    index = ExactIndex()
    first, second = build_with(index), build_with(index)
    assert (first.collection, first.already_built, second.already_built) == (NAME, False, True)
    assert second.search.num_queries == NUM
    assert read_release(index.describe(NAME)) == RELEASE
    assert index.describe(NAME).metadata["state"] == "built"
    assert index.aliases() == {}


def test_the_name_carries_version_model_and_corpus() -> None:
    assert RELEASE.collection_name("items") == NAME
    assert RELEASE.vector_name == "item@abababab"
    other = replace(RELEASE, corpus="ee" * 32)
    assert other.collection_name("items") != NAME


def test_what_was_damaged_after_it_was_built_is_loaded_again() -> None:
    index = ExactIndex()
    build_with(index)
    del index._shelves[NAME].points[make_points()[7].item_id]
    assert not build_with(index).already_built
    assert index.count(NAME) == NUM


def test_points_too_many_are_a_reason_to_start_over_unless_they_are_served() -> None:
    index = ExactIndex()
    build_with(index)
    stranger = Point("f" * 64, make_points(1, seed=8)[0].vector, {})
    index.upsert(NAME, [stranger])
    build_with(index)
    assert index.count(NAME) == NUM
    index.upsert(NAME, [stranger])
    index.set_alias("items", NAME)
    with pytest.raises(UserError, match="is served"):
        build_with(index)


def _short(index: ExactIndex) -> None:
    del index._shelves[NAME].points[make_points()[3].item_id]


def _other_vector(index: ExactIndex) -> None:
    point = make_points()[3]
    index.upsert(NAME, [replace(point, vector=make_points(1, seed=5)[0].vector)])


def _other_payload(index: ExactIndex) -> None:
    index.upsert(NAME, [replace(make_points()[3], payload={"path": "other.jpg"})])


def _swapped(index: ExactIndex) -> None:
    points = index._shelves[NAME].points
    first, second = make_points()[3], make_points()[4]
    points[first.item_id], points[second.item_id] = (
        replace(first, vector=second.vector),
        replace(second, vector=first.vector),
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_short, "it has 49 points, the embeddings have 50 items"),
        (_other_vector, "the vector of item 0{63}3 is not the one that was written"),
        (_other_payload, "the payload of item 0{63}3 is not"),
        (_swapped, "the vector of item 0{63}3 is not"),
    ],
)
def test_verification_sees_damage(damage: Any, message: str) -> None:
    index = ExactIndex()
    build_with(index)
    damage(index)
    with pytest.raises(UnverifiedError, match=message):
        verify(index, NAME, RELEASE, make_points(), SETTINGS)


class Blind(ExactIndex):
    """Searches as a broken graph does: it never reaches the items of `unreachable`."""

    unreachable: frozenset[str] = frozenset()
    also_exactly = False

    def query(self, *arguments: Any, exact: bool = False, **changes: Any) -> Any:
        hits = super().query(*arguments, exact=exact, **changes)
        if exact and not self.also_exactly:
            return hits
        return [hit for hit in hits if hit.item_id not in self.unreachable]


def test_a_graph_that_misses_items_fails_the_check() -> None:
    index = Blind()
    points = make_points()
    index.unreachable = frozenset(point.item_id for point in points[:2])
    build_with(index)  # 48 of 50: an approximate search may miss as much
    index.unreachable = frozenset(point.item_id for point in points[:5])
    with pytest.raises(UnverifiedError, match="found 45 of 50 items by their own vector"):
        verify(index, NAME, RELEASE, points, SETTINGS)
    index.also_exactly = True
    with pytest.raises(UnverifiedError, match="is not the best hit for its own vector"):
        verify(index, NAME, RELEASE, points, SETTINGS)


def test_the_search_is_measured_against_a_full_scan_and_kept_with_the_collection() -> None:
    index = Blind()
    points = make_points()
    built = build_with(index, points)
    assert (built.search.recall_at_10, built.search.num_queries) == (1.0, NUM)
    assert 0 < built.search.p50_ms <= built.search.p95_ms
    assert read_search(index.describe(NAME)) == built.search
    lost = index.unreachable = frozenset(point.item_id for point in points[:2])
    again = build_with(index, points)
    shares = []
    for point in points:
        nearest = ExactIndex.query(index, NAME, "item@abababab", point.vector)
        shares.append(1 - len(lost & {hit.item_id for hit in nearest}) / 10)
    assert again.already_built
    assert again.search.recall_at_10 == pytest.approx(sum(shares) / NUM)
    assert read_search(index.describe(NAME)) == again.search
    index.set_metadata(NAME, {"search": None})  # a collection of an older coembed
    assert read_search(index.describe(NAME)) is None


def test_items_with_one_and_the_same_vector_are_no_failure() -> None:
    index = ExactIndex()
    same = make_points(1)[0].vector
    built = build_with(index, [replace(point, vector=same) for point in make_points()])
    assert built.num_items == len(make_points())


def test_an_index_on_an_unknown_column_is_refused() -> None:
    settings = IndexSettings(payload_indexes=("price", "size"))
    with pytest.raises(UserError, match=r"names size; .* have the columns price"):
        build(ExactIndex(), RELEASE, lambda: iter(make_points()), alias="items", settings=settings)


def test_a_collection_from_before_there_were_sounds_is_still_that_model_s() -> None:
    index = ExactIndex()
    metadata = {**RELEASE.to_metadata(), "state": "built"}
    index.create(NAME, vector_name="image@abababab", dim=DIM, metadata=metadata, columns={})
    index.upsert(NAME, make_points())
    assert build_with(index).already_built
    assert vector_of(index.describe(NAME), RELEASE) == "image@abababab"
    other = replace(RELEASE, fingerprint="cd" * 32)
    with pytest.raises(UserError, match="the query was made for 'item@cdcdcdcd'"):
        vector_of(index.describe(NAME), other)


def test_hits_can_be_asked_for_by_modality_whatever_indexes_are_set() -> None:
    asked: list[Any] = []

    class Noting(ExactIndex):
        def create(self, *arguments: Any, columns: Any, **changes: Any) -> None:
            asked.append(dict(columns))
            super().create(*arguments, columns=columns, **changes)

    settings = SETTINGS.model_copy(update={"payload_indexes": ()})
    build(Noting(), RELEASE, lambda: iter(make_points()), alias="items", settings=settings)
    build_with(Noting())
    assert asked == [{"modality": "text"}, {"modality": "text", "price": "number"}]


def test_a_collection_of_other_hands_is_refused() -> None:
    index = ExactIndex()
    index.create("theirs", vector_name="v", dim=2, metadata={"version": "x"}, columns={})
    with pytest.raises(UserError, match="does not say which model version"):
        read_release(index.describe("theirs"))


LOADER = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from test_index_build import *

class Slow(list):
    def __iter__(self):
        for number, point in enumerate(list.__iter__(self)):
            if number == 35:
                print("half", flush=True)
                time.sleep(60)
            yield point

with open_index(services(Path(sys.argv[1])), SETTINGS) as index:
    build_with(index, Slow(make_points()))
"""


def test_a_killed_build_is_completed_and_the_lock_says_who_had_it(tmp_path: Path) -> None:
    script = LOADER.format(paths=[str(Path(__file__).parent)])
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        with pytest.raises(
            ServiceError, match=rf"in another process \(process {process.pid}: "
        ) as e:
            open_index(services(tmp_path), SETTINGS)
        assert "QDRANT_URL" in str(e.value)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with open_index(services(tmp_path), SETTINGS) as index:
        assert index.describe(NAME).metadata["state"] == "loading"
        assert index.count(NAME) == 32
        assert not build_with(index).already_built
        assert index.count(NAME) == NUM
    with open_index(services(tmp_path), SETTINGS) as index:
        assert build_with(index).already_built


def test_opening_waits_for_a_short_holder(tmp_path: Path) -> None:
    first = open_index(services(tmp_path), SETTINGS)
    timer = threading.Timer(0.5, first.close)
    timer.start()
    start = time.monotonic()
    with open_index(services(tmp_path), SETTINGS.model_copy(update={"lock_wait_s": 20.0})):
        assert 0.3 < time.monotonic() - start < 15
    timer.join()


def test_many_threads_on_the_embedded_store_lose_nothing(tmp_path: Path) -> None:
    points = make_points(400)
    with open_index(services(tmp_path), SETTINGS) as index:
        index.create(NAME, vector_name="v", dim=DIM, metadata={}, columns={})
        parts = [points[start::8] for start in range(8)]
        threads = [threading.Thread(target=index.upsert, args=(NAME, part)) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert index.count(NAME) == 400
        index.finish(NAME)
    with open_index(services(tmp_path), SETTINGS) as index:
        assert index.count(NAME) == 400


def test_a_damaged_store_is_one_clear_error(tmp_path: Path) -> None:
    with open_index(services(tmp_path), SETTINGS) as index:
        build_with(index)
    (tmp_path / "meta.json").write_text("{", encoding="utf-8")
    with pytest.raises(ServiceError, match="cannot be opened"):
        open_index(services(tmp_path), SETTINGS)


def write_part(folder: Path, points: list[Point], name: str = "part-00000.parquet") -> None:
    folder.mkdir(exist_ok=True)
    flat = np.concatenate([point.vector for point in points])
    pq.write_table(
        pa.table(
            {
                "item_id": [point.item_id for point in points],
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(flat), DIM),
                "path": [point.payload["path"] for point in points],
                "modality": ["image"] * len(points),
                "captions": [["a", "b"]] * len(points),
                "split": ["train"] * len(points),
                "attributes": [json.dumps(point.payload["attributes"]) for point in points],
            }
        ),
        folder / name,
    )


def test_points_are_read_from_all_parts_in_order(tmp_path: Path) -> None:
    points = make_points()
    write_part(tmp_path / "e", points[30:], "part-00001.parquet")
    write_part(tmp_path / "e", points[:30])
    found = list(read_points(tmp_path / "e"))
    assert [point.item_id for point in found] == [point.item_id for point in points]
    np.testing.assert_array_equal(found[40].vector, points[40].vector)
    assert found[40].payload == {
        "path": "40.jpg", "modality": "image", "captions": ["a", "b"], "split": "train",
        "attributes": {"price": 40},
    }  # fmt: skip
    assert read_columns(tmp_path / "e") == {"price": "number"}


def _nan(folder: Path) -> None:
    points = make_points(3)
    write_part(folder, [*points[:2], replace(points[2], vector=points[2].vector * np.nan)])


def _long(folder: Path) -> None:
    points = make_points(3)
    write_part(folder, [*points[:2], replace(points[2], vector=points[2].vector * 2)])


def _cut(folder: Path) -> None:
    write_part(folder, make_points(3))
    path = folder / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_nan, r"part-00000.parquet: .* item 0{63}2 has the length nan, expected 1"),
        (_long, r"item 0{63}2 has the length 2, expected 1"),
        (_cut, r"part-00000.parquet cannot be read"),
    ],
)
def test_damaged_parts_are_named(damage: Any, message: str, tmp_path: Path) -> None:
    damage(tmp_path / "e")
    with pytest.raises(DataError, match=message):
        list(read_points(tmp_path / "e"))


def test_settings_refuse_what_cannot_be() -> None:
    with pytest.raises(ValidationError, match="backoff_max_s"):
        IndexSettings(backoff_s=2, backoff_max_s=1)
    with pytest.raises(ValidationError):
        IndexSettings(collection="a/b")
