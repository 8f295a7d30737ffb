"""Takes the rows of a source into a pool: media into its store, pairs into new tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from coembed.errors import DataError
from coembed.files import atomic_path, sha256_bytes
from coembed.pairs.cells import column
from coembed.pairs.history import HistoryWriter
from coembed.pairs.known_pairs import KnownPairs
from coembed.pairs.limits import MAX_COLUMNS, utf8
from coembed.pairs.media_store import MediaStore
from coembed.pairs.media_types import modality_of
from coembed.pairs.pool import PAIR_COLUMNS
from coembed.pairs.readers.base import Refusal, Row, usual_split
from coembed.types import MODALITIES, Attribute

# A table is written when so many pairs, or so much text, wait in memory.
PART_PAIRS = 50_000
_PART_CHARACTERS = 64 << 20


class Intake:
    """Takes rows into `pool`. Call `flush` after the last."""

    def __init__(
        self, pool: Path, *, media: MediaStore, known: KnownPairs, history: HistoryWriter
    ) -> None:
        self.num_added = 0
        self.num_known = 0
        self.parts: list[Path] = []
        self._pool, self._media, self._known, self._history = pool, media, known, history
        self._new: dict[str, tuple[dict[str, Any], Mapping[str, Attribute]]] = {}
        self._num_characters = 0
        self._names: set[str] = set()

    def take(self, row: Row) -> Refusal | None:
        """Take one row in, or say why not."""
        if row.modality and row.modality not in MODALITIES:
            known = ", ".join(MODALITIES)
            detail = f"modality {row.modality!r}; expected {known}"
            return Refusal(row.where, "unknown_modality", detail)
        attributes = _attributes(row)
        stored = self._media.put(row)
        if isinstance(stored, Refusal):
            return stored
        item_id, path = stored
        split = usual_split(row.split) if row.split else None
        if row.split and split is None:
            attributes["source_split"] = utf8(row.split)
        self._check_names(attributes, row.where)
        for caption in map(utf8, row.captions):
            pair_id = sha256_bytes(f"{item_id}\0{caption}".encode())[:32]
            if pair_id in self._new or pair_id in self._known:
                self.num_known += 1
                continue
            pair = {
                "pair_id": pair_id,
                "path": path,
                "caption": caption,
                "modality": row.modality or modality_of(row.name or path),
                "split": split,
            }
            self._new[pair_id] = pair, attributes
            self.num_added += 1
            self._num_characters += len(caption) + sum(
                len(value) for value in attributes.values() if isinstance(value, str)
            )
            if len(self._new) >= PART_PAIRS or self._num_characters >= _PART_CHARACTERS:
                self.flush()
        return None

    def flush(self) -> None:
        """Write the pairs that wait as one table, named after their ids."""
        if not self._new:
            return
        pairs = [pair for pair, _ in self._new.values()]
        table = {n: pa.array([pair[n] for pair in pairs], pa.string()) for n in PAIR_COLUMNS}
        for name in sorted({name for _, attributes in self._new.values() for name in attributes}):
            cells = [attributes.get(name) for _, attributes in self._new.values()]
            table[name] = column(cells)
        digest = sha256_bytes("\n".join(self._new).encode())
        part = self._pool / "pairs" / f"part-{digest[:16]}.parquet"
        self._history.announce(part)
        with atomic_path(part) as partial:
            pq.write_table(pa.table(table), partial, compression="zstd")
        self._known.learn(part, self._new)
        self.parts.append(part)
        self._new = {}
        self._num_characters = 0

    def _check_names(self, attributes: Mapping[str, Attribute], where: str) -> None:
        """A pool of more columns than a table may have could not be read again."""
        self._names.update(attributes)
        if len(self._names) > MAX_COLUMNS - len(PAIR_COLUMNS):
            raise DataError(
                f"{where}: the rows so far name {len(self._names):,} different attributes; a pool "
                f"may have {MAX_COLUMNS - len(PAIR_COLUMNS):,}",
                hint="put what differs from row to row into one attribute",
            )


def _attributes(row: Row) -> dict[str, Attribute]:
    clean: dict[str, Attribute] = {}
    for name, value in row.attributes.items():
        if name and name not in PAIR_COLUMNS:
            clean[utf8(name)] = utf8(value) if isinstance(value, str) else value
    return clean
