"""CSV and TSV tables with a header line."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

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
_NO_UTF8 = re.compile("[\udc80-\udcff]")
_DELIMITERS = "\t,;|"
_MAX_CELL = 1 << 22  # characters; Python's own limit is 131,072


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
        head = file.readline(_MAX_CELL)
        if "\0\0" in head or head.startswith(("\udcff\udcfe", "\udcfe\udcff")):
            raise DataError(f"{path} is no UTF-8 text", hint="save it as UTF-8")
        file.seek(0)
        delimiter = "\t" if path.suffix.lower() == ".tsv" else max(_DELIMITERS, key=head.count)
        lines = _Lines(file)
        rows = csv.reader(lines, delimiter=delimiter)
        try:
            names = next(rows, None)
        except csv.Error as error:
            raise DataError(f"{path}: the line of column names cannot be read: {error}") from error
        if names is None:
            raise DataError(f"{path} is empty", hint="a table begins with a line of column names")
        columns = find_columns(names, options, path)
        while True:
            lines.begin_row()
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
            if lines.swallowed_the_rest():
                detail = f'a quote (") is never closed: {lines.num_lines:,} lines are in one cell'
                yield Refusal(where, "malformed_row", detail)
            elif len(cells) != len(names):
                detail = f"{len(cells)} cells in a table of {len(names)} columns"
                yield Refusal(where, "malformed_row", detail)
            elif any(map(_NO_UTF8.search, cells)):
                yield Refusal(where, "not_utf8", "the row is not UTF-8 text")
            else:
                row = dict(zip(names, cells, strict=True))
                texts = (columns.path, columns.caption)
                typed = {n: c if n in texts else _typed(c) for n, c in row.items()}
                yield table_row(typed, columns, where, root)


class _Lines:
    """The lines of a file for a csv.reader, which takes a row to be any number of lines of any
    length: longer lines are an error of their row, and an open quote at the end is noticed."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._ended = False
        self.begin_row()

    def begin_row(self) -> None:
        """Say that the next line begins a row."""
        self.num_lines = self._num_quotes = 0

    def swallowed_the_rest(self) -> bool:
        """Whether the row ended with the file, inside a quoted cell of many lines."""
        return self._ended and self.num_lines > 1 and self._num_quotes % 2 == 1

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(_MAX_CELL)
        if not line:
            self._ended = True
            raise StopIteration
        if len(line) == _MAX_CELL and not line.endswith(("\n", "\r")):
            while (more := self._file.readline(_MAX_CELL)) and not more.endswith(("\n", "\r")):
                pass
            raise csv.Error(f"a line of more than {_MAX_CELL:,} characters")
        self.num_lines += 1
        self._num_quotes += line.count('"')
        return line


def _typed(cell: str) -> Attribute:
    """A number or boolean where writing it again gives the cell back; else text ("007")."""
    if cell in ("true", "True", "false", "False"):
        return cell in ("true", "True")
    if not cell.isascii():  # Python reads the digits of all scripts
        return cell
    for kind in (int, float):
        try:
            value = kind(cell)
        except ValueError:
            continue
        if not math.isfinite(value):  # more digits than a float has
            return cell
        plain = cell.strip().lstrip("+-")
        # A leading zero ("007"), an underscore ("1_0") or a word ("nan") is no plain number.
        if (
            plain[:1].isdigit()
            and "_" not in plain
            and not (plain[0] == "0" and plain[1:2].isdigit())
        ):
            return value
    return cell
