"""The folder of the embedded index: collections of generations, and the aliases that point at them.

    store.json                        the format of this folder
    aliases.json                      alias → collection
    collections/NAME/collection.json  metadata, shape, and which generation is the collection
    collections/NAME/GENERATION/      see edge_generation; there is one, but for a moment
    building/NAME.lock                held by the process that builds NAME
    building/NAME/                    what it is building
    building/.gone-*                  what is being removed

Every JSON file is replaced whole, under the lock of the store where a change depends on what was
read. Nobody holds that lock for long, and readers never take it: any number of processes may search
while one builds. A folder is taken away by a rename and removed then; whoever has a generation open
goes on reading it, as its files are all mapped.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coembed.errors import ServiceError, UserError
from coembed.files import disk_errors, sweep_partials, write_json
from coembed.index.base import Collection, DamagedError
from coembed.index.edge_generation import FORMAT, damaged, seal, sync_folder, unseal
from coembed.index.edge_lock import is_held, lock
from coembed.index.edge_shard import Shape

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_ENTRY = "collection.json"
_REBUILD = (
    "move that folder away; `coembed index` and `coembed promote` build it again from "
    "artifacts/embeddings"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished collection as its collection.json says."""

    name: str
    shape: Shape
    metadata: Mapping[str, Any]
    generation: str
    num_points: int

    @property
    def collection(self) -> Collection:
        """As the index describes it."""
        return Collection(self.name, self.shape.vector_name, self.shape.dim, dict(self.metadata))


@dataclass(frozen=True, slots=True)
class Survey:
    """What is in a store. `building` are names; `is_old` says that an older coembed's index of
    another engine lies in the same folder, which is not read.
    """

    collections: tuple[str, ...]
    aliases: Mapping[str, str]
    building: tuple[str, ...]
    is_old: bool


class Store:
    """The files of an embedded index. A store that is not there yet is an empty one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._collections = path / "collections"
        self._building = path / "building"

    def check(self) -> None:
        """Raise ServiceError if the folder is not one that this coembed reads."""
        if self.path.exists() and not self.path.is_dir():
            raise ServiceError(f"the index cannot be opened: {self.path} is not a folder")
        try:
            read = json.loads((self.path / "store.json").read_text(encoding="utf-8"))
            found = read["format"]
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ServiceError(
                f"the index in {self.path} cannot be opened: {error}", hint=_REBUILD
            ) from error
        if found != FORMAT:
            raise ServiceError(
                f"the index in {self.path} cannot be opened: its format is {found}, this coembed "
                f"reads {FORMAT}",
                hint=_REBUILD,
            )

    def survey(self) -> Survey:
        """What is in the store."""
        self.check()
        building = self._building.glob("*.lock") if self._building.is_dir() else ()
        return Survey(
            collections=tuple(self.names()),
            aliases=self.aliases(),
            building=tuple(sorted(path.stem for path in building if is_held(path))),
            is_old=(self.path / "meta.json").exists() and (self.path / "collection").is_dir(),
        )

    # Collections

    def names(self) -> list[str]:
        """Names of the finished collections, sorted."""
        if not self._collections.is_dir():
            return []
        return sorted(path.parent.name for path in self._collections.glob(f"*/{_ENTRY}"))

    def entry_path(self, name: str) -> Path:
        """Where a collection's entry is, or would be."""
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{name!r} cannot be the name of a collection",
                hint="letters, digits, `_`, `-` and `.`, at most 200, starting with a letter or "
                "digit",
            )
        return self._collections / name / _ENTRY

    def entry(self, name: str) -> Entry | None:
        """A collection's entry; None if it is not there. Raises DamagedError."""
        path = self.entry_path(name)
        try:
            value = unseal(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return Entry(
                name=name,
                shape=Shape(**value["shape"]),
                metadata=dict(value["metadata"]),
                generation=str(value["generation"]),
                num_points=int(value["num_points"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(path, f"it does not say what a collection is: {error}") from error

    def generation_folder(self, entry: Entry) -> Path:
        """Where the files of a collection are."""
        return self._collections / entry.name / entry.generation

    def set_metadata(self, name: str, metadata: Mapping[str, Any]) -> bool:
        """Set these keys of a collection's metadata; False if it is not there."""
        with self._locked():
            entry = self.entry(name)
            if entry is None:
                return False
            self._write_entry(
                self.entry_path(name),
                replace(entry, metadata={**entry.metadata, **metadata}),
            )
        return True

    def publish(self, entry: Entry, built: Path, *, is_new: bool) -> bool:
        """Make the finished generation in the folder `built` that of the collection.

        Whoever opens the collection has the old generation until the rename of one file, and the
        new one from then on. False, and nothing done, if the collection has been removed meanwhile
        (or if one that `is_new` is there already).
        """
        path = self.entry_path(entry.name)
        with self._locked():
            old = self.entry(entry.name)
            if is_new != (old is None):
                return False
            if old is None:
                # The entry goes with the files, in one rename of the folder that holds both.
                self._write_entry(built.parent / _ENTRY, entry)
                self._collections.mkdir(exist_ok=True)
                if path.parent.exists():  # of a delete that was killed
                    shutil.rmtree(path.parent)
                built.parent.rename(path.parent)
                sync_folder(self._collections)
                return True
            # What was set while this was being built stays.
            entry = replace(entry, metadata={**old.metadata, **entry.metadata})
            built.rename(self.generation_folder(entry))
            sync_folder(path.parent)
            self._write_entry(path, entry)
            self._take_away(self.generation_folder(old))
        self.sweep()
        return True

    def _write_entry(self, path: Path, entry: Entry) -> None:
        seal(
            path,
            {
                "shape": entry.shape.to_json(),
                "metadata": dict(entry.metadata),
                "generation": entry.generation,
                "num_points": entry.num_points,
            },
        )
        sync_folder(path.parent)

    def delete(self, name: str) -> None:
        """Remove a collection, if it is there. One that an alias points at is a UserError."""
        with self._locked():
            if name in self.aliases().values():
                raise served(name)
            folder = self.entry_path(name).parent
            if folder.exists():
                self._take_away(folder)
                sync_folder(self._collections)
        self.sweep()

    def _take_away(self, folder: Path) -> None:
        self._building.mkdir(exist_ok=True)
        folder.rename(self._building / f".gone-{uuid.uuid4().hex}")

    # Building

    def building_paths(self, name: str) -> tuple[Path, Path]:
        """The lock, and a new folder for the next generation of a collection."""
        generation = uuid.uuid4().hex[:12]
        return (
            self._building / f"{name}.lock",
            self._building / name / generation,
        )

    def prepare(self) -> None:
        """Make the folders that building needs."""
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if not (self.path / "store.json").exists():
                write_json(self.path / "store.json", {"format": FORMAT, "engine": "qdrant-edge"})
            self._building.mkdir(exist_ok=True)
        self.check()
        self.sweep()

    def sweep(self) -> None:
        """Remove what killed processes left: half-built generations, and replaced ones."""
        if not self._building.is_dir():
            return
        for gone in self._building.glob(".gone-*"):
            shutil.rmtree(gone, ignore_errors=True)
        for path in self._building.glob("[!.]*.lock"):
            self.sweep_building(path.stem)
        with self._locked():
            sweep_partials(self.path)
            for name in self.names():
                folder = self._collections / name
                sweep_partials(folder)
                try:
                    entry = self.entry(name)
                except DamagedError:
                    continue  # said when someone asks for it
                for inner in folder.iterdir():
                    if entry and inner.is_dir() and inner.name != entry.generation:
                        shutil.rmtree(inner, ignore_errors=True)

    def sweep_building(self, name: str) -> None:
        """Remove what was left of a build of a collection, unless it is being built."""
        lock_path, _ = self.building_paths(name)
        descriptor = lock(lock_path, wait_s=0, owner="a sweep")
        if descriptor is None:
            return  # it is being built
        try:
            shutil.rmtree(self._building / name, ignore_errors=True)
            lock_path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)

    # Aliases

    def aliases(self) -> dict[str, str]:
        """Alias → collection. One whose collection somebody took away is none, as in Qdrant."""
        path = self.path / "aliases.json"
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            return {
                str(alias): str(name)
                for alias, name in read.items()
                if self.entry_path(str(name)).exists()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            raise ServiceError(
                f"{path} cannot be read: {error}",
                hint="remove it and run `coembed promote`, which points the alias again",
            ) from error

    def set_alias(self, alias: str, name: str) -> bool:
        """Point `alias` at a finished collection; False if that is not there."""
        with self._locked():
            if self.entry(name) is None:
                return False
            if self.entry_path(alias).exists():
                raise UserError(f"{alias!r} is the name of a collection and cannot be an alias")
            aliases = self.aliases()
            if aliases.get(alias) != name:
                write_json(self.path / "aliases.json", {**aliases, alias: name})
                sync_folder(self.path)
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Change the store alone. Held for moments, and freed by a killed process."""
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            with (self.path / "store.lock").open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield


def served(name: str) -> UserError:
    """The error for removing a collection that an alias points at."""
    return UserError(f"collection {name!r} is served; point its alias elsewhere first")
