"""Building a collection: load, finish, verify. Nothing here moves an alias.

What is there already is not written again: a killed build goes on, and a new corpus of the same
model starts from a copy of the last one's collection where the backend can make one. Every point
carries a hash of its content, so that what has to be written or removed is found without asking
for a single vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import islice

from coembed.errors import UserError
from coembed.index.base import Collection, DamagedError, Point, VectorIndex
from coembed.index.filters import ColumnKind
from coembed.index.queries import Query
from coembed.index.release import (
    BUILT_AT,
    SEARCH,
    STATE,
    Release,
    SearchMeasured,
    names_the_model,
    read_release,
)
from coembed.index.settings import IndexSettings
from coembed.index.verify import (
    CanaryError,
    Expected,
    UnverifiedError,
    Vectors,
    in_batches,
    verify,
)
from coembed.progress import tracker

Points = Callable[[], Iterator[Point]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """How a collection came by its points: `num_copied` were there already, from `base` or from an
    earlier run that was cut short; `num_removed` were there and are not in the embeddings."""

    num_copied: int
    num_written: int
    num_removed: int
    base: str | None = None


@dataclass(frozen=True, slots=True)
class Built:
    """A verified collection: all of its items are there, and a sample of them is as embedded."""

    collection: str
    num_items: int
    search: SearchMeasured
    already_built: bool
    loaded: Loaded


def build(
    index: VectorIndex,
    release: Release,
    points: Points,
    *,
    alias: str,
    settings: IndexSettings,
    queries: Sequence[Query] = (),
    vectors: Vectors | None = None,
) -> Built:
    """Make the collection of `release`, or complete it, or find it built; then verify it.

    `points()` starts over at each call; `vectors()` are the same items' without their payload, for
    a full scan, where there is a quicker way to them. Raises UserError when the name is taken by
    another release, UnverifiedError when the check fails; the alias never moves.
    """
    _check_columns(settings.payload_indexes, release.columns)
    scan = vectors or (lambda: in_batches(points()))
    name = release.collection_name(alias)
    there = index.exists(name)
    mend = False
    if there:
        found = index.describe(name)
        _check_same(found, release)
        if found.metadata.get(STATE) == "built":
            try:
                return _verified_again(index, found, release, points, scan, settings, queries)
            except DamagedError:
                # It was damaged since it was built.
                mend = True
                if name not in index.aliases().values():
                    index.delete(name)
                    there = False
    base = None
    if not there:
        base = find_base(index, release, alias=alias)
        if not _create(index, name, release, base=base):
            base = None
    fresh = not there and base is None
    trust = not (mend and there)
    loaded, expected = load(
        index, name, points(), settings, total=release.num_items, fresh=fresh, trust=trust
    )
    try:
        search = _prove(index, name, release, expected, scan, settings, queries)
    except CanaryError:
        raise
    except UnverifiedError:
        # The copy may have brought it along: a damaged point, a graph worn by many changes.
        if loaded.num_copied == 0 or name in index.aliases().values():
            raise
        index.delete(name)
        base = None
        _create(index, name, release, base=None)
        loaded, expected = load(index, name, points(), settings, total=release.num_items)
        search = _prove(index, name, release, expected, scan, settings, queries)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    index.set_metadata(name, {SEARCH: asdict(search), STATE: "built", BUILT_AT: now})
    return Built(
        name, release.num_items, search, already_built=False, loaded=replace(loaded, base=base)
    )


def _verified_again(
    index: VectorIndex,
    found: Collection,
    release: Release,
    points: Points,
    vectors: Vectors,
    settings: IndexSettings,
    queries: Sequence[Query],
) -> Built:
    """Verify a collection that is built. Its vectors may be another machine's, so near the same."""
    expected = Expected.of(points(), settings.verify_sample)
    search = verify(
        index, found.name, release, expected, vectors, settings, queries=queries, strict=False
    )
    changes: dict[str, object] = {SEARCH: asdict(search)}
    # What an older coembed did not write; what is there never changes.
    stored = read_release(found)
    if not stored.manifest:
        changes["manifest"] = dict(release.manifest)
    if not stored.calibration:
        changes["calibration"] = dict(release.calibration)
    index.set_metadata(found.name, changes)
    loaded = Loaded(release.num_items, 0, 0)
    return Built(found.name, release.num_items, search, already_built=True, loaded=loaded)


def _prove(
    index: VectorIndex,
    name: str,
    release: Release,
    expected: Expected,
    vectors: Vectors,
    settings: IndexSettings,
    queries: Sequence[Query],
) -> SearchMeasured:
    index.finish(name)
    return verify(index, name, release, expected, vectors, settings, queries=queries)


def find_base(index: VectorIndex, release: Release, *, alias: str) -> str | None:
    """The newest built collection that one of `release` may start as a copy of.

    It has the same model's vectors, laid out in the same way, with the same payload indexes.
    """
    best: tuple[str, int, str] | None = None
    indexed = release.layout.indexed(release.columns)
    for name in index.collections():
        if not name.startswith(f"{alias}__v"):
            continue
        try:
            found = index.describe(name)
            other = read_release(found)
        except (UserError, DamagedError):
            continue
        same = (
            found.metadata.get(STATE) == "built"
            and found.vector_name == release.vector_name
            and (other.fingerprint, other.precision) == (release.fingerprint, release.precision)
            and found.dim == release.dim
            and other.layout == release.layout
            and other.layout.indexed(other.columns) == indexed
        )
        age = (str(found.metadata.get(BUILT_AT) or ""), other.version, name)
        if same and (best is None or age > best):
            best = age
    return best[2] if best else None


def _create(index: VectorIndex, name: str, release: Release, *, base: str | None) -> bool:
    return index.create(
        name,
        vector_name=release.vector_name,
        dim=release.dim,
        metadata={**release.to_metadata(), STATE: "loading"},
        columns=release.layout.indexed(release.columns),
        base=base,
    )


def _check_same(found: Collection, release: Release) -> None:
    held = read_release(found)
    if held.identity != release.identity or not names_the_model(found, release):
        raise UserError(
            f"collection {found.name!r} holds another release than the one to be built: "
            f"version {held.version} of {held.model!r}, {held.num_items} items",
            hint="remove it from the index if the registry was started anew",
        )


def _check_columns(wanted: str | Sequence[str], columns: Mapping[str, ColumnKind]) -> None:
    unknown = [] if isinstance(wanted, str) else sorted(set(wanted) - set(columns))
    if unknown:
        raise UserError(
            f"index.payload_indexes names {', '.join(unknown)}; the embeddings have the columns "
            f"{', '.join(columns) or '(none)'}"
        )


def load(
    index: VectorIndex,
    name: str,
    points: Iterator[Point],
    settings: IndexSettings,
    *,
    total: int,
    fresh: bool = True,
    trust: bool = True,
) -> tuple[Loaded, Expected]:
    """Bring a collection to hold these `total` points and no others.

    A `fresh` one is empty. Without `trust` all points are written, whatever is said to be there.
    """
    there: dict[str, str] = {}
    # What cannot even be read is written anew.
    with nullcontext() if trust else suppress(DamagedError):
        if not fresh:
            for batch in index.scroll(name, with_payload=False):
                there.update((point.item_id, point.content_hash) for point in batch)
    expected = Expected(settings.verify_sample)
    num_copied = num_written = 0
    # Enough for every stream of a server to have several requests ahead of it.
    size = settings.batch_size * settings.num_streams * 4
    progress = tracker(total=total, label="index", unit="items")
    try:
        while batch := [expected.see(point) for point in islice(points, size)]:
            changed = []
            for point in batch:
                held = there.pop(point.item_id, None)
                if not trust or held != point.content_hash:
                    changed.append(point)
            if changed:
                index.upsert(name, changed)
            num_copied += len(batch) - len(changed)
            num_written += len(changed)
            progress.advance(len(batch))
    finally:
        progress.close()
    absent = sorted(there)
    if absent:
        index.delete_points(name, absent)
    return Loaded(num_copied, num_written, len(absent)), expected
