"""Pools of captions for the tests of filters that judge a whole pool: the real FilterPool over a
database with the rows that a test gives, so that no media need to be read."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from coembed.curation.database import Database
from coembed.curation.examination.part_cells import normal_caption
from coembed.curation.examination.workers import Workers
from coembed.curation.filters.base import Filter
from coembed.curation.pool_view import FilterPool, Surroundings, make_attributes
from coembed.curation.rows_table import Examined


class CaptionPool:
    """A pool of `rows`: caption, and `item` (a number; the row's own where it is not given).

    Any other key is an attribute. A context manager; `judge` may be called several times.
    """

    def __init__(self, folder: Path, rows: Sequence[dict[str, Any]], *, seed: int = 0) -> None:
        self._stack = ExitStack()
        folder.mkdir(parents=True, exist_ok=True)
        names = [n for n in dict.fromkeys(k for row in rows for k in row) if n not in _OWN]
        self._database = self._stack.enter_context(
            Database(folder, readable=(folder,), num_threads=1)
        )
        self._fill(rows, names)
        self._around = Surroundings(
            root=folder, pool=folder, runs=folder / "runs", scratch=folder / "scratch", seed=seed,
            attributes=tuple(names), max_media_bytes=0,
        )  # fmt: skip
        self._workers = self._stack.enter_context(Workers(1))

    def _fill(self, rows: Sequence[dict[str, Any]], names: list[str]) -> None:
        items = [row.get("item", number) for number, row in enumerate(rows)]
        numbers = {item: n for n, item in enumerate(sorted(set(items), key=item_id))}
        cells: dict[str, Any] = {
            "row": pa.array(range(len(rows)), pa.int64()),
            "pair_id": [f"p{number}" for number in range(len(rows))],
            "path": [f"media/{item}.jpg" for item in items],
            "caption": pa.array([row["caption"] for row in rows], pa.string()),
            "modality": [row.get("modality", "image") for row in rows],
            "given_split": pa.nulls(len(rows), pa.string()),
            "item": pa.array([numbers[item] for item in items], pa.int64()),
            "path_key": [str(_key(f"media/{item}.jpg")) for item in items],
            "caption_key": [str(_key(normal_caption(row["caption"]))) for row in rows],
            "num_bytes": pa.array([1] * len(rows), pa.int64()),
            "format": pa.array(["JPEG"] * len(rows), pa.string()),
            **{name: pa.array([1] * len(rows), pa.int64()) for name in ("width_px", "height_px")},
            "duration_s": pa.nulls(len(rows), pa.float64()),
            **{f"a{i}": pa.array([row.get(name) for row in rows]) for i, name in enumerate(names)},
        }
        self._database.execute(
            "CREATE TABLE rows AS SELECT * REPLACE (path_key::UUID AS path_key,"
            " caption_key::UUID AS caption_key) FROM given",
            given=pa.table(cells),
        )
        self._database.execute("CREATE TABLE drops (row BIGINT)")
        self._database.execute(
            "CREATE TABLE items AS SELECT item, unhex(item_id) AS item_id FROM given",
            given=pa.table(
                {
                    "item": pa.array(numbers.values(), pa.int64()),
                    "item_id": pa.array([item_id(item) for item in numbers], pa.string()),
                }
            ),
        )
        make_attributes(self._database, names)

    def drop(self, *rows: int) -> None:
        """Take rows out, as an earlier filter would."""
        self._database.execute(f"INSERT INTO drops VALUES {', '.join(f'({r})' for r in rows)}")

    def judge(self, chosen: Filter) -> dict[int, dict[str, Any]]:
        """What `check_pool` says of each row, nulls left out; the first reason stands."""
        view = FilterPool(
            "under_test", self._database, Examined((), {}), {}, self._around, self._workers
        )
        said: dict[int, dict[str, Any]] = {}
        with view:
            for table in chosen.check_pool(view):
                for cells in table.to_pylist():
                    told = said.setdefault(cells.pop("row"), {})
                    for name, cell in cells.items():
                        if cell is not None:
                            told.setdefault(name, cell)
        return said

    def reasons(self, chosen: Filter) -> dict[int, str]:
        """The drop reason of each dropped row."""
        said = self.judge(chosen)
        return {row: told["reason"] for row, told in said.items() if "reason" in told}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


_OWN = ("caption", "item", "modality")


def item_id(item: object) -> str:
    """The id that the pool gives an item."""
    return hashlib.sha256(str(item).encode()).hexdigest()


def _key(text: str) -> uuid.UUID:
    return uuid.UUID(bytes=hashlib.blake2b(text.encode(), digest_size=16).digest())
