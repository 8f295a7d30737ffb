"""Examine a pool: read its media, measure them, judge each pair; into parts that outlive a run.

What the engine calls:

    costs = Costs()
    job = Examination(spool, pool, settings.filters, max_pixels, max_media_bytes)
    for part in examine_pool(job, num_rows, num_workers, lasting=runs / "curate", costs=costs,
                             advance=progress.advance):
        ...  # a Parquet file of PART_ROWS rows (the last may have fewer), in pool order
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from coembed.curation.examination.item_cache import ItemCache
from coembed.curation.examination.part_cells import normal_caption
from coembed.curation.examination.part_examiner import FilterBuilder, PartJob, judges, measures
from coembed.curation.examination.part_task import READING, Costs, Mark, PartResult, PartTask
from coembed.curation.examination.parts import PART_ROWS, PartStore, part_schema, rows_hash
from coembed.curation.examination.sources import sources_hash
from coembed.curation.examination.supervise import Death, Supervised
from coembed.curation.filters.base import ColumnType, Filter
from coembed.curation.media.media import DECODE_REASONS
from coembed.curation.reading import INTAKE_REASONS
from coembed.curation.spool import Spool
from coembed.errors import ConfigError, ServiceError
from coembed.files import sha256_json

__all__ = [
    "PART_ROWS",
    "Costs",
    "Examination",
    "FilterBuilder",
    "declared_columns",
    "declared_reasons",
    "examine_pool",
    "normal_caption",
    "part_schema",
]

CRASH_REASONS = ("crashes_decoder", "timed_out")
# A worker that dies now and then is bad luck, or too little memory; one that always dies, and never
# of a file that can be named, is neither.
_MAX_UNEXPLAINED = 100


@dataclass(frozen=True)
class Examination:
    """Where the rows and media are, the filters in order, and the limits of one item."""

    spool: Path
    pool: Path
    filters: tuple[FilterBuilder, ...]
    max_pixels: int
    max_media_bytes: int
    seconds_per_item: float = 30.0


def declared_reasons(filters: Mapping[str, Filter]) -> list[str]:
    """Every drop reason that can occur, the engine's own first."""
    own = [*INTAKE_REASONS, "repeated_pair_id", *DECODE_REASONS, *CRASH_REASONS]
    given = [reason for chosen in filters.values() for reason in chosen.reasons]
    return list(dict.fromkeys([*own, *given]))


def declared_columns(filters: Mapping[str, Filter]) -> dict[str, ColumnType]:
    """The columns of all filters. Raises ConfigError when two filters declare the same one."""
    columns: dict[str, ColumnType] = {}
    for name, chosen in filters.items():
        for column, kind in chosen.columns.items():
            if column in columns:
                raise ConfigError(
                    f"the filter {name!r} declares the column {column!r}, as another one does",
                    hint="rename the column in one of the filters",
                )
            columns[column] = kind
    return columns


def examine_pool(
    job: Examination,
    num_rows: int,
    num_workers: int,
    *,
    lasting: Path,
    costs: Costs,
    advance: Callable[[int], None],
) -> Iterator[Path]:
    """The examined parts of all rows of the spool, in order: Parquet files below `lasting`.

    They have the columns of `part_schema` and stay as they are until the next examination. Parts
    of an earlier run are taken where rows, filters, code and files are the same; `lasting` also
    holds the cache of what was measured, by content. The parts' contents depend on neither, nor on
    `num_workers` (at least one worker process is started, whatever it says).

    An item that kills its worker process is dropped as `crashes_decoder`, one that takes longer
    than `job.seconds_per_item` as `timed_out`, when it does so again, alone, in a fresh process.
    `costs` is filled and `advance` told the number of rows on the way. Raises CoembedError as the
    filters do, and ServiceError when worker processes cannot be kept alive.
    """
    filters = {settings.name: settings.build() for settings in job.filters}
    working = tuple(s for s in job.filters if _works(filters[s.name]))
    columns = declared_columns(filters)
    cache_identity = _cache_identity(job, filters)
    store = PartStore(lasting / "examined", _parts_identity(job, filters, columns, cache_identity))
    starts = range(0, num_rows, PART_ROWS)
    store.prepare(len(starts))
    with ItemCache(lasting / "items", cache_identity) as cache:
        examiner = PartJob(
            spool=job.spool,
            pool=job.pool,
            filters=working,
            columns=columns,
            max_pixels=job.max_pixels,
            max_media_bytes=job.max_media_bytes,
            cache=cache.path,
            parts=store,
        )
        tasks = (
            PartTask(number, start, min(start + PART_ROWS, num_rows), is_whole=True)
            for number, start in enumerate(starts)
        )
        gather = _Gather(store, job.spool, num_rows)
        finished: set[int] = set()
        following = 0
        with Supervised[PartTask, PartResult](
            min(num_workers, len(starts)), examiner, seconds_per_item=job.seconds_per_item
        ) as workers:
            for task, result in workers.run(tasks, gather.mourn):
                cache.add(result.entries)
                costs.add(result.costs)
                advance(task.stop - task.start)
                if gather.take(task, result):
                    finished.add(task.number)
                while following in finished:
                    finished.remove(following)
                    yield store.path(following)
                    following += 1
        costs.num_deaths += gather.num_deaths


def _works(chosen: Filter) -> bool:
    return measures(chosen) or judges(chosen)


def _cache_identity(job: Examination, filters: Mapping[str, Filter]) -> str:
    """What measuring depends on."""
    measuring = {name: chosen for name, chosen in filters.items() if measures(chosen)}
    modules = [
        "coembed.curation.media.media",
        *(type(chosen).__module__ for chosen in measuring.values()),
    ]
    return sha256_json(
        [
            sources_hash(modules),
            # In order: the first fault that is found stands.
            [[name, chosen.measure_identity()] for name, chosen in measuring.items()],
            job.max_pixels,
        ]
    )


def _parts_identity(
    job: Examination,
    filters: Mapping[str, Filter],
    columns: Mapping[str, ColumnType],
    cache_identity: str,
) -> str:
    """What a part depends on, beside its rows and files. Where the pool lies is no part of it."""
    judging = [settings for settings in job.filters if judges(filters[settings.name])]
    modules = [type(filters[settings.name]).__module__ for settings in judging]
    return sha256_json(
        [
            cache_identity,
            sources_hash(["coembed.curation.examination.part_examiner", *modules]),
            [_dump(settings) for settings in judging],
            [[name, kind] for name, kind in columns.items()],
            job.max_media_bytes,
            job.seconds_per_item,
            PART_ROWS,
        ]
    )


def _dump(settings: FilterBuilder) -> object:
    return settings.model_dump(mode="json")


@dataclass
class _Pieces:
    """What is there of a part whose worker died: tables by their first row."""

    num_rows: int
    tables: dict[int, pa.Table] = field(default_factory=dict)


class _Gather:
    """Decides what to run after a death, and joins the pieces of parts that were taken apart."""

    def __init__(self, store: PartStore, spool: Path, num_rows: int) -> None:
        self._store = store
        self._spool = spool
        self._num_rows = num_rows
        self._broken: dict[int, _Pieces] = {}
        self._num_unexplained = 0
        self.num_deaths = 0

    def mourn(self, task: PartTask, death: Death) -> list[PartTask]:
        """The tasks to run instead of the one under which a worker died."""
        self.num_deaths += 1
        start, stop = self._bounds(task.number)
        self._broken.setdefault(task.number, _Pieces(stop - start))
        task = replace(task, is_whole=False)
        suspect, is_one = task.suspect, task.stop - task.start == 1
        if suspect is not None and (death.row == suspect.row or is_one):
            # It did so again, alone: the row is to blame. All before it went well.
            phase = death.phase if death.row == suspect.row else READING
            blamed = _mark(death, suspect.row, phase)
            if any(mark.row == blamed.row and mark.phase <= phase for mark in task.marks):
                raise ServiceError(
                    f"worker processes of the curation die at pool row {blamed.row + 1}, though "
                    f"nothing is done with it any more ({death.detail})",
                    hint="is there enough memory, and space for temporary files?",
                )
            task = replace(task, marks=(*task.marks, blamed), suspect=None)
            return _split(task, blamed.row + 1)
        if suspect is not None:
            self._explain(task)
        if suspect is None and task.start <= death.row < task.stop:
            return [replace(task, suspect=_mark(death, death.row, death.phase))]
        if is_one:
            return [replace(task, suspect=_mark(death, task.start, READING))]
        # No row can be named, or the named one was not to blame.
        return _split(replace(task, suspect=None), (task.start + task.stop) // 2)

    def take(self, task: PartTask, result: PartResult) -> bool:
        """Note a result; whether its part is finished."""
        if task.is_whole:
            return True
        if task.suspect is not None:
            self._explain(task)
        pieces = self._broken[task.number]
        assert result.table is not None
        pieces.tables[task.start] = result.table
        if sum(table.num_rows for table in pieces.tables.values()) < pieces.num_rows:
            return False
        del self._broken[task.number]
        whole = pa.concat_tables([pieces.tables[start] for start in sorted(pieces.tables)])
        rows = rows_hash(Spool(self._spool).rows(*self._bounds(task.number)))
        self._store.write(task.number, whole.combine_chunks(), rows)
        return True

    def _explain(self, task: PartTask) -> None:
        """What a worker seemed to die of did it no harm the second time."""
        self._num_unexplained += 1
        if self._num_unexplained > _MAX_UNEXPLAINED:
            assert task.suspect is not None
            raise ServiceError(
                f"worker processes of the curation died {self._num_unexplained} times for no "
                f"reason in the files they were at (the last time: {task.suspect.detail})",
                hint="is there enough memory? lower curate.num_workers or curate.max_pixels",
            )

    def _bounds(self, number: int) -> tuple[int, int]:
        return number * PART_ROWS, min((number + 1) * PART_ROWS, self._num_rows)


def _split(task: PartTask, middle: int) -> list[PartTask]:
    parts = [replace(task, stop=middle), replace(task, start=middle)]
    return [part for part in parts if part.start < part.stop]


def _mark(death: Death, row: int, phase: int) -> Mark:
    reason = "timed_out" if death.timed_out else "crashes_decoder"
    return Mark(row, phase, reason, death.detail)
