"""The ledger and the view that filters get: what is dropped, linked, found, and settled."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coembed.curation.database import Database
from coembed.curation.examination.workers import Workers
from coembed.curation.filters.base import Filter, drop_table
from coembed.curation.ledger import Ledger
from coembed.curation.overrides import Overrides
from coembed.curation.pool_view import FilterPool, Surroundings, make_attributes
from coembed.curation.rows_table import Examined
from coembed.curation.settle import settle_duplicates

NUM = 8
HOSTILE = 'a "quoted"; DROP TABLE rows --'


class Judge(Filter):
    reasons = ("bad", "worse")
    columns = {"size": "int64", "word": "string"}  # noqa: RUF012


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """Eight rows of six items: 0 and 1 are one item, and so are 6 and 7."""
    (tmp_path / "db").mkdir()
    items = [0, 0, 1, 2, 3, 4, 5, 5]
    text = pa.array([f"t{i}" for i in range(NUM)])
    with Database(tmp_path / "db", readable=[tmp_path / "parts"], num_threads=1) as opened:
        cells = {
            "row": range(NUM), "item": items, "pair_id": [f"id{i}" for i in range(NUM)],
            "path": text, "caption": text, "modality": ["image"] * NUM,
            "given_split": pa.nulls(NUM, pa.string()), "path_key": text, "caption_key": text,
            "num_bytes": range(NUM), "format": text, "width_px": range(NUM),
            "height_px": range(NUM), "duration_s": pa.nulls(NUM, pa.float64()),
            "reason": pa.array(["small", "missing_file"] + [None] * 6),
            "detail": pa.array(["1 px", "no such file"] + [None] * 6),
            "size": pa.nulls(NUM, pa.int64()), "word": pa.nulls(NUM, pa.string()),
            "a0": range(10, 10 + NUM),
        }  # fmt: skip
        opened.execute("CREATE TABLE rows AS FROM made", made=pa.table(cells))
        ids = pa.array([bytes([i]) * 32 for i in range(6)])
        made = pa.table({"item": range(6), "item_id": ids})
        opened.execute("CREATE TABLE items AS FROM made", made=made)
        (tmp_path / "parts").mkdir()
        thumbnails = pa.array([bytes([i]) for i in range(NUM)])
        for start in (0, 5):
            part = pa.table({"row": range(NUM), "_thumb": thumbnails}).slice(start, 5)
            pq.write_table(part, tmp_path / "parts" / f"part-{start}.parquet")
        make_attributes(opened, [HOSTILE])
        yield opened


def _examined(tmp_path: Path) -> Examined:
    parts = tuple(sorted((tmp_path / "parts").iterdir()))
    return Examined(parts, {"size": "int64", "word": "string", "_thumb": "binary"})


def _view(
    tmp_path: Path, database: Database, workers: Workers, **found: tuple[str, ...]
) -> FilterPool:
    around = Surroundings(
        tmp_path, tmp_path / "pool", tmp_path / "runs", tmp_path / "scratch", 3, (HOSTILE,), 100
    )
    return FilterPool("mine", database, _examined(tmp_path), found, around, workers)


def _rows(batches: Iterator[pa.RecordBatch]) -> list[list[object]]:
    return sorted(list(row.values()) for batch in batches for row in batch.to_pylist())


def _drops(database: Database) -> dict[int, tuple[str, str]]:
    found = database.rows("SELECT row, reason, detail FROM drops")
    return {row: (reason, detail) for row, reason, detail in found}


def test_the_first_reason_stands(database: Database) -> None:
    ledger = Ledger(database, ["missing_file"])
    assert ledger.take_overrides(Overrides()) == ()
    ledger.drop_examined()
    assert _drops(database) == {0: ("small", "1 px"), 1: ("missing_file", "no such file")}
    findings = [
        drop_table([(0, "bad", "late"), (2, "bad", "first"), (2, "worse", "second")]),
        drop_table([(2, "worse", "third"), (3, "worse", "")]),
        pa.table({"row": [4], "reason": pa.nulls(1), "size": [7]}),
        pa.table({"row": [4, 4], "size": [8, None], "word": [None, "x"]}),
    ]
    ledger.apply(0, "mine", Judge(), iter(findings))
    assert _drops(database)[2] == ("bad", "first") and _drops(database)[3] == ("worse", "")
    assert _drops(database)[0] == ("small", "1 px") and len(_drops(database)) == 4
    assert database.rows("SELECT row, size, word FROM found_0") == [(4, 7, "x")]
    assert ledger.count_drops() == {"small": 1, "missing_file": 1, "bad": 1, "worse": 1}


@pytest.mark.parametrize(
    "finding",
    [
        drop_table([(2, "ugly", "undeclared")]),
        pa.table({"row": [2], "height": [1]}),
        pa.table({"reason": ["bad"]}),
    ],
)
def test_what_a_filter_did_not_declare_is_its_fault(database: Database, finding: pa.Table) -> None:
    with pytest.raises(AssertionError, match="filter mine"):
        Ledger(database, []).apply(0, "mine", Judge(), iter([finding]))


def test_repeated_ids_drop_all_but_the_first(database: Database) -> None:
    database.execute("UPDATE rows SET pair_id = 'id2' WHERE row IN (5, 7)")
    ledger = Ledger(database, [])
    ledger.take_overrides(Overrides({"id2": ("drop", "ugly")}))
    ledger.drop_examined()
    said = ("repeated_pair_id", "pair_id 'id2' is that of pool row 3")
    drops = _drops(database)
    assert drops[5] == drops[7] == said and drops[2] == ("dropped_by_override", "ugly")


def test_the_view_shows_what_is_kept(tmp_path: Path, database: Database) -> None:
    _examined(tmp_path).make_view(database)
    ledger = Ledger(database, [])
    ledger.take_overrides(Overrides())
    ledger.drop_examined()
    found = [pa.table({"row": [3, 5], "word": ["three", "five"]})]
    ledger.apply(0, "earlier", Judge(), iter(found))
    with Workers(1) as workers, _view(tmp_path, database, workers, found_0=("word",)) as view:
        assert _rows(view.query("SELECT row FROM kept")) == [[i] for i in range(2, NUM)]
        quoted = '"' + HOSTILE.replace('"', '""') + '"'
        assert view.attribute_names == (HOSTILE,)
        joined = f"SELECT row, {quoted} FROM kept JOIN attributes USING (row) WHERE row < 4"
        assert _rows(view.query(joined)) == [[2, 12], [3, 13]]
        assert _rows(view.query("SELECT row FROM attributes WHERE row < 2")) == [[0], [1]]
        heavy = "SELECT row, _thumb, item_id, word FROM kept WHERE item = 2"
        assert _rows(view.query(heavy)) == [[3, b"\x03", "02" * 32, "three"]]
        columns = next(view.query("SELECT * FROM kept WHERE row = 5")).to_pylist()[0]
        assert columns["word"] == "five" and columns["_thumb"] == b"\x05"
        # Tables of its own, and queries within queries.
        view.execute(
            "CREATE TEMP TABLE mine AS SELECT row FROM given", given=pa.table({"row": [4]})
        )
        outer = view.query("SELECT row FROM kept ORDER BY row")
        first = next(outer)
        view.execute("INSERT INTO mine VALUES (6)")
        inner = "SELECT row, _thumb FROM kept SEMI JOIN mine USING (row)"
        assert _rows(view.query(inner)) == [[4, b"\x04"], [6, b"\x06"]]
        assert len(_rows(itertools.chain([first], outer))) == 6
        view.execute("CREATE TEMP VIEW hidden AS SELECT * FROM kept")
        assert _rows(view.query("SELECT count(*) FROM hidden")) == [[6]]
        assert list(view.map(abs, [-1, 2])) == [1, 2]
        (view.scratch / "file").write_text("x")
        (view.lasting / "file").write_text("x")
        with pytest.raises(duckdb.CatalogException):
            view.query("SELECT * FROM nothing")
        scratch, lasting = view.scratch, view.lasting
    assert not scratch.exists() and (lasting / "file").exists()
    names = database.rows("SELECT table_name FROM information_schema.tables")
    assert {"mine", "hidden", "kept"}.isdisjoint(name for (name,) in names)
    with Workers(1) as workers, _view(tmp_path, database, workers) as view:
        view.execute("CREATE TEMP TABLE mine AS SELECT 1 AS one")  # the name is free again


def test_the_database_reads_nothing_else(tmp_path: Path, database: Database) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    for sql in (
        f"SELECT * FROM read_csv('{tmp_path}/secret.csv')",
        f"SELECT * FROM read_parquet('{tmp_path}/parts/../secret.csv')",
        f"ATTACH '{tmp_path}/other.duckdb'",
        "INSTALL httpfs",
    ):
        with pytest.raises(duckdb.Error, match=r"(?i)permission|disabled|not allowed"):
            database.execute(sql)


def _settle(
    database: Database, folder: Path, drops: list[tuple[int, int | None, bool]]
) -> tuple[list[int], list[bool]]:
    Ledger(database, [])
    rows, targets, joins = zip(*drops, strict=True)
    made = pa.table({"row": rows, "to": pa.array(targets, pa.int64()), "j": joins})
    database.execute(
        "INSERT INTO drops SELECT row, 'bad', '', 'mine', \"to\", j FROM made", made=made
    )
    items = np.array([0, 0, 1, 2, 3, 4, 5, 5])
    found = settle_duplicates(database, items, folder)
    assert found.kept.tolist() == [i not in rows for i in range(NUM)]
    return found.duplicate_of.tolist(), found.joins.tolist()


def test_chains_of_duplicates_end_at_a_kept_row(tmp_path: Path, database: Database) -> None:
    targets, joins = _settle(
        database, tmp_path, [(2, 3, True), (3, 4, False), (4, 5, True), (1, None, False)]
    )
    assert targets == [-1, -1, 5, 5, 5, -1, -1, -1]
    assert joins == [False, False, True, False, True, False, False, False]


def test_another_pair_of_the_item_takes_the_place_of_a_dropped_one(
    tmp_path: Path, database: Database
) -> None:
    # 3 and 2 duplicate 0, which a later filter dropped; 1 is the same item. 6 has nobody left.
    targets, joins = _settle(
        database, tmp_path,
        [(3, 0, True), (2, 3, True), (0, None, False), (6, 4, True), (4, None, False)],
    )  # fmt: skip
    assert targets == [-1, -1, 1, 1, -1, -1, 4, -1]
    assert joins == [False, False, True, True, False, False, False, False]


def test_circles_come_to_an_end(tmp_path: Path, database: Database) -> None:
    # 2, 3 and 4 name each other; 6 names 0, which names 6: 7 and 1 are of their items.
    drops = [(2, 3, True), (3, 4, True), (4, 2, True), (6, 0, True), (0, 6, True)]
    targets, joins = _settle(database, tmp_path, [*drops])
    assert not any(joins[2:5])
    assert joins[6] and joins[0] and {targets[6], targets[0]} <= {1, 7}


def test_long_chains_settle(tmp_path: Path) -> None:
    num = 100_000
    (tmp_path / "long").mkdir()
    with Database(tmp_path / "long", readable=[], num_threads=1) as database:
        Ledger(database, [])
        made = pa.table({"row": range(num)})
        database.execute("CREATE TABLE rows AS SELECT row, row AS item FROM made", made=made)
        database.execute(
            "INSERT INTO drops SELECT row, 'bad', '', 'mine', row + 1, true FROM rows"
            f" WHERE row < {num - 1}"
        )
        found = settle_duplicates(database, np.arange(num), tmp_path / "long")
        assert set(found.duplicate_of[:-1].tolist()) == {num - 1} and found.joins[:-1].all()
