"""Which pairs a pool holds already, answered from an index on disk instead of the pool.

The index is an SQLite database of the tables' pair ids that can be made anew from the tables at any
time. It learns the tables that it has not met, so that a pool that grows by a little costs a
little, and it keeps what it knows of tables that are gone, because a checkout may bring them back.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from coembed.errors import DataError, ServiceError
from coembed.files import sha256_file
from coembed.pairs.cells import plain_column
from coembed.pairs.limits import PARQUET_LIMITS, shown
from coembed.pairs.pool import PAIR_COLUMNS
from coembed.pairs.tables import is_table, table_batches, table_schema

_VERSION = 1
_SORTED_IDS = 500_000  # inserted in order, so that neighbours share a page of the index
_PAIR_ID = re.compile(r"[0-9a-f]{32}")
_OWN_PART = re.compile(r"part-[0-9a-f]{16}\.parquet")
_TABLES = """
CREATE TABLE IF NOT EXISTS tables (
    number INTEGER PRIMARY KEY, name TEXT, size INTEGER, mtime_ns INTEGER, sha256 TEXT
);
CREATE TABLE IF NOT EXISTS pairs (
    pair_id BLOB, number INTEGER, PRIMARY KEY (pair_id, number)
) WITHOUT ROWID;
"""


class KnownPairs:
    """The ids of the pairs in the tables at `pairs`; `index` is where the database lies.

    One that is not `lasting` need not survive a power cut. Use it as a context manager, one process
    at a time.
    """

    def __init__(self, pairs: Path, index: Path, *, lasting: bool) -> None:
        self._pairs, self._index, self._lasting = pairs, index, lasting
        self._present: set[int] = set()

    def __enter__(self) -> KnownPairs:
        self._index.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._open()
        except sqlite3.OperationalError as error:  # locked, or the disk is full
            raise self._refused(error) from error
        except sqlite3.DatabaseError:  # no database, or a damaged one
            self._database.close()
            for path in (self._index, self._index.with_name(f"{self._index.name}-journal")):
                path.unlink(missing_ok=True)
            self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def __contains__(self, pair_id: str) -> bool:
        """Whether a table of the pool has a pair of that id (32 hexadecimal digits)."""
        question = "SELECT number FROM pairs WHERE pair_id = ?"
        try:
            found = self._database.execute(question, (bytes.fromhex(pair_id),)).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._refused(error) from error
        return any(number in self._present for (number,) in found)

    def learn(self, table: Path, pair_ids: Iterable[str] | None = None) -> None:
        """Take in a table of the pool whose ids are `pair_ids` (read from it where None)."""
        found = table.stat()
        # The name of a table of ours is a hash of its ids: it need not be read to be known.
        own = bool(_OWN_PART.fullmatch(table.name))
        known = "SELECT number, mtime_ns, sha256 FROM tables WHERE name = ? AND size = ?"
        rows = self._database.execute(known, (table.name, found.st_size)).fetchall()
        for number, mtime_ns, _ in rows:
            if own or mtime_ns == found.st_mtime_ns:
                self._present.add(number)
                return
        digest = None if own else sha256_file(table)
        for number, _, sha256 in rows:
            if sha256 == digest:
                change = "UPDATE tables SET mtime_ns = ? WHERE number = ?"
                with self._database:
                    self._database.execute(change, (found.st_mtime_ns, number))
                self._present.add(number)
                return
        with self._database:  # one transaction: a killed process leaves no table half known
            add = "INSERT INTO tables (name, size, mtime_ns, sha256) VALUES (?, ?, ?, ?)"
            entry = (table.name, found.st_size, found.st_mtime_ns, digest)
            number = self._database.execute(add, entry).lastrowid
            assert number is not None
            self._insert(number, _pair_ids(table) if pair_ids is None else pair_ids)
        self._present.add(number)

    def _open(self) -> None:
        self._present.clear()
        self._database = sqlite3.connect(self._index, timeout=30)
        self._database.execute("PRAGMA cache_size = -65536")  # KiB
        if not self._lasting:
            self._database.execute("PRAGMA synchronous = OFF")
            self._database.execute("PRAGMA journal_mode = MEMORY")
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise sqlite3.DatabaseError("made by another version")
        self._database.executescript(_TABLES)
        self._database.execute(f"PRAGMA user_version = {_VERSION}")
        if self._pairs.is_dir():
            for table in sorted(self._pairs.iterdir()):
                if is_table(table):
                    self.learn(table)

    def _insert(self, number: int, pair_ids: Iterable[str]) -> None:
        add = "INSERT OR IGNORE INTO pairs VALUES (?, ?)"
        remaining = iter(pair_ids)
        while some := sorted(bytes.fromhex(i) for i in islice(remaining, _SORTED_IDS)):
            self._database.executemany(add, ((pair_id, number) for pair_id in some))

    def _refused(self, error: sqlite3.Error) -> ServiceError:
        return ServiceError(
            f"the index of pairs at {self._index} cannot be used: {error}",
            hint="free some space, or remove that file: it is made anew from the pool",
        )


def _pair_ids(table: Path) -> Iterator[str]:
    """The pair ids of a table that look like ours; others cannot meet ours."""
    schema = table_schema(table, text=PAIR_COLUMNS)
    if "pair_id" not in schema.names or not pa.types.is_string(schema.field("pair_id").type):
        return
    for cells in _id_columns(table):
        yield from (i for i in cells.to_pylist() if i is not None and _PAIR_ID.fullmatch(i))


def _id_columns(table: Path) -> Iterator[pa.Array]:
    if table.suffix.lower() != ".parquet":
        for batch in table_batches(table, text=PAIR_COLUMNS, max_rows=8192):
            yield batch.column("pair_id")
        return
    try:
        with pq.ParquetFile(table, **PARQUET_LIMITS) as file:
            for batch in file.iter_batches(columns=["pair_id"]):
                yield plain_column(batch.column(0), pa.string())
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the pair ids of {table} cannot be read: {shown(str(error))}",
            hint="mend or remove that table, or ingest into a new pool with --replace",
        ) from error
