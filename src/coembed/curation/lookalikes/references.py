"""Outside evaluation sets: the items that a pool must not hold, and their captions."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coembed.curation.examination.part_cells import normal_caption, text_key
from coembed.curation.lookalikes.lookalikes import Map
from coembed.curation.lookalikes.perceptual import THUMBNAIL_BYTES, fingerprint, unpack_thumbnails
from coembed.curation.media.media import Media
from coembed.curation.media.undecodable import Undecodable
from coembed.curation.reading import read_media
from coembed.errors import DataError
from coembed.pairs.media_types import MEDIA_ENDINGS, file_ending, modality_of
from coembed.pairs.pool import Pool, open_pool

_MAX_FILE_BYTES = 256_000_000
_FILES_A_TASK = 128


@dataclass(frozen=True)
class References:
    """What is in the evaluation sets.

    `files` [n]: (folder, path within it), `labels` [n]: what a drop's detail calls them, `item_ids`
    [n]: SHA-256, hexadecimal. `pictured` [m]: places in `files` of the pictures that can be
    decoded; `thumbnails` uint8 [m, px, px, 3]. `captions`: of every caption, by its key
    (hexadecimal), a label.
    """

    files: list[tuple[Path, str]]
    labels: list[str]
    item_ids: list[str]
    pictured: NDArray[np.int64]
    thumbnails: NDArray[np.uint8]
    captions: dict[str, str]

    def item_table(self) -> pa.Table:
        """`item_id` and `label`, the first label of each."""
        first: dict[str, str] = {}
        for item_id, label in zip(self.item_ids, self.labels, strict=True):
            first.setdefault(item_id, label)
        return pa.table({"item_id": list(first), "label": list(first.values())})

    def caption_table(self) -> pa.Table:
        """`key` and `label`."""
        kinds = [pa.string(), pa.string()]
        columns = [list(self.captions), list(self.captions.values())]
        arrays = [pa.array(cells, kind) for cells, kind in zip(columns, kinds, strict=True)]
        return pa.Table.from_arrays(arrays, names=["key", "label"])

    def picture(self, place: int) -> Media:
        """The picture at `place` in `pictured`. Raises DataError when it has gone."""
        folder, path = self.files[int(self.pictured[place])]
        data, _, detail = read_media(folder, path, _MAX_FILE_BYTES)
        if not data:
            raise DataError(
                f"{folder / path} cannot be read any more: {detail}",
                hint="let the evaluation set come to rest, then run `coembed curate` again",
            )
        return Media(data, modality="image")


def read_references(names: tuple[str, ...], bases: tuple[Path, ...], map_tasks: Map) -> References:
    """Read the evaluation sets `names`: folders below the first of `bases` that has them.

    A folder with pair tables is read as a pool, any other one for its media files, at any depth.
    Raises DataError when there is no such folder, when it holds nothing to compare with, or when a
    file cannot be read.
    """
    files: list[tuple[Path, str]] = []
    labels: list[str] = []
    captions: dict[str, str] = {}
    for name in names:
        folder = _find(name, bases)
        if (folder / "pairs").is_dir():
            paths = _read_pairs(open_pool(folder), name, captions)
        else:
            paths = sorted(_media_files(folder))
        if not paths:
            raise DataError(
                f"evaluation_leak: {folder} holds no media files; expected pictures or sounds, or a"
                " pool with tables in pairs/",
                hint="correct the folder in `against`, or fill it",
            )
        files += [(folder, path) for path in paths]
        labels += [f"{name}/{path}" for path in paths]
    tasks = [files[at : at + _FILES_A_TASK] for at in range(0, len(files), _FILES_A_TASK)]
    results = map(_read_files, tasks) if len(tasks) < 8 else map_tasks(_read_files, tasks)
    found = [item for part in results for item in part]
    thumbnails = b"".join(thumbnail for _, thumbnail in found)
    assert len(thumbnails) % THUMBNAIL_BYTES == 0
    pictured = [place for place, (_, thumbnail) in enumerate(found) if thumbnail]
    return References(
        files=files,
        labels=labels,
        item_ids=[item_id for item_id, _ in found],
        pictured=np.array(pictured, np.int64),
        thumbnails=unpack_thumbnails(thumbnails),
        captions=captions,
    )


def _find(name: str, bases: tuple[Path, ...]) -> Path:
    for base in bases:
        if (base / name).is_dir():
            return base / name
    places = " or ".join(str(base) for base in bases)
    raise DataError(
        f"evaluation_leak: no folder {name!r} in {places}",
        hint="correct `against`; `dvc pull` brings what data.dvc has of the pool's folder",
    )


def _read_pairs(pool: Pool, name: str, captions: dict[str, str]) -> list[str]:
    """The paths of a pool's media, each once, in order; its captions go to `captions`."""
    paths: set[str] = set()
    for batch in pool.batches():
        cells = (batch.column(c).to_pylist() for c in ("path", "caption", "pair_id"))
        for path, caption, pair_id in zip(*cells, strict=True):
            if path:
                paths.add(path)
            normal = normal_caption(caption)
            if normal:
                captions.setdefault(text_key(normal).hex(), f"pair {pair_id} of {name}")
    return sorted(paths)


def _media_files(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        for name in names:
            if file_ending(name) in MEDIA_ENDINGS:
                yield (Path(parent) / name).relative_to(folder).as_posix()


def _read_files(files: list[tuple[Path, str]]) -> list[tuple[str, bytes]]:
    """Item id and thumbnail of each file; no thumbnail where it is no picture or a broken one."""
    found = []
    for folder, path in files:
        data, reason, detail = read_media(folder, path, _MAX_FILE_BYTES)
        if reason and reason != "empty_file":
            raise DataError(
                f"evaluation_leak: {folder / path} cannot be read: {detail}",
                hint="complete the evaluation set, or take the row or file out of it",
            )
        thumbnail = b""
        if data and modality_of(path) == "image":
            try:
                thumbnail = fingerprint(Media(data, modality="image").thumbnail)
            except Undecodable:
                thumbnail = b""  # its bytes can still be compared
        found.append((hashlib.sha256(data).hexdigest(), thumbnail))
    return found
