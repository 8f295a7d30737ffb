"""Parts: what the index reads. Part number N holds the items of rows-N that have a vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coembed.embedding.corpus import PAYLOAD, Corpus, ids_of, rows_of
from coembed.embedding.store import VectorStore, vector_column, write_vectors
from coembed.files import sha256_file
from coembed.types import MODALITIES


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An item of the corpus that could not be decoded, so that it has no embedding."""

    item_id: str
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Part:
    """One written part: its file name, number of rows and checksum, and what was left out of it."""

    file: str
    num_items: int
    sha256: str
    unreadable: tuple[Unreadable, ...]


def write_parts(
    corpus: Corpus, store: VectorStore, unreadable: Mapping[str, str], out: Path
) -> tuple[Part, ...]:
    """Write `corpus` with the vectors in `store` as parts into the existing folder `out`.

    `unreadable` has the reason why an item has no vector, by its id.
    """
    parts = []
    for number, table in enumerate(corpus.tables()):
        ids = ids_of(table)
        rows = np.full(len(ids), -1)
        for modality in MODALITIES:
            mine = rows_of(table, modality)
            rows[mine] = store.find(modality, ids[mine])
        there = np.flatnonzero(rows >= 0)
        lost = table.select(["item_id", "path"]).take(np.flatnonzero(rows < 0)).to_pylist()
        kept = table.select(["item_id", *PAYLOAD]).take(there).combine_chunks()
        file = out / f"part-{number:05d}.parquet"
        write_vectors(file, kept.add_column(1, "vector", vector_column(store.take(rows[there]))))
        parts.append(
            Part(
                file.name,
                len(there),
                sha256_file(file),
                tuple(Unreadable(**row, reason=unreadable[row["item_id"]]) for row in lost),
            )
        )
    return tuple(parts)
