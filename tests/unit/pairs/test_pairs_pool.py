"""Pools: tables of several formats read as one, and what is wrong with them said clearly."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coembed.errors import DataError
from coembed.pairs.media_types import modality_of
from coembed.pairs.pool import open_pool, read_pool


def _pool(folder: Path, **tables: str | pd.DataFrame) -> Path:
    (folder / "pairs").mkdir(parents=True)
    for name, table in tables.items():
        stem, _, ending = name.rpartition("_")
        path = folder / "pairs" / f"{stem}.{ending}"
        if isinstance(table, str):
            path.write_text(table, encoding="utf-8")
        else:
            table.to_parquet(path)
    return folder


def test_tables_of_all_formats_are_read_in_name_order_as_one(tmp_path: Path) -> None:
    _pool(
        tmp_path,
        a_parquet=pd.DataFrame({"path": ["a.jpg"], "caption": ["one"], "price": [1]}),
        b_csv='path,caption,price\nb.png,"two,\nlines",2.5\n',
        c_tsv="path\tcaption\tcolour\nc.wav\tthree\tred\n",
        d_jsonl='{"path": "./d.webp", "caption": "four", "tags": ["x", "y"], "price": 4}\n\n',
    )
    pairs = read_pool(tmp_path)
    assert pairs["path"].tolist() == ["a.jpg", "b.png", "c.wav", "d.webp"]
    assert pairs["caption"].tolist() == ["one", "two,\nlines", "three", "four"]
    assert pairs["modality"].tolist() == ["image", "image", "audio", "image"]
    assert pairs["price"].fillna(-1).tolist() == [1.0, 2.5, -1.0, 4.0]
    assert json.loads(pairs["tags"].iloc[3]) == ["x", "y"]
    assert pairs["colour"].isna().tolist() == [True, True, False, True]
    assert pairs["split"].isna().all()


def test_missing_pair_ids_come_from_content_and_are_unique(tmp_path: Path) -> None:
    rows = "path,caption\na.jpg,x\na.jpg,x\na.jpg,y\na.jpg,x\n"
    first = read_pool(_pool(tmp_path / "one", a_csv=rows))["pair_id"]
    assert first.is_unique and first.str.fullmatch("[0-9a-f]{32}").all()
    # Other rows before them change nothing.
    moved = read_pool(_pool(tmp_path / "two", a_csv="path,caption\nb.jpg,z\n", b_csv=rows))
    assert moved["pair_id"].tolist()[1:] == first.tolist()


def test_given_pair_ids_stay_and_gaps_are_filled(tmp_path: Path) -> None:
    _pool(tmp_path, a_csv="pair_id,path,caption\n007,a.jpg,x\n,a.jpg,y\n")
    ids = read_pool(tmp_path)["pair_id"].tolist()
    assert ids[0] == "007" and len(ids[1]) == 32


def test_captions_that_are_no_text_are_empty_and_words_like_null_are_text(tmp_path: Path) -> None:
    _pool(
        tmp_path,
        a_csv="path,caption,colour\na.jpg,null,NA\nb.jpg,,\n",
        b_jsonl='{"path": "c.jpg", "caption": null}\n{"path": "d.jpg", "caption": "n\\ud83d"}\n',
        c_parquet=pd.DataFrame({"path": ["e.jpg"], "caption": [5]}),
    )
    pairs = read_pool(tmp_path)
    assert pairs["caption"].tolist() == ["null", "", "", "n?", ""]
    assert pairs["colour"].fillna("-").tolist() == ["NA", "-", "-", "-", "-"]


def test_columns_without_a_name_are_left_out(tmp_path: Path) -> None:
    frame = pd.DataFrame({"path": ["a.jpg"], "caption": ["x"]})
    (tmp_path / "pairs").mkdir()
    frame.to_csv(tmp_path / "pairs" / "a.csv")
    assert not open_pool(tmp_path).attributes


def test_batches_have_the_asked_number_of_rows_whatever_the_tables(tmp_path: Path) -> None:
    sizes = [3, 1, 7, 4]
    tables = {
        f"t{i}_parquet": pd.DataFrame(
            {"path": [f"{i}-{j}.jpg" for j in range(n)], "caption": ["x"] * n}
        )
        for i, n in enumerate(sizes)
    }
    pool = open_pool(_pool(tmp_path, **tables))
    for max_rows in (1, 4, 5, 15, 100):
        batches = list(pool.batches(max_rows=max_rows))
        assert all(b.num_rows == max_rows for b in batches[:-1])
        paths = [p for b in batches for p in b.column("path").to_pylist()]
        assert paths == [f"{i}-{j}.jpg" for i, n in enumerate(sizes) for j in range(n)]


def test_arrow_types_become_plain_ones(tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    table = pa.table(
        {
            "path": pa.array(["a.jpg", "b.jpg"]).dictionary_encode(),
            "caption": pa.array(["x", "y"], pa.large_string()),
            "small": pa.array([1, None], pa.int8()),
            "half": pa.array([1.5, float("nan")], pa.float32()),
            "day": pa.array([0, 1], pa.date32()),
            "nested": pa.array([{"k": 1}, None]),
            "flag": pa.array([True, None]),
            "huge": pa.array([2**63, 1], pa.uint64()),
        }
    )
    pq.write_table(table, tmp_path / "pairs" / "a.parquet")
    pool = open_pool(tmp_path)
    (batch,) = pool.batches()
    first, second = batch.select(list(pool.attributes)).to_pylist()
    assert first == {
        "small": 1, "half": 1.5, "day": "1970-01-01", "nested": '{"k": 1}', "flag": True,
        "huge": "9223372036854775808",
    }  # fmt: skip
    assert second["half"] is None and second["nested"] is None and second["small"] is None


def test_columns_whose_types_disagree_become_text(tmp_path: Path) -> None:
    _pool(
        tmp_path,
        a_csv="path,caption,size\na.jpg,x,38\n",
        b_csv="path,caption,size\nb.jpg,x,38.0\n",
        c_csv="path,caption,size\nc.jpg,x,M\n",
    )
    assert read_pool(tmp_path)["size"].tolist() == ["38", "38", "M"]


def test_splits_are_read_in_any_case_and_others_refused_with_their_row(tmp_path: Path) -> None:
    good = _pool(tmp_path / "good", a_csv="path,caption,split\na,x,Train\nb,x, test \nc,x,\n")
    assert read_pool(good)["split"].fillna("-").tolist() == ["train", "test", "-"]
    bad = _pool(tmp_path / "bad", a_csv="path,caption,split\na,x,train\nb,x,holdout\n")
    with pytest.raises(DataError, match=r"a\.csv, row 2: split is 'holdout'; expected train, val"):
        read_pool(bad)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({}, "holds no table; expected files ending in .parquet, .csv"),
        ({"a_csv": ""}, "hold no pairs"),
        ({"a_csv": "path,caption\n"}, "hold no pairs"),
        ({"a_csv": "image,text\na,b\n"}, "no column 'path' and no 'caption'; it has 'image', 'te"),
        ({"a_csv": "path,caption\na,b,c\n"}, r"a\.csv cannot be read as CSV: .*Expected 2"),
        ({"a_parquet": "not parquet"}, r"a\.parquet cannot be read as PARQUET"),
        ({"a_jsonl": '{"path": 1}\n{oops\n'}, r"a\.jsonl, line 2 is not JSON"),
        ({"a_jsonl": "[1]\n"}, r"a\.jsonl, line 1 holds a list, expected an object"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, tables: dict[str, str], message: str) -> None:
    _pool(tmp_path, **tables)
    with pytest.raises(DataError, match=message):
        read_pool(tmp_path)


def test_a_missing_pool_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="coembed demo-pool"):
        open_pool(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no folder of pair tables"):
        open_pool(tmp_path)


def test_csv_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    _pool(tmp_path, a_csv="")
    (tmp_path / "pairs" / "a.csv").write_bytes(b"path,caption\na.jpg,caf\xe9\n")
    with pytest.raises(DataError, match=r"a\.csv"):
        read_pool(tmp_path)


@pytest.mark.parametrize(
    "path", ["a.wav", "a.b/c", ".wav", "a/.wav", "a.wav/", "a.", "", "x/y.MP3", "a..flac", "q.txt"]
)
def test_the_modality_is_what_the_ending_says(tmp_path: Path, path: str) -> None:
    _pool(tmp_path, a_csv=f"path,caption,x\n{path},words,1\n")
    assert read_pool(tmp_path)["modality"].tolist() == [modality_of(path)]
