"""rollback: search and registry go back to a model version that was served before."""

from __future__ import annotations

from pathlib import Path

from coembed.config import Config
from coembed.errors import UserError
from coembed.files import write_json
from coembed.index.qdrant import open_index
from coembed.registry.settings import CHAMPION, PREVIOUS, ROLLED_BACK
from coembed.registry.store import open_registry
from coembed.services import Services
from coembed.stages.release import reconcile, releases, serve
from coembed.stages.result import Result


def run(cfg: Config, *, services: Services, out: Path, version: int | None = None) -> Result:
    """Serve `version` again, or without one the version that the champion replaced.

    Its collection must still be in the index. Nothing is embedded or evaluated: this takes seconds.
    The version that was served becomes `previous`, so that a second rollback undoes the first.
    """
    registry = open_registry(services, cfg.register_)
    with open_index(services, cfg.index) as index:
        alias = cfg.index.collection
        reconcile(registry, index, alias=alias)
        aliases = registry.aliases()
        target = version if version is not None else aliases.get(PREVIOUS)
        if target is None:
            raise UserError(
                "there is no version to go back to: nothing has been replaced yet",
                hint="name one with --version",
            )
        registered = registry.version(target)
        held = {
            name: release
            for name, release in releases(index, alias=alias, model=registered.name).items()
            if release.version == target
            and release.fingerprint == registered.fingerprint
            and index.describe(name).metadata.get("state") == "built"
        }
        if not held:
            raise UserError(
                f"the index holds no whole collection of version {target}",
                hint="check out that version's commit and run `coembed embed` and "
                f"`coembed index`; index.keep (now {cfg.index.keep}) says how many stay",
            )
        wanted = registered.tags.get("coembed.collection", "")
        collection = wanted if wanted in held else next(iter(held))
        before = aliases.get(CHAMPION)
        if before is not None and before != target:
            registry.tag_version(before, {ROLLED_BACK: str(target)})
        if registered.tags.get(ROLLED_BACK):
            registry.tag_version(target, {ROLLED_BACK: ""})
        serve(registry, index, alias=alias, collection=collection, version=target)
    receipt = {
        "model": registered.name,
        "version": target,
        "collection": collection,
        "alias": alias,
        "champion_before": before,
    }
    write_json(out, receipt)
    return Result(
        f"{registered.name} version {target} is served again",
        (
            ("before", "nothing" if before is None else f"version {before}"),
            ("now", f"version {target}"),
            ("search", f"{alias} → {collection}"),
        ),
        receipt,
    )
