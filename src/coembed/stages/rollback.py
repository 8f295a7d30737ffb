"""rollback: search and registry go back to a model version that was served before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coembed.config import Config
from coembed.errors import UserError
from coembed.files import write_json
from coembed.registry.settings import PREVIOUS
from coembed.services import Services
from coembed.stages.promotion import (
    Stores,
    called,
    find_collection,
    open_stores,
    served_version,
    switch,
)
from coembed.stages.reconcile import reconcile
from coembed.stages.result import Result


def run(
    cfg: Config,
    *,
    services: Services,
    runs: Path,
    out: Path,
    by: str,
    why: str = "",
    version: int | None = None,
) -> Result:
    """Serve `version` again, or without one the version that the champion replaced.

    Its collection must still be in the index. Nothing is embedded or evaluated: this takes seconds.
    `out` is the receipt's file.
    """
    with open_stores(cfg, services, runs=runs) as stores:
        receipt = roll_back(stores, version=version, by=by, why=why)
    write_json(out, receipt)
    before, target = receipt["champion_before"], receipt["version"]
    title = f"{receipt['model']} version {target} is served again"
    if not receipt["moved"]:
        title = f"{receipt['model']} version {target} is served already: nothing moved"
    rows = [
        ("before", called(before)),
        ("now", called(target)),
        ("search", f"{receipt['alias']} → {receipt['collection']}"),
        ("by", by),
    ]
    if why:
        rows.append(("reason", why))
    return Result(title, tuple(rows), receipt)


def roll_back(stores: Stores, *, version: int | None, by: str, why: str = "") -> dict[str, Any]:
    """The same on open stores; returns the receipt.

    The version that was served becomes `previous`, so that a second rollback undoes the first. `by`
    and `why` are kept in the journal.
    """
    reconcile(stores)
    target = version if version is not None else stores.registry.aliases().get(PREVIOUS)
    if target is None:
        raise UserError(
            "there is no version to go back to: nothing has been replaced yet",
            hint="name one: `coembed rollback VERSION`; `coembed models` lists them",
        )
    registered = stores.registry.version(target)
    collection = find_collection(stores, registered)
    current = served_version(stores)
    before = current.version if current else None
    moved = switch(
        stores,
        kind="rollback",
        version=target,
        collection=collection,
        before=before,
        by=by,
        why=why,
        gate=registered.tags.get("coembed.gate", ""),
    )
    return {
        "model": registered.name,
        "version": target,
        "collection": collection,
        "alias": stores.alias,
        "champion_before": before,
        "moved": moved,
        "by": by,
        "reason": why,
    }
