"""A PoolView over a few rows, on DuckDB: for filters' `check_pool` without the engine."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import duckdb
import pyarrow as pa
from PIL import Image

T = TypeVar("T")
R = TypeVar("R")


class SmallPool:
    """A PoolView over rows of (path, caption) under `root / "pool"`.

    Paths ending in .wav are audio. `num_read` counts what was read of the media.
    """

    def __init__(self, root: Path, rows: list[tuple[str, str]]) -> None:
        self.root, self.pool, self.seed = root, root / "pool", 42
        self.attribute_names: tuple[str, ...] = ()
        self.lasting = root / "lasting"
        self.lasting.mkdir(exist_ok=True)
        media = {path: (self.pool / path).read_bytes() for path, _ in rows}
        ids = {path: hashlib.sha256(data).hexdigest() for path, data in media.items()}
        order = {item_id: number for number, item_id in enumerate(sorted(set(ids.values())))}
        sizes = {path: _size(data) for path, data in media.items()}
        self._connection = duckdb.connect()
        self._connection.register(
            "kept",
            pa.table(
                {
                    "row": list(range(len(rows))),
                    "path": [path for path, _ in rows],
                    "caption": [caption for _, caption in rows],
                    "modality": ["audio" if path.endswith(".wav") else "image" for path, _ in rows],
                    "item": [order[ids[path]] for path, _ in rows],
                    "item_id": [ids[path] for path, _ in rows],
                    "num_bytes": [len(media[path]) for path, _ in rows],
                    "width_px": [sizes[path][0] for path, _ in rows],
                    "height_px": [sizes[path][1] for path, _ in rows],
                }
            ),
        )
        self.num_read = 0

    @property
    def scratch(self) -> Path:
        folder = self.root / "scratch"
        folder.mkdir(exist_ok=True)
        return folder

    def query(self, sql: str, /, **tables: pa.Table) -> Iterator[pa.RecordBatch]:
        for name, table in tables.items():
            self._connection.register(name, table)
        yield from self._connection.sql(sql).to_arrow_table().to_batches(max_chunksize=100)

    def execute(self, sql: str, /, **tables: pa.Table) -> None:
        assert not tables
        self._connection.execute(sql)

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        return map(function, tasks)

    def read_media(self, path: str) -> bytes:
        self.num_read += 1
        return (self.pool / path).read_bytes()


def _size(media: bytes) -> tuple[int, int]:
    try:
        return Image.open(io.BytesIO(media)).size
    except OSError:
        return (0, 0)
