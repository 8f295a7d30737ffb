"""The pool as one memory-mapped Arrow file, so that worker processes find any row by its number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from coembed.types import Attribute, Pair

BATCH_ROWS = 8192
_PAIR_FIELDS = frozenset({"pair_id", "path", "caption", "modality", "split"})


def write_spool(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write `batches` (BATCH_ROWS rows each but the last) and return the number of rows."""
    num_rows = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            num_rows += batch.num_rows
    return num_rows


class Spool:
    """Reads a spool. Row numbers count from 0 in pool order."""

    def __init__(self, path: Path) -> None:
        self._map = pa.memory_map(str(path))
        self._file = pa.ipc.open_file(self._map)
        self.schema: pa.Schema = self._file.schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows in order."""
        for index in range(self._file.num_record_batches):
            yield self._file.get_batch(index)

    def pairs(self, start: int, stop: int) -> Iterator[Pair]:
        """Rows `start` to `stop` (exclusive)."""
        row = start
        while row < stop:
            index, offset = divmod(row, BATCH_ROWS)
            num = min(stop - row, BATCH_ROWS - offset)
            yield from map(_pair, self._file.get_batch(index).slice(offset, num).to_pylist())
            row += num

    def pick(self, rows: Sequence[int]) -> dict[int, Pair]:
        """The pairs of `rows`, by row."""
        found: dict[int, Pair] = {}
        by_batch: dict[int, list[int]] = {}
        for row in sorted(set(rows)):
            by_batch.setdefault(row // BATCH_ROWS, []).append(row)
        for index, here in by_batch.items():
            offsets = pa.array([row % BATCH_ROWS for row in here], pa.int64())
            taken = self._file.get_batch(index).take(offsets).to_pylist()
            found.update(zip(here, map(_pair, taken), strict=True))
        return found

    def text(self, row: int, column: str) -> str:
        """One text cell."""
        index, offset = divmod(row, BATCH_ROWS)
        return str(self._file.get_batch(index).column(column)[offset].as_py())


def _pair(cells: dict[str, Any]) -> Pair:
    attributes: dict[str, Attribute] = {
        name: cell
        for name, cell in cells.items()
        # JSON has no NaN and no infinity: such a cell is absent.
        if name not in _PAIR_FIELDS and cell is not None and not _is_no_number(cell)
    }
    return Pair(
        pair_id=cells["pair_id"],
        path=cells["path"],
        caption=cells["caption"],
        modality=cells["modality"],
        split=cells["split"],
        attributes=attributes,
    )


def _is_no_number(cell: Attribute) -> bool:
    return isinstance(cell, float) and not (float("-inf") < cell < float("inf"))
