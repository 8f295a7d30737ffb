"""Embeddings that outlive a run, by the content of what was embedded.

A folder of parts `<number>.npz`, each a run of keys (16 bytes of a SHA-256) and vectors in half
precision, written whole or not at all. A grown pool costs only its new items. Half precision moves
a cosine by about 1e-4 at most; fresh vectors are rounded alike, so that a cache changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from coembed.files import atomic_path
from coembed.progress import tracker

Vectors = NDArray[np.float16]
Keys = NDArray[np.void]

KEY_BYTES = 16
PART_ITEMS = 2048


class EmbeddingCache:
    """Embeddings of `dim` numbers in `folder`, which belongs to one model and modality."""

    def __init__(self, folder: Path, *, dim: int) -> None:
        self._folder, self._dim = folder, dim
        folder.mkdir(parents=True, exist_ok=True)

    def fill(
        self,
        out: Path,
        keys: Sequence[bytes] | NDArray[np.bytes_],
        items: Callable[[], Iterator[Sequence[str]]],
        embed: Callable[[Sequence[str]], NDArray[np.float32]],
        *,
        label: str,
    ) -> Vectors:
        """Vectors [len(keys), dim], memory-mapped at `out`.

        `items` gives what stands for the keys (paths, texts) in their order, in runs; `embed` is
        called with those that the cache lacks. It gives NaN for what cannot be embedded.
        """
        wanted = np.asarray(keys, dtype=f"S{KEY_BYTES}")
        vectors = np.lib.format.open_memmap(out, "w+", np.float16, (len(wanted), self._dim))
        known = self._recall(wanted, vectors)
        progress = tracker(total=len(wanted), label=label, unit="items")
        progress.advance(int(known.sum()))
        number = self._next_number()
        try:
            for places, texts in _unknown(items(), known):
                found = embed(texts).astype(np.float16)
                vectors[places] = found
                self._write(number, wanted[places], found)
                number += 1
                progress.advance(len(places))
        finally:
            progress.close()
        return vectors

    def _recall(self, wanted: NDArray[np.bytes_], vectors: Vectors) -> NDArray[np.bool_]:
        """Fill in what the parts hold, and say what that was."""
        known = np.zeros(len(wanted), np.bool_)
        order = np.argsort(wanted, kind="stable")
        ordered = wanted[order]
        for path in sorted(self._folder.glob("*.npz")):
            try:
                with np.load(path, allow_pickle=False) as part:
                    keys = part["keys"].view(f"S{KEY_BYTES}")[:, 0]
                    first = np.searchsorted(ordered, keys, side="left")
                    last = np.searchsorted(ordered, keys, side="right")
                    if not (last > first).any():
                        continue
                    held = part["vectors"]
                    if held.shape != (len(keys), self._dim):
                        raise ValueError("of another shape")
            except (OSError, ValueError, KeyError, EOFError, BadZipFile):
                path.unlink(missing_ok=True)  # damaged: its items are embedded again
                continue
            for start, end, vector in zip(first, last, held, strict=True):
                vectors[order[start:end]] = vector
                known[order[start:end]] = True
        return known

    def _next_number(self) -> int:
        numbers = [int(path.stem) for path in self._folder.glob("*.npz") if path.stem.isdigit()]
        return max(numbers, default=-1) + 1

    def _write(self, number: int, keys: NDArray[np.bytes_], vectors: Vectors) -> None:
        raw = np.frombuffer(keys.tobytes(), np.uint8).reshape(len(keys), KEY_BYTES)
        with atomic_path(self._folder / f"{number:08d}.npz") as partial, partial.open("wb") as file:
            np.savez(file, keys=raw, vectors=vectors)


def _unknown(
    runs: Iterator[Sequence[str]], known: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.int64], list[str]]]:
    """Places and texts of what is not known, at most PART_ITEMS at a time."""
    places: list[int] = []
    texts: list[str] = []
    at = 0
    for run in runs:
        for place in np.flatnonzero(~known[at : at + len(run)]).tolist():
            places.append(at + place)
            texts.append(run[place])
            if len(places) == PART_ITEMS:
                yield np.array(places, np.int64), texts
                places, texts = [], []
        at += len(run)
    if places:
        yield np.array(places, np.int64), texts
