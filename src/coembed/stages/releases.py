"""releases: the collections in the index, what each holds and how it was proved."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from coembed.config import Config
from coembed.errors import UserError
from coembed.index.base import DamagedError, VectorIndex
from coembed.index.opening import open_index
from coembed.index.release import BUILT_AT, STATE, read_release, read_search
from coembed.services import Services
from coembed.stages.result import Listing, clock

_NONE = "–"


def run(cfg: Config, *, services: Services) -> Listing:
    """List the releases under the alias `index.collection`, newest version first."""
    alias = cfg.index.collection
    with open_index(services, cfg.index) as index:
        served = index.aliases().get(alias)
        entries = [
            entry
            for name in index.collections()
            if name.startswith(f"{alias}__v")
            and (entry := _entry(index, name, served=name == served)) is not None
        ]
    entries.sort(key=lambda entry: (-entry["version"], entry["built_at"] or "", entry["name"]))
    return Listing(
        f"{alias}: {len(entries)} " + ("release" if len(entries) == 1 else "releases"),
        (
            "collection", "version", "items", "Recall@10", "p95 ms", "quantization", "state",
            "size", "built (UTC)",
        ),
        tuple(_row(entry) for entry in entries),
        {"alias": alias, "served": served, "releases": entries},
    )  # fmt: skip


def _entry(index: VectorIndex, name: str, *, served: bool) -> dict[str, Any] | None:
    """What a program may want to know of a release; None for a collection of other hands."""
    try:
        found = index.describe(name)
        release = read_release(found)
    except (UserError, DamagedError):
        return None
    search = read_search(found)
    return {
        "name": name,
        "served": served,
        "state": str(found.metadata.get(STATE) or "unknown"),
        "built_at": found.metadata.get(BUILT_AT),
        "size_bytes": index.size_bytes(name),
        "vector_name": found.vector_name,
        **release.to_metadata(),
        "search": asdict(search) if search else None,
    }


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    search, size = entry["search"], entry["size_bytes"]
    return (
        entry["name"],
        str(entry["version"]),
        f"{entry['num_items']:,}",
        f"{search['recall_at_10']:.3f}" if search else _NONE,
        f"{search['p95_ms']:.1f}" if search else _NONE,
        entry["layout"]["quantization"],
        f"{entry['state']}, served" if entry["served"] else entry["state"],
        f"{size / 1e6:,.1f} MB" if size is not None else _NONE,
        clock(entry["built_at"]) if entry["built_at"] else _NONE,
    )
