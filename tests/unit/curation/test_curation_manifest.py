"""The manifest's lots of rows, sorted streams and doubts, against rows looked up one by one."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from coembed.curation.manifest import _doubts, _renamed, _SortedRows, group_rows
from coembed.curation.rows_table import in_lots
from coembed.curation.settle import mapped


@pytest.mark.parametrize("num", [1, 3, 10, 64, 1000])
def test_lots_hold_all_rows_in_order(num: int) -> None:
    rng = random.Random(num)
    tables, row = [], 0
    for size in [0, *(rng.randrange(0, 40) for _ in range(20)), 0]:
        tables.append(pa.table({"row": pa.array(range(row, row + size), pa.int64())}))
        row += size
    lots = list(in_lots(iter(tables), num))
    assert pa.concat_tables(lots).column("row").to_pylist() == list(range(row))
    assert all(lot.num_rows == num for lot in lots[:-1]) and 0 < lots[-1].num_rows <= num


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_sorted_streams_are_handed_out_row_by_row(share: float) -> None:
    rng = random.Random(0)
    rows = [row for row in range(500) if rng.random() < share]
    text = pa.table({"row": pa.array(rows, pa.int64()), "t": [f"t{row}" for row in rows]})
    stream = iter(text.cast(pa.schema([("row", pa.int64()), ("t", pa.string())])).to_batches(7))
    found = _SortedRows(stream, {"t": pa.string()})
    start, seen = 0, []
    while start < 500:
        stop = min(500, start + rng.randrange(1, 60))
        seen += found.cells(start, stop)["t"].to_pylist()
        start = stop
    assert seen == [f"t{row}" if row in set(rows) else None for row in range(500)]


def test_the_greatest_doubt_and_whose_it_is() -> None:
    columns = {
        "blur_doubt": pa.array([0.5, None, None, 0.2]),
        "match_doubt": pa.chunked_array([[0.25, 0.0], [None, 0.9]]),
        "doubtful": pa.array([9.0] * 4),
    }
    found = _doubts(columns, list(columns), 4)
    assert found["doubt"].to_pylist() == [0.5, 0.0, None, 0.9]
    assert found["doubt_by"].to_pylist() == ["blur", "match", None, "match"]
    none = _doubts({"blur": pa.array([1.0])}, ["blur"], 1)
    assert none["doubt"].to_pylist() == none["doubt_by"].to_pylist() == [None]


def test_names_that_are_taken_get_a_prefix() -> None:
    assert _renamed(["kept", "pool_kept", "Kept", "shop"], ["kept", "path"]) == [
        "pool_kept", "pool_pool_kept", "Kept", "shop",
    ]  # fmt: skip


def test_wide_manifests_have_short_row_groups() -> None:
    assert group_rows(30) == 65_536 and group_rows(400) == 10_000 and group_rows(4096) == 1024


def test_mapped_arrays_are_files(tmp_path: Path) -> None:
    array = mapped(tmp_path / "a", 5, np.int8)
    array[:] = 3
    array.flush()  # type: ignore[attr-defined]
    assert (tmp_path / "a").read_bytes() == b"\3" * 5
    assert len(mapped(tmp_path / "none", 0, np.int8)) == 0
