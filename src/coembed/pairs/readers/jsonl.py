"""JSON Lines: one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coembed.pairs.limits import MAX_ROW_BYTES
from coembed.pairs.readers.base import (
    ReadOptions,
    Refusal,
    Row,
    TableColumns,
    find_columns,
    holds,
    source_files,
    table_row,
)

_ENDINGS = (".jsonl", ".ndjson")


def recognises(source: Path) -> bool:
    """A .jsonl or .ndjson file, or a folder of them without tars."""
    return holds(source, _ENDINGS) and not (source.is_dir() and holds(source, (".tar",)))


def read(source: Path, options: ReadOptions) -> Iterator[Row | Refusal]:
    """The rows of all files. The first object says which keys are path and caption."""
    for path in source_files(source, _ENDINGS):
        yield from _read_lines(path, options)


def _read_lines(path: Path, options: ReadOptions) -> Iterator[Row | Refusal]:
    root = options.media_root or path.parent
    columns: TableColumns | None = None
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_ROW_BYTES + 1):
            number += 1
            where = f"{path.name}:{number}"
            if len(line) > MAX_ROW_BYTES:
                while not line.endswith(b"\n") and (line := file.readline(MAX_ROW_BYTES)):
                    pass
                yield Refusal(where, "malformed_row", f"more than {MAX_ROW_BYTES:,} bytes")
                continue
            if not line.strip():
                continue
            try:
                cells: Any = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Refusal(where, "malformed_row", f"not JSON: {error}")
                continue
            if not isinstance(cells, dict):
                found = f"a {type(cells).__name__}, expected an object"
                yield Refusal(where, "malformed_row", found)
                continue
            if columns is None:
                columns = find_columns(list(cells), options, path)
            yield table_row(cells, columns, where, root)
