"""Tables in blocks: the same as read whole, in bounded memory, and refused where they must be."""

from __future__ import annotations

import csv
import json
import os
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coembed.errors import DataError
from coembed.pairs import delimited, json_lines, pair_ids, tables
from coembed.pairs.limits import MAX_COLUMNS
from coembed.pairs.pool import open_pool, read_pool
from coembed.pairs.tables import is_table, table_batches, table_schema

TEXT = ("path", "caption")


def _rows(path: Path, max_rows: int = 7) -> list[dict[str, Any]]:
    batches = list(table_batches(path, text=TEXT, max_rows=max_rows))
    assert all(batch.num_rows <= max_rows for batch in batches)
    return [row for batch in batches for row in batch.to_pylist()]


def _csv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def _small_blocks(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(delimited, "MAX_ROW_BYTES", num_bytes)
    monkeypatch.setattr(json_lines, "MAX_ROW_BYTES", num_bytes)


@pytest.mark.parametrize("seed", range(20))
def test_blocks_of_csv_are_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = random.Random(seed)
    kinds = {"i": "12", "f": "-1.5", "b": "true", "s": "x y", "n": "", "z": "007", "q": 'a "b",\nc'}
    names = ["path", "caption", *rng.sample(sorted(kinds), 4)]
    rows = [
        [f"{i}.jpg", "one\ntwo" if i % 5 == 0 else "a, b"]
        # A column may show what it is in its last row only.
        + [kinds[name] if i > 150 or rng.random() < 0.5 else "" for name in names[2:]]
        for i in range(200)
    ]
    path = _csv(tmp_path / "t.csv", [names, *rows])
    whole = _rows(path)
    _small_blocks(monkeypatch, 300)
    os.utime(path, ns=(1, 1))  # so that its types are found anew
    assert _rows(path) == whole
    values = {"12": 12, "-1.5": -1.5, "true": True, "": None}
    for row, cells in zip(whole, rows, strict=True):
        assert [row[n] for n in names[2:]] == [values.get(c, c) for c in cells[2:]]
        assert (row["path"], row["caption"]) == tuple(cells[:2])


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "2.5"], [1.0, 2.5]),
        (["1", "x"], ["1", "x"]),
        (["1", "true"], ["1", "true"]),
        (["True", "FALSE"], [True, False]),
        (["007", "8"], ["007", "8"]),  # an article number
        (["0x10", "16"], ["0x10", "16"]),
        ([" 12", "3 "], [12, 3]),
        (["+5", "1e3"], [5.0, 1000.0]),
        (["nan", "1"], [None, 1.0]),
        (["99999999999999999999", "1"], ["99999999999999999999", "1"]),
        (["1e400", "1"], ["1e400", "1"]),
        (["2024-01-02", "2024-01-03"], ["2024-01-02", "2024-01-03"]),
        (["2024-01-02T03:04:05Z", ""], ["2024-01-02T03:04:05Z", None]),
        (["-", "."], ["-", "."]),
        (["null", "NA"], ["null", "NA"]),
    ],
)
def test_cells_of_csv(tmp_path: Path, cells: list[str], expected: list[Any]) -> None:
    rows = [["path", "caption", "x"], *(["a.jpg", "5", cell] for cell in cells)]
    found = _rows(_csv(tmp_path / "t.csv", rows))
    assert [row["x"] for row in found] == expected
    assert [row["caption"] for row in found] == ["5"] * len(cells)


def test_json_lines_in_blocks_are_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.jsonl"
    rows = [
        {"path": f"{i}.jpg", "caption": "x" * (i % 50), "n": i if i < 90 else i / 4, "l": [i]}
        | ({"late": True} if i > 95 else {})
        for i in range(100)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = _rows(path)
    _small_blocks(monkeypatch, 200)
    os.utime(path, ns=(1, 1))
    assert _rows(path) == whole
    assert whole[3] == {"path": "3.jpg", "caption": "xxx", "n": 3.0, "l": "[3]", "late": None}
    assert whole[99]["n"] == 99 / 4 and whole[99]["late"] is True


def test_types_are_found_once_while_the_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _csv(tmp_path / "t.csv", [["path", "caption", "n"], ["a", "b", "1"]])
    found = []

    def counted(path: Path, *, text: tuple[str, ...]) -> pa.Schema:
        found.append(path)
        return delimited.delimited_schema(path, text=text)

    monkeypatch.setattr(tables, "delimited_schema", counted)
    assert table_schema(path, text=TEXT) == table_schema(path, text=TEXT)
    assert _rows(path)[0]["n"] == 1 and len(found) == 1
    _csv(path, [["path", "caption", "n"], ["a", "b", "word"]])
    assert _rows(path)[0]["n"] == "word" and len(found) == 2


def _says(path: Path, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        _rows(path)
    text = str(caught.value)
    assert path.name in text and len(text) < 2000


def test_what_cannot_be_a_table_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _small_blocks(monkeypatch, 1000)
    path = tmp_path / "t.csv"

    def csv_of(data: bytes) -> Path:
        path.write_bytes(data)
        return path

    good = b"path,caption\n"
    _says(csv_of(good + b'a,"never closed\n' + b"b,c\n" * 5), "opened and never closed")
    _says(csv_of(good + b'a,"' + b"long\n" * 1000), "row of more than 1,000 bytes")
    _says(csv_of(good + b"a," + b"x" * 5000 + b"\n"), "row of more than 1,000 bytes")
    _says(csv_of(good + b"a,b\nc\n"), "Row #3: Expected 2 columns, got 1")
    _says(csv_of(good + b"a,b\nc,caf\xe9\n"), "Row #3.*invalid UTF8")
    _says(csv_of("path,caption\n".encode("utf-16")), "UTF-16")
    _says(csv_of(b"path,caption,n,n\na,b,1,2\n"), "more than one column 'n'")
    _says(csv_of(b"path,caf\xe9\na,b\n"), "name of a column is not UTF-8")
    path = tmp_path / "t.jsonl"
    _says(csv_of(b'{"a":' * 900 + b"1" + b"}" * 900), "more than 1,000 bytes")
    _small_blocks(monkeypatch, 1 << 20)
    _says(csv_of(b"{}\n" + b'{"a":' * 9000 + b"1" + b"}" * 9000), "line 2 nests too deeply")
    _says(csv_of(b'{"a": ' + b"9" * 5000 + b"}"), "line 1 is not JSON")
    path = tmp_path / "t.csv"
    _says(csv_of(b",".join(b"c%d" % i for i in range(MAX_COLUMNS + 1))), "4,097 columns")
    path = tmp_path / "t.jsonl"
    wide = {f"c{i}": 1 for i in range(MAX_COLUMNS + 1)}
    _says(csv_of(json.dumps(wide).encode()), "4,097 columns")


def test_a_quote_within_a_cell_is_no_open_quote(tmp_path: Path) -> None:
    path = _csv(tmp_path / "t.csv", [["path", "caption"], ["a", 'a 5" pipe\nof steel']])
    assert _rows(path)[0]["caption"] == 'a 5" pipe\nof steel'


def test_text_in_parquet_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"]).buffers())
    pq.write_table(pa.table({"path": ["a"], "caption": broken}), tmp_path / "t.parquet")
    _says(tmp_path / "t.parquet", "t.parquet cannot be read as PARQUET: .*UTF8")


def test_a_small_parquet_file_cannot_fill_the_memory(tmp_path: Path) -> None:
    """A dictionary holds one long cell, and every row refers to it."""
    path = tmp_path / "t.parquet"
    caption = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), ["x" * 8_000_000])
    table = pa.table({"path": pa.array(["a"] * 100_000), "caption": caption})
    pq.write_table(table, path, dictionary_pagesize_limit=1 << 30)
    assert path.stat().st_size < 2_000_000
    with pytest.raises(DataError, match="cells of column 'caption' hold 8,192,000,000 bytes"):
        next(table_batches(path, text=TEXT, max_rows=8192))
    assert pa.default_memory_pool().max_memory() < 500_000_000


def test_cells_too_large_for_a_batch_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coembed.pairs.pool.MAX_BATCH_BYTES", 10_000)
    (tmp_path / "pairs").mkdir()
    rows = [["path", "caption"], *([f"{i}.jpg", "x" * 300] for i in range(100))]
    _csv(tmp_path / "pairs" / "t.csv", rows)
    with pytest.raises(DataError, match=r"t\.csv has cells so large that"):
        read_pool(tmp_path)


def test_only_files_of_the_pool_are_tables(tmp_path: Path) -> None:
    pairs = tmp_path / "pool" / "pairs"
    pairs.mkdir(parents=True)
    outside = tmp_path / "outside.csv"
    outside.write_text("path,caption\na,secret\n")
    cached = tmp_path / "cache" / "files" / "md5" / "ab" / ("c" * 30)
    cached.parent.mkdir(parents=True)
    cached.write_text("path,caption\na,b\n")
    (pairs / "own.CSV").write_text("path,caption\nc,d\n")
    (pairs / "cached.csv").symlink_to(cached)
    (pairs / "inside.csv").symlink_to(pairs / "own.CSV")
    (pairs / "notes.md").write_text("not a table")
    (pairs / ".hidden.csv").mkdir()
    assert [p.name for p in sorted(pairs.iterdir()) if is_table(p)] == [
        "cached.csv", "inside.csv", "own.CSV",
    ]  # fmt: skip
    assert read_pool(tmp_path / "pool")["caption"].tolist() == ["b", "d", "d"]
    wrong = pairs / "wrong.csv"

    def refused(words: str) -> None:
        with pytest.raises(DataError, match=words):
            open_pool(tmp_path / "pool")
        wrong.rmdir() if wrong.is_dir() and not wrong.is_symlink() else wrong.unlink()

    wrong.symlink_to(outside)
    refused("a link out of the pool")
    wrong.symlink_to("/dev/zero")
    refused("a link out of the pool")
    wrong.symlink_to("nowhere")
    refused("a link to nowhere")
    wrong.symlink_to("wrong.csv")
    refused("leads nowhere")
    wrong.mkdir()
    refused("is a folder")
    os.mkfifo(wrong)
    refused("is no file")


@pytest.mark.parametrize("limit", [0, 1, 4, 1000])
def test_ids_numbered_on_disk_are_those_numbered_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    rng = random.Random(1)
    (tmp_path / "pairs").mkdir()
    for name in "abc":
        rows = [
            {
                "path": f"{rng.randrange(3)}.jpg",
                "caption": rng.choice(["x", "y", "", None]),
                "pair_id": rng.choice(["given", None, None]),
            }
            for _ in range(40)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "pairs" / f"{name}.jsonl").write_text(lines)
    pool = open_pool(tmp_path)
    expected = read_pool(tmp_path)["pair_id"].tolist()
    monkeypatch.setattr(pair_ids, "_MAX_COUNTED", limit)
    found = [i for batch in pool.batches(max_rows=9) for i in batch.column("pair_id").to_pylist()]
    assert found == expected
    made = [i for i in found if i != "given"]
    assert len(set(made)) == len(made) > 60


def test_an_abandoned_reading_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_ids, "_MAX_COUNTED", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    (tmp_path / "pairs").mkdir()
    pd.DataFrame({"path": ["a"] * 9, "caption": ["b"] * 9}).to_csv(tmp_path / "pairs" / "a.csv")
    batches = open_pool(tmp_path).batches(max_rows=2)
    next(batches)
    assert list((tmp_path / "scratch").iterdir())
    batches.close()
    assert not list((tmp_path / "scratch").iterdir())
