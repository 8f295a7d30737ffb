"""Versions with a collection each, on a shelf: what the tests of promotion and rollback switch."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from release_case import World

from coembed.services import find_services
from coembed.stages.promotion import Stores, open_stores, served_version, switch


@dataclass(frozen=True)
class Shelf:
    """A world, and the collection of each version that is in it."""

    world: World
    collections: dict[int, str]

    def copy(self, root: Path) -> Shelf:
        """Both stores and all receipts once more, in another folder."""
        root.mkdir()
        for name in ("mlflow", "qdrant", "runs"):
            ignored = shutil.ignore_patterns("artifacts")
            shutil.copytree(
                self.world.root / name, root / name, ignore=ignored, copy_function=_copy
            )
        return replace(self, world=replace(self.world, root=root, services=find_services(root, {})))

    def open(self) -> AbstractContextManager[Stores]:
        return open_stores(self.world.cfg, self.world.services, runs=self.world.path("runs"))

    def switch(self, stores: Stores, version: int, **changes: Any) -> bool:
        """Promote a version as Ada would who has just looked."""
        current = served_version(stores)
        named: dict[str, Any] = {
            "kind": "promotion", "version": version, "collection": self.collections[version],
            "before": current.version if current else None, "by": "Ada", "why": "it is better",
            "gate": "passed",
        }  # fmt: skip
        return switch(stores, **(named | changes))


def _copy(old: str, new: str) -> None:
    # The vectors of a collection never change, and are most of what there is.
    (os.link if "shard" in Path(old).parts else shutil.copy2)(old, new)


def fill_shelf(world: World, names: str, *, serve: int) -> Shelf:
    """Register and index each model; promote the first `serve` of them, one after the other."""
    collections = {}
    for name in names:
        version = int(world.register(name).receipt["version"])
        collections[version] = str(world.index(name, version).receipt["collection"])
    shelf = Shelf(world, collections)
    with shelf.open() as stores:
        for version in list(collections)[:serve]:
            assert shelf.switch(stores, version)
    return shelf


def standing(stores: Stores) -> tuple[str | None, dict[str, int]]:
    """The collection that the index serves, and the registry's aliases."""
    return stores.index.aliases().get(stores.alias), stores.registry.aliases()


def outcomes(stores: Stores) -> list[tuple[str, int, str]]:
    """Kind, version and outcome of every entry of the journal."""
    return [
        (entry.intent.kind, entry.intent.version, entry.outcome)
        for entry in stores.journal.entries()
    ]
