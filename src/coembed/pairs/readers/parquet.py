"""Parquet tables; media may lie in files or inside the table, as the datasets library stores it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from coembed.errors import DataError
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
_BATCH_ROWS = 128  # rows may hold whole pictures


def recognises(source: Path) -> bool:
    """A .parquet file, or a folder of them without tars (img2dataset leaves both)."""
    return holds(source, _ENDINGS) and not (source.is_dir() and holds(source, (".tar",)))


def read(source: Path, options: ReadOptions) -> Iterator[Row | Refusal]:
    """The rows of all tables."""
    for path in source_files(source, _ENDINGS):
        try:
            yield from _read_table(path, options)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} cannot be read as Parquet: {error}") from error


def _read_table(path: Path, options: ReadOptions) -> Iterator[Row | Refusal]:
    root = options.media_root or path.parent
    with pq.ParquetFile(path) as file:
        columns = find_columns(file.schema_arrow.names, options, path)
        number = 0
        for batch in file.iter_batches(batch_size=_BATCH_ROWS):
            for cells in batch.to_pylist():
                number += 1
                yield table_row(cells, columns, f"{path.name}:{number}", root)
