"""Pack the kept items into shards, one worker a shard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from coembed.curation.database import Database
from coembed.curation.reading import MediaReader
from coembed.curation.settings import ShardSettings
from coembed.curation.settle import Standing
from coembed.curation.split import Assignment
from coembed.errors import DataError
from coembed.files import sha256_bytes
from coembed.pairs.media_types import shard_extension
from coembed.pairs.shards import Shard, ShardWriter, members_bytes
from coembed.types import SPLITS, Attribute, Sample

# Room for a sample's caption and JSON members, for which the plan does not look them up.
_TEXT_BYTES = 2 * 1024
_CHUNK = 2**18


@dataclass(frozen=True)
class ShardPlan:
    """The rows of one shard in order, those of an item together.

    Columns: `item_id` (hexadecimal), `path`, `caption`, `pair_id`, `modality`, `a0`, `a1`, ...
    The first row of an item gives its path and modality.
    """

    split: str
    number: int
    rows: pa.Table


def place_rows(database: Database, standing: Standing, splits: Assignment) -> None:
    """Make the table `placed`: `row`, `split` (a place in SPLITS), `owner` (the item under which
    the row's caption goes) and `joins`, for every row that is packed."""
    schema = pa.schema(
        [("row", pa.int64()), ("split", pa.int8()), ("owner", pa.int64()), ("joins", pa.bool_())]
    )

    def chunks() -> Iterator[pa.RecordBatch]:
        for start in range(0, standing.num_rows, _CHUNK):
            stop = min(start + _CHUNK, standing.num_rows)
            joins = standing.joins[start:stop]
            rows = np.flatnonzero(standing.kept[start:stop] | joins)
            target = np.where(joins[rows], standing.duplicate_of[start:stop][rows], rows + start)
            cells = [
                pa.array(rows + start),
                pa.array(splits.splits[start:stop][rows]),
                pa.array(standing.item[target]),
                pa.array(joins[rows]),
            ]
            yield pa.RecordBatch.from_arrays(cells, schema=schema)

    reader = pa.RecordBatchReader.from_batches(schema, chunks())
    database.execute("CREATE TABLE placed AS FROM chunks", chunks=reader)


def plan_shards(
    database: Database, limits: ShardSettings, *, num_attributes: int
) -> Iterator[ShardPlan]:
    """Plans of all shards, by split, from the table `placed`.

    Items stand in the order of their ids: a shuffle that depends on nothing but the content, so
    that even a reader that goes straight through meets a mixture. Captions of an item stand in
    pool order, those that it took over from duplicates last.
    """
    attributes = "".join(f", a{i}" for i in range(num_attributes))
    batches = database.query(
        "SELECT split, owner, lower(hex(item_id)) AS item_id, path, caption, pair_id, modality,"
        f" num_bytes{attributes} FROM placed JOIN rows USING (row)"
        " JOIN items ON placed.owner = items.item ORDER BY split, owner, joins, row"
    )
    split, number, held = -1, 0, list[pa.Table]()
    owner, num_samples, size = -1, 0, 0
    for batch in batches:
        table = pa.Table.from_batches([batch]).drop_columns(["split", "owner", "num_bytes"])
        start = 0
        cells = (batch.column(name).to_numpy() for name in ("split", "owner", "num_bytes"))
        for place, (its_split, its_owner, num_bytes) in enumerate(
            zip(*(column.tolist() for column in cells), strict=True)
        ):
            if its_owner == owner:
                continue
            more = members_bytes(num_bytes) + _TEXT_BYTES
            full = num_samples >= limits.max_samples or size + more > limits.max_bytes
            if num_samples and (full or its_split != split):
                held.append(table.slice(start, place - start))
                yield ShardPlan(SPLITS[split], number, pa.concat_tables(held).combine_chunks())
                number = number + 1 if its_split == split else 0
                held, start, num_samples, size = [], place, 0, 0
            split, owner = its_split, its_owner
            num_samples, size = num_samples + 1, size + more
        held.append(table.slice(start))
    if num_samples:
        yield ShardPlan(SPLITS[split], number, pa.concat_tables(held).combine_chunks())


@dataclass(frozen=True)
class Packer:
    """Picklable function from a ShardPlan to the finished Shard. `attributes` names a0, a1, ..."""

    pool: Path
    out: Path
    max_media_bytes: int
    attributes: tuple[str, ...]

    def __call__(self, plan: ShardPlan) -> Shard:
        """Write one shard into `out`."""
        reader = MediaReader(self.pool, self.max_media_bytes)
        with ShardWriter(
            self.out, plan.split, max_samples=2**62, max_bytes=2**62, first=plan.number
        ) as writer:
            for rows in _items(plan.rows):
                path = rows[0]["path"]
                media, _, detail, *_ = reader.read(path)
                if sha256_bytes(media) != rows[0]["item_id"]:
                    raise DataError(
                        f"{self.pool / path} changed while the pool was being curated"
                        + (f" ({detail})" if detail else ""),
                        hint="let the pool come to rest, then run `coembed curate` again",
                    )
                attributes: dict[str, Attribute] = {}
                for row in reversed(rows):  # the first row's values stand
                    attributes.update(self._attributes(row))
                sample = Sample(
                    item_id=rows[0]["item_id"],
                    modality=rows[0]["modality"],
                    path=path,
                    media=media,
                    extension=shard_extension(media, path),
                    captions=tuple(row["caption"] for row in rows),
                    pair_ids=tuple(row["pair_id"] for row in rows),
                    attributes=attributes,
                )
                writer.write(sample)
        (shard,) = writer.shards
        return shard

    def _attributes(self, row: Mapping[str, Any]) -> Iterator[tuple[str, Attribute]]:
        for place, name in enumerate(self.attributes):
            cell = row[f"a{place}"]
            # JSON has no NaN and no infinity: such a cell is absent.
            if cell is not None and not _is_no_number(cell):
                yield name, cell


def _items(rows: pa.Table) -> Iterator[list[dict[str, Any]]]:
    """The rows of each item in turn."""
    own: list[dict[str, Any]] = []
    for batch in rows.to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            if own and row["item_id"] != own[0]["item_id"]:
                yield own
                own = []
            own.append(row)
    if own:
        yield own


def _is_no_number(cell: Attribute) -> bool:
    return isinstance(cell, float) and not (float("-inf") < cell < float("inf"))
