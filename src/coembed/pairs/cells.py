"""The plain types of a pool's cells: null, bool, int64, float64 and string, and ways between them.

Nested cells become JSON. NaN is absent.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from coembed.errors import DataError
from coembed.pairs.limits import shown


def plain_type(kind: pa.DataType, name: str, path: Path) -> pa.DataType:
    """The type that cells of `kind` get: null, bool, int64, float64 or string."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_null(kind) or pa.types.is_boolean(kind):
        return kind
    if pa.types.is_integer(kind):
        # The upper half of uint64 has no place in int64.
        return pa.string() if kind == pa.uint64() else pa.int64()
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return pa.float64()
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    if any(is_binary(kind) for is_binary in (*binary, pa.types.is_fixed_size_binary)):
        raise DataError(
            f"{path}: column '{shown(name, 60)}' holds bytes; a pool's columns hold text, numbers "
            "or booleans",
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
        return pa.array([None if c is None else number_text(c) for c in cells.to_pylist()], kind)
    # Whole numbers beyond 2**53 lose digits as floats, and Arrow would refuse them for that.
    return cells.cast(kind, safe=not pa.types.is_floating(kind))


def number_text(value: float) -> str:
    """A number as text; whole numbers without ".0", however the column happens to be stored."""
    return str(int(value)) if value.is_integer() else repr(value)


def column(cells: list[Any], kind: pa.DataType | None = None) -> pa.Array:
    """Python values as one plain column of `kind`: where None, the narrowest of bool, int64,
    float64 that holds all of them, else text. Dicts and lists become JSON; NaN and None are
    absent."""
    for index, cell in enumerate(cells):
        cells[index] = plain_cell(cell)
    if kind is None:
        kind = pa.null()
        for found in {type(cell) for cell in cells}:
            kind = join_types(kind, KINDS[found])
    if pa.types.is_floating(kind):
        return pa.array([None if c is None else float(c) for c in cells], kind)
    if pa.types.is_string(kind):
        return pa.array([None if c is None else _text(c) for c in cells], kind)
    return pa.array(cells, kind)


KINDS: dict[type, pa.DataType] = {
    type(None): pa.null(),
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
}


def plain_cell(cell: Any) -> str | int | float | bool | None:
    """`cell` as a value of a type in `KINDS`."""
    if isinstance(cell, np.generic):
        cell = cell.item()
    if cell is None or isinstance(cell, (str, bool)):
        return cell
    if isinstance(cell, float):
        return None if cell != cell else cell
    if isinstance(cell, int):
        return cell if -(2**63) <= cell < 2**63 else str(cell)
    return json.dumps(cell, sort_keys=True, ensure_ascii=False, default=str)


def _text(cell: str | int | float | bool) -> str:
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float):
        # Infinity is a float as whole as any, and has no digits.
        return number_text(cell) if abs(cell) != float("inf") else repr(cell)
    # A lone surrogate ("\ud83d" in JSON) is no Unicode text and cannot be written as UTF-8.
    return str(cell).encode("utf-8", "replace").decode()


def plain_column(cells: pa.Array, kind: pa.DataType) -> pa.Array:
    """Arrow cells of any type as `kind`, their `plain_type`."""
    if isinstance(cells.type, pa.BaseExtensionType):
        cells = cells.storage
    if pa.types.is_dictionary(cells.type):
        cells = cells.dictionary_decode()
    if pa.types.is_nested(cells.type):
        return column(cells.to_pylist(), pa.string())
    if pa.types.is_floating(cells.type) or pa.types.is_decimal(cells.type):
        cells = cells.cast(pa.float64(), safe=False)
        return pc.if_else(pc.is_nan(cells), pa.scalar(None, pa.float64()), cells)
    return cells if cells.type == kind else cells.cast(kind)
