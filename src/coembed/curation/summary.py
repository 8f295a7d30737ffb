"""What curation did, in numbers: summary.json, the stage's table, and the error when too little is
left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coembed.curation.database import Database, literal
from coembed.curation.settle import Standing
from coembed.curation.split import SPLIT_REASONS, Assignment
from coembed.errors import DataError
from coembed.pairs.cells import number_text
from coembed.pairs.shards import Shard
from coembed.types import SPLITS

# A column with more values than a person would read is no attribute to balance by.
_MAX_VALUES = 50


@dataclass(frozen=True)
class SplitSummary:
    """Items, captions and shards of one split."""

    num_items: int
    num_captions: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Summary:
    """Counts of one curation.

    `dropped` has every reason that can occur, zeros included. `modalities` and `balance` (a column
    of the pool: a value of it) hold the pairs that came and that are kept. `overrides`: what came
    of people's decisions; `unknown_overrides` are pair ids that the pool does not have. `notes`:
    what filters say of the pool as a whole, by filter.
    """

    num_pairs: int
    num_kept: int
    num_items: int
    num_captions: int
    num_captions_joined: int
    dropped: Mapping[str, int]
    modalities: Mapping[str, tuple[int, int]]
    balance: Mapping[str, Mapping[str, tuple[int, int]]]
    splits: Mapping[str, SplitSummary]
    split_reasons: Mapping[str, int]
    overrides: Mapping[str, int]
    unknown_overrides: tuple[str, ...]
    notes: Mapping[str, tuple[str, ...]]

    def as_dict(self) -> dict[str, Any]:
        """For summary.json."""
        return {
            "num_pairs": self.num_pairs,
            "num_kept": self.num_kept,
            "num_dropped": self.num_pairs - self.num_kept,
            "num_items": self.num_items,
            "num_captions": self.num_captions,
            "num_captions_joined": self.num_captions_joined,
            "dropped": dict(self.dropped),
            "modalities": _counts(self.modalities),
            "balance": {name: _counts(values) for name, values in self.balance.items()},
            "splits": {
                name: {"num_items": s.num_items, "num_captions": s.num_captions}
                for name, s in self.splits.items()
            },
            "split_reasons": dict(self.split_reasons),
            "overrides": {**self.overrides, "unknown": len(self.unknown_overrides)},
            "notes": {name: list(said) for name, said in self.notes.items()},
        }


def _counts(values: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, int]]:
    return {value: {"num_pairs": num, "num_kept": kept} for value, (num, kept) in values.items()}


def summarise(
    database: Database,
    standing: Standing,
    splits: Assignment,
    shards: Mapping[str, Sequence[Shard]],
    *,
    reasons: Sequence[str],
    attributes: Sequence[str],
    unknown_overrides: tuple[str, ...],
    notes: Mapping[str, tuple[str, ...]],
) -> Summary:
    """Count. `reasons`: all that can occur; `attributes`: the names of columns a0, a1, ..."""
    dropped = dict(database.rows("SELECT reason, count(*) FROM drops GROUP BY reason"))
    placed = {
        place: (num_items, num_captions)
        for place, num_items, num_captions in database.rows(
            "SELECT split, count(DISTINCT owner), count(*) FROM placed GROUP BY split"
        )
    }
    by_split: dict[str, SplitSummary] = {
        name: SplitSummary(*placed.get(place, (0, 0)), tuple(shards[name]))
        for place, name in enumerate(SPLITS)
    }
    return Summary(
        num_pairs=standing.num_rows,
        num_kept=standing.num_rows - sum(dropped.values()),
        num_items=sum(split.num_items for split in by_split.values()),
        num_captions=sum(split.num_captions for split in by_split.values()),
        num_captions_joined=int(standing.joins.sum()),
        dropped={reason: dropped.get(reason, 0) for reason in reasons},
        modalities=_balance(database, "modality"),
        balance={
            name: counts
            for place, name in enumerate(attributes)
            if (counts := _balance(database, f"a{place}"))
        },
        splits=by_split,
        split_reasons={
            reason: int((splits.reasons == place).sum())
            for place, reason in enumerate(SPLIT_REASONS)
        },
        overrides=_overrides(database),
        unknown_overrides=unknown_overrides,
        notes=notes,
    )


def _balance(database: Database, column: str) -> dict[str, tuple[int, int]]:
    """Pairs that came and that are kept, by value; nothing for a column of very many values."""
    if database.value(f"SELECT approx_count_distinct({column}) FROM rows") > 2 * _MAX_VALUES:
        return {}
    counts = database.rows(
        f"SELECT {column}, count(*), count(*) FILTER (drops.row IS NULL)"
        f" FROM rows LEFT JOIN drops USING (row) GROUP BY ALL ORDER BY 1 LIMIT {_MAX_VALUES + 1}"
    )
    if len(counts) > _MAX_VALUES:
        return {}
    return {_value_text(value): (num, kept) for value, num, kept in counts}


def _value_text(value: str | float | bool | None) -> str:
    """A value of the pool as the key of an object; "" for none."""
    if isinstance(value, float) and math.isfinite(value):
        return number_text(value)
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _overrides(database: Database) -> dict[str, int]:
    ((dropped, kept),) = database.rows(
        "SELECT (SELECT count(*) FROM drops WHERE reason = 'dropped_by_override'),"
        " (SELECT count(DISTINCT row) FROM spared ANTI JOIN drops USING (row))"
    )
    return {"num_dropped": dropped, "num_kept": kept}


def check_enough(database: Database, num_rows: int, min_pairs: int) -> None:
    """Raise DataError, saying what took most, when fewer than `min_pairs` pairs are kept."""
    counts = dict(database.rows("SELECT reason, count(*) FROM drops GROUP BY reason"))
    num_kept = num_rows - sum(counts.values())
    if num_kept >= min_pairs:
        return
    most = sorted(((num, reason) for reason, num in counts.items()), reverse=True)
    lines = [f"of {num_rows:,} pairs {num_kept:,} are kept, fewer than {min_pairs:,}:"]
    for num, reason in most[:5]:
        ((path, detail),) = database.rows(
            "SELECT path, drops.detail FROM drops JOIN rows USING (row)"
            f" WHERE drops.reason = {literal(reason)} ORDER BY row LIMIT 1"
        )
        lines.append(f"{reason} dropped {num:,}, first {path}: {detail}")
    raise DataError(
        "\n  ".join(lines),
        hint="mend the pool, loosen the filter that took most (curate.filters), or lower "
        "curate.min_pairs",
    )


def check_training(database: Database, standing: Standing) -> None:
    """Raise DataError when there is nothing to train on. Looks at the table `placed`."""
    if not database.value(f"SELECT count(*) FROM placed WHERE split = {SPLITS.index('train')}"):
        raise DataError(
            f"none of the {int(standing.kept.sum()):,} kept pairs is in the train split",
            hint="leave the pool's split column empty for the pairs to train on, or lower "
            "curate.split.val and curate.split.test; where curate.split.group_by names several "
            "columns, the coarsest comes first",
        )
