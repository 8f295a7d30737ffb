"""The corpus without its media: every item's row, and where its media lie.

The rows are kept in files of `part_size` items, which can be mapped: what follows works on columns
of one file at a time, however large the corpus is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from coembed.errors import DataError
from coembed.pairs.shards import Place, locate_samples, shard_paths
from coembed.types import MODALITIES, Modality, Sample, Split

SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("path", pa.string()),
        ("modality", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("split", pa.string()),
        ("attributes", pa.string()),
        ("digest", pa.binary(8)),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
    ]
)
"""Of the rows. `digest` is of all that an index is told of the item beside its vector, `attributes`
is JSON, and the media are `size` bytes from `offset` of that shard of `Corpus.shards`."""

PAYLOAD = ("path", "modality", "captions", "split", "attributes")


class MediaPlace(NamedTuple):
    """An item and where its media lie."""

    item_id: str
    path: str
    shard: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Corpus:
    """The items to embed, in order. `content_hash` covers every item but not its vector.

    files: rows by part. shards: what `shard` numbers. num_items: by modality; left_out: of
    modalities that were not asked for.
    """

    files: tuple[Path, ...]
    shards: tuple[Path, ...]
    content_hash: str
    num_items: dict[Modality, int]
    left_out: dict[Modality, int]

    def num_readable(self, unreadable: Set[str]) -> dict[Modality, int]:
        """Items by modality without those of these ids."""
        lost: Counter[str] = Counter()
        for table in self.tables():
            rows = table.select(["item_id", "modality"]).to_pylist() if unreadable else []
            lost.update(row["modality"] for row in rows if row["item_id"] in unreadable)
        return {name: num - lost[name] for name, num in self.num_items.items()}

    def tables(self) -> Iterator[Any]:
        """The rows of each part, mapped, not read."""
        for file in self.files:
            with pa.memory_map(str(file)) as source:
                yield pa.ipc.open_file(source).read_all()

    def fetch(self, place: MediaPlace) -> bytes:
        """The media of an item. Safe to call from several threads. Raises DataError."""
        path = self.shards[place.shard]
        try:
            with path.open("rb", buffering=0) as file:
                media = os.pread(file.fileno(), place.size, place.offset)
        except OSError as error:
            raise DataError(f"shard {path} cannot be read: {error.strerror}") from error
        if len(media) < place.size:
            raise DataError(
                f"shard {path} is damaged: it ends in the middle",
                hint="run `coembed curate` again",
            )
        return media


def list_corpus(
    pairs: Path,
    splits: Sequence[Split],
    modalities: Sequence[Modality],
    *,
    part_size: int,
    folder: Path,
) -> Corpus:
    """List the items of `splits` of the curated pairs that are of `modalities`, `part_size` rows a
    file, into the empty folder `folder`. Raises DataError as `locate_samples` does.
    """
    shards: list[Path] = []
    left_out: Counter[Modality] = Counter()
    num_items: Counter[Modality] = Counter()

    def wanted() -> Iterator[tuple[Split, Sample, Place]]:
        for split in splits:
            first = len(shards)
            shards.extend(shard_paths(pairs, split))
            for sample, place in locate_samples(pairs, split):
                if sample.modality in modalities:
                    num_items[sample.modality] += 1
                    yield split, sample, Place(first + place.shard, place.offset, place.size)
                else:
                    left_out[sample.modality] += 1

    content = hashlib.sha256()
    files: list[Path] = []
    rows = wanted()
    while table := _table(islice(rows, part_size), content):
        file = folder / f"rows-{len(files):05d}.arrow"
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            writer.write_table(table)
        files.append(file)
    counts = {name: num_items[name] for name in MODALITIES if num_items[name]}
    return Corpus(tuple(files), tuple(shards), content.hexdigest(), counts, dict(left_out))


def _table(rows: Iterable[tuple[Split, Sample, Place]], content: Any) -> Any:
    """A table of `rows`, empty if there are none; each is added to the hash `content`."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    add = {name: column.append for name, column in columns.items()}
    for split, sample, place in rows:
        attributes = _ENCODE_SORTED(dict(sample.attributes))
        captions = list(sample.captions)
        told = [sample.item_id, sample.path, sample.modality, captions, split, attributes]
        line = _ENCODE(told).encode() + b"\n"
        content.update(line)
        add["item_id"](sample.item_id)
        add["path"](sample.path)
        add["modality"](sample.modality)
        add["captions"](captions)
        add["split"](split)
        add["attributes"](attributes)
        add["digest"](hashlib.sha256(line).digest()[:8])
        add["shard"](place.shard)
        add["offset"](place.offset)
        add["size"](place.size)
    return pa.table(columns, schema=SCHEMA)


_ENCODE = json.JSONEncoder(ensure_ascii=False).encode
_ENCODE_SORTED = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode


def ids_of(table: Any) -> NDArray[np.bytes_]:
    """The item ids of a table, as bytes that sort and compare fast: [num_rows]."""
    return as_ids(table.column("item_id").to_pylist())


def as_ids(item_ids: Sequence[str]) -> NDArray[np.bytes_]:
    """Item ids as an array of bytes."""
    return np.array([item_id.encode() for item_id in item_ids], dtype=np.bytes_)


def rows_of(table: Any, modality: str) -> NDArray[np.bool_]:
    """Which rows of a table are of `modality`: [num_rows]."""
    found: NDArray[np.bool_] = pc.equal(table.column("modality"), modality).to_numpy()
    return found
