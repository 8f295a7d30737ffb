"""The curate stage: from the pool to curated pairs."""

from __future__ import annotations

from pathlib import Path

from coembed.config import Config
from coembed.curation.engine import curate
from coembed.curation.summary import Summary
from coembed.files import atomic_folder, write_receipt
from coembed.pairs.pool import open_pool
from coembed.stages.result import Result


def run(cfg: Config, *, pool: Path, out: Path) -> Result:
    """Curate the pool at `pool` into `out`: shards, manifest.parquet, summary.json, receipt.json.

    Raises DataError when the pool is missing or malformed, or when too few pairs are kept.
    """
    source = open_pool(pool)
    with atomic_folder(out) as folder:
        summary = curate(source, folder, cfg.curate, seed=cfg.seed)
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
    return Result("Curated pairs", _table(summary), receipt)


def _table(summary: Summary) -> tuple[tuple[str, str], ...]:
    share = summary.num_kept / summary.num_pairs
    rows = [
        ("pairs in", f"{summary.num_pairs:,}"),
        ("kept", f"{summary.num_kept:,} ({share:.1%})"),
    ]
    dropped = sorted(summary.dropped.items(), key=lambda drop: (-drop[1], drop[0]))
    rows += [(f"dropped: {reason}", f"{num:,}") for reason, num in dropped if num]
    if summary.num_captions_joined:
        rows.append(("captions kept of duplicates", f"{summary.num_captions_joined:,}"))
    rows.append(("items", f"{summary.num_items:,}"))
    for name, split in summary.splits.items():
        num = len(split.shards)
        shards = "1 shard" if num == 1 else f"{num} shards"
        rows.append((name, f"{split.num_items:,} items, {split.num_captions:,} captions, {shards}"))
    return tuple(rows)
