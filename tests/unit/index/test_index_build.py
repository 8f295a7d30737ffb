"""Building a collection: complete, completed after a kill, changed a little, or refused."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from index_cases import (
    DIM,
    NAME,
    NUM,
    RELEASE,
    SETTINGS,
    build_with,
    embedded_services,
    make_points,
    make_queries,
)  # fmt: skip
from pydantic import ValidationError

from coembed.errors import UserError
from coembed.index.base import Point, VectorIndex
from coembed.index.build import build, find_base
from coembed.index.exact import ExactIndex
from coembed.index.opening import open_index
from coembed.index.qdrant import open_local
from coembed.index.release import Layout, read_release
from coembed.index.settings import IndexSettings
from coembed.index.verify import UnverifiedError, content_hash

Opener = Callable[[], AbstractContextManager[VectorIndex]]


@pytest.fixture(params=["exact", "local", "edge"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opens one and the same index again and again."""
    if request.param == "exact":
        exact = ExactIndex()
        yield lambda: nullcontext(exact)
    elif request.param == "local":
        yield lambda: open_local(tmp_path / "local", SETTINGS)
    else:
        yield lambda: open_index(embedded_services(tmp_path / "edge"), SETTINGS)


def contents(index: VectorIndex, name: str) -> dict[str, str]:
    found = [point for batch in index.scroll(name, with_payload=False) for point in batch]
    assert all(len(point.vector) == len(point.payload) == 0 for point in found)
    return {point.item_id: point.content_hash for point in found}


def hashes(points: list[Point]) -> dict[str, str]:
    return {point.item_id: content_hash(point) for point in points}


def test_built_once_verified_twice(opener: Opener) -> None:
    with opener() as index:
        first = build_with(index)
    with opener() as index:
        second = build_with(index)
        assert (first.collection, first.already_built, second.already_built) == (NAME, False, True)
        assert (first.loaded.num_written, second.loaded.num_written) == (NUM, 0)
        assert second.search.num_queries == NUM
        assert read_release(index.describe(NAME)) == RELEASE
        assert index.describe(NAME).metadata["state"] == "built"
        assert index.aliases() == {}
        assert contents(index, NAME) == hashes(make_points())


def test_the_content_hash_is_in_no_hit_and_no_payload(opener: Opener) -> None:
    with opener() as index:
        points = make_points()
        build_with(index, points)
        (hit,) = index.query(NAME, RELEASE.vector_name, points[3].vector, limit=1)
        assert dict(hit.payload) == dict(points[3].payload)
        back = index.retrieve(NAME, [points[3].item_id])[points[3].item_id]
        assert dict(back.payload) == dict(points[3].payload)
        assert back.content_hash == content_hash(points[3])


def changed_corpus() -> list[Point]:
    """One item gone, one with another caption, one embedded otherwise, two new ones."""
    points = make_points(NUM + 2)
    points[4] = replace(points[4], payload={**points[4].payload, "path": "new.jpg"})
    points[5] = replace(points[5], vector=make_points(1, seed=3)[0].vector)
    return points[1:]


SECOND = replace(RELEASE, corpus="ee" * 32, num_items=NUM + 1)


def test_a_changed_corpus_starts_from_the_last_collection_of_the_same_model(
    opener: Opener,
) -> None:
    with opener() as index:
        build_with(index)
    corpus = changed_corpus()
    with opener() as index:
        built = build_with(index, corpus, release=SECOND, queries=make_queries(corpus))
        loaded = built.loaded
        if loaded.base is None:  # a backend that cannot copy
            assert (loaded.num_copied, loaded.num_written, loaded.num_removed) == (0, NUM + 1, 0)
        else:
            assert loaded.base == NAME
            assert (loaded.num_copied, loaded.num_written, loaded.num_removed) == (NUM - 3, 4, 1)
        assert contents(index, built.collection) == hashes(corpus)
        # What it was copied from is as it was.
        assert contents(index, NAME) == hashes(make_points())
        assert build_with(index).already_built


def test_edge_copies(tmp_path: Path) -> None:
    """The case above must not pass for want of a backend that copies."""
    with open_index(embedded_services(tmp_path), SETTINGS) as index:
        build_with(index)
        assert build_with(index, changed_corpus(), release=SECOND).loaded.base == NAME


def test_the_same_points_under_another_version_are_all_copied(tmp_path: Path) -> None:
    """A model that was registered once more."""
    with open_index(embedded_services(tmp_path), SETTINGS) as index:
        build_with(index)
        built = build_with(index, release=replace(RELEASE, version=3))
        assert (built.loaded.base, built.loaded.num_copied) == (NAME, NUM)
        assert contents(index, built.collection) == hashes(make_points())
    with open_index(embedded_services(tmp_path), SETTINGS) as index:
        assert index.count(built.collection) == NUM


def test_a_worn_copy_is_given_up_and_all_is_loaded(tmp_path: Path) -> None:
    """The base is found whole by its metadata, but a point of it is not what its hash says."""
    points = make_points()
    with open_index(embedded_services(tmp_path), SETTINGS) as index:
        build_with(index, points)
        wrong = replace(points[9], vector=points[8].vector, content_hash=content_hash(points[9]))
        index.upsert(NAME, [wrong])
        index.finish(NAME)
        built = build_with(index, points, release=replace(RELEASE, corpus="ee" * 32))
        assert (built.loaded.base, built.loaded.num_written) == (None, NUM)
        back = index.retrieve(built.collection, [points[9].item_id])[points[9].item_id]
        assert back.vector == pytest.approx(points[9].vector, abs=1e-6)


def test_only_what_is_built_of_the_same_model_in_the_same_way_is_a_base() -> None:
    index = ExactIndex()
    build_with(index)
    wanted = replace(RELEASE, corpus="ee" * 32)

    def base_of(**changes: Any) -> str | None:
        return find_base(index, replace(wanted, **changes), alias="items")

    assert base_of() == NAME
    assert base_of(version=3) == NAME  # registered once more: the vectors are the same
    assert base_of(fingerprint="ff" * 32) is None
    assert base_of(fingerprint="ab" * 31 + "cc") is None  # the name's eight digits are the same
    assert base_of(precision="bf16") is None
    assert base_of(dim=DIM + 1) is None
    assert base_of(layout=Layout(quantization="int8")) is None
    assert base_of(layout=Layout(payload_indexes=())) is None
    assert base_of(columns={"price": "number", "size": "number"}) is None
    assert find_base(index, wanted, alias="others") is None
    build_with(index, release=wanted)
    third = replace(RELEASE, corpus="99" * 32)
    index.set_metadata(NAME, {"built_at": "2001-01-01T00:00:00+00:00"})
    assert find_base(index, third, alias="items") == wanted.collection_name("items")
    index.set_metadata(wanted.collection_name("items"), {"state": "loading"})
    assert find_base(index, third, alias="items") == NAME


def test_what_was_damaged_after_it_was_built_is_loaded_again() -> None:
    index = ExactIndex()
    build_with(index)
    points = index._shelves[NAME].points
    del points[make_points()[7].item_id]
    assert not build_with(index).already_built
    assert index.count(NAME) == NUM


@pytest.mark.parametrize("served", [False, True])
def test_a_point_that_is_not_what_its_hash_says_is_written_again(
    opener: Opener, served: bool
) -> None:
    points = make_points()
    with opener() as index:
        build_with(index)
        if served:
            index.set_alias("items", NAME)
        wrong = replace(points[7], payload={"path": "x"}, content_hash=content_hash(points[7]))
        stranger = Point("f" * 64, make_points(1, seed=8)[0].vector, {})
        index.upsert(NAME, [wrong, stranger])
        index.finish(NAME)
        again = build_with(index)
        assert not again.already_built
        assert index.count(NAME) == NUM
        assert contents(index, NAME) == hashes(points)
        back = index.retrieve(NAME, [points[7].item_id])[points[7].item_id]
        assert dict(back.payload) == dict(points[7].payload)
        assert build_with(index).already_built


def test_the_same_items_embedded_by_another_machine_are_the_same_release(opener: Opener) -> None:
    release = replace(RELEASE, manifest={"parts": [{"sha256": "aa"}]})
    with opener() as index:
        build_with(index, release=release)
        noisy = [replace(point, vector=point.vector * (1 + 1e-6)) for point in make_points()]
        other = replace(RELEASE, manifest={"parts": [{"sha256": "bb"}]})
        assert build_with(index, noisy, release=other).already_built
        # It says what it was built from.
        assert read_release(index.describe(NAME)) == release


def test_what_an_older_coembed_did_not_write_is_added() -> None:
    index = ExactIndex()
    build_with(index)
    told = replace(RELEASE, manifest={"parts": []}, calibration={"version": 1})
    assert build_with(index, release=told).already_built
    assert read_release(index.describe(NAME)) == told
    later = replace(told, calibration={"version": 2})
    assert build_with(index, release=later).already_built
    assert read_release(index.describe(NAME)) == told


def test_an_index_on_an_unknown_column_is_refused() -> None:
    settings = IndexSettings(payload_indexes=("price", "size"))
    with pytest.raises(UserError, match=r"names size; .* have the columns price"):
        build(ExactIndex(), RELEASE, lambda: iter(make_points()), alias="items", settings=settings)


def test_hits_can_be_asked_for_by_modality_whatever_indexes_are_set() -> None:
    asked: list[Any] = []

    class Noting(ExactIndex):
        def create(self, *arguments: Any, columns: Any, **changes: Any) -> bool:
            asked.append(dict(columns))
            return super().create(*arguments, columns=columns, **changes)

    build_with(Noting(), release=replace(RELEASE, layout=Layout(payload_indexes=())))
    build_with(Noting())
    assert asked == [{"modality": "text"}, {"modality": "text", "price": "number"}]


def test_a_collection_made_by_another_release_is_refused() -> None:
    index = ExactIndex()
    build_with(index)
    with pytest.raises(UserError, match=r"holds another release .* version 2 of 'shop', 50 items"):
        build_with(index, release=replace(RELEASE, model="other"))


LOADER = """
import sys, time
from pathlib import Path
sys.path[:0] = {paths!r}
from index_cases import *
from coembed.index.opening import open_index
from coembed.index.qdrant import open_local

class Slow(list):
    def __iter__(self):
        for number, point in enumerate(list.__iter__(self)):
            if number == 35:
                print("half", flush=True)
                time.sleep(60)
            yield point

opened = {opened}
with opened as index:
    build_with(index, Slow(make_points()))
"""


@pytest.mark.parametrize(
    ("kind", "opened"),
    [
        ("local", "open_local(Path(sys.argv[1]), SETTINGS)"),
        ("edge", "open_index(embedded_services(Path(sys.argv[1])), SETTINGS)"),
    ],
)
def test_a_killed_build_is_completed(kind: str, opened: str, tmp_path: Path) -> None:
    script = LOADER.format(paths=[str(Path(__file__).parents[2])], opened=opened)
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    local = kind == "local"
    settings = SETTINGS.model_copy(update={"lock_wait_s": 20.0})
    with (
        open_local(tmp_path, settings)
        if local
        else open_index(embedded_services(tmp_path), settings)
    ) as index:
        assert index.exists(NAME) == local  # Edge shows nothing that is not finished
        built = build_with(index)
        assert not built.already_built
        # What was there needs no second writing.
        assert built.loaded.num_copied == (32 if local else 0)
        assert built.loaded.num_written == NUM - built.loaded.num_copied
        assert contents(index, NAME) == hashes(make_points())
        assert build_with(index).already_built


def test_a_search_that_finds_too_little_leaves_the_collection_unbuilt() -> None:
    class Blind(ExactIndex):
        def query(self, *arguments: Any, **changes: Any) -> Any:
            return super().query(*arguments, **changes)[:3]

    index = Blind()
    with pytest.raises(UnverifiedError, match=r"is 0\.300, expected at least 0\.95"):
        build_with(index)
    assert index.describe(NAME).metadata["state"] == "loading"


def test_settings_refuse_what_cannot_be() -> None:
    with pytest.raises(ValidationError, match="backoff_max_s"):
        IndexSettings(backoff_s=2, backoff_max_s=1)
    with pytest.raises(ValidationError):
        IndexSettings(collection="a/b")
