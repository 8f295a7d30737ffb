"""The pool as one Arrow file, so that worker processes find any row by its number."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from coembed.types import Attribute, Pair

BATCH_ROWS = 8192
PAIR_FIELDS = ("pair_id", "path", "caption", "modality", "split")
_OWN = ("row", *PAIR_FIELDS)
_NAMES = b"coembed.attributes"


def write_spool(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write `batches` (BATCH_ROWS rows each but the last) and return the number of rows.

    The file's columns: `row` int64 (pool order, from 0), PAIR_FIELDS, then the attributes. SQL
    knows no difference between `Price` and `price`: an attribute whose name is taken but for its
    case gets the prefix `pool_` (`Spool.attributes` says which).
    """
    stored = _stored_names([name for name in schema.names if name not in PAIR_FIELDS])
    fields = [pa.field("row", pa.int64())]
    fields += [pa.field(stored.get(field.name, field.name), field.type) for field in schema]
    filed = pa.schema(fields, metadata={_NAMES: json.dumps(stored).encode()})
    num_rows = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, filed) as writer:
        for batch in batches:
            rows = pa.array(range(num_rows, num_rows + batch.num_rows), pa.int64())
            writer.write_batch(pa.RecordBatch.from_arrays([rows, *batch.columns], schema=filed))
            num_rows += batch.num_rows
    return num_rows


def _stored_names(names: Sequence[str]) -> dict[str, str]:
    """The column of each attribute: its name, or with a prefix where that is taken."""
    # An attribute keeps its own name before another one gets a made-up name.
    taken = {name.casefold() for name in _OWN}
    stored: dict[str, str] = {}
    clashing = []
    for name in names:
        if name.casefold() in taken:
            clashing.append(name)
        else:
            taken.add(name.casefold())
            stored[name] = name
    for name in clashing:
        made = f"pool_{name}"
        while made.casefold() in taken:
            made = f"pool_{made}"
        taken.add(made.casefold())
        stored[name] = made
    return {name: stored[name] for name in names}


class Spool:
    """Reads a spool. Row numbers count from 0 in pool order.

    `attributes` maps the name of each of the pool's further columns to its column in the spool.
    """

    def __init__(self, path: Path) -> None:
        # Read, not mapped: of a mapped file every page that was ever touched counts as this
        # process's memory. One batch is held.
        self._source = pa.OSFile(str(path), "rb")
        self._file = pa.ipc.open_file(self._source)
        self._held: tuple[int, pa.RecordBatch] | None = None
        self.schema: pa.Schema = self._file.schema
        self.attributes: Mapping[str, str] = json.loads(self.schema.metadata[_NAMES])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows in order."""
        for index in range(self._file.num_record_batches):
            yield self._file.get_batch(index)

    def _batch(self, index: int) -> pa.RecordBatch:
        if self._held is None or self._held[0] != index:
            self._held = None  # before the next one is read
            self._held = index, self._file.get_batch(index)
        return self._held[1]

    def rows(self, start: int, stop: int) -> list[pa.RecordBatch]:
        """Rows `start` to `stop` (exclusive); one batch where they lie in one."""
        found = []
        while start < stop:
            index, offset = divmod(start, BATCH_ROWS)
            num = min(stop - start, BATCH_ROWS - offset)
            found.append(self._batch(index).slice(offset, num))
            start += num
        return found

    def pairs(self, start: int, stop: int) -> Iterator[Pair]:
        """Rows `start` to `stop` (exclusive)."""
        for batch in self.rows(start, stop):
            yield from self._pairs(batch)

    def pick(self, rows: Sequence[int]) -> dict[int, Pair]:
        """The pairs of `rows`, by row."""
        found: dict[int, Pair] = {}
        by_batch: dict[int, list[int]] = {}
        for row in sorted(set(rows)):
            by_batch.setdefault(row // BATCH_ROWS, []).append(row)
        for index, here in by_batch.items():
            offsets = pa.array([row % BATCH_ROWS for row in here], pa.int64())
            taken = self._batch(index).take(offsets)
            found.update(zip(here, self._pairs(taken), strict=True))
        return found

    def _pairs(self, batch: pa.RecordBatch) -> Iterator[Pair]:
        own = zip(*(batch.column(name).to_pylist() for name in PAIR_FIELDS), strict=True)
        further = {name: _present(batch.column(column)) for name, column in self.attributes.items()}
        for place, (pair_id, path, caption, modality, split) in enumerate(own):
            attributes = {
                name: cell
                for name, values in further.items()
                if (cell := values[place]) is not None
            }
            yield Pair(pair_id, path, caption, modality, split, attributes)


def _present(column: pa.Array) -> list[Attribute | None]:
    """The cells of a column. JSON has no NaN and no infinity: such a cell is absent."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_finite(column), column, None)
    return column.to_pylist()
