"""Parquet tables; media may lie in files or inside the table, as the datasets library stores it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from coembed.errors import DataError
from coembed.pairs.limits import PARQUET_LIMITS, shown
from coembed.pairs.readers.base import (
    ReadOptions,
    Refusal,
    Row,
    find_columns,
    holds,
    source_files,
    table_row,
)

_ENDINGS = (".parquet",)
# Rows may hold whole pictures, and a batch is in memory as Arrow and as Python at once.
_BATCH_BYTES = 32 << 20
_MAX_BATCH_ROWS = 1024
_MALFORMED = (pa.ArrowException, ValueError, OverflowError, RecursionError)


def recognises(source: Path) -> bool:
    """A .parquet file, or a folder of them without tars (img2dataset leaves both)."""
    return holds(source, _ENDINGS) and not (source.is_dir() and holds(source, (".tar",)))


def read(source: Path, options: ReadOptions) -> Iterator[Row | Refusal]:
    """The rows of all tables."""
    for path in source_files(source, _ENDINGS):
        try:
            yield from _read_table(path, options)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as Parquet: {shown(str(error))}") from error


def _read_table(path: Path, options: ReadOptions) -> Iterator[Row | Refusal]:
    root = options.media_root or path.parent
    with pq.ParquetFile(path, **PARQUET_LIMITS) as file:
        columns = find_columns(file.schema_arrow.names, options, path)
        number = 0
        for batch in file.iter_batches(batch_size=_batch_rows(file)):
            for cells in _rows(batch):
                number += 1
                where = f"{path.name}:{number}"
                if isinstance(cells, str):
                    yield Refusal(where, "malformed_row", cells)
                else:
                    yield table_row(cells, columns, where, root)


def _batch_rows(file: pq.ParquetFile) -> int:
    """How many rows, on average, fill `_BATCH_BYTES`."""
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    row_bytes = max((g.total_byte_size // max(g.num_rows, 1) for g in groups), default=0)
    return max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES // max(row_bytes, 1)))


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """The rows as Python values; what is wrong with one that has none (text that is no UTF-8, a
    date beyond Python's)."""
    try:
        yield from batch.to_pylist()
    except _MALFORMED:
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except _MALFORMED as error:
                yield shown(str(error))
