"""What is served: the collection behind the alias and the registry's champion, moved as one saga.

Two stores cannot be switched in one step. The intent is written into the journal first; then the
index's alias moves, which is the commit point, for it decides what a search answers; then the
registry's aliases follow; then the entry is closed. A crash before the commit point is undone at
the next start (nothing had moved), one after it is finished. All of it happens under a lock.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from coembed.config import Config
from coembed.errors import ServiceError, UserError
from coembed.index.base import VectorIndex
from coembed.index.opening import open_index
from coembed.index.release import Release, read_release
from coembed.locking import exclusive
from coembed.registry.journal import Entry, Intent, Journal, Kind
from coembed.registry.settings import CHALLENGER, CHAMPION, PREVIOUS, ROLLED_BACK
from coembed.registry.store import ModelVersion, Registry, open_registry
from coembed.services import Services

# A switch takes seconds. The lock does not reach another machine: its open entry is left alone for
# this long, and after it that machine is held to have crashed.
_PATIENCE = timedelta(seconds=60)
_LONGEST_REASON = 2000


@dataclass(frozen=True, slots=True)
class Stores:
    """The two stores that are moved as one. `alias` is the index's; `runs` is the project's folder
    of runs, where the lock lies."""

    registry: Registry
    index: VectorIndex
    alias: str
    runs: Path

    @property
    def journal(self) -> Journal:
        """The registry's journal of releases."""
        return Journal(self.registry)

    @property
    def lock(self) -> Path:
        """The file that keeps every other process of this project out."""
        return self.runs / "promotion.lock"

    @property
    def holder(self) -> str:
        """This machine and its lock, as the journal's entries name them."""
        return f"{platform.node()}:{self.lock.resolve()}"


@dataclass(frozen=True, slots=True)
class Served:
    """What the index answers searches with."""

    collection: str
    release: Release


@contextmanager
def open_stores(cfg: Config, services: Services, *, runs: Path) -> Iterator[Stores]:
    """Open both stores. Raises ServiceError where one does not answer."""
    registry = open_registry(services, cfg.register_)
    with open_index(services, cfg.index) as index:
        yield Stores(registry, index, cfg.index.collection, runs)


def switch(
    stores: Stores,
    *,
    kind: Kind,
    version: int,
    collection: str,
    before: int | None,
    by: str,
    why: str = "",
    gate: str = "",
) -> bool:
    """Serve `collection`, made by model version `version`; False where it is served already.

    `before` is the version that the decision was made against (`served_version`): if another is
    served by now, a ServiceError says so and nothing moves. `by` and `why` are kept for the audit;
    `gate` is the gate's verdict. What an earlier crash left is finished or undone first. Raises
    UserError where the collection is not a whole one of that version.
    """
    with _locked(stores):
        _recover(stores)
        return _switch(
            stores, kind=kind, version=version, collection=collection, before=before, by=by,
            why=why, gate=gate,
        )  # fmt: skip


def recover(stores: Stores) -> tuple[Entry, ...]:
    """Finish or undo what a crash left; the entries as they were closed.

    To be called before anything is decided by what is served.
    """
    if not stores.journal.open_entries():  # nearly always, and then there is nothing to wait for
        return ()
    with _locked(stores):
        return _recover(stores)


def served(stores: Stores) -> Served | None:
    """What searches are answered with, None where nothing is. The index decides."""
    collection = stores.index.aliases().get(stores.alias)
    if collection is None:
        return None
    return Served(collection, read_release(stores.index.describe(collection)))


def served_version(stores: Stores) -> ModelVersion | None:
    """The registered version that searches are answered with.

    None where nothing is served, or a collection of another registry's time.
    """
    now = served(stores)
    if now is None:
        return None
    for version in stores.registry.versions():
        if version.version == now.release.version:
            return version if version.fingerprint == now.release.fingerprint else None
    return None


def check_collection(index: VectorIndex, collection: str, version: ModelVersion) -> None:
    """Raise UserError unless `collection` is a whole one, made by that very version."""
    found = index.describe(collection)
    release = read_release(found)
    if (release.version, release.fingerprint) != (version.version, version.fingerprint):
        raise UserError(
            f"collection {collection!r} was made by version {release.version} "
            f"({release.fingerprint[:12]}), not by version {version.version} "
            f"({version.fingerprint[:12]})",
            hint="promote a version with its own collection",
        )
    if found.metadata.get("state") != "built":
        raise UserError(
            f"collection {collection!r} is not whole: its build was cut short",
            hint="run `coembed index` again",
        )
    if (count := index.count(collection)) != release.num_items:
        raise UserError(
            f"collection {collection!r} is not whole: it has {count} of {release.num_items} items",
            hint="run `coembed index` again",
        )


def _check_package(registry: Registry, version: ModelVersion) -> None:
    """Raise UserError where a version's files are gone: nothing could encode a query for it.

    A store of files that is away does not tell, and is no reason to keep a bad model.
    """
    with suppress(ServiceError):
        if not registry.has_package(version):
            raise UserError(
                f"the files of version {version.version} are not in the registry any more: no "
                "query could be encoded for its collection",
                hint="was its run deleted for good (`mlflow gc`)? `coembed reproduce` makes it "
                "again",
            )


def find_collection(stores: Stores, version: ModelVersion) -> str:
    """A whole collection of that version, the one it was promoted with if that is still there.

    Raises UserError that says what the index has instead.
    """
    made = releases(stores.index, alias=stores.alias, model=version.name)
    own = [
        name
        for name, release in made.items()
        if (release.version, release.fingerprint) == (version.version, version.fingerprint)
    ]
    wanted = version.tags.get("coembed.collection", "")
    broken: UserError | None = None
    for name in sorted(own, key=lambda name: name != wanted):
        try:
            check_collection(stores.index, name, version)
        except UserError as error:
            broken = error
        else:
            return name
    others = sorted({release.version for release in made.values()} - {version.version})
    raise UserError(
        f"the index holds no whole collection of version {version.version}"
        + (f" ({broken.message})" if broken else "")
        + f"; it has {f'those of version {_listed(others)}' if others else 'none of any other'}",
        hint="check out that version's commit and run `coembed embed` and `coembed index`; "
        "index.keep says how many collections stay",
    )


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def releases(index: VectorIndex, *, alias: str, model: str) -> dict[str, Release]:
    """The collections made under `alias` by this registered model, newest version first."""
    found: dict[str, Release] = {}
    for name in index.collections():
        if name.startswith(f"{alias}__v"):
            try:
                release = read_release(index.describe(name))
            except UserError:
                continue
            if release.model == model:
                found[name] = release
    return dict(sorted(found.items(), key=lambda entry: (-entry[1].version, entry[0])))


def prune(stores: Stores, *, keep: int, spare: str) -> list[str]:
    """Delete old collections but for the `keep` newest; returns their names.

    The served one, the one of alias `previous` (a rollback needs it) and `spare` always stay.
    """
    with _locked(stores):
        made = releases(stores.index, alias=stores.alias, model=stores.registry.settings.model)
        now = set(stores.index.aliases().values())
        previous = stores.registry.aliases().get(PREVIOUS)
        others = [name for name in made if name not in now and name != spare]
        old = [name for name in others[keep:] if made[name].version != previous]
        for name in old:
            stores.index.delete(name)
    return old


# The saga. What follows runs under the lock.


@contextmanager
def _locked(stores: Stores) -> Iterator[None]:
    # A switch takes seconds: whoever comes second waits.
    with exclusive(stores.lock, doing="switching what is served", wait=True):
        yield


def _switch(
    stores: Stores,
    *,
    kind: Kind,
    version: int,
    collection: str,
    before: int | None,
    by: str,
    why: str,
    gate: str,
) -> bool:
    registered = stores.registry.version(version)
    check_collection(stores.index, collection, registered)
    _check_package(stores.registry, registered)
    now = served(stores)
    current = served_version(stores)
    number = current.version if current else None
    if number != before:
        raise ServiceError(
            f"{called(number)} is served by now; version {version} was judged while it was "
            f"{called(before)}",
            hint="run the same command again: it is judged against what is served now",
        )
    aliases = stores.registry.aliases()
    if now is not None and now.collection == collection and aliases.get(CHAMPION) == version:
        return False
    # Where the index is there already, the registry still says what was served before.
    replaced = aliases.get(CHAMPION) if now is not None and now.collection == collection else before
    intent = Intent(
        kind=kind,
        model=registered.name,
        version=version,
        before=replaced,
        alias=stores.alias,
        collection=collection,
        collection_before=now.collection if now else None,
        by=by,
        why=why if len(why) <= _LONGEST_REASON else why[: _LONGEST_REASON - 1] + "…",
        gate=gate,
        data=registered.tags.get("coembed.data_md5", ""),
        commit=registered.tags.get("coembed.git_commit", ""),
        holder=stores.holder,
    )
    entry = stores.journal.begin(intent)
    try:
        _check_alone(stores, entry)
        stores.journal.step(entry, "search")
        stores.index.set_alias(stores.alias, collection)
        _follow(stores, entry, intent)
    except (ServiceError, UserError) as error:
        _settle(stores, entry, intent, error)
        raise
    return True


def _follow(stores: Stores, entry: str, intent: Intent) -> None:
    """Bring the registry to where the index is, and close the entry. Safe to run again.

    What a deleted version was to get is left out.
    """
    registry, journal = stores.registry, stores.journal
    tags = {version.version: version.tags for version in registry.versions()}
    journal.step(entry, "champion")
    if intent.version in tags:
        registry.set_alias(CHAMPION, intent.version)
    journal.step(entry, "previous")
    replaced = intent.before
    if replaced in tags and replaced is not None and replaced != intent.version:
        registry.set_alias(PREVIOUS, replaced)
        # An alias moved back by hand says as much of the version before as a rollback does.
        back = intent.kind == "reconcile" and intent.version < replaced
        if back or intent.kind == "rollback":
            registry.tag_version(replaced, {ROLLED_BACK: str(intent.version)})
    if registry.aliases().get(CHALLENGER) == intent.version:
        registry.delete_alias(CHALLENGER)
    if tags.get(intent.version, {}).get(ROLLED_BACK):
        registry.tag_version(intent.version, {ROLLED_BACK: ""})
    journal.end(entry, "done")


def _check_alone(stores: Stores, entry: str) -> None:
    """Give way to a switch on another machine, which the lock does not keep out.

    Two that begin at once see one another here, for both have written their intent by now.
    """
    found = stores.journal.open_entries()
    others = [other for other in found if other.id != entry]
    if others:
        raise _busy(others[0])
    if not found:
        raise ServiceError(
            "this switch took so long that another machine has undone it",
            hint="is the registry slow? Run the same command again",
        )


def _busy(entry: Entry) -> ServiceError:
    return ServiceError(
        f"{entry.intent.by or 'somebody'} is switching to version {entry.intent.version} on "
        f"{entry.intent.holder.partition(':')[0]}, since {entry.began:%H:%M:%S} UTC",
        hint=f"run the same command again in {_PATIENCE.total_seconds():.0f} s",
    )


def _recover(stores: Stores) -> tuple[Entry, ...]:
    closed = []
    for entry in stores.journal.open_entries():
        elsewhere = entry.intent.holder != stores.holder
        if elsewhere and datetime.now(UTC) - entry.began < _PATIENCE:
            raise _busy(entry)
        if stores.index.aliases().get(entry.intent.alias) == entry.intent.collection:
            _follow(stores, entry.id, entry.intent)
        else:
            stores.journal.end(entry.id, "undone")
        closed.append(entry.id)
    if not closed:
        return ()
    return tuple(entry for entry in stores.journal.entries() if entry.id in closed)


def _settle(stores: Stores, entry: str, intent: Intent, error: ServiceError | UserError) -> None:
    """Undo a switch that a store has refused, if nothing moved; say so if something did.

    What cannot be told or undone now, for a store is away, is left to the next start.
    """
    moved = False
    with suppress(ServiceError, UserError):
        moved = stores.index.aliases().get(intent.alias) == intent.collection
        if not moved:
            stores.journal.end(entry, "undone")
    if moved:
        raise ServiceError(
            f"search answers with version {intent.version} now, but the registry does not say so "
            f"yet: {error.message}",
            hint="`coembed reconcile` finishes it, and so does the next promotion or rollback",
        ) from error


def called(version: int | None) -> str:
    """A version in a sentence."""
    return "nothing" if version is None else f"version {version}"
