"""The engine: from a pool to shards, a manifest and a summary.

The pool is written out once as a memory-mapped file of rows; worker processes examine runs of rows;
this process keeps light records of all of them, asks the filters that need the whole pool, assigns
the splits and plans the shards; worker processes write those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from coembed.curation.examine import Examination, Examiner, FilterBuilder, declared_reasons
from coembed.curation.filters.base import Filter, ScoreType
from coembed.curation.ledger import Codes, Ledger
from coembed.curation.manifest import write_manifest
from coembed.curation.pack import Packer, ShardPlan, plan_shards
from coembed.curation.settings import CurateSettings
from coembed.curation.split import NO_SPLIT, Assignment, assign_splits
from coembed.curation.spool import BATCH_ROWS, Spool, write_spool
from coembed.curation.summary import Summary, check_enough, summarise
from coembed.curation.workers import Workers, choose_num_workers
from coembed.errors import DataError
from coembed.files import write_json
from coembed.pairs.pool import Pool
from coembed.pairs.shards import Shard
from coembed.pairs.tables import cast as cast_cells
from coembed.progress import track, tracker
from coembed.types import SPLITS

MANIFEST = "manifest.parquet"
SUMMARY = "summary.json"
_TASK_ROWS = 512
# Two worker processes take longer to start than this process takes for so few.
_FEW_ROWS = 1024


def curate(pool: Pool, out: Path, settings: CurateSettings, *, seed: int) -> Summary:
    """Curate `pool` into the existing, empty folder `out`; the caller writes the receipt.

    Raises DataError when the pool has no row, lacks a group_by column, changes under way, or keeps
    fewer than `min_pairs` pairs or no training item.
    """
    _check_columns(pool, settings.split.group_by)
    spool_path = out / ".spool.arrow"
    num_rows = write_spool(spool_path, pool.schema, pool.batches(max_rows=BATCH_ROWS))
    if not num_rows:
        raise DataError(
            f"the tables in {pool.folder / 'pairs'} hold no pairs",
            hint="run `coembed demo-pool` or `coembed ingest SOURCE`",
        )
    builders = cast("tuple[FilterBuilder, ...]", settings.filters)
    filters = {s.name: b.build() for s, b in zip(settings.filters, builders, strict=True)}
    spool = Spool(spool_path)

    job = Examination(
        spool_path, pool.folder, builders, settings.max_pixels, settings.max_media_bytes
    )
    packer = Packer(spool_path, pool.folder, out, settings.max_media_bytes)
    few = num_rows <= _FEW_ROWS
    with Workers(1 if few else choose_num_workers(settings.num_workers)) as workers:
        ledger = _examine(job, num_rows, filters, workers)
        codes = ledger.codes()
        ledger.drop_repeated_ids(spool)
        for chosen in filters.values():
            ledger.apply_pool_filter(chosen, spool, codes)
        ledger.settle_duplicates(codes.items)
        check_enough(ledger, spool, settings.min_pairs)

        owners = ledger.owner_items(codes.items)
        splits = _assign(ledger, spool, codes, owners, settings, seed)
        plans = plan_shards(
            items=owners,
            item_ids=codes.item_ids,
            splits=splits.splits,
            used=ledger.used,
            kept=ledger.kept,
            num_bytes=ledger.num_bytes,
            limits=settings.shards,
        )
        shards = _pack(packer, list(plans), workers)
    write_manifest(out / MANIFEST, spool=spool, ledger=ledger, codes=codes, splits=splits)
    summary = summarise(ledger, owners, splits, shards)
    if not summary.splits["train"].num_items:
        raise DataError(
            f"none of the {summary.num_kept:,} kept pairs is in the train split",
            hint="leave the pool's split column empty for the pairs to train on, or lower "
            "curate.split.val and curate.split.test",
        )
    write_json(out / SUMMARY, summary.as_dict())
    spool_path.unlink()
    return summary


def _check_columns(pool: Pool, names: Sequence[str]) -> None:
    for name in names:
        if name not in pool.attributes:
            have = ", ".join(map(repr, pool.attributes)) or "no columns beside path and caption"
            raise DataError(
                f"curate.split.group_by names {name!r}, but the pool has {have}",
                hint="name a column of the pool, or set curate.split.group_by to []",
            )


def _examine(
    job: Examination, num_rows: int, filters: Mapping[str, Filter], workers: Workers
) -> Ledger:
    scores: dict[str, ScoreType] = {}
    for chosen in filters.values():
        scores.update(chosen.scores)
    ledger = Ledger(num_rows, declared_reasons(filters), scores)
    tasks = [(at, min(at + _TASK_ROWS, num_rows)) for at in range(0, num_rows, _TASK_ROWS)]
    progress = tracker(total=num_rows, label="examine", unit="pairs")
    try:
        for found in workers.map(Examiner(job), tasks):
            ledger.add(found)
            progress.advance(len(found.num_bytes))
    finally:
        progress.close()
    return ledger


def _assign(
    ledger: Ledger,
    spool: Spool,
    codes: Codes,
    owners: NDArray[np.int64],
    settings: CurateSettings,
    seed: int,
) -> Assignment:
    known = pa.array(SPLITS)
    places = [pc.index_in(batch.column("split"), value_set=known) for batch in spool.batches()]
    given = np.concatenate([pc.fill_null(p, NO_SPLIT).to_numpy().astype(np.int8) for p in places])
    return assign_splits(
        items=owners,
        item_keys=codes.item_ids,
        groups={name: _values(spool, name) for name in settings.split.group_by},
        given=given,
        used=ledger.used,
        seed=seed,
        val=settings.split.val,
        test=settings.split.test,
    )


def _values(spool: Spool, name: str) -> tuple[NDArray[np.int64], list[str]]:
    """Numbers [rows] of the values of a column (-1: null), and the values as text."""
    places: dict[str, int] = {}
    codes: list[int] = []
    for batch in spool.batches():
        cells = cast_cells(batch.column(name), pa.string()).to_pylist()
        codes.extend(places.setdefault(cell, len(places)) if cell else -1 for cell in cells)
    return np.array(codes, np.int64), list(places)


def _pack(packer: Packer, plans: list[ShardPlan], workers: Workers) -> dict[str, list[Shard]]:
    done = track(workers.map(packer, plans), total=len(plans), label="pack", unit="shards")
    shards: dict[str, list[Shard]] = {split: [] for split in SPLITS}
    for plan, shard in zip(plans, done, strict=True):
        shards[plan.split].append(shard)
    return shards
