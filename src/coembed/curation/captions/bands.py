"""Band keys of any number of texts in sorted files, one a band: who shares a key with whom.

Keys come in the order of ids, are written out, and sorted a part at a time, so that memory stays
the same however many there are: 16 bytes a text and band on disk, about 200 MB of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_PART = 1 << 22  # texts sorted at a time


class Bands:
    """Sorted keys and their ids on disk, band by band.

    `weights` [texts] int32: what each text counts for.
    """

    def __init__(self, folder: Path, num_bands: int, weights: NDArray[np.int32]) -> None:
        self._folder = folder
        self._num_bands = num_bands
        self._weights = weights
        self._opened: dict[int, tuple[NDArray[np.uint64], NDArray[np.int64]]] = {}

    def write(self, batches: Iterator[NDArray[np.uint64]]) -> None:
        """Take the keys [some texts, bands] of all texts in order, and sort them."""
        files = [(self._folder / f"raw-{band}").open("wb") for band in range(self._num_bands)]
        try:
            for keys in batches:
                for file, column in zip(files, keys.T, strict=True):
                    file.write(np.ascontiguousarray(column).tobytes())
        finally:
            for file in files:
                file.close()
        for band in range(self._num_bands):
            self._sort(band)

    def _sort(self, band: int) -> None:
        raw = self._folder / f"raw-{band}"
        keys = np.fromfile(raw, np.uint64) if self._fits else np.memmap(raw, np.uint64, "r")
        with (
            (self._folder / f"keys-{band}").open("wb") as sorted_keys,
            (self._folder / f"ids-{band}").open("wb") as sorted_ids,
        ):
            for ids in self._parts(keys):
                part = np.asarray(keys[ids] if len(ids) < len(keys) else keys)
                order = np.argsort(part, kind="stable")
                sorted_keys.write(part[order].tobytes())
                sorted_ids.write(ids[order].tobytes())
        raw.unlink()

    @property
    def _fits(self) -> bool:
        return len(self._weights) <= _PART

    def _parts(self, keys: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
        """Ids in ascending order by ranges of keys: keys are hashes, so the ranges are alike."""
        num_parts = -(-len(keys) // _PART)
        if num_parts <= 1:
            yield np.arange(len(keys))
            return
        width = (1 << 64) // num_parts + 1
        for part in range(num_parts):
            first, last = part * width, min((part + 1) * width, 1 << 64) - 1
            found = []
            for start in range(0, len(keys), _PART):
                some = np.asarray(keys[start : start + _PART])
                inside = (some >= np.uint64(first)) & (some <= np.uint64(last))
                found.append(np.flatnonzero(inside) + start)
            yield np.concatenate(found)

    def heavy(self, least: int) -> Iterator[tuple[int, int]]:
        """Of each set of texts with one key that together weigh `least` or more: the heaviest text
        (of several the one with the smallest id), and the weight of the set."""
        for band in range(self._num_bands):
            for keys, ids in self._chunks(band):
                starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
                weights = self._weights[ids]
                sums = np.add.reduceat(weights, starts, dtype=np.int64)
                ends = np.r_[starts[1:], len(keys)]
                for place in np.flatnonzero(sums >= least).tolist():
                    start, end = starts[place], ends[place]
                    first = start + int(np.argmax(weights[start:end]))
                    yield int(ids[first]), int(sums[place])

    def _chunks(self, band: int) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
        """Runs of the sorted file that end where a key ends. Read, not mapped: pages of mapped
        files would count as this process's memory, all bands together."""
        keys, ids = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        with (
            (self._folder / f"keys-{band}").open("rb") as sorted_keys,
            (self._folder / f"ids-{band}").open("rb") as sorted_ids,
        ):
            while len(more := np.fromfile(sorted_keys, np.uint64, _PART)):
                keys = np.concatenate([keys, more])
                ids = np.concatenate([ids, np.fromfile(sorted_ids, np.int64, _PART)])
                # The last key may go on in what is still to be read.
                end = int(np.searchsorted(keys, keys[-1], "left"))
                if end:
                    yield keys[:end], ids[:end]
                keys, ids = keys[end:].copy(), ids[end:].copy()
        if len(keys):
            yield keys, ids

    def neighbours(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The ids of the texts that have one of the `keys` [bands] in its band, in order."""
        found = []
        for band, key in enumerate(keys):
            sorted_keys, ids = self._open(band)
            start = int(np.searchsorted(sorted_keys, key, "left"))
            end = int(np.searchsorted(sorted_keys, key, "right"))
            found.append(np.asarray(ids[start:end]))
        return np.unique(np.concatenate(found))

    def _open(self, band: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        if band not in self._opened:
            self._opened[band] = (
                np.memmap(self._folder / f"keys-{band}", np.uint64, "r"),
                np.memmap(self._folder / f"ids-{band}", np.int64, "r"),
            )
        return self._opened[band]
