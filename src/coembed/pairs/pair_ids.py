"""Pair ids: the given ones, and where there is none, a hash of path and caption.

A row whose path and caption came before is told apart by its number among its like. The numbers of
few rows are counted in memory; beyond that DuckDB numbers them on disk, in a second reading.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

# About 50 MB of Counter.
_MAX_COUNTED = 250_000
_MEMORY = "256MB"
_READ_ROWS = 65_536

# The rows without an id, in the order in which `PairIds.of` meets them: text columns path, caption.
Contents = Callable[[], Iterator[pa.RecordBatch]]


class PairIds:
    """Gives every pair its id. Batches come in pool order; close it when there are no more."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._seen: Counter[bytes] = Counter()
        self._num_met = 0
        self._numbers: Iterator[tuple[int, int]] | None = None
        self._next = (-1, 0)
        self._stack = ExitStack()

    def of(self, given: pa.Array, paths: pa.Array, captions: pa.Array) -> pa.Array:
        """Text ids of a batch: `given` where it is not empty."""
        if pc.all(pc.not_equal(given, "")).as_py():
            return given
        made = []
        rows = zip(given.to_pylist(), paths.to_pylist(), captions.to_pylist(), strict=True)
        for pair_id, path, caption in rows:
            if not pair_id:
                content = f"{path}\0{caption}".encode()
                number = self._number(content)
                if number > 1:
                    content += f"\0{number}".encode()
                pair_id = hashlib.sha256(content).hexdigest()[:32]
            made.append(pair_id)
        return pa.array(made, pa.string())

    def close(self) -> None:
        """Remove what was written to disk."""
        self._stack.close()

    def _number(self, content: bytes) -> int:
        """How many rows without an id had this content so far, this one included."""
        index = self._num_met
        self._num_met += 1
        if self._numbers is None:
            key = hashlib.sha256(content).digest()[:16]
            self._seen[key] += 1
            number = self._seen[key]
            if len(self._seen) > _MAX_COUNTED:
                self._numbers = _numbered(self._contents, self._stack)
                self._seen.clear()
            return number
        while self._next[0] < index:
            # Beyond the last repetition no index is met again.
            self._next = next(self._numbers, (1 << 62, 0))
        return self._next[1] if self._next[0] == index else 1


def _numbered(contents: Contents, stack: ExitStack) -> Iterator[tuple[int, int]]:
    """(index, number) of the rows without an id that are not the first of their content, in order
    of index."""
    import duckdb

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coembed-ids-")))
    database = duckdb.connect(
        str(folder / "ids.duckdb"),
        config={"memory_limit": _MEMORY, "temp_directory": str(folder), "threads": 2},
    )
    stack.callback(database.close)
    database.execute("CREATE TABLE content (row BIGINT, key UHUGEINT)")
    schema = pa.schema([("row", pa.int64()), ("path", pa.string()), ("caption", pa.string())])
    rows = pa.RecordBatchReader.from_batches(schema, _with_rows(contents, schema))
    database.register("incoming", rows)
    database.execute(
        "INSERT INTO content SELECT row, md5_number(path || chr(0) || caption) FROM incoming"
    )
    database.unregister("incoming")
    found = database.sql(
        "WITH repeated AS (SELECT key FROM content GROUP BY key HAVING count(*) > 1) "
        "SELECT row, number FROM (SELECT row, row_number() OVER (PARTITION BY key ORDER BY row) "
        "AS number FROM content WHERE key IN (FROM repeated)) WHERE number > 1 ORDER BY row"
    )
    for batch in found.to_arrow_reader(_READ_ROWS):
        yield from zip(*(cells.to_pylist() for cells in batch.columns), strict=True)


def _with_rows(contents: Contents, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in contents():
        rows = pa.array(range(start, start + batch.num_rows), pa.int64())
        yield pa.RecordBatch.from_arrays([rows, *batch.columns], schema=schema)
        start += batch.num_rows
