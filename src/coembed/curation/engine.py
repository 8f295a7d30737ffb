"""The engine: from a pool to shards, a manifest and a summary.

The pool is written out once as a file of rows; worker processes examine them into parts that
outlive the run; this process judges the pool as a whole in a database that spills to disk, assigns
the splits and plans the shards; worker processes write those. Nothing here grows with the pool but
files in `runs/curate`.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from coembed.curation.database import Database
from coembed.curation.examination.examine import (
    CRASH_REASONS,
    Costs,
    Examination,
    FilterBuilder,
    declared_columns,
    declared_reasons,
    examine_pool,
)
from coembed.curation.examination.workers import Workers, choose_num_workers
from coembed.curation.filters.base import Filter
from coembed.curation.ledger import Ledger
from coembed.curation.manifest import Judged, write_manifest
from coembed.curation.media.undecodable import DECODE_REASONS
from coembed.curation.overrides import OVERRIDE_REASON, read_overrides
from coembed.curation.pack import Packer, place_rows, plan_shards
from coembed.curation.pool_view import FilterPool, Surroundings, make_attributes
from coembed.curation.reading import INTAKE_REASONS
from coembed.curation.rows_table import Examined, load_rows, number_items
from coembed.curation.settings import CurateSettings
from coembed.curation.settle import mapped, settle_duplicates
from coembed.curation.spare import REJUDGED, judge_spared
from coembed.curation.split import assign_splits
from coembed.curation.spool import BATCH_ROWS, Spool, write_spool
from coembed.curation.summary import Summary, check_enough, check_training, summarise
from coembed.errors import DataError
from coembed.files import write_json
from coembed.pairs.pool import Pool
from coembed.pairs.shards import Shard
from coembed.progress import tracker
from coembed.types import SPLITS

MANIFEST = "manifest.parquet"
SUMMARY = "summary.json"
COSTS = "costs.json"
# What no filter says and no person can overrule: there is nothing to keep.
ENGINE_REASONS = (*INTAKE_REASONS, *DECODE_REASONS, *CRASH_REASONS)
# Two worker processes take longer to start than this process takes for so few.
_FEW_ROWS = 1024


@dataclass
class Timings:
    """Seconds by step, in order. They differ from run to run and go into no output.

    `examine` holds what the examination says of itself, all workers together.
    """

    steps: dict[str, float] = field(default_factory=dict)
    examine: Costs = field(default_factory=Costs)

    @contextmanager
    def of(self, step: str) -> Iterator[None]:
        """Time a step."""
        start = time.monotonic()
        yield
        self.steps[step] = self.steps.get(step, 0.0) + time.monotonic() - start

    def as_dict(self) -> dict[str, Any]:
        """For costs.json."""
        rounded = {name: round(seconds, 3) for name, seconds in self.steps.items()}
        return {"steps_s": rounded, "examine": vars(self.examine)}


def curate(
    pool: Pool,
    out: Path,
    settings: CurateSettings,
    *,
    seed: int,
    root: Path,
    runs: Path,
    overrides: Path | None = None,
    timings: Timings | None = None,
) -> Summary:
    """Curate `pool` into the existing, empty folder `out`; the caller writes the receipt.

    `root` is the project's folder, `runs` the one for what outlives a run (of one run at a time:
    the caller holds a lock), `overrides` what people decided about single pairs. `timings` is
    filled on the way. Raises DataError when the pool has no row, lacks a group_by column, changes
    under way, or keeps fewer than `min_pairs` pairs or no training item, and when the overrides are
    malformed.
    """
    _check_columns(pool, settings.split.group_by)
    decided = read_overrides(overrides) if overrides else read_overrides(root / "overrides.csv")
    timings = timings or Timings()
    builders = cast("tuple[FilterBuilder, ...]", settings.filters)
    filters = {builder.name: builder.build() for builder in builders}
    columns = declared_columns(filters)
    num_workers = choose_num_workers(settings.num_workers)

    lasting = runs / "curate"
    with _scratch_folder(lasting / "scratch") as scratch:
        with timings.of("read tables"):
            num_rows = write_spool(
                scratch / "spool.arrow", pool.schema, pool.batches(max_rows=BATCH_ROWS)
            )
        if not num_rows:
            raise DataError(
                f"the tables in {pool.folder / 'pairs'} hold no pairs",
                hint="run `coembed demo-pool` or `coembed ingest SOURCE`",
            )
        spool = Spool(scratch / "spool.arrow")
        attributes = tuple(spool.attributes)
        with timings.of("examine"):
            job = Examination(
                scratch / "spool.arrow",
                pool.folder,
                builders,
                settings.max_pixels,
                settings.max_media_bytes,
                settings.seconds_per_item,
            )
            examined = Examined(_examine(job, num_rows, num_workers, lasting, timings), columns)

        few = num_rows <= _FEW_ROWS
        with (
            Workers(1 if few else num_workers) as workers,
            Database(
                scratch,
                readable=[lasting],
                num_threads=num_workers,
                num_columns=len(attributes) + len(columns),
            ) as database,
        ):
            with timings.of("load"):
                examined.make_view(database)
                items = mapped(scratch / "items", num_rows, np.int64)
                num_items = number_items(database, items)
                load_rows(
                    database,
                    spool,
                    examined,
                    items,
                    attributes=list(spool.attributes.values()),
                    group_by=[spool.attributes[name] for name in settings.split.group_by],
                )
                make_attributes(database, list(spool.attributes.values()))
                ledger = Ledger(database, ENGINE_REASONS)
                unknown = ledger.take_overrides(decided)
                ledger.drop_examined()
                rejudged = judge_spared(database, spool, examined, filters)
            around = Surroundings(
                root, pool.folder, runs, scratch, seed,
                tuple(spool.attributes.values()), settings.max_media_bytes,
            )  # fmt: skip
            found = _check_pool(filters, ledger, examined, around, workers, timings)
            check_enough(database, num_rows, settings.min_pairs)
            with timings.of("split"):
                standing = settle_duplicates(database, items, scratch)
                splits = assign_splits(
                    database, standing, settings.split,
                    num_items=num_items, seed=seed, folder=scratch,
                )  # fmt: skip
                place_rows(database, standing, splits)
            check_training(database, standing)
            with timings.of("pack"):
                packer = Packer(pool.folder, out, settings.max_media_bytes, attributes)
                shards = _pack(packer, database, settings, workers)
            with timings.of("manifest"):
                public = {name: kind for name, kind in columns.items() if name[0] != "_"}
                found = {REJUDGED: rejudged, **found}
                judged = Judged(database, spool, examined, found, public, standing, splits)
                progress = tracker(total=num_rows, label="manifest", unit="pairs")
                try:
                    write_manifest(out / MANIFEST, judged, advance=progress.advance)
                finally:
                    progress.close()
            summary = summarise(
                database,
                standing,
                splits,
                shards,
                reasons=[*declared_reasons(filters), OVERRIDE_REASON],
                attributes=attributes,
                unknown_overrides=unknown,
                notes={name: tuple(judge.notes) for name, judge in filters.items() if judge.notes},
            )
    write_json(out / SUMMARY, summary.as_dict())
    write_json(lasting / COSTS, timings.as_dict())
    return summary


def _check_columns(pool: Pool, names: Sequence[str]) -> None:
    for name in names:
        if name not in pool.attributes:
            have = ", ".join(map(repr, pool.attributes)) or "no columns beside path and caption"
            raise DataError(
                f"curate.split.group_by names {name!r}, but the pool has {have}",
                hint="name a column of the pool, or set curate.split.group_by to []",
            )


@contextmanager
def _scratch_folder(folder: Path) -> Iterator[Path]:
    """An empty folder, gone afterwards. What a killed run left there goes first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _examine(
    job: Examination, num_rows: int, num_workers: int, lasting: Path, timings: Timings
) -> tuple[Path, ...]:
    progress = tracker(total=num_rows, label="examine", unit="pairs")
    try:
        return tuple(
            examine_pool(
                job,
                num_rows,
                num_workers,
                lasting=lasting,
                costs=timings.examine,
                advance=progress.advance,
            )
        )
    finally:
        progress.close()


def _check_pool(
    filters: Mapping[str, Filter],
    ledger: Ledger,
    examined: Examined,
    around: Surroundings,
    workers: Workers,
    timings: Timings,
) -> dict[str, tuple[str, ...]]:
    """Let every filter judge the pool. Returns the columns that they found, by table."""
    found: dict[str, tuple[str, ...]] = {}
    for place, (name, judge) in enumerate(filters.items()):
        if type(judge).check_pool is Filter.check_pool:
            continue
        with (
            timings.of(f"check {name}"),
            FilterPool(name, ledger.database, examined, found, around, workers) as view,
        ):
            ledger.apply(place, name, judge, judge.check_pool(view))
        for note in judge.notes:
            print(f"{name}: {note}", file=sys.stderr, flush=True)
        if judge.columns:
            found[f"found_{place}"] = tuple(judge.columns)
    return found


def _pack(
    packer: Packer, database: Database, settings: CurateSettings, workers: Workers
) -> dict[str, list[Shard]]:
    num_items = database.value("SELECT count(DISTINCT owner) FROM placed")
    progress = tracker(total=num_items, label="pack", unit="items")
    shards: dict[str, list[Shard]] = {split: [] for split in SPLITS}
    plans = plan_shards(database, settings.shards, num_attributes=len(packer.attributes))
    try:
        for shard in workers.map(packer, plans):
            shards[shard.name.rpartition("-")[0]].append(shard)
            progress.advance(shard.num_samples)
    finally:
        progress.close()
    return shards
