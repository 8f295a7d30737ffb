"""Where a step's media come from: decoded once and mapped, decoded when needed, or embedded once.

All three give the same values for the same item, seed and epoch as far as they can: what is decoded
anew is what the cache would hold, bit for bit. A tower that never learns needs no media at all: its
embeddings of all items are kept.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coembed import draws
from coembed.errors import CoembedError, DataError
from coembed.files import sha256_bytes
from coembed.modalities.base import View
from coembed.progress import tracker
from coembed.training.items import Items, Rows, chunks
from coembed.types import Sample

_CHUNK: Final = 256
_VALUES, _ENDS = "values.bin", "ends.i64"


class Media(ABC):
    """One modality's items of a split, as batches see them."""

    is_embedded: bool = False
    """Whether what comes out are embeddings, which no tower has to make."""

    @abstractmethod
    def fetch(self, rows: Rows, keys: draws.Keys, *, seed: int, epoch: int) -> NDArray[Any]:
        """What a step in `epoch` sees of the items at `rows`, [len(rows), ...]."""


class Decoded(Media):
    """Items that `write_decoded` decoded into `folder`, memory-mapped."""

    def __init__(self, folder: Path, view: View, *, num_threads: int = 1) -> None:
        self._view = view
        self._ends = np.fromfile(folder / _ENDS, np.int64)
        self._values = np.memmap(folder / _VALUES, dtype=view.dtype, mode="r")
        self._pool = _Threads(num_threads)

    def fetch(self, rows: Rows, keys: draws.Keys, *, seed: int, epoch: int) -> NDArray[Any]:
        """See Media.fetch."""

        def see(part: slice) -> NDArray[Any]:
            kept = [self._kept(int(row)) for row in rows[part]]
            return self._view.see(kept, keys[part], seed=seed, epoch=epoch)

        return self._view.join(list(self._pool.map(see, len(rows))))

    def _kept(self, row: int) -> NDArray[Any]:
        first = int(self._ends[row - 1]) if row else 0
        values = self._values[first : int(self._ends[row])]
        return values.reshape(self._view.shape(len(values)))


class FromShards(Media):
    """Items that are read from the shards and decoded each time.

    A shard is a plain tar, so an item is read from its place: the order of the samples is the same
    seeded permutation as with a cache.
    """

    def __init__(
        self, shards: Sequence[Path], items: Items, view: View, *, num_threads: int = 1
    ) -> None:
        self._shards = tuple(shards)
        self._items, self._view = items, view
        self._pool = _Threads(num_threads)

    def fetch(self, rows: Rows, keys: draws.Keys, *, seed: int, epoch: int) -> NDArray[Any]:
        """See Media.fetch. Raises DataError where media changed or cannot be decoded."""

        def see(part: slice) -> NDArray[Any]:
            kept = [self._decode(int(row)) for row in rows[part]]
            return self._view.see(kept, keys[part], seed=seed, epoch=epoch)

        return self._view.join(list(self._pool.map(see, len(rows))))

    def _decode(self, row: int) -> NDArray[Any]:
        media = read_media(self._shards, self._items, row)
        (item_id,) = self._items.item_ids([row])
        if sha256_bytes(media) != item_id:
            shard = self._shards[int(self._items.places[row, 0])]
            raise DataError(
                f"shard {shard.name} changed: the media of {item_id[:12]} are not there",
                hint="do not curate while a training reads the pairs; run the same command again",
            )
        return decode_one(self._view, media, item_id[:12])


class Embedded(Media):
    """Items' embeddings, float32 [num_items, dim], made beforehand by a tower that never learns."""

    is_embedded = True

    def __init__(self, embeddings: NDArray[np.float32]) -> None:
        self._embeddings = embeddings

    def fetch(self, rows: Rows, keys: draws.Keys, *, seed: int, epoch: int) -> NDArray[np.float32]:
        """See Media.fetch."""
        del keys, seed, epoch
        return self._embeddings[rows]


def write_decoded(folder: Path, samples: Iterable[Sample], view: View, *, label: str) -> None:
    """Decode `samples` into the existing `folder`. Raises DataError naming what cannot be."""
    ends: list[int] = []
    end = 0
    task = tracker(total=None, label=f"decode {label}", unit="items")
    # The decoders let go of the interpreter lock, so threads are enough.
    with (folder / _VALUES).open("wb") as file, ThreadPoolExecutor(num_cores()) as pool:
        for chunk in chunks(samples, _CHUNK):
            for kept in pool.map(lambda sample: _decode_sample(view, sample), chunk):
                file.write(kept.tobytes())
                end += kept.size
                ends.append(end)
            task.advance(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    task.close()
    np.asarray(ends, np.int64).tofile(folder / _ENDS)


def read_media(shards: Sequence[Path], items: Items, row: int) -> bytes:
    """The media of the item at `row`, from their place in the shards."""
    shard, offset, size = (int(value) for value in items.places[row])
    # Opened anew each time: a large data set has more shards than a process may hold open.
    with shards[shard].open("rb", buffering=0) as file:
        return os.pread(file.fileno(), size, offset)


def decode_one(view: View, media: bytes, name: str) -> NDArray[Any]:
    """What `view` keeps of `media`. Raises DataError that calls the item `name`."""
    try:
        return view.keep(media)
    except CoembedError as error:
        raise DataError(
            f"item {name} cannot be decoded: {error.message}",
            hint="curation should have dropped it: keep its `readable` filter switched on",
        ) from error


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _decode_sample(view: View, sample: Sample) -> NDArray[Any]:
    return decode_one(view, sample.media, f"{sample.path!r} ({sample.item_id[:12]})")


class _Threads:
    """Splits the rows of a batch among threads; with one it does without any."""

    def __init__(self, num: int) -> None:
        self._num = num
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def map(self, work: Any, num_rows: int) -> Iterator[Any]:
        if self._num == 1 or num_rows < 2:
            return iter([work(slice(0, num_rows))])
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._num, thread_name_prefix="coembed-media")
        # More parts than threads, so that one large picture does not hold the rest up.
        each = max(1, -(-num_rows // (4 * self._num)))
        parts = [slice(at, min(at + each, num_rows)) for at in range(0, num_rows, each)]
        return self._pool.map(work, parts)
