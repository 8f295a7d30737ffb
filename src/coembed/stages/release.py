"""What is served: the collection behind the alias and the registry's champion, moved as one.

Two stores cannot be switched in one step. The index's alias is the commit point, for it decides
what a search answers; the registry's aliases follow it. A crash between the two leaves the index
ahead, and `reconcile` finishes what was begun.
"""

from __future__ import annotations

from coembed.errors import UserError
from coembed.index.base import VectorIndex
from coembed.index.build import Release, read_release
from coembed.registry.settings import CHALLENGER, CHAMPION, PREVIOUS
from coembed.registry.store import Registry


def serve(
    registry: Registry, index: VectorIndex, *, alias: str, collection: str, version: int
) -> None:
    """Serve `collection`, made by model version `version`. Safe to run again at any point."""
    index.set_alias(alias, collection)
    follow(registry, version)


def follow(registry: Registry, version: int) -> None:
    """Make `version` the champion; the champion before it becomes `previous`."""
    aliases = registry.aliases()
    champion = aliases.get(CHAMPION)
    if champion not in (None, version):
        registry.set_alias(PREVIOUS, int(champion))
    registry.set_alias(CHAMPION, version)
    if aliases.get(CHALLENGER) == version:
        registry.delete_alias(CHALLENGER)


def reconcile(registry: Registry, index: VectorIndex, *, alias: str) -> int | None:
    """Finish a promotion that stopped between the two stores; the version it was, else None."""
    collection = index.aliases().get(alias)
    if collection is None:
        return None
    release = read_release(index.describe(collection))
    fingerprints = {version.version: version.fingerprint for version in registry.versions()}
    if fingerprints.get(release.version) != release.fingerprint:
        return None  # the collection is of another registry's time: there is nothing to follow
    if registry.aliases().get(CHAMPION) == release.version:
        return None
    follow(registry, release.version)
    return release.version


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


def prune(
    registry: Registry, index: VectorIndex, *, alias: str, keep: int, spare: str
) -> list[str]:
    """Delete old collections but for the `keep` newest; returns their names.

    The served one, the one of alias `previous` (a rollback needs it) and `spare` always stay.
    """
    served = set(index.aliases().values())
    previous = registry.aliases().get(PREVIOUS)
    others = {
        name: release
        for name, release in releases(index, alias=alias, model=registry.settings.model).items()
        if name not in served and name != spare
    }
    old = [name for name, release in list(others.items())[keep:] if release.version != previous]
    for name in old:
        index.delete(name)
    return old
