"""The pairs of a pool that are judged by picture and caption, each (item, caption) once.

They are in the order of item ids and captions, never of rows, so that what is learnt from them does
not depend on how the pool's tables are sorted. Item ids are SHA-256 hashes: the first so many items
are a random sample, the same one on every run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coembed.curation.filters.base import PoolView

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class PairBatch:
    """A run of judged pairs: the first one's place, the number of each item, its path, captions."""

    start: int
    numbers: Numbers
    paths: list[str]
    captions: list[str]


class JudgedPairs:
    """The images of a pool and their captions. Items are numbered from 0 in order of item ids."""

    def __init__(self, pool: PoolView) -> None:
        self._pool = pool
        pool.execute(
            "CREATE TEMP TABLE judged_items AS SELECT item, item_id, min(path) AS path, "
            "row_number() OVER (ORDER BY item) - 1 AS number "
            "FROM kept WHERE modality = 'image' GROUP BY item, item_id"
        )
        pool.execute(
            "CREATE TEMP TABLE judged AS SELECT item, caption, "
            "row_number() OVER (ORDER BY item, caption) - 1 AS place "
            "FROM (SELECT DISTINCT item, caption FROM kept WHERE modality = 'image')"
        )
        self.num_items = self._count("judged_items")
        self.num_pairs = self._count("judged")

    def batches(self, *, num_items: int | None = None) -> Iterator[PairBatch]:
        """All pairs in order; of the first `num_items` items only, where that is given."""
        where = "" if num_items is None else f"WHERE number < {num_items}"
        start = 0
        for batch in self._pool.query(
            "SELECT number, path, caption FROM judged JOIN judged_items USING (item) "
            f"{where} ORDER BY place"
        ):
            yield PairBatch(
                start,
                batch.column("number").to_numpy().astype(np.int64),
                batch.column("path").to_pylist(),
                batch.column("caption").to_pylist(),
            )
            start += batch.num_rows

    def items(self, *, num_items: int | None = None) -> Iterator[tuple[list[str], list[str]]]:
        """Item ids and paths of all items, or the first `num_items`, in order."""
        where = "" if num_items is None else f"WHERE number < {num_items}"
        for batch in self._pool.query(
            f"SELECT item_id, path FROM judged_items {where} ORDER BY number"
        ):
            yield batch.column("item_id").to_pylist(), batch.column("path").to_pylist()

    def num_items_within(self, max_pairs: int) -> int:
        """How many of the first items have at most `max_pairs` pairs together."""
        if self.num_pairs <= max_pairs:
            return self.num_items
        (batch,) = self._pool.query(
            "SELECT min(number) AS num FROM judged JOIN judged_items USING (item) "
            f"WHERE place >= {max_pairs}"
        )
        return int(batch.column("num")[0].as_py())

    def rows(self) -> Iterator[tuple[Numbers, Numbers]]:
        """Rows of the pool, and the place of each one's pair, in the order of rows."""
        for batch in self._pool.query(
            "SELECT row, place FROM kept JOIN judged USING (item, caption) "
            "WHERE modality = 'image' ORDER BY row"
        ):
            yield (
                batch.column("row").to_numpy().astype(np.int64),
                batch.column("place").to_numpy().astype(np.int64),
            )

    def content_hash(self) -> str:
        """SHA-256 over all item ids and captions."""
        digest = hashlib.sha256()
        for batch in self._pool.query(
            "SELECT item_id, caption FROM judged JOIN judged_items USING (item) ORDER BY place"
        ):
            for item_id, caption in zip(
                batch.column("item_id").to_pylist(),
                batch.column("caption").to_pylist(),
                strict=True,
            ):
                text = caption.encode(errors="surrogatepass")
                digest.update(f"{item_id}{len(text)}:".encode() + text)
        return digest.hexdigest()

    def _count(self, table: str) -> int:
        (batch,) = self._pool.query(f"SELECT count(*) AS num FROM {table}")
        return int(batch.column("num")[0].as_py())
