"""Pools of texts, and what examining them gives, for the tests of the curation's examination."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from coembed.curation.examination.examine import Costs, Examination, FilterBuilder, examine_pool
from coembed.curation.spool import BATCH_ROWS, write_spool
from coembed.pairs.pool import open_pool


def write_pool(folder: Path, rows: Sequence[dict[str, Any]], media: dict[str, bytes]) -> None:
    """A pool of `rows` (path, caption, ...), of modality text unless a row says otherwise."""
    (folder / "pairs").mkdir(parents=True, exist_ok=True)
    for path, data in media.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    told = [{"modality": "text", **row} for row in rows]
    names = dict.fromkeys(name for row in told for name in row)
    table = pa.table({name: [row.get(name) for row in told] for name in names})
    pq.write_table(table, folder / "pairs" / "a.parquet")


class Examined:
    """A pool's examined parts, in one table, and what the examination cost."""

    def __init__(
        self,
        pool: Path,
        lasting: Path,
        filters: Sequence[FilterBuilder] = (),
        *,
        num_workers: int = 1,
        seconds_per_item: float = 30.0,
        max_media_bytes: int = 10**6,
        num_parts: int | None = None,
    ) -> None:
        lasting.mkdir(parents=True, exist_ok=True)
        spool = lasting / "spool.arrow"
        opened = open_pool(pool)
        num_rows = write_spool(spool, opened.schema, opened.batches(max_rows=BATCH_ROWS))
        job = Examination(spool, pool, tuple(filters), 10**6, max_media_bytes, seconds_per_item)
        self.costs = Costs()
        self.num_advanced = 0
        parts = examine_pool(
            job, num_rows, num_workers, lasting=lasting, costs=self.costs, advance=self._advance
        )
        self.parts = [next(parts) for _ in range(num_parts)] if num_parts else list(parts)
        self.table = pa.concat_tables([pq.read_table(part) for part in self.parts])

    def _advance(self, num: int) -> None:
        self.num_advanced += num

    def column(self, name: str) -> list[Any]:
        """The cells of a column, in pool order."""
        return self.table[name].to_pylist()  # type: ignore[no-any-return]

    @property
    def reasons(self) -> dict[int, str]:
        """The drop reasons by row, of those that are dropped."""
        return {row: reason for row, reason in enumerate(self.column("reason")) if reason}
