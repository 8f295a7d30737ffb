"""What a release's collection holds beside its vectors: captions for keyword search, and facets.

Made once of a collection by reading all of it, and kept in an SQLite file beside it that every
process opens read-only. A collection of a name never changes, so nor does its file.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from coembed.errors import ServiceError
from coembed.files import atomic_path, disk_errors
from coembed.index.base import Point, VectorIndex
from coembed.index.filters import ColumnKind
from coembed.index.release import Release
from coembed.locking import exclusive
from coembed.search import keywords

_VERSION = 1
_BATCH = 256
_TOP_VALUES = 20
# Of a column with more distinct values no more are counted: it is a name or a number, no facet.
_MAX_DISTINCT = 10_000
# Beside a service that answers: so much of the time is left to it between batches.
_REST = 1.0


@dataclass(frozen=True, slots=True)
class Value:
    """One value of a column, and how many items have it."""

    value: str | float | bool
    count: int


@dataclass(frozen=True, slots=True)
class Facet:
    """A column that can be filtered on: its most frequent values, and the range of its numbers.

    `num_values` is how many distinct ones there are, None where too many to count.
    """

    name: str
    kind: ColumnKind
    values: tuple[Value, ...]
    num_values: int | None
    min: float | None
    max: float | None


@dataclass(frozen=True, slots=True)
class Facets:
    """All columns, and how many items of each modality there are."""

    columns: tuple[Facet, ...]
    modalities: Mapping[str, int]


class Catalogue:
    """An open catalogue. Safe to use from several threads."""

    def __init__(self, connection: sqlite3.Connection, facets: Facets, *, has_keywords: bool):
        self._connection = connection
        self.facets = facets
        self.has_keywords = has_keywords

    def find(self, text: str, *, limit: int) -> list[keywords.Found]:
        """The items whose captions match the words of `text` best."""
        return keywords.find(self._connection, text, limit=limit)

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        self._connection.close()


def open_catalogue(
    index: VectorIndex,
    collection: str,
    release: Release,
    *,
    folder: Path,
    keyword_items: int,
    stop: Callable[[], bool] = lambda: False,
) -> Catalogue:
    """The catalogue of a collection, from `folder` if it is there, made there if not.

    A corpus of more than `keyword_items` items gets facets only. Gives up with a ServiceError when
    `stop` says so.
    """
    identity = {
        "version": _VERSION,
        "collection": collection,
        "fingerprint": release.fingerprint,
        "corpus": release.corpus,
        "keywords": release.num_items <= keyword_items,
    }
    path = folder / f"{collection}.sqlite"
    found = _open(path, identity)
    if found is None:
        with exclusive(folder / f"{collection}.lock", doing="reading this collection", wait=True):
            found = _open(path, identity)
            if found is None:
                with atomic_path(path) as partial:
                    _make(partial, index, collection, release, identity, stop)
                found = _open(path, identity)
    if found is None:
        raise ServiceError(f"the catalogue {path} cannot be read back", hint="is the disk sound?")
    return found


def sweep_catalogues(folder: Path, collections: Sequence[str]) -> None:
    """Remove what is left of collections that are gone."""
    for path in [*folder.glob("*.sqlite"), *folder.glob("*.lock")]:
        if path.stem not in collections:
            path.unlink(missing_ok=True)


def _open(path: Path, identity: Mapping[str, Any]) -> Catalogue | None:
    """None where the file is not there, of another release, or damaged."""
    if not path.is_file():
        return None
    connection = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False
    )
    try:
        rows = dict(connection.execute("SELECT key, value FROM about").fetchall())
        if json.loads(rows["identity"]) == identity:
            facets = _read_facets(json.loads(rows["facets"]))
            return Catalogue(connection, facets, has_keywords=bool(identity["keywords"]))
    except (sqlite3.Error, KeyError, TypeError, ValueError):
        pass
    connection.close()
    return None


def _make(
    path: Path,
    index: VectorIndex,
    collection: str,
    release: Release,
    identity: Mapping[str, Any],
    stop: Callable[[], bool],
) -> None:
    with disk_errors(path), closing(sqlite3.connect(path)) as connection:
        # The file is renamed into place when it is whole: a journal would guard nothing.
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT)")
        if identity["keywords"]:
            keywords.create(connection)
        counted = _Counts(release.columns)
        began = time.perf_counter()
        for points in index.scroll(collection, batch_size=_BATCH):
            if stop():
                raise ServiceError("the service is going down")
            counted.add(points)
            if identity["keywords"]:
                keywords.add(connection, _captions(points))
            time.sleep(_REST * (time.perf_counter() - began))
            began = time.perf_counter()
        if identity["keywords"]:
            keywords.optimise(connection)
        facets = json.dumps(asdict(counted.facets()), ensure_ascii=False)
        connection.executemany(
            "INSERT INTO about VALUES (?, ?)",
            [("identity", json.dumps(identity)), ("facets", facets)],
        )
        connection.commit()


def _captions(points: Iterable[Point]) -> list[tuple[str, list[str]]]:
    return [
        (point.item_id, [str(caption) for caption in point.payload.get("captions") or ()])
        for point in points
    ]


@dataclass
class _Column:
    kind: ColumnKind
    values: Counter[str | float | bool] = field(default_factory=Counter)
    min: float | None = None
    max: float | None = None
    overflown: bool = False

    def add(self, value: Any) -> None:
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = float(value)
            self.min = value if self.min is None else min(self.min, value)
            self.max = value if self.max is None else max(self.max, value)
        # In Python True == 1.0; in a table they are different things, so a mixed column counts
        # truth values by their names.
        elif isinstance(value, bool) and self.kind == "mixed":
            value = str(value).lower()
        if value in self.values or len(self.values) < _MAX_DISTINCT:
            self.values[value] += 1
        else:
            self.overflown = True


class _Counts:
    """Counts values while the points go by."""

    def __init__(self, columns: Mapping[str, ColumnKind]) -> None:
        self._columns = {name: _Column(kind) for name, kind in columns.items()}
        self._modalities: Counter[str] = Counter()

    def add(self, points: Iterable[Point]) -> None:
        for point in points:
            self._modalities[str(point.payload.get("modality"))] += 1
            for name, value in (point.payload.get("attributes") or {}).items():
                if value is not None and name in self._columns:
                    self._columns[name].add(value)

    def facets(self) -> Facets:
        columns = []
        for name, column in sorted(self._columns.items()):
            ordered = sorted(column.values.items(), key=lambda entry: (-entry[1], str(entry[0])))
            columns.append(
                Facet(
                    name=name,
                    kind=column.kind,
                    values=tuple(Value(value, num) for value, num in ordered[:_TOP_VALUES]),
                    num_values=None if column.overflown else len(column.values),
                    min=column.min,
                    max=column.max,
                )
            )
        return Facets(tuple(columns), dict(sorted(self._modalities.items())))


def _read_facets(data: Mapping[str, Any]) -> Facets:
    return Facets(
        columns=tuple(
            Facet(**{**column, "values": tuple(Value(**value) for value in column["values"])})
            for column in data["columns"]
        ),
        modalities=data["modalities"],
    )
