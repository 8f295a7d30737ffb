"""A generation: one finished, immutable shard of Qdrant Edge, and the list of its files.

    <generation>/generation.json   how the shard was made, and every file's size and SHA-256
    <generation>/shard/            Edge's own files

A generation is made in a folder of its own, listed when everything is written, and never written
to again: Edge opens its files for writing even to read, but leaves their bytes as they are (but for
stray `.atomicwrite*` folders where a reader is killed). Damage is found by comparing with the list.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from coembed.errors import ServiceError
from coembed.files import sha256_file, sha256_json, write_json
from coembed.index.base import DamagedError
from coembed.index.edge_shard import Shape, Shard

FORMAT = 1
_LIST = "generation.json"
_SHARD = "shard"
# Edge writes these once and then only reads them (a test changes a copy and compares): a copy may
# share them by a hard link. They are most of a large shard.
_SHARED = frozenset(
    {"matrix.dat", "links_compressed.bin", "links.bin", "graph.bin", "quantized.data",
     "id_tracker.mappings", "point_to_values.bin", "values_to_points.bin"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Generation:
    """What the list of a generation says. `files` is relative path → (bytes, SHA-256)."""

    shape: Shape
    num_points: int
    files: Mapping[str, tuple[int, str]]


def shard_folder(folder: Path) -> Path:
    """Where the shard of a generation is."""
    return folder / _SHARD


def seal(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON together with its own hash, whole or not at all."""
    write_json(path, {"value": value, "sha256": sha256_json(value)})


def unseal(path: Path) -> dict[str, Any]:
    """Read what `seal` wrote. Raises DamagedError, or FileNotFoundError."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        value, expected = read["value"], read["sha256"]
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, f"it cannot be read: {error}") from error
    if not isinstance(value, dict) or sha256_json(value) != expected:
        raise damaged(path, "its content and its checksum differ")
    return value


def damaged(path: Path, what: str) -> DamagedError:
    """The error for a file that is not as it was written."""
    return DamagedError(
        f"the index is damaged: {path}: {what}",
        hint="`coembed index` builds the collection again from artifacts/embeddings; look for a "
        "failing disk if it happens again",
    )


def write_list(folder: Path, shape: Shape, known: Mapping[str, tuple[int, str]]) -> Generation:
    """List the files of a closed shard and bring them onto the disk: the generation is finished.

    `known` are files whose hash is known already, because they are shared with a checked one.
    """
    shard = shard_folder(folder)
    # Edge writes its configuration once more when a shard is first loaded; what is listed has to
    # be what stays.
    opened = Shard.load(shard, shape)
    num_points = opened.count()
    opened.close()
    paths = [path for path in sorted(shard.rglob("*")) if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in paths]
    fresh = [path for path, name in zip(paths, names, strict=True) if name not in known]
    with ThreadPoolExecutor(max_workers=4) as pool:  # both let go of the interpreter lock
        hashes = dict(zip(fresh, pool.map(_settle_and_hash, fresh), strict=True))
    files = {
        name: known.get(name) or (path.stat().st_size, hashes[path])
        for path, name in zip(paths, names, strict=True)
    }
    for inner in sorted({path.parent for path in paths}):
        sync_folder(inner)
    value = {
        "format": FORMAT,
        "engine": f"qdrant-edge-py {version('qdrant-edge-py')}",
        "shape": shape.to_json(),
        "num_points": num_points,
        "files": {name: list(entry) for name, entry in files.items()},
    }
    seal(folder / _LIST, value)
    sync_folder(folder)
    return Generation(shape, num_points, files)


def read_list(folder: Path) -> Generation:
    """What the list says. Raises DamagedError, or ServiceError for a format of another coembed."""
    path = folder / _LIST
    try:
        value = unseal(path)
    except FileNotFoundError:
        raise damaged(path, "it is missing") from None
    if value.get("format") != FORMAT:
        raise ServiceError(
            f"{folder} was written by another coembed: its format is {value.get('format')}, this "
            f"one reads {FORMAT}",
            hint="`coembed index` builds the collection again from artifacts/embeddings",
        )
    return Generation(
        shape=Shape(**value["shape"]),
        num_points=int(value["num_points"]),
        files={name: (int(size), str(digest)) for name, (size, digest) in value["files"].items()},
    )


def check_files(folder: Path, generation: Generation) -> None:
    """Compare every file with the list. Raises DamagedError that names the first that differs.

    All bytes are read (about a second a gigabyte where they are in memory), which also brings into
    memory what a search needs there.
    """
    for name, (size, _) in generation.files.items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            raise damaged(folder / name, "it is missing") from None
        if found != size:
            raise damaged(folder / name, f"it has {found:,} bytes, {size:,} were written")
    paths = [folder / name for name in generation.files]
    with ThreadPoolExecutor(max_workers=4) as pool:
        for path, (_, expected), digest in zip(
            paths, generation.files.values(), pool.map(_hash, paths), strict=True
        ):
            if digest != expected:
                raise damaged(path, "its content is not what was written (SHA-256 differs)")


def open_checked(folder: Path) -> tuple[Shard, Generation]:
    """Check a generation's files and open its shard for reading."""
    generation = read_list(folder)
    check_files(folder, generation)
    return Shard.load(shard_folder(folder), generation.shape), generation


def copy_files(source: Path, generation: Generation, target: Path) -> dict[str, tuple[int, str]]:
    """Copy the shard of a checked generation into `target`, to be changed there.

    Returns the files that are shared with the source rather than copied.
    """
    shared = {}
    for name, entry in generation.files.items():
        old, new = source / name, target / name
        new.parent.mkdir(parents=True, exist_ok=True)
        if old.name in _SHARED and _link(old, new):
            shared[name] = entry
        else:
            _copy_sparse(old, new)
    return shared


def _link(old: Path, new: Path) -> bool:
    try:
        os.link(old, new)
    except OSError:  # a file system without links, or a file with as many as it may have
        return False
    return True


def _copy_sparse(old: Path, new: Path) -> None:
    """Copy a file but not its holes: Edge reserves 32 MiB for a payload of a few bytes."""
    with old.open("rb") as reader, new.open("wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        writer.truncate(size)
        start = 0
        while start < size:
            try:
                start = os.lseek(reader.fileno(), start, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # nothing but a hole is left
                    raise
                break
            end = os.lseek(reader.fileno(), start, os.SEEK_HOLE)
            reader.seek(start)
            writer.seek(start)
            while start < end:
                start += writer.write(reader.read(min(1 << 20, end - start)))


def _hash(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:  # a sector that cannot be read
        raise damaged(path, f"it cannot be read: {error}") from error


def _settle_and_hash(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return sha256_file(path)


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries (new names) onto the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
