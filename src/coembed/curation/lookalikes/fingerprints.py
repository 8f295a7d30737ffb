"""The fingerprints of a pool's kept pictures: hashes of all of them, thumbnails of some."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from coembed.curation.filters.base import PoolView
from coembed.curation.lookalikes.hamming import Places
from coembed.curation.lookalikes.perceptual import (
    NUM_WINDOWS,
    THUMBNAIL_BYTES,
    Hashes,
    hash_thumbnails,
    unpack_thumbnails,
)
from coembed.curation.media.media import Media
from coembed.curation.media.undecodable import Undecodable

_COPY_ROWS = 1 << 18


class Fingerprints:
    """Reads the column `column` of `kept` (thumbnails, of one row an item) once for the hashes.

    `items` [n] int64: the items that have a thumbnail, ascending. `hashes` [n, NUM_WINDOWS]: a file
    in the pool's scratch folder; 128 bytes an item, and no more than 16 of them in memory.
    """

    def __init__(self, pool: PoolView, column: str) -> None:
        self._pool = pool
        self._column = column
        unordered = pool.scratch / "unordered.u64"
        items: list[NDArray[np.int64]] = []
        with unordered.open("wb") as file:
            for batch in pool.query(
                f"SELECT item, {column} AS thumbnail FROM kept SEMI JOIN ("
                "SELECT min(row) AS row FROM kept WHERE modality = 'image' GROUP BY item"
                f") AS firsts USING (row) WHERE {column} IS NOT NULL"
            ):
                items.append(batch.column("item").to_numpy())
                hash_thumbnails(_thumbnails(batch.column("thumbnail"))).tofile(file)
        found = np.concatenate(items) if items else np.zeros(0, np.int64)
        order = np.argsort(found, kind="stable")
        self.items = found[order]
        self.hashes = _reorder(unordered, order, pool.scratch / "hashes.u64")
        unordered.unlink()

    def write_thumbnails(self, places: Places, file: Path) -> None:
        """Write the thumbnails of `places` (rows of `items`, ascending) one after another."""
        if len(places) == 0:
            file.touch()
            return
        wanted = self.items[places]
        shape = (len(places), THUMBNAIL_BYTES)
        written = np.memmap(file, np.uint8, "w+", shape=shape)
        for batch in self._pool.query(
            f"SELECT item, {self._column} AS thumbnail FROM kept SEMI JOIN ("
            "SELECT min(row) AS row FROM kept SEMI JOIN wanted USING (item)"
            " WHERE modality = 'image' GROUP BY item) AS firsts USING (row)",
            wanted=pa.table({"item": wanted}),
        ):
            at = np.searchsorted(wanted, batch.column("item").to_numpy())
            written[at] = _thumbnails(batch.column("thumbnail")).reshape(-1, THUMBNAIL_BYTES)
        written.flush()


class Pictures:
    """The pictures of `items` [n] (ascending), by place: `pictures(place)` decodes one."""

    def __init__(self, pool: PoolView, items: Places) -> None:
        self._pool = pool
        self._items = items
        self._paths: list[str] | None = None

    def __call__(self, place: int) -> Image.Image | None:
        """The picture scaled down (`Media.thumbnail`); None where it cannot be decoded."""
        if self._paths is None:  # asked for only where thumbnails leave a doubt
            self._paths = self._find()
        try:
            return Media(self._pool.read_media(self._paths[place]), modality="image").thumbnail
        except Undecodable:
            return None

    def _find(self) -> list[str]:
        paths = [""] * len(self._items)
        for batch in self._pool.query(
            "SELECT item, arg_min(path, row) AS path FROM kept SEMI JOIN wanted USING (item)"
            " WHERE modality = 'image' GROUP BY item",
            wanted=pa.table({"item": self._items}),
        ):
            at = np.searchsorted(self._items, batch.column("item").to_numpy())
            for place, path in zip(at.tolist(), batch.column("path").to_pylist(), strict=True):
                paths[place] = path
        return paths


def _thumbnails(column: pa.Array) -> NDArray[np.uint8]:
    return unpack_thumbnails(b"".join(column.to_pylist()))


def _reorder(source: Path, order: Places, target: Path) -> Hashes:
    if len(order) == 0:
        return np.zeros((0, NUM_WINDOWS), np.uint64)
    hashes = np.memmap(source, np.uint64, "r").reshape(-1, NUM_WINDOWS)
    ordered = np.memmap(target, np.uint64, "w+", shape=(len(order), NUM_WINDOWS))
    for start in range(0, len(order), _COPY_ROWS):
        ordered[start : start + _COPY_ROWS] = hashes[order[start : start + _COPY_ROWS]]
    ordered.flush()
    return ordered
