"""The pool as a filter's `check_pool` sees it: `PoolView` of filters/base.py on the database.

`kept` is a view over `rows` less the rows dropped so far. What few queries ask for (item ids,
media bytes in the examined parts, what earlier filters found) is joined to it only for a query
that mentions one of those columns, because a join of ten million rows is paid for even where
nothing of it is used.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import duckdb
import pyarrow as pa

from coembed.curation.database import Database, quote
from coembed.curation.examination.workers import Workers
from coembed.curation.filters.base import ColumnType
from coembed.curation.reading import read_media
from coembed.curation.rows_table import Examined
from coembed.errors import DataError

T = TypeVar("T")
R = TypeVar("R")

_ALWAYS = (
    "row", "pair_id", "path", "caption", "modality", "given_split", "item", "path_key",
    "caption_key", "num_bytes", "format", "width_px", "height_px", "duration_s",
)  # fmt: skip
_WORK = "filter_work"
_WORD = re.compile(r"[^\W\d]\w*")
_STAR = re.compile(r"(?:\bselect|,|\.)\s*\*|^\s*from\b", re.IGNORECASE)
# A temporary table would be the cursor's own; a plain one in the filter's schema lives as long as
# the filter, which is what the filter means.
_TEMPORARY = re.compile(r"^(\s*create\s+(?:or\s+replace\s+)?)temp(?:orary)?\s+", re.IGNORECASE)


@dataclass(frozen=True)
class Surroundings:
    """What all filters of one run share. `attributes` are the names that the spool stores
    the pool's further columns under, which differ not only in case."""

    root: Path
    pool: Path
    runs: Path
    scratch: Path
    seed: int
    attributes: tuple[str, ...]
    max_media_bytes: int


def make_attributes(database: Database, names: Sequence[str]) -> None:
    """Make the view `attributes`. `names` are those that the spool stores them under."""
    cells = [f"a{i} AS {quote(name)}" for i, name in enumerate(names)]
    database.execute(
        f"CREATE VIEW attributes AS SELECT {', '.join(['row', *cells])} FROM main.rows"
    )


class FilterPool:
    """The view for one filter. A context manager: its tables and scratch folder end with it.

    `found` are the columns that filters before this one found, by the table they are in.
    """

    def __init__(
        self,
        name: str,
        database: Database,
        examined: Examined,
        found: Mapping[str, Sequence[str]],
        around: Surroundings,
        workers: Workers,
    ) -> None:
        self._database = database
        self._examined = examined
        self._found = {table: columns for table, columns in found.items() if columns}
        self._around = around
        self._workers = workers
        self._views: set[str] = set()
        self._scratch = around.scratch / name
        self._lasting = around.runs / "curate" / "filters" / name

    def __enter__(self) -> Self:
        self._scratch.mkdir(parents=True)
        self._lasting.mkdir(parents=True, exist_ok=True)
        self._database.execute(f"CREATE SCHEMA {_WORK}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:  # otherwise the whole database is about to go
            for schema in (_WORK, *sorted(self._views)):
                self._database.execute(f"DROP SCHEMA {schema} CASCADE")
        shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def root(self) -> Path:
        """The project's folder."""
        return self._around.root

    @property
    def pool(self) -> Path:
        """The pool's folder."""
        return self._around.pool

    @property
    def scratch(self) -> Path:
        """An empty folder for this filter."""
        return self._scratch

    @property
    def lasting(self) -> Path:
        """A folder for this filter that outlives runs."""
        return self._lasting

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self._around.seed

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """The columns of the view `attributes` beside `row`."""
        return self._around.attributes

    def query(self, sql: str, /, **tables: pa.Table) -> Iterator[pa.RecordBatch]:
        """The rows of a SELECT, streamed."""
        return self._with_view(
            sql, lambda schemas: self._database.query(sql, schemas=schemas, **tables)
        )

    def execute(self, sql: str, /, **tables: pa.Table) -> None:
        """Run a statement; what it creates is gone after the filter."""
        lasting = _TEMPORARY.sub(r"\1", sql)
        self._with_view(
            sql, lambda schemas: self._database.execute(lasting, schemas=schemas, **tables)
        )

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """`function` of each task in the worker processes, in order."""
        return self._workers.map(function, tasks)

    def read_media(self, path: str) -> bytes:
        """The media bytes at `path`."""
        media, _, detail = read_media(self.pool, path, self._around.max_media_bytes)
        if not media:
            raise DataError(
                f"{self.pool / path} cannot be read any more: {detail}",
                hint="let the pool come to rest, then run `coembed curate` again",
            )
        return media

    def _with_view(self, sql: str, run: Callable[[tuple[str, ...]], T]) -> T:
        mentioned = {word.casefold() for word in _WORD.findall(sql)}
        parts = {
            part
            for part, columns in self._extra_columns().items()
            if any(column.casefold() in mentioned for column in columns) or _STAR.search(sql)
        }
        try:
            return run((_WORK, self._view(parts), "main"))
        except duckdb.BinderException:
            # A view or a macro of the filter's own may ask for more than its text says.
            everything = set(self._extra_columns())
            if parts == everything:
                raise
            return run((_WORK, self._view(everything), "main"))

    def _extra_columns(self) -> dict[str, Sequence[str]]:
        """Columns of `kept` that need a join, by the table that they come from."""
        extra: dict[str, Sequence[str]] = {"items": ("item_id",), **self._found}
        if self._examined.heavy:
            extra["parts"] = self._examined.heavy
        return extra

    def _view(self, parts: set[str]) -> str:
        """The schema with a view `kept` that has the columns of `parts`."""
        extra = self._extra_columns()
        schema = "view_" + "_".join(str(i) for i, part in enumerate(extra) if part in parts)
        if schema in self._views:
            return schema
        light: Mapping[str, ColumnType] = self._examined.light
        cells = {name: f"rows.{quote(name)}" for name in (*_ALWAYS, *light)}
        joins = "main.rows ANTI JOIN main.drops USING (row)"
        if "items" in parts:
            cells["item_id"] = "lower(hex(items.item_id))"
            joins += " JOIN main.items USING (item)"
        if "parts" in parts:
            columns = self._examined.heavy
            cells |= {name: f"parts.{quote(name)}" for name in columns}
            joins += " JOIN main.parts USING (row)"
        for table in sorted(set(self._found) & parts):
            for name in self._found[table]:
                # A filter may fill a column while it judges and while it checks the pool.
                before = cells.get(name)
                own = f"{table}.{quote(name)}"
                cells[name] = f"coalesce({own}, {before})" if before else own
            joins += f" LEFT JOIN main.{table} USING (row)"
        columns_sql = ", ".join(f"{cell} AS {quote(name)}" for name, cell in cells.items())
        self._database.execute(
            f"CREATE SCHEMA {schema};CREATE VIEW {schema}.kept AS SELECT {columns_sql} FROM {joins}"
        )
        self._views.add(schema)
        return schema
