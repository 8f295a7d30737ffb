"""The table `rows`: all that is known of each pool row before the pool is judged as a whole.

Made of the spool (the pool's own columns) and of the examined parts, which hold the same rows in
the same order. Media thumbnails and other bytes stay in the parts.

Columns: `row`; `pair_id`, `path`, `caption` (as it will be packed), `modality`, `given_split`;
`item` (null: media not read; numbered in the order of item ids); `path_key`, `caption_key` (UUID);
the facts; `reason`, `detail` (the first drop by a worker); the filters' columns other than binary
ones; `a0`, `a1`, ... the pool's further columns; `g0`, `g1`, ... the group_by columns as text.
The table `items` gives the `item_id` of each `item`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from coembed.curation.database import BATCH_ROWS, Database, literal
from coembed.curation.filters.base import ColumnType
from coembed.curation.ledger import ARROW_TYPES
from coembed.curation.spool import Spool
from coembed.pairs.cells import cast as cast_cells

FACTS: Mapping[str, pa.DataType] = {
    "num_bytes": pa.int64(),
    "format": pa.string(),
    "width_px": pa.int64(),
    "height_px": pa.int64(),
    "colour_mode": pa.string(),
    "num_frames": pa.int64(),
    "duration_s": pa.float64(),
    "sample_rate_hz": pa.int64(),
    "num_channels": pa.int64(),
}
_PAIR_COLUMNS = ("pair_id", "path", "modality")
_LOT_CELLS = 4_000_000
_KEYS = ("path_key", "caption_key")


@dataclass(frozen=True)
class Examined:
    """The examined parts in row order, and the columns of the filters in them."""

    parts: tuple[Path, ...]
    columns: Mapping[str, ColumnType]

    @property
    def light(self) -> dict[str, ColumnType]:
        """The columns that are copied into the database."""
        return {name: kind for name, kind in self.columns.items() if kind != "binary"}

    @property
    def heavy(self) -> list[str]:
        """The columns that stay in the parts."""
        return [name for name, kind in self.columns.items() if kind == "binary"]

    def make_view(self, database: Database) -> None:
        """Make the view `parts` over all of them."""
        paths = ", ".join(literal(str(path.resolve())) for path in self.parts)
        database.execute(f"CREATE VIEW parts AS FROM read_parquet([{paths}])")

    def batches(self, columns: Sequence[str], num: int) -> Iterator[pa.Table]:
        """`columns` of all rows in order, `num` rows at a time."""

        def tables() -> Iterator[pa.Table]:
            for part in self.parts:
                with pq.ParquetFile(part) as file:
                    yield file.read(list(columns))

        return in_lots(tables(), num)


def in_lots(tables: Iterable[pa.Table], num: int) -> Iterator[pa.Table]:
    """The rows of `tables`, `num` at a time; the last lot may be smaller."""
    held: list[pa.Table] = []
    num_held = 0
    for table in tables:
        held.append(table)
        num_held += table.num_rows
        if num_held < num:
            continue
        whole = pa.concat_tables(held)
        full = num_held - num_held % num
        for start in range(0, full, num):
            yield whole.slice(start, num)
        held, num_held = [whole.slice(full)], num_held - full
    if num_held:
        yield pa.concat_tables(held)


def spool_lots(spool: Spool, num: int) -> Iterator[pa.Table]:
    """The rows of the spool, `num` at a time."""
    return in_lots((pa.Table.from_batches([batch]) for batch in spool.batches()), num)


def load_rows(
    database: Database,
    spool: Spool,
    examined: Examined,
    items: NDArray[np.int64],
    *,
    attributes: Sequence[str],
    group_by: Sequence[str],
) -> None:
    """Make the table `rows`. `items` [rows]: the item of each row, -1 where it was not read."""
    lots = _rows(spool, examined, items, attributes, group_by)
    head = next(lots)

    def batches() -> Iterator[pa.RecordBatch]:
        yield from head.to_batches()
        for lot in lots:
            yield from lot.to_batches()

    reader = pa.RecordBatchReader.from_batches(head.schema, batches())
    database.execute("CREATE TABLE rows AS FROM incoming", incoming=reader)


def _rows(
    spool: Spool,
    examined: Examined,
    items: NDArray[np.int64],
    attributes: Sequence[str],
    group_by: Sequence[str],
) -> Iterator[pa.Table]:
    wanted = [*_KEYS, "caption", "reason", "detail", *FACTS, *examined.light]
    start = 0
    lot = min(BATCH_ROWS, max(1024, _LOT_CELLS // (len(wanted) + len(attributes))))
    parts = examined.batches(wanted, lot)
    for pool, part in zip(spool_lots(spool, lot), parts, strict=True):
        num = pool.num_rows
        item = items[start : start + num]
        columns = {
            "row": pa.array(np.arange(start, start + num)),
            **{name: pool.column(name) for name in _PAIR_COLUMNS},
            "caption": pc.coalesce(part.column("caption"), pool.column("caption")),
            "given_split": pool.column("split"),
            "item": pa.array(item, mask=item < 0),
            **{name: _as_uuid(part.column(name)) for name in _KEYS},
            **{name: part.column(name) for name in ("reason", "detail")},
            **{name: part.column(name).cast(kind) for name, kind in FACTS.items()},
            **{n: part.column(n).cast(ARROW_TYPES[kind]) for n, kind in examined.light.items()},
            **{f"a{i}": pool.column(name) for i, name in enumerate(attributes)},
            **{f"g{i}": _as_text(pool.column(name)) for i, name in enumerate(group_by)},
        }
        yield pa.table(columns).combine_chunks()
        start += num


def _as_uuid(cells: pa.ChunkedArray) -> pa.Array:
    # Sixteen bytes as one number: half the size of two columns and of any text.
    return pa.ExtensionArray.from_storage(pa.uuid(), cells.combine_chunks().cast(pa.binary(16)))


def _as_text(cells: pa.ChunkedArray) -> pa.Array:
    """As text; empty text is no value."""
    text = cast_cells(cells.combine_chunks(), pa.string())
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def number_items(database: Database, items: NDArray[np.int64]) -> int:
    """Number the distinct item ids in their order, into `items` [rows] and the table `items`.
    Looks at the view `parts`.

    Returns how many there are. Rows whose media were not read get -1.
    """
    database.execute(
        "CREATE TABLE digests AS SELECT row, item_id FROM parts WHERE item_id IS NOT NULL;"
        "CREATE TABLE items AS SELECT row_number() OVER (ORDER BY item_id) - 1 AS item, item_id"
        " FROM (SELECT DISTINCT item_id FROM digests)"
    )
    items[:] = -1
    for batch in database.query("SELECT row, item FROM digests JOIN items USING (item_id)"):
        items[batch.column("row").to_numpy()] = batch.column("item").to_numpy()
    database.execute("DROP TABLE digests")
    return int(database.value("SELECT count(*) FROM items"))
