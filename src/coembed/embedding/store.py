"""Vectors that wait: of the last corpus, and of a run that was interrupted.

    <folder>/corpus/part-00000.parquet ...  the last corpus, as it was written out (links)
    <folder>/corpus/texts.parquet           the texts that were embedded with it
    <folder>/corpus/digests.parquet         by item: what an index was told of it
    <folder>/block-<content>.parquet        vectors that a run under way has made

A folder belongs to one encoder on one kind of machine (its fingerprint, the batch size, the
libraries): there an item's embedding is always the same bits, so a vector that waits is the one
that would be made again. A run writes blocks, and may be killed anywhere; when it is through,
`keep` makes its corpus the last one and takes the blocks away. Pages of the files carry checksums:
a file that fails them is as good as not there.
"""

from __future__ import annotations

import os
import shutil
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from coembed.embedding.corpus import Corpus, as_ids, ids_of
from coembed.files import atomic_folder, atomic_path, sha256_bytes

Embeddings = NDArray[np.float32]
Rows = NDArray[np.int64]

_CORPUS: Final = "corpus"
_TEXTS: Final = "texts.parquet"
_DIGESTS: Final = "digests.parquet"
# Vectors of so many files are held: rows are asked for in about the order in which they lie.
_HELD_FILES: Final = 16


class StaleVectorsError(Exception):
    """Vectors that wait cannot be relied on: a file is damaged, or the same encoder gives other
    bits now. The store has to be emptied, and everything embedded."""


class VectorStore:
    """The vectors in `folder`, which is made where it is missing. `dim` is their length.

    Vectors are named by modality and id. What is `add`ed is found after `settle`.
    """

    def __init__(self, folder: Path, *, dim: int) -> None:
        self.folder, self._dim = folder, dim
        folder.mkdir(parents=True, exist_ok=True)
        self._held: OrderedDict[int, Embeddings] = OrderedDict()
        self._files: list[Path] = []
        self._starts: list[int] = [0]
        self._known: dict[str, _Lookup] = {}
        self._added: list[tuple[str, _Lookup]] = []
        # A killed writer's; another process may be writing its own by the time they are removed.
        self._stale = list(folder.glob(".*.partial"))
        ids: list[Any] = []
        for file in sorted(folder.glob(f"{_CORPUS}/part-*.parquet")):
            self._open(file, ids)
        for file in [folder / _CORPUS / _TEXTS, *sorted(folder.glob("block-*.parquet"))]:
            self._open(file, ids)
        if ids:
            table = pa.concat_tables(ids)
            found = ids_of(table)
            modalities = table.column("modality").to_numpy(zero_copy_only=False)
            for modality in sorted(set(modalities.tolist())):
                mine = np.flatnonzero(modalities == modality)
                self._known[modality] = _Lookup(found[mine], mine)

    def find(self, modality: str, ids: NDArray[np.bytes_]) -> Rows:
        """Rows of the vectors of those ids; −1 where there is none: [len(ids)]."""
        known = self._known.get(modality)
        return np.full(len(ids), -1) if known is None else known.find(ids)

    def take(self, rows: Rows) -> Embeddings:
        """The vectors in those rows: [len(rows), dim]."""
        out = np.empty((len(rows), self._dim), dtype=np.float32)
        files = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(files).tolist():
            mine = files == number
            out[mine] = self._vectors(number)[rows[mine] - self._starts[number]]
        return out

    def add(self, modality: str, ids: Sequence[str], vectors: Embeddings) -> None:
        """Write a block of vectors [len(ids), dim] that are not there yet."""
        name = sha256_bytes("\n".join([modality, *ids]).encode())[:32]
        file = self.folder / f"block-{name}.parquet"
        with atomic_path(file) as partial:
            write_vectors(partial, _block(modality, ids, vectors))
        self._files.append(file)
        first = self._starts[-1]
        self._starts.append(first + len(ids))
        rows = np.arange(first, first + len(ids))
        self._added.append((modality, _Lookup(as_ids(ids), rows)))

    def settle(self) -> None:
        """Let what was added be found. A sort of all ids, so not for every block."""
        for modality in sorted({name for name, _ in self._added}):
            lookups = [lookup for name, lookup in self._added if name == modality]
            if modality in self._known:
                lookups.append(self._known[modality])
            ids = np.concatenate([lookup.ids for lookup in lookups])
            self._known[modality] = _Lookup(ids, np.concatenate([one.rows for one in lookups]))
        self._added.clear()

    def proven(self, modality: str) -> bool:
        """Whether vectors of this store were once made again, in other company, and came out the
        same, so that they can be relied on when there is nothing new to embed."""
        return (self.folder / f"proven-{modality}").is_file()

    def set_proven(self, modality: str) -> None:
        """Say so."""
        (self.folder / f"proven-{modality}").touch()

    def changes(self, corpus: Corpus) -> dict[str, int]:
        """How `corpus` differs from the last one: how many items are new, kept as they were,
        changed in what is told of them only (captions, attributes), and removed."""
        digests = self._last_digests()
        found = {"new": 0, "unchanged": 0, "changed": 0, "removed": 0}
        for table in corpus.tables():
            ids = ids_of(table)
            rows = np.full(len(ids), -1) if digests is None else digests[0].find(ids)
            there = rows >= 0
            mine = table.column("digest").to_numpy(zero_copy_only=False)[there]
            same = 0 if digests is None else int((digests[1][rows[there]] == mine).sum())
            found["new"] += int((~there).sum())
            found["unchanged"] += same
            found["changed"] += int(there.sum()) - same
        if digests is not None:
            found["removed"] = len(digests[1]) - found["unchanged"] - found["changed"]
        return found

    def keep(self, corpus: Corpus, out: Path, texts: Sequence[str]) -> None:
        """Make `corpus`, whose parts were written to `out`, the last one; what else was there goes.

        `texts` are the ids of the texts that were embedded with it.
        """
        before = [file for file in self._files if file.parent == self.folder]
        vectors = self.take(self.find("text", as_ids(texts)))
        with atomic_folder(self.folder / _CORPUS) as folder:
            for part in sorted(out.glob("part-*.parquet")):
                try:
                    os.link(part, folder / part.name)
                except OSError:  # another disk, or a file system without links
                    shutil.copyfile(part, folder / part.name)
            if texts:
                write_vectors(folder / _TEXTS, _block("text", texts, vectors))
            digests = (table.select(["item_id", "digest"]) for table in corpus.tables())
            pq.write_table(pa.concat_tables(digests), folder / _DIGESTS, write_page_checksum=True)
        for file in [*before, *self._stale]:
            file.unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove everything. Open the folder again to go on."""
        for file in [*self._files, *self._stale, *self.folder.glob("proven-*")]:
            file.unlink(missing_ok=True)
        shutil.rmtree(self.folder / _CORPUS, ignore_errors=True)

    def _open(self, file: Path, ids: list[Any]) -> None:
        """Take in a file's ids; one that is damaged or not there is passed over."""
        try:
            table = _read(file, ["item_id", "modality"])
            length = pq.read_schema(file).field("vector").type.list_size
        except (pa.ArrowException, OSError, KeyError):
            file.unlink(missing_ok=True)
            return
        if length == self._dim:
            self._files.append(file)
            self._starts.append(self._starts[-1] + len(table))
            ids.append(table)

    def _vectors(self, number: int) -> Embeddings:
        if number not in self._held:
            file = self._files[number]
            try:
                column = _read(file, ["vector"]).column("vector").combine_chunks()
            except (pa.ArrowException, OSError) as error:
                raise StaleVectorsError(f"{file} is damaged: {error}") from error
            values = column.flatten().to_numpy(zero_copy_only=False)
            self._held[number] = np.asarray(values, dtype=np.float32).reshape(-1, self._dim)
            if len(self._held) > _HELD_FILES:
                self._held.popitem(last=False)
        self._held.move_to_end(number)
        return self._held[number]

    def _last_digests(self) -> tuple[_Lookup, Any] | None:
        try:
            table = _read(self.folder / _CORPUS / _DIGESTS, ["item_id", "digest"])
        except (pa.ArrowException, OSError, KeyError):
            return None
        digests = table.column("digest").to_numpy(zero_copy_only=False)
        return _Lookup(ids_of(table), np.arange(len(table))), digests


class _Lookup:
    """Rows by id: sorted, for arrays of ids are looked up at once."""

    def __init__(self, ids: NDArray[np.bytes_], rows: Rows) -> None:
        order = np.argsort(ids, kind="stable")
        self.ids, self.rows = ids[order], rows[order]

    def find(self, ids: NDArray[np.bytes_]) -> Rows:
        """The row of each id, −1 where it is not there: [len(ids)]."""
        places = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[places] == ids, self.rows[places], -1)


def vector_column(vectors: Embeddings) -> Any:
    """Vectors [num, dim] as a column of lists of one length."""
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def write_vectors(file: Path, table: Any) -> None:
    """Write a table with a column `vector`: the same table makes the same bytes.

    Vectors are as they are, as no compression gains on them.
    """
    names = [name for name in table.column_names if name != "vector"]
    lists = [name for name in names if pa.types.is_list(table.schema.field(name).type)]
    paths = [f"{name}.list.element" if name in lists else name for name in names]
    pq.write_table(
        table,
        file,
        compression={**dict.fromkeys(paths, "zstd"), "vector.list.element": "none"},
        use_dictionary=[name for name in ("modality", "split", "kind") if name in names],
        write_statistics=False,
        write_page_checksum=True,
    )


def _block(modality: str, ids: Sequence[str], vectors: Embeddings) -> Any:
    return pa.table(
        {
            "item_id": pa.array(ids, pa.string()),
            "vector": vector_column(vectors),
            "modality": pa.array([modality] * len(ids), pa.string()),
        }
    )


def _read(file: Path, columns: list[str]) -> Any:
    return pq.read_table(file, columns=columns, page_checksum_verification=True)
