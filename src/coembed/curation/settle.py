"""What remains of duplicates once every filter has judged: whose captions go where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coembed.curation.database import Database


@dataclass(frozen=True)
class Standing:
    """Arrays [rows], memory-mapped. Together about 20 bytes a row.

    `item` int64: the item, -1 where the media were not read. `kept` bool. `joins` bool: dropped as
    a duplicate, but its caption goes to the item of `duplicate_of`, int64: a row, or -1.
    """

    item: NDArray[np.int64]
    kept: NDArray[np.bool_]
    joins: NDArray[np.bool_]
    duplicate_of: NDArray[np.int64]

    @property
    def num_rows(self) -> int:
        """Pool rows."""
        return len(self.kept)


def mapped(path: Path, num: int, kind: type[np.generic]) -> NDArray[Any]:
    """A new array of `num` elements in a file, zero at first. Its pages can leave memory."""
    if not num:
        return np.zeros(0, kind)
    return np.memmap(path, dtype=kind, mode="w+", shape=(num,))


def settle_duplicates(database: Database, item: NDArray[np.int64], folder: Path) -> Standing:
    """Make every `duplicate_of` a kept row, following chains of duplicates to their end.

    Where a later filter dropped the end, the first kept pair of that item takes its place; where
    there is none, or the chain runs in a circle, nothing is left to join, and `duplicate_of` stays
    what the filter said. `item` [rows]; `folder`: where the arrays go.
    """
    num = len(item)
    kept = mapped(folder / "kept", num, np.bool_)
    joins = mapped(folder / "joins", num, np.bool_)
    target = mapped(folder / "duplicate_of", num, np.int64)
    kept[:], target[:] = True, -1
    for batch in database.query("SELECT row, duplicate_of, keep_caption FROM drops"):
        rows = batch.column("row").to_numpy()
        kept[rows] = False
        pointed = batch.column("duplicate_of").is_valid().to_numpy(zero_copy_only=False)
        target[rows[pointed]] = batch.column("duplicate_of").drop_null().to_numpy()
        wanted = batch.column("keep_caption").fill_null(False).to_numpy(zero_copy_only=False)
        joins[rows[pointed & wanted]] = True

    rows = np.flatnonzero(target >= 0)
    step = mapped(folder / "step", num, np.int64)
    for start in range(0, num, 2**20):
        stop = min(start + 2**20, num)
        here = np.arange(start, stop)
        moves = ~kept[start:stop] & (target[start:stop] >= 0)
        step[start:stop] = np.where(moves, target[start:stop], here)
    # Following the step of the step: a chain of n rows takes log2(n) rounds, and a circle, which
    # never comes to rest, is left after as many as the longest chain could take.
    for _ in range(max(num, 2).bit_length() + 1):
        further = step[step[rows]]
        if np.array_equal(further, step[rows]):
            break
        step[rows] = further
    ends = step[rows]
    astray = ~kept[ends]
    ends[astray] = _first_kept(database, item, ends[astray])
    found = ends >= 0
    target[rows[found]] = ends[found]
    joins[rows[~found]] = False
    return Standing(item, kept, joins, target)


def _first_kept(
    database: Database, item: NDArray[np.int64], rows: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each of `rows` the first kept row of its item, or -1."""
    if not len(rows):
        return rows
    wanted = np.unique(item[rows])
    first = np.full(len(wanted), -1)
    for batch in database.query(
        "SELECT item, min(row) AS row FROM rows ANTI JOIN drops USING (row)"
        " SEMI JOIN wanted USING (item) GROUP BY item",
        wanted=pa.table({"item": wanted}),
    ):
        places = np.searchsorted(wanted, batch.column("item").to_numpy())
        first[places] = batch.column("row").to_numpy()
    return first[np.searchsorted(wanted, item[rows])]
