"""The database in which the pool is judged: one DuckDB file in a scratch folder.

DuckDB keeps to a memory limit by spilling to the scratch folder, so that the judging of a pool of
any size takes the same memory. It may touch no file outside the folders that it is given, and
fetches no extension.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import pyarrow as pa

from coembed.errors import ServiceError

# Workers, Arrow buffers and the interpreter come on top; together they stay below 2 GiB on two
# cores (benchmarks/curation_scale.py).
MEMORY_LIMIT = "768MB"
BATCH_ROWS = 65_536
_CATALOG = "ledger"
# DuckDB's own size, in units of its vectors; a row group is in memory whole while it is written.
_ROW_GROUP_ROWS, _VECTOR_ROWS = 122_880, 2048
_FEW_COLUMNS = 200


def quote(name: str) -> str:
    """`name` as an SQL identifier, whatever characters it holds."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """`text` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


class Database:
    """A DuckDB database in `folder`, which may also read the files under `readable`.

    `num_columns` is that of its widest table. Every statement runs on a cursor of its own: results
    can be streamed while further statements run. A context manager; the files in `folder` are the
    caller's to remove.
    """

    def __init__(
        self, folder: Path, *, readable: Sequence[Path], num_threads: int, num_columns: int = 0
    ) -> None:
        self._connection = duckdb.connect(
            ":memory:",
            config={
                "memory_limit": MEMORY_LIMIT,
                "threads": num_threads,
                "temp_directory": str(folder / "spill"),
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "python_enable_replacements": False,
                # Nothing here relies on it, and it holds whole results back in memory.
                "preserve_insertion_order": False,
            },
        )
        folders = ", ".join(literal(f"{place.resolve()}/") for place in (folder, *readable))
        self._connection.execute(f"SET allowed_directories = [{folders}]")
        file = literal(str(folder.resolve() / "ledger.duckdb"))
        size = _row_group_rows(num_columns)
        self._connection.execute(f"ATTACH {file} AS {_CATALOG} (ROW_GROUP_SIZE {size})")
        self._connection.execute("SET enable_external_access = false")

    def execute(
        self, sql: str, /, *, schemas: Sequence[str] = (), **tables: pa.Table | pa.RecordBatchReader
    ) -> None:
        """Run a statement. `tables` can be used in it under their names; names without a schema
        are looked for in `schemas`, and a new table is made in the first of them."""
        with self._cursor(schemas, tables) as cursor:
            cursor.execute(sql)

    def query(
        self, sql: str, /, *, schemas: Sequence[str] = (), **tables: pa.Table
    ) -> Iterator[pa.RecordBatch]:
        """The rows of a SELECT in batches, streamed. It is bound at once, and run as it is read."""
        cursor = self._open(schemas, tables)
        try:
            with _explained():
                reader = cursor.sql(sql).to_arrow_reader(BATCH_ROWS)
        except BaseException:
            cursor.close()
            raise
        return self._stream(cursor, reader)

    def rows(self, sql: str, /, **tables: pa.Table) -> list[tuple[Any, ...]]:
        """All rows of a SELECT that has few."""
        with self._cursor((), tables) as cursor:
            return cursor.execute(sql).fetchall()

    def value(self, sql: str, /) -> Any:
        """The one cell of a SELECT."""
        ((cell,),) = self.rows(sql)
        return cell

    def _open(self, schemas: Sequence[str], tables: Mapping[str, Any]) -> duckdb.DuckDBPyConnection:
        cursor = self._connection.cursor()
        places = ",".join(f"{_CATALOG}.{schema}" for schema in schemas or ("main",))
        cursor.execute(f"SET search_path = {literal(places)}")
        for name, table in tables.items():
            cursor.register(name, table)
        return cursor

    @contextmanager
    def _cursor(
        self, schemas: Sequence[str], tables: Mapping[str, Any]
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        cursor = self._open(schemas, tables)
        try:
            with _explained():
                yield cursor
        finally:
            cursor.close()

    @staticmethod
    def _stream(
        cursor: duckdb.DuckDBPyConnection, reader: Iterable[pa.RecordBatch]
    ) -> Iterator[pa.RecordBatch]:
        try:
            with _explained():
                yield from reader
        finally:
            cursor.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _row_group_rows(num_columns: int) -> int:
    vectors = _ROW_GROUP_ROWS * _FEW_COLUMNS // max(num_columns, _FEW_COLUMNS) // _VECTOR_ROWS
    return max(vectors, 1) * _VECTOR_ROWS


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what a full disk or too little memory raises into one clear error."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise ServiceError(
            f"the curation's database needs more than its {MEMORY_LIMIT} of memory, or more disk "
            f"than is free: {str(error).splitlines()[0]}",
            hint="free some disk in the project's folder, or list fewer pool filters",
        ) from error
    except (duckdb.IOException, OSError) as error:
        if "No space left" not in str(error):
            raise
        raise ServiceError(
            "no space left on the disk for the curation's database in runs/curate",
            hint="free some space and run the same command again",
        ) from error
