"""What curation did, in numbers: summary.json, the stage's table, and the error when too little is
left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coembed.curation.ledger import Ledger
from coembed.curation.split import SPLIT_REASONS, Assignment
from coembed.curation.spool import Spool
from coembed.errors import DataError
from coembed.pairs.shards import Shard
from coembed.types import SPLITS


@dataclass(frozen=True)
class SplitSummary:
    """Items, captions and shards of one split."""

    num_items: int
    num_captions: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Summary:
    """Counts of one curation. `dropped` has every reason that can occur, zeros included."""

    num_pairs: int
    num_kept: int
    num_items: int
    num_captions: int
    num_captions_joined: int
    dropped: dict[str, int]
    splits: dict[str, SplitSummary]
    split_reasons: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """For summary.json."""
        return {
            "num_pairs": self.num_pairs,
            "num_kept": self.num_kept,
            "num_dropped": self.num_pairs - self.num_kept,
            "num_items": self.num_items,
            "num_captions": self.num_captions,
            "num_captions_joined": self.num_captions_joined,
            "dropped": self.dropped,
            "splits": {
                name: {"num_items": s.num_items, "num_captions": s.num_captions}
                for name, s in self.splits.items()
            },
            "split_reasons": self.split_reasons,
        }


def summarise(
    ledger: Ledger,
    owners: NDArray[np.int64],
    splits: Assignment,
    shards: dict[str, list[Shard]],
) -> Summary:
    """Count. `owners` [rows]: the item under which a used row's caption goes."""
    used = ledger.used
    by_split: dict[str, SplitSummary] = {}
    for place, name in enumerate(SPLITS):
        rows = used & (splits.splits == place)
        by_split[name] = SplitSummary(
            num_items=len(np.unique(owners[rows])),
            num_captions=int(rows.sum()),
            shards=tuple(shards[name]),
        )
    return Summary(
        num_pairs=ledger.num_rows,
        num_kept=int(ledger.kept.sum()),
        num_items=len(np.unique(owners[used])),
        num_captions=int(used.sum()),
        num_captions_joined=int(ledger.joins.sum()),
        dropped=ledger.count_drops(),
        splits=by_split,
        split_reasons={
            reason: int((splits.reasons == place).sum())
            for place, reason in enumerate(SPLIT_REASONS)
        },
    )


def check_enough(ledger: Ledger, spool: Spool, min_pairs: int) -> None:
    """Raise DataError, saying what took most, when fewer than `min_pairs` pairs are kept."""
    num_kept = int(ledger.kept.sum())
    if num_kept >= min_pairs:
        return
    most = sorted(
        ((num, reason) for reason, num in ledger.count_drops().items() if num), reverse=True
    )
    lines = [f"of {ledger.num_rows:,} pairs {num_kept:,} are kept, fewer than {min_pairs:,}:"]
    for num, reason in most[:5]:
        row = int(np.flatnonzero(ledger.reason == ledger.reasons.index(reason))[0])
        lines.append(f"{reason} dropped {num:,}, first {spool.text(row, 'path')}: "
                     f"{ledger.details[row]}")  # fmt: skip
    raise DataError(
        "\n  ".join(lines),
        hint="mend the pool, loosen the filter that took most (curate.filters), or lower "
        "curate.min_pairs",
    )
