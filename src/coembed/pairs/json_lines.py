"""JSON Lines tables of a pool, read line by line: twice, because the type of a column is known only
when its last row is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from coembed.errors import DataError
from coembed.pairs.cells import KINDS, column, join_types, plain_cell
from coembed.pairs.limits import MAX_COLUMNS, MAX_ROW_BYTES, check_columns


def json_lines_schema(path: Path) -> pa.Schema:
    """The columns, in the order in which they first appear, and their plain types."""
    kinds: dict[str, set[type]] = {}
    for row, _ in _rows(path):
        for name, cell in row.items():
            kinds.setdefault(name, set()).add(type(plain_cell(cell)))
        if len(kinds) > MAX_COLUMNS:
            check_columns(list(kinds), path)
    schema = []
    for name in check_columns(list(kinds), path):
        kind = pa.null()
        for found in kinds[name]:
            kind = join_types(kind, KINDS[found])
        schema.append((name, kind))
    return pa.schema(schema)


def json_lines_batches(path: Path, schema: pa.Schema, *, max_rows: int) -> Iterator[pa.RecordBatch]:
    """The rows as `schema` (what `json_lines_schema` found) has them, `max_rows` a batch or fewer
    where they are long."""
    held: list[dict[str, Any]] = []
    num_bytes = 0
    for row, size in _rows(path):
        held.append(row)
        num_bytes += size
        if len(held) == max_rows or num_bytes >= MAX_ROW_BYTES:
            yield _batch(held, schema)
            held, num_bytes = [], 0
    if held:
        yield _batch(held, schema)


def _batch(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    columns = [column([row.get(field.name) for row in rows], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Each row, and how many bytes its line has."""
    number = 0
    with path.open("rb") as file:
        while line := file.readline(MAX_ROW_BYTES + 1):
            number += 1
            if len(line) > MAX_ROW_BYTES:
                raise DataError(f"{path}, line {number} has more than {MAX_ROW_BYTES:,} bytes")
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except RecursionError:
                raise DataError(f"{path}, line {number} nests too deeply") from None
            except ValueError as error:
                raise DataError(f"{path}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                found = type(row).__name__
                raise DataError(f"{path}, line {number} holds a {found}, expected an object")
            yield row, len(line)
