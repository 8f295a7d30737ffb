"""The embedded index: generations, damage, copies, quantisation, and what is not its own."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from edge_case import (
    NAME,
    VECTOR,
    build,
    children,
    contents,
    create,
    files_of,
    left_over,
    make_points,
    open_edge,
)

from coembed.doctor import _embedded_index
from coembed.errors import ServiceError, UserError
from coembed.files import sha256_file, sha256_tree
from coembed.index.base import DamagedError, SearchParams
from coembed.index.edge import EdgeIndex
from coembed.index.edge_shard import Shape, Shard
from coembed.index.filters import matches, parse_filters
from coembed.index.qdrant import open_local
from coembed.index.settings import IndexSettings

BIG, DIM = 5300, 512  # 11 MB of vectors: enough that Edge builds a graph


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "qdrant"


@pytest.fixture
def index(store: Path) -> Iterator[EdgeIndex]:
    with open_edge(store) as opened:
        yield opened


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one collection that has a graph, and one the same but quantised."""
    store = tmp_path_factory.mktemp("big") / "qdrant"
    points = make_points(BIG, dim=DIM)
    for name, quantization in (("plain", "none"), ("int8", "int8"), ("binary", "binary")):
        with open_edge(store, quantization=quantization) as index:
            build(index, name, points)
    return store


# Who sees what, and when


def test_a_collection_is_there_for_others_when_it_is_finished(store: Path) -> None:
    points = make_points(50)
    with open_edge(store) as mine, open_edge(store) as other:
        create(mine, NAME)
        mine.upsert(NAME, points)
        mine.set_metadata(NAME, {"more": 1})
        assert mine.exists(NAME) and mine.collections() == [NAME] and mine.count(NAME) == 50
        assert mine.describe(NAME).metadata == {"state": "new", "more": 1}
        assert not other.exists(NAME) and other.collections() == []
        with pytest.raises(UserError, match="no collection"):
            other.count(NAME)
        with pytest.raises(UserError, match="still being loaded"):
            mine.query(NAME, VECTOR, points[0].vector)
        with pytest.raises(UserError, match="still being loaded"):
            mine.set_alias("shop", NAME)
        mine.finish(NAME)
        assert other.describe(NAME).metadata == {"state": "new", "more": 1}
        assert other.query(NAME, VECTOR, points[7].vector)[0].item_id == points[7].item_id
    assert left_over(store) == []


def test_a_second_load_is_seen_whole_by_all_who_have_it_open(store: Path) -> None:
    with open_edge(store) as mine, open_edge(store) as other:
        build(mine, NAME, make_points(50))
        mine.set_metadata(NAME, {"state": "built"})
        assert set(contents(other, NAME).values()) == {"a"}
        mine.upsert(NAME, make_points(60, mark="b"))
        mine.delete_points(NAME, [make_points(1)[0].item_id])
        mine.set_metadata(NAME, {"note": "while it is loaded"})
        for index in (mine, other):
            assert len(contents(index, NAME)) == 50
        mine.finish(NAME)
        for index in (mine, other):
            assert set(contents(index, NAME).values()) == {"b"}
            assert index.count(NAME) == 59
            assert index.describe(NAME).metadata == {
                "state": "built", "note": "while it is loaded",
            }  # fmt: skip
    assert left_over(store) == []
    assert len(list((store / "collections" / NAME).iterdir())) == 2  # one generation and its entry


def test_a_load_that_changes_nothing_makes_no_new_generation(store: Path) -> None:
    points = make_points(50)
    with open_edge(store) as index:
        build(index, NAME, points)
        before = files_of(store, NAME)
        index.upsert(NAME, points[:20])
        index.delete_points(NAME, ["f" * 64])
        index.finish(NAME)
        assert files_of(store, NAME) == before
        index.upsert(NAME, make_points(1, mark="b"))
        index.finish(NAME)
        assert files_of(store, NAME) != before


def test_reading_leaves_every_byte_as_it_was(store: Path) -> None:
    with open_edge(store) as index:
        build(index, NAME, make_points(300))
    before = sha256_tree(store / "collections")
    for _ in range(2):
        with open_edge(store) as index:
            index.query(NAME, VECTOR, make_points(1)[0].vector)
            contents(index, NAME)
    assert sha256_tree(store / "collections") == before


def test_who_has_a_collection_open_reads_on_when_it_is_deleted(store: Path) -> None:
    points = make_points(500)
    with open_edge(store) as reader, open_edge(store) as other:
        build(other, NAME, points)
        scroll = reader.scroll(NAME, with_vectors=True, batch_size=100)
        first = next(scroll)
        other.delete(NAME)
        assert not reader.exists(NAME) and reader.collections() == []
        assert not (store / "collections" / NAME).exists()
        assert len(first) + sum(map(len, scroll)) == 500
        where = parse_filters(["colour=red", "price<50"], {"colour": "text", "price": "number"})
        for exact in (True, False):
            hits = reader.query(NAME, VECTOR, points[4].vector, where=where, exact=exact)
            assert hits[0].item_id == points[4].item_id
        with pytest.raises(UserError, match="no collection"):
            other.query(NAME, VECTOR, points[4].vector)
        # One of the same name is another collection, for everyone.
        build(other, NAME, make_points(20, mark="b"))
        assert set(contents(reader, NAME).values()) == {"b"}


def test_what_was_used_last_stays_open_and_the_rest_is_let_go(store: Path) -> None:
    def mapped() -> set[str]:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return {name for name in names for line in lines if f"/collections/{name}/" in line}

    names = [f"shop__v{number}" for number in range(6)]
    query = make_points(1)[0].vector
    with open_edge(store) as writer, open_edge(store) as reader:
        for name in names:
            build(writer, name, make_points(20, mark=name))
            reader.query(name, VECTOR, query)
        assert mapped() == set(names[-4:])
        reader.query(names[2], VECTOR, query)
        writer.delete(names[3])
        reader.query(names[0], VECTOR, query)
        assert mapped() == {names[0], names[2], names[4], names[5]}
        for name in names[:3]:
            assert set(contents(reader, name).values()) == {name}


def test_names_that_are_no_names_are_refused(index: EdgeIndex, store: Path) -> None:
    for name in ("../x", "", ".hidden", "a/b", "a" * 201, "nul\0"):
        for ask in (
            lambda name=name: create(index, name),
            lambda name=name: index.describe(name),
            lambda name=name: index.delete(name),
        ):
            with pytest.raises(UserError, match="cannot be the name of a collection"):
                ask()
    assert not (store / "collections").exists()


# Loads that end early


def test_an_index_that_is_closed_takes_its_loads_with_it(store: Path) -> None:
    before = children(os.getpid())
    with open_edge(store) as index:
        create(index, NAME)
        index.upsert(NAME, make_points(50))
        (builder,) = set(children(os.getpid())) - set(before)
    assert builder not in children(os.getpid())
    assert left_over(store) == []
    with open_edge(store) as index:
        assert not index.exists(NAME)
        build(index, NAME, make_points(10))
        index.upsert(NAME, make_points(20, mark="b"))
    with open_edge(store) as index:
        assert len(contents(index, NAME)) == 10


def test_a_builder_that_dies_is_one_clear_error_and_the_next_load_works(store: Path) -> None:
    with open_edge(store) as index:
        build(index, NAME, make_points(10))
        before = set(children(os.getpid()))
        index.upsert(NAME, make_points(20, mark="b"))
        (builder,) = set(children(os.getpid())) - before
        os.kill(builder, 9)
        with pytest.raises(ServiceError, match="was ended by SIGKILL") as error:
            index.finish(NAME)
        assert "Run the same command again" in str(error.value)
        assert len(contents(index, NAME)) == 10
        build(index, NAME, make_points(20, mark="b"))
        assert set(contents(index, NAME).values()) == {"b"}
    assert left_over(store) == []


def test_two_loads_of_one_collection_do_not_meet(store: Path) -> None:
    with open_edge(store) as mine, open_edge(store, lock_wait_s=0.2) as other:
        create(mine, NAME)
        with pytest.raises(ServiceError, match=rf"by another process \(process {os.getpid()}: "):
            create(other, NAME)
        create(other, "another")
        build(mine, NAME, make_points(10))
        with pytest.raises(UserError, match="is taken"):
            create(other, NAME)
        other.upsert(NAME, make_points(12, mark="b"))
        with pytest.raises(ServiceError, match="is being built by another process"):
            mine.upsert(NAME, make_points(12, mark="c"))
        other.finish(NAME)
        other.finish("another")
        assert set(contents(mine, NAME).values()) == {"b"}


def test_a_load_outlives_the_thread_that_began_it_and_takes_many(store: Path) -> None:
    points = make_points(4000)
    with open_edge(store) as index:
        beginner = threading.Thread(target=create, args=(index, NAME))
        beginner.start()
        beginner.join()
        parts = [points[start::8] for start in range(8)]
        threads = [threading.Thread(target=index.upsert, args=(NAME, part)) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        index.finish(NAME)
        assert len(contents(index, NAME)) == 4000


def test_many_threads_search_one_index(store: Path) -> None:
    points = make_points(1000)
    wrong: list[object] = []

    def search(index: EdgeIndex, part: list[int]) -> None:
        for number in part:
            hits = index.query(NAME, VECTOR, points[number].vector, limit=3)
            if hits[0].item_id != points[number].item_id:
                wrong.append(number)

    with open_edge(store) as index:
        build(index, NAME, points)
    with open_edge(store) as index:
        parts = [list(range(start, 1000, 8)) for start in range(8)]
        threads = [threading.Thread(target=search, args=(index, part)) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_while_one_thread_finishes_a_load_the_others_go_on(store: Path) -> None:
    points = make_points(BIG, dim=DIM)
    with open_edge(store) as index:
        build(index, "served", make_points(50))
    with open_edge(store) as index:
        create(index, NAME, dim=DIM)
        index.upsert(NAME, points)
        finisher = threading.Thread(target=index.finish, args=(NAME,))
        finisher.start()
        assert index.count("served") == 50
        index.set_metadata("served", {"note": "meanwhile"})
        build(index, "third", make_points(5))
        assert index.query("third", VECTOR, make_points(1)[0].vector)
        assert finisher.is_alive(), "it was finished too soon to prove anything"
        finisher.join()
        assert index.count(NAME) == BIG


def test_closing_ends_a_load_that_another_thread_is_finishing(store: Path) -> None:
    said: list[Exception] = []

    def finish() -> None:
        try:
            index.finish(NAME)
        except ServiceError as error:
            said.append(error)

    with open_edge(store) as index:
        create(index, NAME, dim=DIM)
        index.upsert(NAME, make_points(BIG, dim=DIM))
        assert index.count(NAME) == BIG
        before = children(os.getpid())
        finisher = threading.Thread(target=finish)
        finisher.start()
        time.sleep(0.2)
    finisher.join()
    assert len(said) == 1 and "was ended by SIGKILL" in str(said[0])
    assert len(set(before) & set(children(os.getpid()))) == len(before) - 1
    assert left_over(store) == []


def test_a_collection_that_is_removed_while_it_is_loaded_is_not_made_again(store: Path) -> None:
    with open_edge(store) as index, open_edge(store) as other:
        build(index, NAME, make_points(5))
        index.upsert(NAME, make_points(9, mark="b"))
        other.delete(NAME)
        with pytest.raises(ServiceError, match="was removed or made by another process"):
            index.finish(NAME)
        assert index.collections() == []
    assert left_over(store) == []


# Damage


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def _cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("damage", [_flip, _cut, Path.unlink], ids=["flip", "cut", "unlink"])
def test_damage_to_any_file_is_found_and_mended_by_a_new_load(
    damage: Callable[[Path], None], store: Path
) -> None:
    points = make_points(100)
    with open_edge(store) as index:
        build(index, NAME, points)
    files = files_of(store, NAME)
    assert len(files) > 30
    for file in files if damage is _flip else files[::9]:
        if file.stat().st_size == 0:
            continue
        shutil.copy2(file, store.with_name("kept"))
        damage(file)
        with open_edge(store) as index:
            assert index.exists(NAME)
            with pytest.raises(DamagedError, match="the index is damaged") as error:
                index.query(NAME, VECTOR, points[0].vector)
            assert file.name in str(error.value) and "coembed index" in str(error.value)
        shutil.copy2(store.with_name("kept"), file)
    with open_edge(store) as index:
        assert len(contents(index, NAME)) == 100
        index.set_alias("shop", NAME)
    damage(files[len(files) // 2])
    with open_edge(store) as index:
        # A copy would carry the damage on: none is made.
        assert not create(index, "shop__v2", base=NAME)
        index.delete("shop__v2")
        # A part of it cannot be mended by the rest of it.
        index.upsert(NAME, points[:60])
        with pytest.raises(DamagedError, match="it had 100 points, of which only 60 were loaded"):
            index.finish(NAME)
        index.upsert(NAME, points)
        index.finish(NAME)
        assert len(contents(index, NAME)) == 100
        assert index.aliases() == {"shop": NAME}


def test_damage_to_an_entry_is_found(store: Path) -> None:
    with open_edge(store) as index:
        build(index, NAME, make_points(10))
        build(index, "other", make_points(10))
    entry = store / "collections" / NAME / "collection.json"
    entry.write_text(entry.read_text().replace('"new"', '"old"'), encoding="utf-8")
    with open_edge(store) as index:
        for ask in (index.describe, index.count):
            with pytest.raises(DamagedError, match=r"collection\.json: its content and its check"):
                ask(NAME)
        # The others are as good as before, and it can be removed.
        assert index.count("other") == 10
        build(index, "third", make_points(5))
        index.delete(NAME)
        assert index.collections() == ["other", "third"]


def test_a_store_of_another_coembed_is_refused(store: Path, tmp_path: Path) -> None:
    with open_edge(store) as index:
        build(index, NAME, make_points(5))
    (store / "store.json").write_text('{"format": 99}', encoding="utf-8")
    with pytest.raises(ServiceError, match="its format is 99, this coembed reads 1"):
        open_edge(store)
    (store / "store.json").write_text("{", encoding="utf-8")
    with pytest.raises(ServiceError, match="cannot be opened") as error:
        open_edge(store)
    assert "move that folder away" in str(error.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match="is not a folder"):
        open_edge(tmp_path / "file")


def test_an_index_of_the_old_engine_is_not_read_and_not_in_the_way(store: Path) -> None:
    with open_local(store, IndexSettings()) as old:
        build(old, NAME, make_points(5))
    kept = sha256_file(store / "collection" / NAME / "storage.sqlite")
    with open_edge(store) as index:
        assert index.collections() == [] and index.aliases() == {}
        with pytest.raises(UserError, match="no collection") as error:
            index.count(NAME)
        assert "the index of an older coembed" in str(error.value)
        build(index, NAME, make_points(7))
        assert len(contents(index, NAME)) == 7
    assert sha256_file(store / "collection" / NAME / "storage.sqlite") == kept
    found = _embedded_index(store)
    assert found.verdict == "warn" and "older coembed" in found.found


def test_what_edge_raises_is_explained(tmp_path: Path) -> None:
    shape = Shape(VECTOR, 4, {}, 16, 128, "none")
    with pytest.raises(ServiceError, match="Qdrant Edge failed in") as error:
        Shard.load(tmp_path, shape)
    assert "coembed index" in str(error.value)


def test_the_doctor_looks_into_the_store(store: Path) -> None:
    def found() -> str:
        check = _embedded_index(store)
        assert check.verdict == "good"
        return check.found

    assert "nothing indexed yet" in found()
    with open_edge(store) as index:
        build(index, NAME, make_points(5))
        index.set_alias("shop", NAME)
        create(index, "shop__v2")
        assert "1 collection, 1 alias" in found() and "shop__v2 is being built" in found()
    (store / "aliases.json").write_text("{", encoding="utf-8")
    check = _embedded_index(store)
    assert check.verdict == "bad" and "aliases.json" in check.found


# Large enough for a graph


def _recall(index: EdgeIndex, name: str, search: SearchParams | None = None) -> float:
    queries = make_points(40, dim=DIM, seed=5)
    shares = []
    for query in queries:
        nearest = index.query(name, VECTOR, query.vector, exact=True)
        found = index.query(name, VECTOR, query.vector, search=search)
        ids = {hit.item_id for hit in nearest}
        shares.append(len(ids & {hit.item_id for hit in found}) / len(ids))
    return float(np.mean(shares))


def test_a_full_scan_is_exact_and_ef_widens_the_search(big: Path) -> None:
    points = make_points(BIG, dim=DIM)
    vectors = np.stack([point.vector for point in points])
    assert any(path.name == "links_compressed.bin" for path in files_of(big, "plain"))
    with open_edge(big) as index:
        for query in make_points(5, dim=DIM, seed=7):
            scores = vectors @ query.vector
            expected = [points[i].item_id for i in np.argsort(-scores, kind="stable")[:10]]
            for name in ("plain", "int8", "binary"):
                hits = index.query(name, VECTOR, query.vector, exact=True)
                assert [hit.item_id for hit in hits] == expected
                assert hits[0].score == pytest.approx(float(scores.max()), abs=1e-5)
        narrow = _recall(index, "plain", SearchParams(ef=10))
        wide = _recall(index, "plain", SearchParams(ef=512))
        assert narrow < wide and wide > 0.97


def test_rescoring_gives_a_quantised_collection_its_recall_back(big: Path) -> None:
    assert any(path.name.startswith("quantized") for path in files_of(big, "int8"))
    with open_edge(big) as index:
        for name, least in (("int8", 0.95), ("binary", 0.5)):
            raw = _recall(index, name, SearchParams(ef=256, rescore=False))
            good = _recall(index, name, SearchParams(ef=256, oversampling=8.0, rescore=True))
            assert good > raw and good > least, (name, raw, good)
        point = make_points(BIG, dim=DIM)[17]
        for name in ("int8", "binary"):
            hit = index.query(name, VECTOR, point.vector, limit=1)[0]
            assert hit.item_id == point.item_id and hit.score == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    "texts",
    [("colour=red",), ("colour!=red,blue",), ("price<3",), ("price>=50", "colour=grey"),
     ("sale=true",), ("sale!=true", "modality=audio"), ("mark=b",)],
)  # fmt: skip
def test_filters_hold_in_a_graph_as_in_a_scan(texts: tuple[str, ...], big: Path) -> None:
    columns = {"colour": "text", "price": "number", "sale": "bool", "mark": "text"}
    where = parse_filters(texts, columns)  # type: ignore[arg-type]
    points = [p for p in make_points(BIG, dim=DIM) if matches(where, p.payload)]
    with open_edge(big) as index:
        for query in make_points(5, dim=DIM, seed=3):
            ranked = sorted(points, key=lambda p: (-float(p.vector @ query.vector), p.item_id))
            expected = [point.item_id for point in ranked[:10]]
            exact = index.query("plain", VECTOR, query.vector, where=where, exact=True)
            assert [hit.item_id for hit in exact] == expected
            found = index.query("plain", VECTOR, query.vector, where=where)
            assert all(matches(where, hit.payload) for hit in found)
            assert len(set(expected) & {hit.item_id for hit in found}) >= 0.8 * len(expected)


def _hashes(store: Path, name: str) -> dict[str, str]:
    return {str(path): sha256_file(path) for path in files_of(store, name)}


def test_a_copy_shares_the_graph_and_leaves_what_it_came_from_alone(big: Path) -> None:
    before = _hashes(big, "plain")
    changed = make_points(60, dim=DIM, seed=11, mark="b")
    gone = [point.item_id for point in make_points(BIG, dim=DIM)[-40:]]
    with open_edge(big) as index:
        assert create(index, "next", dim=DIM, base="plain")
        index.upsert("next", changed)
        index.delete_points("next", gone)
        index.finish("next")
        marks = contents(index, "next")
        assert len(marks) == BIG - 40 and sum(mark == "b" for mark in marks.values()) == 60
        assert _hashes(big, "plain") == before
        for name in ("matrix.dat", "links_compressed.bin"):
            inodes = {
                path.stat().st_ino
                for store in ("plain", "next")
                for path in files_of(big, store)
                if path.name == name
            }
            assert len(inodes) == 1, name
        assert index.query("next", VECTOR, changed[3].vector)[0].item_id == changed[3].item_id
        # A copy of a copy, with the first one gone.
        assert create(index, "third", dim=DIM, base="next")
        index.upsert("third", make_points(30, dim=DIM, seed=12, mark="c"))
        index.finish("third")
        index.delete("next")
        assert sum(mark == "c" for mark in contents(index, "third").values()) == 30
        assert _recall(index, "third") > 0.9
        index.delete("third")
        assert _hashes(big, "plain") == before


def test_a_copy_is_made_only_of_what_is_made_alike(big: Path) -> None:
    with open_edge(big, hnsw_m=24) as index:
        assert not create(index, "next", dim=DIM, base="plain")
    with open_edge(big, quantization="int8") as index:
        assert not create(index, "next", dim=DIM, base="plain")
    with open_edge(big) as index:
        assert not index.create(
            "next", vector_name=VECTOR, dim=DIM, metadata={}, columns={}, base="plain"
        )
        index.delete("next")
        assert create(index, "next", dim=DIM, base="plain")
        index.finish("next")
        assert len(contents(index, "next")) == BIG
        index.delete("next")


def test_the_list_of_a_generation_says_what_made_it(big: Path) -> None:
    (listed,) = (big / "collections" / "int8").glob("*/generation.json")
    value = json.loads(listed.read_text())["value"]
    assert value["format"] == 1 and value["num_points"] == BIG
    assert value["engine"].startswith("qdrant-edge-py 0.9.")
    assert value["shape"]["quantization"] == "int8"
    with open_edge(big) as index:
        size = index.size_bytes("int8")
        assert size is not None
        assert 4 * BIG * DIM < size <= 2 * sum(entry[0] for entry in value["files"].values())
