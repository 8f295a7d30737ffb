"""CSV and TSV tables with a header line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

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
from coembed.types import Attribute

_ENDINGS = (".csv", ".tsv")
_DELIMITERS = "\t,;|"
_MAX_CELL = 1 << 24  # characters; Python's own limit is 131,072


def recognises(source: Path) -> bool:
    """A .csv or .tsv file, or a folder of them without tars."""
    return holds(source, _ENDINGS) and not (source.is_dir() and holds(source, (".tar",)))


def read(source: Path, options: ReadOptions) -> Iterator[Row | Refusal]:
    """The rows of all tables. Numbers and true/false become such; cells are text otherwise."""
    for path in source_files(source, _ENDINGS):
        yield from _read_table(path, options)


def _read_table(path: Path, options: ReadOptions) -> Iterator[Row | Refusal]:
    csv.field_size_limit(_MAX_CELL)
    root = options.media_root or path.parent
    # Bytes that are no UTF-8 pass as surrogates, so that one bad row does not end the reading.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        head = file.readline()
        file.seek(0)
        delimiter = "\t" if path.suffix.lower() == ".tsv" else max(_DELIMITERS, key=head.count)
        rows = csv.reader(file, delimiter=delimiter)
        names = next(rows, None)
        if names is None:
            raise DataError(f"{path} is empty", hint="a table begins with a line of column names")
        columns = find_columns(names, options, path)
        while True:
            try:
                cells = next(rows, None)
            except csv.Error as error:
                yield Refusal(f"{path.name}:{rows.line_num}", "malformed_row", str(error))
                continue
            if cells is None:
                return
            where = f"{path.name}:{rows.line_num}"
            if not cells:
                continue
            if len(cells) != len(names):
                detail = f"{len(cells)} cells in a table of {len(names)} columns"
                yield Refusal(where, "malformed_row", detail)
            elif any("\udc80" <= c <= "\udcff" for cell in cells for c in cell):
                yield Refusal(where, "not_utf8", "the row is not UTF-8 text")
            else:
                row = dict(zip(names, cells, strict=True))
                texts = (columns.path, columns.caption)
                typed = {n: c if n in texts else _typed(c) for n, c in row.items()}
                yield table_row(typed, columns, where, root)


def _typed(cell: str) -> Attribute:
    """A number or boolean where writing it again gives the cell back; else text ("007")."""
    if cell in ("true", "True", "false", "False"):
        return cell in ("true", "True")
    for kind in (int, float):
        try:
            value = kind(cell)
        except ValueError:
            continue
        plain = cell.strip().lstrip("+-")
        # A leading zero ("007"), an underscore ("1_0") or a word ("nan") is no plain number.
        if (
            plain[:1].isdigit()
            and "_" not in plain
            and not (plain[0] == "0" and plain[1:2].isdigit())
        ):
            return value
    return cell
