"""A release: its name, its metadata, and what of it is compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from index_cases import DIM, NAME, RELEASE, build_with, make_points, make_queries

from coembed.errors import DataError, UserError
from coembed.files import write_json
from coembed.index.exact import ExactIndex
from coembed.index.queries import CALIBRATION, QUERIES, Query, read_calibration, read_queries
from coembed.index.release import Layout, read_release, vector_of
from coembed.index.settings import IndexSettings


def test_the_name_carries_version_model_corpus_and_what_is_unusual() -> None:
    assert RELEASE.collection_name("items") == NAME
    assert RELEASE.vector_name == "item@abababab"
    assert replace(RELEASE, corpus="ee" * 32).collection_name("items") != NAME
    assert Layout.of(IndexSettings()).mark == ""
    unusual = Layout.of(IndexSettings(quantization="int8", hnsw_m=32, hnsw_ef_construct=256))
    assert replace(RELEASE, layout=unusual).collection_name("items") == f"{NAME}_int8_m32_ef256"
    # The order in which columns are named does not matter, which ones does.
    marks = {
        Layout.of(IndexSettings(payload_indexes=names)).mark
        for names in (("a", "b"), ("b", "a"), ("a",), ())
    }
    assert len(marks) == 3


def test_a_release_comes_back_from_its_metadata() -> None:
    full = replace(
        RELEASE,
        calibration={"version": 1, "text": {"image": {"quantiles": [0.1] * 101, "num": 20}}},
        manifest={"parts": [{"file": "part-00000.parquet", "num_items": 50, "sha256": "aa"}]},
        layout=Layout("binary", 8, 64, ("price",)),
    )
    index = ExactIndex()
    build_with(index, release=full)
    assert read_release(index.describe(full.collection_name("items"))) == full


def test_a_collection_from_before_there_were_sounds_is_still_that_model_s() -> None:
    index = ExactIndex()
    # Neither layout nor manifest, calibration and content hashes: what an older coembed wrote.
    metadata = {**RELEASE.to_metadata(), "state": "built"}
    for key in ("layout", "manifest", "calibration"):
        del metadata[key]
    index.create(NAME, vector_name="image@abababab", dim=DIM, metadata=metadata, columns={})
    index.upsert(NAME, make_points())
    assert read_release(index.describe(NAME)) == RELEASE
    assert build_with(index).already_built
    assert vector_of(index.describe(NAME), RELEASE) == "image@abababab"
    other = replace(RELEASE, fingerprint="cd" * 32)
    with pytest.raises(UserError, match="the query was made for 'item@cdcdcdcd'"):
        vector_of(index.describe(NAME), other)


def test_a_collection_of_other_hands_is_refused() -> None:
    index = ExactIndex()
    index.create("theirs", vector_name="v", dim=2, metadata={"version": "x"}, columns={})
    with pytest.raises(UserError, match="does not say which model version"):
        read_release(index.describe("theirs"))


def write_queries(folder: Path, queries: list[Query], dim: int = DIM) -> None:
    flat = pa.array([float(x) for query in queries for x in query.vector], pa.float32())
    pq.write_table(
        pa.table(
            {
                "text": [query.text for query in queries],
                "vector": pa.FixedSizeListArray.from_arrays(flat, dim),
                "item_id": pa.array([query.item_id for query in queries], pa.string()),
                "modality": [query.modality for query in queries],
                "kind": [query.kind for query in queries],
                "expect": ['{"price": 7}' if query.kind == "canary" else "{}" for query in queries],
            }
        ),
        folder / QUERIES,
    )


def test_queries_and_calibration_are_read_and_may_be_missing(tmp_path: Path) -> None:
    assert read_queries(tmp_path, dim=DIM) == ()
    assert read_calibration(tmp_path) == {}
    queries = make_queries(make_points(), 3)
    queries.append(replace(queries[0], kind="canary", item_id=None, expect={"price": 7}))
    write_queries(tmp_path, queries)
    write_json(tmp_path / CALIBRATION, {"version": 1})
    found = read_queries(tmp_path, dim=DIM)
    assert [(one.text, one.item_id, one.kind) for one in found] == [
        (one.text, one.item_id, one.kind) for one in queries
    ]
    assert [one.expect for one in found] == [{}, {}, {}, {"price": 7}]
    assert read_calibration(tmp_path) == {"version": 1}


def test_damaged_queries_are_named(tmp_path: Path) -> None:
    (query,) = make_queries(make_points(), 1)
    write_queries(tmp_path, [query, replace(query, vector=query.vector * 2)])
    with pytest.raises(DataError, match=r"queries.parquet, row 1: .*'caption 0' is not a unit"):
        read_queries(tmp_path, dim=DIM)
    write_queries(tmp_path, [query])
    with pytest.raises(DataError, match="not a unit vector of 9 dimensions"):
        read_queries(tmp_path, dim=9)
    (tmp_path / QUERIES).write_bytes(b"x")
    with pytest.raises(DataError, match=r"queries\.parquet cannot be read"):
        read_queries(tmp_path, dim=DIM)
    (tmp_path / CALIBRATION).write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="is not a JSON object"):
        read_calibration(tmp_path)
