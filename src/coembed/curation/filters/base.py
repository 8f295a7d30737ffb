"""What a filter is: it measures media, judges pairs, judges the whole pool, or any of these.

A filter is one module here: `class Settings(ComponentSettings)` with `build() -> Filter`, and the
filter. Worker processes call `measure` once an item (the outcome is cached by content hash) and
`judge` once a pair, in the order of the settings; then the parent calls `check_pool` of each
filter, in the same order. A filter must be a pure function of what it is given: the outcome may not
depend on the number of workers, on the order in which they finish, or on an earlier run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import pyarrow as pa

from coembed.curation.candidate import Candidate
from coembed.curation.media.media import Media

ColumnType = Literal["int64", "float64", "string", "binary"]
Cell = int | float | str | bytes

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one filter says of one pair. `reason` is None when the pair may stay.

    `columns` are cells of columns that the filter declares. `caption`, when it is not None, takes
    the place of the pair's caption, for the filters that follow, the manifest and the shards.
    """

    reason: str | None = None
    detail: str = ""
    columns: Mapping[str, Cell] = field(default_factory=dict)
    caption: str | None = None


class PoolView(Protocol):
    """The pool as a filter's `check_pool` sees it: SQL over the pairs that are kept so far.

    Views for `query` and `execute` (DuckDB's SQL; it spills to disk, so that a query over any
    number of rows keeps to the engine's memory):

    - `kept`: the pairs that no filter has dropped so far. `row` BIGINT (pool order, from 0),
      `pair_id`, `path`, `caption` (as it will be packed), `modality`, `given_split` (null: none),
      `item` BIGINT (equal numbers mean the same media bytes; numbered in order of item ids),
      `item_id` (SHA-256, hexadecimal), `path_key`, `caption_key` (UUID; captions are equal up to
      case and white space), `num_bytes`, `format`, `width_px`, `height_px`, `duration_s`, and every
      column that any listed filter declares, those with a leading underscore included.
    - `attributes`: `row` and the pool's own further columns, for all rows.
    """

    @property
    def root(self) -> Path:
        """The project's folder: relative paths in settings start here."""

    @property
    def pool(self) -> Path:
        """The pool's folder: `path` is relative to it."""

    @property
    def scratch(self) -> Path:
        """An empty folder for this filter, removed when it has run."""

    @property
    def lasting(self) -> Path:
        """A folder for this filter that outlives runs: caches by content, checkpoints."""

    @property
    def seed(self) -> int:
        """The run's seed."""

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """The pool's further columns."""

    def query(self, sql: str, /, **tables: pa.Table) -> Iterator[pa.RecordBatch]:
        """The rows of a SELECT, streamed. `tables` can be used in it under their names. Without
        ORDER BY their order is undefined."""

    def execute(self, sql: str, /, **tables: pa.Table) -> None:
        """Run a statement, such as CREATE TEMP TABLE; such tables are gone after the filter."""

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """`function` of each task in the worker processes, results in the order of the tasks.
        Both must be picklable."""

    def read_media(self, path: str) -> bytes:
        """The media bytes at `path`. Raises DataError when they cannot be read any more."""


class Filter:
    """Base of all filters.

    `reasons` are the drop reasons it may give. `columns` declares what it adds to the manifest; a
    column that begins with an underscore stays out of it. A column called `<filter>_doubt` holds
    0 (sound) to 1 (just short of being dropped) and ranks the most doubtful kept pairs in the
    report and in `coembed pairs review`. With `masks` the filter's `judge` takes out of captions
    what may not be shown: the manifest shows dropped pairs too, so it is asked about these as well,
    for its rewriting alone.

    `notes`: sentences about the pool as a whole that `check_pool` leaves behind: why nothing was
    dropped, how sure the filter is. The run prints them; summary.json and the report repeat them,
    so they may depend on nothing but the pool and the settings.
    """

    reasons: ClassVar[tuple[str, ...]]
    columns: ClassVar[Mapping[str, ColumnType]] = {}
    masks: ClassVar[bool] = False
    notes: Sequence[str] = ()

    def measure(self, media: Media) -> Mapping[str, Cell]:  # noqa: ARG002
        """What can be said of the media bytes alone: cells of declared columns.

        Cached by content, so it may depend on no threshold. Raises Undecodable where the media
        cannot be decoded, which drops the pair.
        """
        return {}

    def judge(self, candidate: Candidate) -> Verdict:  # noqa: ARG002
        """Judge one pair by its caption and by what was measured."""
        return Verdict()

    def check_pool(self, pool: PoolView) -> Iterator[pa.Table]:  # noqa: ARG002
        """Judge all kept pairs together: tables with a column `row` and any of

        - `reason`, `detail`: drop that row (a null reason drops nothing); `detail` names what was
          found, the value and the limit.
        - `duplicate_of`: the row that it duplicates. `keep_caption`: give its caption to that
          row's item, as a further caption.
        - `same_split_as`: a row that must be in the same split, dropped or not.
        - columns that the filter declares.

        A row may come up several times; its first reason stands.
        """
        yield from ()

    def measure_identity(self) -> Any:
        """JSON of the settings that `measure` depends on, where there are any."""
        return None


def drop_table(rows: Sequence[tuple[int, str, str]]) -> pa.Table:
    """A table for `check_pool` of (row, reason, detail)."""
    columns: list[Sequence[Any]] = list(zip(*rows, strict=True)) if rows else [(), (), ()]
    return pa.table(
        {
            "row": pa.array(columns[0], pa.int64()),
            "reason": pa.array(columns[1], pa.string()),
            "detail": pa.array(columns[2], pa.string()),
        }
    )
