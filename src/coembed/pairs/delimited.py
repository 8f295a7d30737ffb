"""CSV and TSV tables of a pool, read in blocks: twice, because the type of a column is known only
when its last row is.

A cell is a number where writing it again gives the same cell: "007", "0x10" and whole numbers of
more digits than int64 has stay text. Only an empty cell is absent: "NA" and "null" may be captions
and colours.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from coembed.errors import DataError
from coembed.pairs.cells import join_types
from coembed.pairs.limits import MAX_ROW_BYTES, check_columns, shown

_INT = r"^\s*-?(0|[1-9][0-9]*)\s*$"
_FLOAT = r"^\s*([+-]?(0|[1-9][0-9]*)?(\.[0-9]*)?([eE][+-]?[0-9]+)?|[nN][aA][nN])\s*$"
_TRUE, _FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")


def delimited_schema(path: Path, *, text: tuple[str, ...]) -> pa.Schema:
    """The columns of the table and their plain types; none where the file is empty."""
    names = _names(path)
    # A list, because several columns may have no name.
    kinds = [pa.string() if name in text else pa.null() for name in names]
    last: pa.RecordBatch | None = None
    for block in _blocks(path, names):
        last = block if block.num_rows else last
        for index, cells in enumerate(block.columns):
            if not pa.types.is_string(kinds[index]):
                kinds[index] = join_types(kinds[index], _kind(cells))
    if last is not None:
        _check_last_row(path, last)
    return pa.schema(list(zip(names, kinds, strict=True)))


def delimited_batches(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows, in blocks, as `schema` (what `delimited_schema` found) has them."""
    for block in _blocks(path, schema.names):
        columns = [
            _typed(cells, field.type) for field, cells in zip(schema, block.columns, strict=True)
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _names(path: Path) -> list[str]:
    """The names in the first line, which is read before Arrow makes a column of each."""
    with path.open("rb") as file:
        head = file.read(MAX_ROW_BYTES)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path} is UTF-16 text", hint="save it as UTF-8")
    lines = io.StringIO(head.decode("utf-8-sig", "surrogateescape"), newline=None)
    csv.field_size_limit(MAX_ROW_BYTES)
    try:
        for names in csv.reader(lines, delimiter=_delimiter(path)):
            if names:
                return check_columns(names, path)
    except csv.Error as error:
        raise DataError(f"{path}: the line of column names cannot be read: {error}") from error
    return []


def _blocks(path: Path, names: list[str]) -> Iterator[pa.RecordBatch]:
    """The rows in blocks, every cell as text, empty cells null."""
    if not names:
        return
    try:
        reader = pa_csv.open_csv(
            path,
            # One thread: only then does Arrow say which row is wrong.
            read_options=pa_csv.ReadOptions(block_size=MAX_ROW_BYTES, use_threads=False),
            parse_options=pa_csv.ParseOptions(delimiter=_delimiter(path), newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(
                column_types={name: pa.string() for name in names},
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
        with closing(reader):
            if reader.schema.names != names:
                raise DataError(f"{path}: the line of column names cannot be read")
            yield from reader
    except pa.ArrowInvalid as error:
        said = str(error)
        if "Empty CSV file" in said:
            return  # names and not one row
        if "straddling object" in said:
            raise DataError(
                f"{path} has a row of more than {MAX_ROW_BYTES:,} bytes",
                hint='look for a quote (") that is never closed',
            ) from error
        raise


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _kind(cells: pa.Array) -> pa.DataType:
    """The narrowest plain type that holds all of these text cells."""
    cells = cells.drop_null()
    if not len(cells):
        return pa.null()
    if pc.all(pc.is_in(cells, value_set=pa.array(_TRUE + _FALSE))).as_py():
        return pa.bool_()
    for kind, pattern in ((pa.int64(), _INT), (pa.float64(), _FLOAT)):
        if pc.all(pc.match_substring_regex(cells, pattern)).as_py():
            try:
                numbers = _typed(cells, kind)
            except pa.ArrowInvalid:  # more digits than int64 holds: no number, but a name
                return pa.string()
            if pa.types.is_floating(kind) and pc.any(pc.is_inf(numbers)).as_py():
                return pa.string()
            return kind
    return pa.string()


def _typed(cells: pa.Array, kind: pa.DataType) -> pa.Array:
    """Text cells as `kind`."""
    if pa.types.is_string(kind):
        return cells
    if pa.types.is_null(kind):
        return pa.nulls(len(cells))
    if pa.types.is_boolean(kind):
        value = pc.is_in(cells, value_set=pa.array(_TRUE))
        return pc.if_else(pc.is_null(cells), pa.scalar(None, pa.bool_()), value)
    numbers = pc.ascii_trim_whitespace(cells).cast(kind)
    if pa.types.is_floating(kind):
        return pc.if_else(pc.is_nan(numbers), pa.scalar(None, kind), numbers)
    return numbers


def _check_last_row(path: Path, block: pa.RecordBatch) -> None:
    """Refuse a table whose last cell swallowed the rest of the file.

    Arrow ends an open quote where the file ends, and says nothing of the rows that went into it.
    """
    last: list[Any] = [cells[-1].as_py() for cells in block.columns]
    if not any(isinstance(cell, str) and "\n" in cell for cell in last):
        return
    quotes = 0
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            quotes += data.count(b'"')
    if quotes % 2:
        raise DataError(
            f'{path}: a quote (") is opened and never closed',
            hint=f"the cell that runs to the end of the file begins '{shown(_start(last))}'",
        )


def _start(cells: list[Any]) -> str:
    return next(cell for cell in cells if isinstance(cell, str) and "\n" in cell)[:60]
