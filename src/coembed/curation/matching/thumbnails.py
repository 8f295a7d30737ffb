"""Small squared pictures of items, decoded by threads as they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from coembed.curation.filters.base import PoolView
from coembed.errors import DataError
from coembed.modalities import image
from coembed.progress import Tracker

Pixels = NDArray[np.uint8]
_CHUNK = 256
_KEYED = 4096


class Thumbnails:
    """Pictures squashed to px × px. The first items' are kept in a file; a context manager.

    A picture that cannot be decoded (the engine has found it decodable; decoders differ) is None.
    """

    def __init__(self, pool: PoolView, *, px: int, num_threads: int) -> None:
        self._pool = pool
        self._spec = image.Spec(px=px, resize="squash", interpolation="bilinear")
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="thumbnails")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def read(self, paths: Sequence[str]) -> tuple[Pixels, NDArray[np.bool_]]:
        """Pixels [items, px, px, 3], and which of them could be decoded (the others are black)."""
        px = self._spec.px
        pixels = np.zeros((len(paths), px, px, 3), np.uint8)
        good = np.zeros(len(paths), np.bool_)
        for place, found in enumerate(self._threads.map(self._read, paths)):
            if found is not None:
                pixels[place], good[place] = found, True
        return pixels, good

    def write(
        self, path: Path, batches: Iterable[Sequence[str]], num: int, progress: Tracker
    ) -> tuple[Pixels, NDArray[np.bool_]]:
        """Decode `num` items into a memory-mapped file at `path`."""
        px = self._spec.px
        pixels = np.lib.format.open_memmap(path, "w+", np.uint8, (num, px, px, 3))
        good = np.zeros(num, np.bool_)
        at = 0
        for paths in batches:
            for start in range(0, len(paths), _CHUNK):
                some = paths[start : start + _CHUNK]
                part = slice(at, at + len(some))
                pixels[part], good[part] = self.read(some)
                at += len(some)
                progress.advance(len(some))
        return pixels, good

    def _read(self, path: str) -> Pixels | None:
        media = self._pool.read_media(path)
        try:
            return image.transform(media, self._spec)
        except DataError:
            return None


def picture_keys(pixels: Pixels) -> NDArray[np.uint64]:
    """64 bits a picture that near copies mostly share: in which cells of an 8 × 8 grid the
    brightness rises to the right (a difference hash)."""
    parts = [_difference_hash(pixels[at : at + _KEYED]) for at in range(0, len(pixels), _KEYED)]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def _difference_hash(pixels: Pixels) -> NDArray[np.uint64]:
    num, px = pixels.shape[:2]
    columns = np.linspace(0, px, 10).round().astype(int)
    rows = np.linspace(0, px, 9).round().astype(int)
    grey = pixels.mean(3, dtype=np.float32)
    grey = np.add.reduceat(np.add.reduceat(grey, rows[:-1], axis=1), columns[:-1], axis=2)
    grey /= np.diff(rows)[None, :, None] * np.diff(columns)[None, None, :]
    # A step of less than a grey level is noise; a plain picture is all zeros.
    bits = (grey[:, :, 1:] - grey[:, :, :-1] > 1.0).reshape(num, 64)
    keys: NDArray[np.uint64] = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    return keys
