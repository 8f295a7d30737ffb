"""The embedded index: Qdrant Edge, the real engine, on immutable generations in a folder.

A collection is built by a process of its own (`edge_builder`), and is there for everyone when it is
finished; until then only the index that builds it knows of it. Any number of processes search it
meanwhile and afterwards. Edge works under Python's interpreter lock, so the threads of a process
take turns at it: more searches at once want more processes, and each may open the same files.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from coembed.errors import ServiceError, UserError
from coembed.index.base import (
    Collection,
    DamagedError,
    Point,
    SearchParams,
    check_vector,
    check_vectors,
    missing_collection,
    wrong_vector,
)
from coembed.index.edge_build import Build
from coembed.index.edge_generation import open_checked
from coembed.index.edge_shard import Parts, Shape, Shard
from coembed.index.edge_store import Entry, Store, served
from coembed.index.filters import NO_FILTER, ColumnKind, Filter
from coembed.index.settings import IndexSettings
from coembed.types import Hit

# The served one, those that may be served next or again, and one that is being looked into. An
# opened collection holds its files on the disk even after it was deleted.
_MAX_OPEN = 4


def open_store(path: Path, settings: IndexSettings) -> EdgeIndex:
    """Open the embedded index in the folder `path`, which need not be there yet.

    Raises ServiceError if it is not a folder that this coembed reads.
    """
    store = Store(path)
    store.check()
    return EdgeIndex(store, settings)


@dataclass(slots=True)
class _Opened:
    """A collection that is open for reading. `stamp` tells when its entry was replaced."""

    stamp: tuple[int, int, int]
    entry: Entry
    shard: Shard
    last_used: int = 0


@dataclass(slots=True)
class _Loading:
    """A load that is not finished. `metadata` is what the collection is to say of itself."""

    build: Build
    metadata: dict[str, Any]
    is_new: bool
    num_points_before: int = 0
    guard: threading.RLock = field(default_factory=threading.RLock)  # held by who finishes it


class EdgeIndex:
    """A VectorIndex in Qdrant Edge. Any thread may use it, but no process that was forked since."""

    def __init__(self, store: Store, settings: IndexSettings) -> None:
        self._store = store
        self._settings = settings
        self._opened: dict[str, _Opened] = {}
        self._loading: dict[str, _Loading] = {}
        # Two, so that a collection can be opened while another begins to be loaded.
        self._open_guard = threading.RLock()
        self._load_guard = threading.RLock()
        self._uses = itertools.count()

    # Collections

    def create(
        self,
        name: str,
        *,
        vector_name: str,
        dim: int,
        metadata: Mapping[str, Any],
        columns: Mapping[str, ColumnKind],
        base: str | None = None,
    ) -> bool:
        shape = Shape(
            vector_name=vector_name,
            dim=dim,
            columns=dict(sorted(columns.items())),
            hnsw_m=self._settings.hnsw_m,
            hnsw_ef_construct=self._settings.hnsw_ef_construct,
            quantization=self._settings.quantization,
        )
        with self._load_guard:
            if self.exists(name) or name in self.aliases():
                raise UserError(f"the name {name!r} is taken in the index")
            source = self._store.entry(base) if base is not None else None
            build = self._start(name, shape)
            copied = build.start(
                base=None if source is None else self._store.generation_folder(source),
                wait_s=self._settings.lock_wait_s,
            )
            if self._store.entry_path(name).exists():  # built by another while this one waited
                build.end()
                raise UserError(f"the name {name!r} is taken in the index")
            self._loading[name] = _Loading(build, dict(metadata), is_new=True)
            return copied

    def _start(self, name: str, shape: Shape) -> Build:
        self._store.entry_path(name)  # refuses a name that cannot be
        self._store.prepare()
        return Build(name, *self._store.building_paths(name), shape)

    def describe(self, name: str) -> Collection:
        loading = self._loading.get(name)
        if loading is not None and loading.is_new:
            shape = loading.build.shape
            return Collection(name, shape.vector_name, shape.dim, dict(loading.metadata))
        entry = self._entry(name)
        return entry.collection

    def _entry(self, name: str) -> Entry:
        entry = self._store.entry(name)
        if entry is None:
            raise self._missing(name)
        return entry

    def _missing(self, name: str) -> UserError:
        error = missing_collection(name, self.collections())
        if self._store.survey().is_old:
            error.hint = (
                f"{error.hint}; what lies in {self._store.path / 'collection'} is the index of an "
                "older coembed, which is not read any more and may be removed"
            )
        return error

    def exists(self, name: str) -> bool:
        return name in self._loading or self._store.entry_path(name).exists()

    def collections(self) -> list[str]:
        return sorted({*self._store.names(), *self._loading})

    def delete(self, name: str) -> None:
        if name in self.aliases().values():
            raise served(name)
        self._give_up(name)
        with self._open_guard:
            self._store.delete(name)
            self._opened = {key: opened for key, opened in self._opened.items() if key != name}

    def size_bytes(self, name: str) -> int | None:
        if self._new_build(name):
            return None
        folder = self._store.generation_folder(self._entry(name))
        # Blocks, not lengths: Edge reserves room that it does not use.
        return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())

    def set_metadata(self, name: str, metadata: Mapping[str, Any]) -> None:
        with self._load_guard:
            loading = self._loading.get(name)
            if loading is not None and loading.is_new:
                loading.metadata.update(metadata)
            elif not self._store.set_metadata(name, metadata):
                raise self._missing(name)

    # Loading

    def _load(self, name: str) -> _Loading:
        """The load of a collection: the one under way, or a new one from what is finished."""
        with self._load_guard:
            if name not in self._loading:
                entry = self._entry(name)
                build = self._start(name, entry.shape)
                build.start(
                    base=self._store.generation_folder(entry), wait_s=self._settings.lock_wait_s
                )
                # Another may have finished a load since; this one is of what is there now.
                now = self._store.entry(name)
                if now is None or now.generation != entry.generation:
                    build.end()
                    return self._load(name)
                self._loading[name] = _Loading(
                    build, {}, is_new=False, num_points_before=entry.num_points
                )
            return self._loading[name]

    def upsert(self, name: str, points: Sequence[Point]) -> None:
        if points:
            check_vectors(self.describe(name), points)
            loading = self._load(name)
            with self._giving_up(name):
                loading.build.write(points)

    def delete_points(self, name: str, item_ids: Sequence[str]) -> None:
        if item_ids:
            loading = self._load(name)
            with self._giving_up(name):
                loading.build.remove(item_ids)

    def finish(self, name: str) -> None:
        loading = self._loading.get(name)
        if loading is None:
            self._entry(name)
            return
        # Building the graph may take long: nothing else waits for it, but who finishes the same.
        with loading.guard:
            if self._loading.get(name) is loading:
                with self._giving_up(name):
                    self._publish(name, loading)
                self._give_up(name)

    def _publish(self, name: str, loading: _Loading) -> None:
        build = loading.build
        num_points = build.finish(is_new=loading.is_new)
        if num_points is None:
            return
        if build.unfit and num_points < loading.num_points_before - build.num_removed:
            raise DamagedError(
                f"{build.unfit}; it had {loading.num_points_before} points, of which only "
                f"{num_points} were loaded again",
                hint="load all of them: `coembed index` does",
            )
        entry = Entry(name, build.shape, loading.metadata, build.folder.name, num_points)
        if not self._store.publish(entry, build.folder, is_new=loading.is_new):
            raise ServiceError(
                f"collection {name!r} was removed or made by another process while it was loaded",
                hint="run the same command again",
            )

    @contextmanager
    def _giving_up(self, name: str) -> Iterator[None]:
        """A load that fails is over: what it wrote is gone, and it can be begun again."""
        try:
            yield
        except BaseException:
            self._give_up(name)
            raise

    def _give_up(self, name: str) -> None:
        with self._load_guard:
            loading = self._loading.pop(name, None)
        if loading is not None:
            loading.build.end()
            self._store.sweep_building(name)

    # Reading

    def _reader(self, name: str) -> _Opened:
        """The collection, opened, as it is now.

        One that another process has deleted meanwhile is read to the end by whoever has it open.
        """
        path = self._store.entry_path(name)
        opened = self._opened.get(name)
        try:
            found = path.stat()
        except FileNotFoundError:
            if opened is not None:
                return opened
            raise self._missing(name) from None
        stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
        if opened is None or opened.stamp != stamp:
            with self._open_guard:
                opened = self._open(name, stamp)
        opened.last_used = next(self._uses)
        return opened

    def _open(self, name: str, stamp: tuple[int, int, int]) -> _Opened:
        opened = self._opened.get(name)
        if opened is not None and opened.stamp == stamp:
            return opened  # by another thread
        entry = self._store.entry(name)
        if entry is None:
            return self._reader(name)  # deleted this moment
        if opened is not None and opened.entry.generation == entry.generation:
            shard = opened.shard  # only its metadata was changed
        else:
            try:
                shard, _ = open_checked(self._store.generation_folder(entry))
            except ServiceError:
                # Replaced between the two looks? Then the next one finds the new generation.
                now = self._store.entry(name)
                if now is not None and now.generation == entry.generation:
                    raise
                return self._reader(name)
        opened = _Opened(stamp, entry, shard, next(self._uses))
        self._opened = self._most_recent({**self._opened, name: opened})
        return opened

    @staticmethod
    def _most_recent(opened: dict[str, _Opened]) -> dict[str, _Opened]:
        """Those used last. The files of one that is let go of, and deleted, are gone from the disk
        as soon as nobody is reading them."""
        names = sorted(opened, key=lambda name: opened[name].last_used)
        return {name: opened[name] for name in names[-_MAX_OPEN:]}

    def _new_build(self, name: str) -> Build | None:
        """The build of a collection that has nothing finished to read yet."""
        loading = self._loading.get(name)
        return loading.build if loading is not None and loading.is_new else None

    def count(self, name: str) -> int:
        if build := self._new_build(name):
            return build.count()
        return self._reader(name).shard.count()

    def retrieve(self, name: str, item_ids: Sequence[str]) -> dict[str, Point]:
        if build := self._new_build(name):
            return build.retrieve(item_ids)
        return self._reader(name).shard.retrieve(item_ids)

    def scroll(
        self,
        name: str,
        *,
        with_vectors: bool = False,
        with_payload: bool = True,
        batch_size: int = 1024,
    ) -> Iterator[list[Point]]:
        what = Parts(vectors=with_vectors, payload=with_payload)
        if build := self._new_build(name):
            yield from build.scroll(what, batch_size=batch_size)
            return
        shard = self._reader(name).shard
        after: str | None = None
        while True:
            points, after = shard.scroll(after, batch_size, what)
            if points:
                yield points
            if after is None:
                return

    def query(
        self,
        name: str,
        vector_name: str,
        vector: NDArray[np.float32],
        *,
        where: Filter = NO_FILTER,
        limit: int = 10,
        exact: bool = False,
        search: SearchParams | None = None,
    ) -> list[Hit]:
        if self._new_build(name):
            raise UserError(f"collection {name!r} is still being loaded and cannot be searched")
        opened = self._reader(name)
        if vector_name != opened.entry.shape.vector_name:
            raise wrong_vector(opened.entry.collection, vector_name)
        check_vector(opened.entry.collection, vector, "the query")
        return opened.shard.search(
            vector, where=where, limit=limit, exact=exact, params=self._params(search)
        )

    def _params(self, search: SearchParams | None) -> SearchParams:
        asked, settings = search or SearchParams(), self._settings
        return SearchParams(
            ef=asked.ef if asked.ef is not None else settings.search_ef,
            oversampling=(
                asked.oversampling if asked.oversampling is not None else settings.oversampling
            ),
            rescore=asked.rescore if asked.rescore is not None else settings.rescore,
        )

    # Aliases

    def aliases(self) -> dict[str, str]:
        return self._store.aliases()

    def set_alias(self, alias: str, collection: str) -> None:
        if self._new_build(collection):
            raise UserError(f"collection {collection!r} is still being loaded; finish it first")
        if alias in self._loading:
            raise UserError(f"{alias!r} is the name of a collection and cannot be an alias")
        if not self._store.set_alias(alias, collection):
            raise self._missing(collection)

    def close(self) -> None:
        for name in list(self._loading):
            self._give_up(name)
        self._opened = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
