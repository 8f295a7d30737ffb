"""The spool: every row is found again by its number, under column names that SQL can tell apart."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa

from coembed.curation.spool import BATCH_ROWS, PAIR_FIELDS, Spool, write_spool
from coembed.types import Pair


def _write(path: Path, num: int, **attributes: list[object]) -> Spool:
    own = {name: [f"{name}{i}" for i in range(num)] for name in PAIR_FIELDS}
    own["split"] = [None] * num  # type: ignore[list-item]
    table = pa.table({**own, **attributes})
    table = table.set_column(4, "split", table["split"].cast(pa.string()))
    batches = table.combine_chunks().to_batches(max_chunksize=BATCH_ROWS)
    assert write_spool(path, table.schema, batches) == num
    return Spool(path)


def test_rows_are_found_by_number(tmp_path: Path) -> None:
    num = 2 * BATCH_ROWS + 10
    spool = _write(tmp_path / "s", num, price=[i / 2 for i in range(num)])
    for start, stop in ((0, 3), (BATCH_ROWS - 2, BATCH_ROWS + 2), (num - 1, num), (5, 5)):
        rows = range(start, stop)
        assert [pair.pair_id for pair in spool.pairs(start, stop)] == [f"pair_id{i}" for i in rows]
        assert [row for batch in spool.rows(start, stop) for row in batch["row"].to_pylist()] == [
            *rows
        ]
    some = [num - 1, 7, BATCH_ROWS, 7]
    picked = spool.pick(some)
    assert sorted(picked) == sorted(set(some))
    assert picked[7] == Pair("pair_id7", "path7", "caption7", "modality7", None, {"price": 3.5})  # type: ignore[arg-type]
    assert sum(batch.num_rows for batch in spool.batches()) == num


def test_absent_cells_are_left_out(tmp_path: Path) -> None:
    spool = _write(tmp_path / "s", 3, price=[1.0, None, math.nan], name=["", "x", None])
    assert [pair.attributes for pair in spool.pairs(0, 3)] == [
        {"price": 1.0, "name": ""},
        {"name": "x"},
        {},
    ]


def test_columns_differ_in_more_than_case(tmp_path: Path) -> None:
    names = {"row": "a", "Row": "b", "Caption": "c", "price": "d", "PRICE": "e", "pool_row": "f"}
    spool = _write(tmp_path / "s", 1, **{name: [cell] for name, cell in names.items()})
    stored = [name.casefold() for name in spool.schema.names]
    assert len(set(stored)) == len(stored) == 6 + len(names)
    assert spool.attributes["price"] == "price" and spool.attributes["pool_row"] == "pool_row"
    assert spool.schema.names[0] == "row"
    # The pairs have the names that the pool gave.
    assert next(spool.pairs(0, 1)).attributes == names
