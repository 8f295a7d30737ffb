"""One table of a pool, whatever its format: its columns, and its rows in record batches.

Parquet streams. CSV, TSV and JSON Lines are read a file at a time, because the type of a column is
known only when its last row is. Cells become text, int, float or bool; nested cells become JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from coembed.errors import DataError

TABLE_ENDINGS = (".parquet", ".csv", ".tsv", ".jsonl")


def table_schema(path: Path, *, text: tuple[str, ...]) -> pa.Schema:
    """The columns of the table at `path`, as `table_batches` gives them."""
    if path.suffix == ".parquet":
        with _readable(path):
            schema = pq.read_schema(path)
        return pa.schema([(f.name, plain_type(f.type, f.name, path)) for f in schema])
    return _load(path, text).schema


def table_batches(path: Path, *, text: tuple[str, ...], max_rows: int) -> Iterator[pa.RecordBatch]:
    """The rows of the table at `path` in order, cells of the `text` columns read as text.

    Raises DataError, naming the file, when it is not what its ending says.
    """
    if path.suffix == ".parquet":
        with _readable(path), pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=max_rows):
                yield _plain(batch, path)
    else:
        for batch in _load(path, text).to_batches(max_chunksize=max_rows):
            yield _plain(batch, path)


def plain_type(kind: pa.DataType, name: str, path: Path) -> pa.DataType:
    """The type that cells of `kind` get: null, bool, int64, float64 or string."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_null(kind) or pa.types.is_boolean(kind):
        return kind
    if pa.types.is_integer(kind):
        # The upper half of uint64 has no place in int64.
        return pa.string() if kind == pa.uint64() else pa.int64()
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return pa.float64()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise DataError(
            f"{path}: column {name!r} holds bytes; a pool's columns hold text, numbers or booleans",
            hint="`coembed ingest` takes media that lies inside a Parquet table",
        )
    return pa.string()


def join_types(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """The type that holds the cells of both: int and float make float, others make text."""
    if first == second or pa.types.is_null(second):
        return first
    if pa.types.is_null(first):
        return second
    numbers = {pa.int64(), pa.float64()}
    return pa.float64() if {first, second} == numbers else pa.string()


def cast(cells: pa.Array, kind: pa.DataType) -> pa.Array:
    """`cells` (of a plain type) as `kind`, a type that holds them."""
    if cells.type == kind:
        return cells
    if pa.types.is_string(kind) and pa.types.is_floating(cells.type):
        return pa.array([None if c is None else _number(c) for c in cells.to_pylist()], kind)
    return cells.cast(kind)


def _number(value: float) -> str:
    """A number as text; whole numbers without ".0", however the column happens to be stored."""
    return str(int(value)) if value.is_integer() else repr(value)


class _readable:  # noqa: N801 - used as a context manager, like a function
    """Turn what Arrow says about a bad file into a DataError that names it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (pa.ArrowException, UnicodeDecodeError)) or (
            isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        ):
            name = self._path.suffix[1:].upper().replace("JSONL", "JSON Lines")
            what = str(error).strip().splitlines()[0] if str(error).strip() else "broken"
            raise DataError(
                f"{self._path} cannot be read as {name}: {what}",
                hint="mend or remove that table; the other tables of the pool stand by themselves",
            ) from error


def _load(path: Path, text: tuple[str, ...]) -> pa.Table:
    """A whole CSV, TSV or JSON Lines table."""
    with _readable(path):
        if path.suffix == ".jsonl":
            return _load_jsonl(path)
        if path.stat().st_size == 0:
            return pa.table({})
        return pa_csv.read_csv(
            path,
            parse_options=pa_csv.ParseOptions(
                delimiter="\t" if path.suffix == ".tsv" else ",", newlines_in_values=True
            ),
            convert_options=pa_csv.ConvertOptions(
                column_types={name: pa.string() for name in text},
                # Only an empty cell is absent: "NA" and "null" may be captions and colours.
                null_values=[""],
                strings_can_be_null=True,
            ),
        )


def _load_jsonl(path: Path) -> pa.Table:
    rows: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(
                    f"{path}, line {number} holds a {type(row).__name__}, expected an object"
                )
            rows.append(row)
            names.update(dict.fromkeys(row))
    return pa.table({name: column([row.get(name) for row in rows]) for name in names})


def column(cells: list[Any]) -> pa.Array:
    """Python values as one plain column: the narrowest of bool, int64, float64 that holds all of
    them, else text. Dicts and lists become JSON; NaN and None are absent."""
    kinds: set[type] = set()
    for index, cell in enumerate(cells):
        if isinstance(cell, np.generic):
            cell = cells[index] = cell.item()
        if cell is None or (isinstance(cell, float) and cell != cell):
            cells[index] = None
            continue
        if not isinstance(cell, (bool, int, float, str)):
            cell = cells[index] = json.dumps(cell, sort_keys=True, ensure_ascii=False, default=str)
        if isinstance(cell, int) and not -(2**63) <= cell < 2**63:
            cell = cells[index] = str(cell)
        kinds.add(type(cell))
    if not kinds:
        return pa.nulls(len(cells))
    if kinds == {bool}:
        return pa.array(cells, pa.bool_())
    if kinds == {int}:
        return pa.array(cells, pa.int64())
    if kinds <= {int, float}:
        return pa.array([None if c is None else float(c) for c in cells], pa.float64())
    return pa.array([None if c is None else _text(c) for c in cells], pa.string())


def _text(cell: str | int | float | bool) -> str:
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float):
        return _number(cell)
    # A lone surrogate ("\ud83d" in JSON) is no Unicode text and cannot be written as UTF-8.
    return str(cell).encode("utf-8", "replace").decode()


def _plain(batch: pa.RecordBatch, path: Path) -> pa.RecordBatch:
    """`batch` with every column of its plain type."""
    columns = {}
    for field, cells in zip(batch.schema, batch.columns, strict=True):
        kind = plain_type(field.type, field.name, path)
        columns[field.name] = _plain_cells(cells, kind)
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _plain_cells(cells: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(cells.type):
        cells = cells.dictionary_decode()
    if pa.types.is_nested(cells.type):
        return cast(column(cells.to_pylist()), pa.string())
    if pa.types.is_floating(cells.type) or pa.types.is_decimal(cells.type):
        cells = cells.cast(pa.float64())
        return pc.if_else(pc.is_nan(cells), pa.scalar(None, pa.float64()), cells)
    if cells.type == kind:
        return cells
    return cells.cast(kind)
