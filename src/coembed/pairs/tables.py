"""One table of a pool, whatever its format: its columns, and its rows in record batches.

Every format streams, in memory that does not grow with the table. Cells become text, int, float or
bool; nested cells become JSON. A Parquet file knows the types of its columns; a CSV, TSV or JSON
Lines file is read twice, first to find them.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from coembed.errors import CoembedError, DataError
from coembed.pairs.cells import cast, column, join_types, plain_column, plain_type
from coembed.pairs.delimited import delimited_batches, delimited_schema
from coembed.pairs.json_lines import json_lines_batches, json_lines_schema
from coembed.pairs.limits import MAX_BATCH_BYTES, PARQUET_LIMITS, check_columns, shown

__all__ = [
    "TABLE_ENDINGS", "cast", "column", "is_table", "join_types", "plain_type", "table_batches",
    "table_schema",
]  # fmt: skip

# DVC checks a pool out as links into its cache where the disk allows nothing cheaper. An object of
# that cache is named by the MD5 of its content, so that nobody can point at anything else there.
_DVC_OBJECT = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}\Z")
TABLE_ENDINGS = (".parquet", ".csv", ".tsv", ".jsonl")
# Text is decoded so many rows at a time, because a small file can name one long cell many times.
_PARQUET_ROWS = 1024


def is_table(path: Path) -> bool:
    """Whether `path`, in the folder `pairs` of a pool, is called like a table.

    Raises DataError when it is, but is no file of the pool (a folder, a device, a link out of it).
    """
    if path.suffix.lower() not in TABLE_ENDINGS or path.name.startswith("."):
        return False
    what = None
    if path.is_symlink():
        try:
            target = path.resolve()
        except (OSError, RuntimeError):  # a link to itself
            raise DataError(
                f"{path} is a link that leads nowhere", hint="remove that link"
            ) from None
        inside = target.is_relative_to(path.parent.parent.resolve())
        if not inside and not _DVC_OBJECT.search(target.as_posix()):
            what = "a link out of the pool"
        elif not target.exists():
            what = "a link to nowhere"
    if what is None and not path.is_file():
        what = "a folder" if path.is_dir() else "no file"
    if what is not None:
        raise DataError(f"{path} is called like a table but is {what}", hint="remove or rename it")
    return True


def table_schema(path: Path, *, text: tuple[str, ...]) -> pa.Schema:
    """The columns of the table at `path`, as `table_batches` gives them."""
    if path.suffix.lower() == ".parquet":
        with _readable(path), _open_parquet(path) as file:
            return _parquet_schema(file, path)
    with _readable(path):
        found = path.stat()
    return _found_schema(path, text, found.st_size, found.st_mtime_ns)


def table_batches(path: Path, *, text: tuple[str, ...], max_rows: int) -> Iterator[pa.RecordBatch]:
    """The rows of the table at `path` in order, cells of the `text` columns read as text, in
    batches of up to `max_rows`.

    Raises DataError, naming the file, when it is not what its ending says.
    """
    with _readable(path):
        for block in _blocks(path, text, max_rows):
            for start in range(0, block.num_rows, max_rows):
                yield block.slice(start, max_rows)


@functools.lru_cache(maxsize=4096)
def _found_schema(path: Path, text: tuple[str, ...], size: int, mtime_ns: int) -> pa.Schema:
    """The columns of a CSV, TSV or JSON Lines table, which take a reading of the whole file to
    find: kept while size and time of change of the file are the same."""
    del size, mtime_ns
    with _readable(path):
        if path.suffix.lower() == ".jsonl":
            return json_lines_schema(path)
        return delimited_schema(path, text=text)


def _blocks(path: Path, text: tuple[str, ...], max_rows: int) -> Iterator[pa.RecordBatch]:
    ending = path.suffix.lower()
    if ending == ".parquet":
        with _open_parquet(path) as file:
            schema = _parquet_schema(file, path)
            for batch in file.iter_batches(batch_size=min(max_rows, _PARQUET_ROWS)):
                yield _plain(batch, schema, path)
    else:
        schema = table_schema(path, text=text)
        if ending == ".jsonl":
            yield from json_lines_batches(path, schema, max_rows=max_rows)
        else:
            yield from delimited_batches(path, schema)


def _open_parquet(path: Path) -> pq.ParquetFile:
    with pq.ParquetFile(path, **PARQUET_LIMITS) as file:
        schema = file.schema_arrow  # made anew at every look
    check_columns(schema.names, path)
    flat = [field.name for field in schema if _is_text(field.type)]
    # Text comes as a dictionary and numbers into it, whose size is known before it is decoded.
    return pq.ParquetFile(path, read_dictionary=flat, **PARQUET_LIMITS)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _parquet_schema(file: pq.ParquetFile, path: Path) -> pa.Schema:
    return pa.schema([(f.name, plain_type(f.type, f.name, path)) for f in file.schema_arrow])


def _plain(batch: pa.RecordBatch, schema: pa.Schema, path: Path) -> pa.RecordBatch:
    """`batch` with every column of its plain type."""
    columns = []
    for field, cells in zip(schema, batch.columns, strict=True):
        if pa.types.is_dictionary(cells.type) and pa.types.is_string(field.type):
            _check_text(cells, field.name, path)
        else:
            cells.validate(full=True)
        columns.append(plain_column(cells, field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _check_text(cells: pa.DictionaryArray, name: str, path: Path) -> None:
    """Refuse text that is no UTF-8 (Arrow believes a Parquet file), or grows beyond all bounds."""
    cells.dictionary.validate(full=True)
    cells.validate(full=True)
    sizes = pc.binary_length(cells.dictionary)
    largest = pc.max(sizes).as_py() or 0
    if largest * len(cells) > MAX_BATCH_BYTES:
        whole = pc.sum(sizes.take(cells.indices)).as_py() or 0
        if whole > MAX_BATCH_BYTES:
            raise DataError(
                f"{path}: {len(cells):,} cells of column '{shown(name, 60)}' hold {whole:,} bytes",
                hint="leave that column out: a pool's cells are captions and attributes",
            )


class _readable:  # noqa: N801 - used as a context manager, like a function
    """Turn what Arrow says about a bad file into a DataError that names it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, CoembedError) or not isinstance(error, _BROKEN):
            return
        name = self._path.suffix[1:].upper().replace("JSONL", "JSON Lines")
        what = _said(error)
        gone = isinstance(error, FileNotFoundError)
        raise DataError(
            f"{self._path} cannot be read as {name}: {'it is gone' if gone else what}",
            hint="mend or remove that table; the other tables of the pool stand by themselves",
        ) from error


_BROKEN = (pa.ArrowException, OSError, ValueError, OverflowError, RecursionError)


def _said(error: BaseException) -> str:
    """What an error says, in one line that a terminal can show."""
    if isinstance(error, OSError) and error.strerror:
        return os.strerror(error.errno) if error.errno else error.strerror
    lines = str(error).strip().splitlines() or ["broken"]
    return shown(lines[0])
