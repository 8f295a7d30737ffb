"""Pack the kept items into shards, one worker a shard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coembed.curation.examine import read_media
from coembed.curation.settings import ShardSettings
from coembed.curation.spool import Spool
from coembed.errors import DataError
from coembed.files import sha256_bytes
from coembed.pairs.media_types import shard_extension
from coembed.pairs.shards import Shard, ShardWriter, members_bytes
from coembed.types import SPLITS, Attribute, Sample

# Room for a sample's caption and JSON members, for which the plan does not look them up.
_TEXT_BYTES = 2 * 1024


@dataclass(frozen=True)
class PackedItem:
    """An item and the pool rows whose captions it gets; the first row gives its path."""

    item_id: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class ShardPlan:
    """The items of one shard, in order."""

    split: str
    number: int
    items: tuple[PackedItem, ...]


def plan_shards(
    *,
    items: NDArray[np.int64],
    item_ids: list[str],
    splits: NDArray[np.int8],
    used: NDArray[np.bool_],
    kept: NDArray[np.bool_],
    num_bytes: NDArray[np.int64],
    limits: ShardSettings,
) -> Iterator[ShardPlan]:
    """Plans of all shards, by split.

    Items stand in the order of their ids: a shuffle that depends on nothing but the content, so
    that even a reader that goes straight through meets a mixture.
    """
    rows = np.flatnonzero(used)
    # By item, kept rows before joining ones, then pool order; items are numbered in id order.
    rows = rows[np.lexsort((rows, ~kept[rows], items[rows]))]
    starts = np.flatnonzero(np.r_[True, np.diff(items[rows]) != 0]) if len(rows) else rows
    ends = np.r_[starts[1:], len(rows)]
    first = rows[starts]
    for place, split in enumerate(SPLITS):
        here = np.flatnonzero(splits[first] == place)
        number, size, held = 0, 0, list[PackedItem]()
        for index in here.tolist():
            row = int(first[index])
            more = members_bytes(int(num_bytes[row])) + _TEXT_BYTES
            if held and (len(held) >= limits.max_samples or size + more > limits.max_bytes):
                yield ShardPlan(split, number, tuple(held))
                number, size, held = number + 1, 0, []
            members = tuple(rows[starts[index] : ends[index]].tolist())
            held.append(PackedItem(item_ids[int(items[row])], members))
            size += more
        if held:
            yield ShardPlan(split, number, tuple(held))


@dataclass(frozen=True)
class Packer:
    """Picklable function from a ShardPlan to the finished Shard."""

    spool: Path
    pool: Path
    out: Path
    max_media_bytes: int

    def __call__(self, plan: ShardPlan) -> Shard:
        """Write one shard into `out`."""
        pairs = Spool(self.spool).pick([row for item in plan.items for row in item.rows])
        num = len(plan.items)
        with ShardWriter(
            self.out, plan.split, max_samples=num, max_bytes=2**62, first=plan.number
        ) as writer:
            for item in plan.items:
                owned = [pairs[row] for row in item.rows]
                media, _, detail = read_media(self.pool, owned[0].path, self.max_media_bytes)
                if sha256_bytes(media) != item.item_id:
                    raise DataError(
                        f"{self.pool / owned[0].path} changed while the pool was being curated"
                        + (f" ({detail})" if detail else ""),
                        hint="let the pool come to rest, then run `coembed curate` again",
                    )
                attributes: dict[str, Attribute] = {}
                for pair in reversed(owned):  # the first row's values stand
                    attributes.update(pair.attributes)
                sample = Sample(
                    item_id=item.item_id,
                    modality=owned[0].modality,
                    path=owned[0].path,
                    media=media,
                    extension=shard_extension(media, owned[0].path),
                    captions=tuple(pair.caption for pair in owned),
                    pair_ids=tuple(pair.pair_id for pair in owned),
                    attributes=attributes,
                )
                writer.write(sample)
        (shard,) = writer.shards
        return shard
