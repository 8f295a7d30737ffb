"""The manifest: one row for every pool pair, kept or not, in pool order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from coembed.curation.database import Database, quote
from coembed.curation.filters.base import ColumnType
from coembed.curation.ledger import ARROW_TYPES
from coembed.curation.rows_table import FACTS, Examined, spool_lots
from coembed.curation.settle import Standing
from coembed.curation.split import NO_SPLIT, SPLIT_REASONS, Assignment
from coembed.curation.spool import Spool
from coembed.types import SPLITS

_OWN: Mapping[str, pa.DataType] = {
    "pair_id": pa.string(),
    "path": pa.string(),
    "caption": pa.string(),
    "modality": pa.string(),
    "item_id": pa.string(),
    "kept": pa.bool_(),
    "drop_reason": pa.string(),
    "drop_detail": pa.string(),
    "duplicate_of": pa.string(),
    "decided_by": pa.string(),
    "split": pa.string(),
    "split_reason": pa.string(),
    "doubt": pa.float64(),
    "doubt_by": pa.string(),
    **FACTS,
    "width_px": pa.int32(),
    "height_px": pa.int32(),
}
_DOUBT = "_doubt"
_CELLS_A_GROUP = 4_000_000
_MAX_GROUP_ROWS = 65_536


@dataclass(frozen=True)
class Judged:
    """All that the manifest is made of. `found` are the columns that filters found for the whole
    pool, by the table that they are in; `public` all columns of filters that are shown."""

    database: Database
    spool: Spool
    examined: Examined
    found: Mapping[str, Sequence[str]]
    public: Mapping[str, ColumnType]
    standing: Standing
    splits: Assignment


def write_manifest(path: Path, judged: Judged, *, advance: Callable[[int], None]) -> None:
    """Write the manifest. A cell that is unknown or does not apply is null.

    A pool column that is called like one of the manifest's own gets the prefix `pool_`.
    """
    renamed = _renamed(list(judged.spool.attributes), [*_OWN, *judged.public])
    kinds = [judged.spool.schema.field(stored).type for stored in judged.spool.attributes.values()]
    schema = pa.schema(
        [
            *_OWN.items(),
            *((name, ARROW_TYPES[kind]) for name, kind in judged.public.items()),
            *zip(renamed, kinds, strict=True),
        ]
    )
    num = group_rows(len(schema))
    from_parts = [n for n in judged.public if n in judged.examined.columns]
    parts = judged.examined.batches(["item_id", "caption", *FACTS, *from_parts], num)
    outcomes = _Outcomes(judged, schema)
    start = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for pool, part in zip(spool_lots(judged.spool, num), parts, strict=True):
            stop = start + pool.num_rows
            columns: dict[str, Any] = {
                name: pool.column(name) for name in ("pair_id", "path", "modality")
            }
            columns["caption"] = pc.coalesce(part.column("caption"), pool.column("caption"))
            columns["item_id"] = _hexadecimal(part.column("item_id"))
            columns |= {name: part.column(name) for name in (*FACTS, *from_parts)}
            columns |= outcomes.cells(start, stop, columns)
            columns |= dict(
                zip(renamed, map(pool.column, judged.spool.attributes.values()), strict=True)
            )
            cells = [columns[field.name].cast(field.type) for field in schema]
            table = pa.Table.from_arrays(cells, schema=schema).combine_chunks()
            writer.write_table(table, row_group_size=num)
            advance(table.num_rows)
            start = stop


def group_rows(num_columns: int) -> int:
    """Rows of a row group: of the columns only, so that the bytes are the same every time."""
    return max(1024, min(_MAX_GROUP_ROWS, _CELLS_A_GROUP // num_columns))


def _renamed(attributes: Sequence[str], own: Sequence[str]) -> list[str]:
    """The names of the pool's columns in the manifest."""
    taken, names = set(own), []
    for name in attributes:
        while name in taken:
            name = f"pool_{name}"
        taken.add(name)
        names.append(name)
    return names


class _Outcomes:
    """What became of the rows, for one range of rows after the other."""

    def __init__(self, judged: Judged, schema: pa.Schema) -> None:
        self._judged = judged
        database, standing = judged.database, judged.standing
        pointing = np.flatnonzero(standing.duplicate_of >= 0)
        targets = pa.table({"row": pointing, "target": pa.array(standing.duplicate_of[pointing])})
        database.execute(
            "CREATE TABLE pointing AS SELECT targets.row, pair_id FROM targets"
            " JOIN rows ON rows.row = target",
            targets=targets,
        )
        # A kept row that a filter would have dropped says so: a person reads why it was doubted.
        self._verdicts = _SortedRows(
            database.query(
                "SELECT row, drops.reason AS drop_reason, CASE WHEN drops.row IS NULL THEN"
                " 'kept by overrides.csv' || if(overrides.reason = '', '', ' (' || overrides.reason"
                " || ')') || coalesce('; else ' || spared.reason || ': ' || spared.detail, '')"
                " ELSE drops.detail END AS drop_detail, pointing.pair_id AS duplicate_of,"
                " if(spared.row IS NOT NULL AND drops.row IS NULL"
                " OR drops.reason = 'dropped_by_override', 'override', NULL) AS decided_by"
                " FROM drops FULL JOIN (SELECT row, arg_min(reason, place) AS reason,"
                " arg_min(detail, place) AS detail FROM (SELECT *, rowid AS place FROM spared)"
                " GROUP BY row) AS spared USING (row)"
                " LEFT JOIN pointing USING (row) LEFT JOIN overrides USING (row) ORDER BY row"
            ),
            {n: _OWN[n] for n in ("drop_reason", "drop_detail", "duplicate_of", "decided_by")},
        )
        self._found = [
            _SortedRows(
                database.query(
                    f"SELECT row, {', '.join(map(quote, columns))} FROM {table} ORDER BY row"
                ),
                {name: schema.field(name).type for name in columns},
            )
            for table, columns in (
                (table, [name for name in names if name in schema.names])
                for table, names in judged.found.items()
            )
            if columns
        ]

    def cells(self, start: int, stop: int, columns: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of rows `start` to `stop`. `columns` are those that the parts gave."""
        rows = slice(start, stop)
        result: dict[str, Any] = {
            "kept": pa.array(self._judged.standing.kept[rows]),
            "split": _names(self._judged.splits.splits[rows], SPLITS),
            "split_reason": _names(self._judged.splits.reasons[rows], SPLIT_REASONS),
            **self._verdicts.cells(start, stop),
        }
        for found in self._found:
            for name, cells in found.cells(start, stop).items():
                before = result.get(name, columns.get(name))
                result[name] = cells if before is None else pc.coalesce(cells, before)
        num = stop - start
        for name, kind in self._judged.public.items():
            if name not in columns and name not in result:
                result[name] = pa.nulls(num, ARROW_TYPES[kind])
        return result | _doubts({**columns, **result}, list(self._judged.public), num)


class _SortedRows:
    """A stream of rows in order of `row`, handed out as whole columns for ranges of rows."""

    def __init__(self, batches: Iterator[pa.RecordBatch], kinds: Mapping[str, pa.DataType]) -> None:
        self._batches = batches
        self._kinds = kinds
        self._held: list[pa.Table] = []

    def cells(self, start: int, stop: int) -> dict[str, pa.Array]:
        """The columns of rows `start` to `stop`; null where the stream has no row."""
        while not self._held or _last(self._held[-1]) < stop - 1:
            batch = next(self._batches, None)
            if batch is None:
                break
            self._held.append(pa.Table.from_batches([batch]))
        if not self._held:
            return {name: pa.nulls(stop - start, kind) for name, kind in self._kinds.items()}
        whole = pa.concat_tables(self._held).combine_chunks()
        rows = whole.column("row").to_numpy()
        end = int(np.searchsorted(rows, stop))
        rest = whole.slice(end)
        self._held = [rest] if rest.num_rows else []
        places = np.full(stop - start, -1)
        places[rows[:end] - start] = np.arange(end)
        indices = pa.array(places, mask=places < 0)
        return {
            name: whole.column(name).cast(kind).take(indices) for name, kind in self._kinds.items()
        }


def _last(table: pa.Table) -> int:
    return int(table.column("row")[-1].as_py()) if table.num_rows else -1


def _doubts(columns: Mapping[str, Any], names: Sequence[str], num: int) -> dict[str, pa.Array]:
    """The greatest doubt of each row, and the filter whose it is."""
    doubts = [name for name in names if name.endswith(_DOUBT)]
    if not doubts:
        return {"doubt": pa.nulls(num, pa.float64()), "doubt_by": pa.nulls(num, pa.string())}
    cells = np.stack([_floats(columns[name]) for name in doubts])
    known = ~np.isnan(cells).all(axis=0)
    which = np.argmax(np.where(np.isnan(cells), -np.inf, cells), axis=0)
    greatest = cells[which, np.arange(num)]
    filters = np.array([name.removesuffix(_DOUBT) for name in doubts], object)[which]
    return {
        "doubt": pa.array(greatest, mask=~known),
        "doubt_by": pa.array(filters, pa.string(), mask=~known),
    }


def _floats(cells: Any) -> NDArray[np.float64]:
    whole = cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells
    return np.asarray(pc.fill_null(whole.cast(pa.float64()), float("nan")).to_numpy())


def _hexadecimal(cells: pa.ChunkedArray) -> pa.Array:
    texts = [None if cell is None else cell.hex() for cell in cells.to_pylist()]
    return pa.array(texts, pa.string())


def _names(places: NDArray[Any], names: tuple[str, ...]) -> pa.Array:
    indices = pa.array(places, mask=places == NO_SPLIT)
    return pa.array(names, pa.string()).take(indices)
