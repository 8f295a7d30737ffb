"""The curate stage: from the pool to curated pairs."""

from __future__ import annotations

from pathlib import Path

from coembed.config import Config
from coembed.curation.engine import Timings, curate
from coembed.curation.summary import Summary
from coembed.files import atomic_folder, write_receipt
from coembed.locking import exclusive
from coembed.pairs.pool import open_pool
from coembed.stages.result import Result

_NUM_SLOWEST = 3


def run(cfg: Config, *, root: Path, pool: Path, out: Path, runs: Path, overrides: Path) -> Result:
    """Curate the pool at `pool` into `out`: shards, manifest.parquet, summary.json, report.html,
    receipt.json.

    `root` is the project's folder, where relative paths in the settings start. `runs` holds what
    outlives the run (examined parts, caches, and how long it took: curate/costs.json).
    `overrides` is a file of people's decisions, which need not be there. Raises DataError when the
    pool or the overrides are missing or malformed, or when too few pairs are kept.
    """
    timings = Timings()
    with (
        # Runs of two worktrees share what outlives them, and two runs of one project fill one
        # folder: the second begins once the first has left.
        exclusive(runs / "curate" / "lock", doing="curating", wait=True),
        atomic_folder(out) as folder,
    ):
        source = open_pool(pool)
        summary = curate(
            source, folder, cfg.curate,
            seed=cfg.seed, root=root, runs=runs, overrides=overrides, timings=timings,
        )  # fmt: skip
        from coembed.curation.report.report import (
            write_report,  # its template engine is slow to import
        )

        with timings.of("report"):
            write_report(folder, pool=pool, settings=cfg.curate)
        receipt = {
            "stage": "curate",
            "num_items": summary.num_items,
            "num_captions": summary.num_captions,
            "splits": {
                name: {
                    "num_items": split.num_items,
                    "num_captions": split.num_captions,
                    "shards": [shard.as_dict() for shard in split.shards],
                }
                for name, split in summary.splits.items()
            },
        }
        write_receipt(folder, receipt)
    return Result("Curated pairs", _table(summary, timings), receipt)


def _table(summary: Summary, timings: Timings) -> tuple[tuple[str, str], ...]:
    share = summary.num_kept / summary.num_pairs
    rows = [
        ("pairs in", f"{summary.num_pairs:,}"),
        ("kept", f"{summary.num_kept:,} ({share:.1%})"),
    ]
    dropped = sorted(summary.dropped.items(), key=lambda drop: (-drop[1], drop[0]))
    rows += [(f"dropped: {reason}", f"{num:,}") for reason, num in dropped if num]
    if kept := summary.overrides["num_kept"]:
        rows.append(("kept by overrides.csv", f"{kept:,}"))
    if summary.unknown_overrides:
        ids = summary.unknown_overrides
        some = ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
        rows.append(("overrides of no pair here", f"{len(ids):,}: {some}"))
    if summary.num_captions_joined:
        rows.append(("captions kept of duplicates", f"{summary.num_captions_joined:,}"))
    rows.append(("items", f"{summary.num_items:,}"))
    for name, split in summary.splits.items():
        num = len(split.shards)
        shards = "1 shard" if num == 1 else f"{num} shards"
        rows.append((name, f"{split.num_items:,} items, {split.num_captions:,} captions, {shards}"))
    slowest = sorted(timings.steps.items(), key=lambda step: -step[1])[:_NUM_SLOWEST]
    rows.append(("slowest", ", ".join(f"{step} {seconds:,.1f} s" for step, seconds in slowest)))
    return tuple(rows)
