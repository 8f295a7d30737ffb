"""A pool: the tables `pairs/*` of a folder, read in name order as one stream of pairs."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from coembed.errors import DataError
from coembed.pairs.limits import MAX_BATCH_BYTES, check_columns, listed, shown
from coembed.pairs.media_types import modality_of
from coembed.pairs.pair_ids import PairIds
from coembed.pairs.tables import (
    TABLE_ENDINGS,
    cast,
    is_table,
    join_types,
    table_batches,
    table_schema,
)
from coembed.types import SPLITS

if TYPE_CHECKING:  # pandas takes a second to import, and only `read_pool` needs it
    import pandas as pd

PAIR_COLUMNS = ("pair_id", "path", "caption", "modality", "split")
_REQUIRED = ("path", "caption")
_ID_ROWS = 8192
_MAKE_ONE = "run `coembed demo-pool` for an example pool, or `coembed ingest SOURCE` for your own"


@dataclass(frozen=True)
class Pool:
    """An opened pool. `attributes` are its further columns and their types (bool, int64, float64
    or string), joined over all of its tables."""

    folder: Path
    tables: tuple[Path, ...]
    attributes: Mapping[str, pa.DataType]

    @property
    def schema(self) -> pa.Schema:
        """PAIR_COLUMNS as text, then the attributes."""
        return pa.schema(
            [*((name, pa.string()) for name in PAIR_COLUMNS), *self.attributes.items()]
        )

    def batches(self, *, max_rows: int = 8192) -> Iterator[pa.RecordBatch]:
        """All pairs in pool order, `max_rows` a batch (the last may be shorter).

        Every pair has a pair_id and a modality. A missing path or caption is "", a missing split or
        attribute null. Raises DataError when a table is not what `open_pool` found, or when the
        cells of so many rows are too large to be held.
        """
        held: list[pa.RecordBatch] = []
        num_held = num_bytes = 0
        for table, batch in self._unequal_batches(max_rows):
            held.append(batch)
            num_held += batch.num_rows
            num_bytes += batch.nbytes
            if num_bytes > MAX_BATCH_BYTES:
                raise DataError(
                    f"{table} has cells so large that {num_held:,} rows hold {num_bytes:,} bytes",
                    hint="a pool's cells are captions and attributes; media lie in files",
                )
            if num_held >= max_rows:
                whole = pa.concat_batches(held)
                full = num_held - num_held % max_rows
                for start in range(0, full, max_rows):
                    yield whole.slice(start, max_rows)
                held = [whole.slice(full)]
                num_held, num_bytes = held[0].num_rows, held[0].nbytes
        if num_held:
            yield pa.concat_batches(held)

    def _unequal_batches(self, max_rows: int) -> Iterator[tuple[Path, pa.RecordBatch]]:
        with closing(PairIds(self._without_ids)) as pair_ids:
            for table in self.tables:
                start = 0
                for batch in table_batches(table, text=PAIR_COLUMNS, max_rows=max_rows):
                    yield table, self._pairs(batch, table, start, pair_ids)
                    start += batch.num_rows

    def _without_ids(self) -> Iterator[pa.RecordBatch]:
        """Path and caption of the rows that have no id, in pool order."""
        for table in self.tables:
            for batch in table_batches(table, text=PAIR_COLUMNS, max_rows=_ID_ROWS):
                contents = [_paths(batch), _captions(batch)]
                rows = pa.RecordBatch.from_arrays(contents, names=["path", "caption"])
                yield rows.filter(pc.equal(_text(batch, "pair_id"), ""))

    def _pairs(
        self, batch: pa.RecordBatch, table: Path, start: int, pair_ids: PairIds
    ) -> pa.RecordBatch:
        """The rows of `batch`, which begins at row `start` of `table`, as pairs."""
        paths, captions = _paths(batch), _captions(batch)
        columns = [
            pair_ids.of(_text(batch, "pair_id"), paths, captions),
            paths,
            captions,
            _modalities(_text(batch, "modality"), paths),
            _splits(_text(batch, "split"), table, start),
        ]
        given = dict(zip(batch.schema.names, batch.columns, strict=True))
        for name, kind in self.attributes.items():
            if name not in given:
                columns.append(pa.nulls(batch.num_rows, kind))
                continue
            try:
                columns.append(cast(given[name], kind))
            except pa.ArrowException as error:
                raise DataError(
                    f"{table} has changed while it was read: column '{shown(name, 60)}' is no more "
                    f"{kind}",
                    hint="run the same command again when nothing writes to the pool",
                ) from error
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def open_pool(folder: Path) -> Pool:
    """Find the tables of the pool at `folder` and check their columns.

    Raises DataError when there is no pool, when a table cannot be read or lacks a column that every
    pool has, and when there is not one row.
    """
    pairs = folder / "pairs"
    if not pairs.is_dir():
        what = "no pool" if not folder.exists() else "no folder of pair tables"
        raise DataError(f"{what} at {pairs if folder.exists() else folder}", hint=_MAKE_ONE)
    tables = tuple(path for path in sorted(pairs.iterdir()) if is_table(path))
    if not tables:
        raise DataError(
            f"{pairs} holds no table; expected files ending in {', '.join(TABLE_ENDINGS)}",
            hint=_MAKE_ONE,
        )
    attributes: dict[str, pa.DataType] = {}
    has_rows = False
    for path in tables:
        schema = table_schema(path, text=PAIR_COLUMNS)
        if path.suffix.lower() != ".parquet" and not schema.names:
            continue  # an empty CSV or JSON Lines file has no columns and no rows
        has_rows = True
        missing = [name for name in _REQUIRED if name not in schema.names]
        if missing:
            raise DataError(
                f"{path} has no column {' and no '.join(map(repr, missing))}; "
                f"it has {listed(schema.names)}",
                hint="rename the columns, or bring the table in with "
                "`coembed ingest SOURCE --path-column YOURS --caption-column YOURS`",
            )
        for field in schema:
            # A column without a name is the row number that pandas writes unless told not to.
            if field.name and field.name not in PAIR_COLUMNS:
                before = attributes.get(field.name, pa.null())
                attributes[field.name] = join_types(before, field.type)
        check_columns(list(attributes), pairs)
    if not has_rows:
        raise DataError(f"the tables in {pairs} hold no pairs", hint=_MAKE_ONE)
    # A column without one value has no type; text can hold nothing as well as any.
    settled = {n: pa.string() if pa.types.is_null(t) else t for n, t in attributes.items()}
    return Pool(folder, tables, settled)


def read_pool(folder: Path) -> pd.DataFrame:
    """The whole pool as one frame: PAIR_COLUMNS, then the attributes. For pools that fit."""
    pool = open_pool(folder)
    table = pa.Table.from_batches(pool.batches(), schema=pool.schema)
    if not table.num_rows:
        raise DataError(f"the tables in {folder / 'pairs'} hold no pairs", hint=_MAKE_ONE)
    return table.to_pandas()


def _text(batch: pa.RecordBatch, name: str, *, only_text: bool = False) -> pa.Array:
    """Column `name` as text, null cells as ""."""
    if name not in batch.schema.names:
        return pa.repeat("", batch.num_rows)
    cells = batch.column(name)
    if not pa.types.is_string(cells.type) and only_text:
        return pa.repeat("", batch.num_rows)
    return pc.fill_null(cast(cells, pa.string()), "")


def _paths(batch: pa.RecordBatch) -> pa.Array:
    return pc.replace_substring_regex(_text(batch, "path"), r"^(\./+)+", "")


def _captions(batch: pa.RecordBatch) -> pa.Array:
    # A caption that is no text (a number, a boolean) is no caption.
    return _text(batch, "caption", only_text=True)


def _modalities(given: pa.Array, paths: pa.Array) -> pa.Array:
    """Given modalities in lower case; where there is none, what the file ending says."""
    rows = zip(given.to_pylist(), paths.to_pylist(), strict=True)
    return pa.array([m.strip().lower() or _modality(path) for m, path in rows], pa.string())


def _modality(path: str) -> str:
    """`modality_of(path)`, which parses the whole path, in a tenth of its time."""
    stem, dot, ending = path.rpartition("/")[2].rpartition(".")
    return _modality_of_ending(ending) if stem and dot and ending else modality_of(path)


@functools.lru_cache(maxsize=1024)
def _modality_of_ending(ending: str) -> str:
    return modality_of(f"x.{ending}")


def _splits(given: pa.Array, table: Path, start: int) -> pa.Array:
    """Given splits in lower case, null where there is none."""
    splits = pc.utf8_lower(pc.utf8_trim_whitespace(given))
    absent = pc.equal(splits, "")
    known = pc.or_(absent, pc.is_in(splits, value_set=pa.array(SPLITS)))
    if not pc.all(known).as_py():
        row = pc.index(known, False).as_py()
        raise DataError(
            f"{table}, row {start + row + 1}: split is '{shown(given[row].as_py(), 60)}'; "
            f"expected {', '.join(SPLITS)} or nothing",
            hint="a pair without a split gets one from its content when the pool is curated",
        )
    return pc.if_else(absent, pa.scalar(None, pa.string()), splits)
