"""models: the versions of the registered model: what was measured, decided and built of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coembed.config import Config
from coembed.errors import ServiceError
from coembed.index.opening import open_index
from coembed.registry.settings import METRIC_TAG, ROLLED_BACK, PromoteSettings
from coembed.registry.store import ModelVersion, Run, open_registry
from coembed.services import Services
from coembed.stages.promotion import releases
from coembed.stages.result import Listing, clock

_NONE = "–"


@dataclass(frozen=True, slots=True)
class _Built:
    """What the index holds, None for what it could not say. `served` is the alias's collection."""

    collections: dict[str, tuple[int, str]] | None
    served: str | None


def run(cfg: Config, *, services: Services) -> Listing:
    """List the versions, newest first. Nothing is changed.

    An index that does not answer, or that another process has open, leaves its column open.
    """
    registry = open_registry(services, cfg.register_)
    versions = registry.versions()
    runs = registry.runs_of(versions)
    aliases = registry.aliases()
    built = _find_built(cfg, services)
    metrics = _metrics(cfg.promote)
    entries = [
        _entry(version, runs.get(version.run_id), aliases, built, metrics)
        for version in reversed(versions)
    ]
    return Listing(
        f"{cfg.register_.model}: {len(versions)} "
        + ("version" if len(versions) == 1 else "versions"),
        (
            "version", "aliases", *metrics, "gate", "collection", "commit", "data",
            "registered (UTC)",
        ),
        tuple(_row(entry, metrics) for entry in entries),
        {"model": cfg.register_.model, "served": built.served, "versions": entries},
    )  # fmt: skip


def _metrics(policy: PromoteSettings) -> tuple[str, ...]:
    """The metrics that the policy names, the headline first, each once."""
    return tuple(dict.fromkeys((policy.metric, *policy.guards, *policy.floors)))


def _find_built(cfg: Config, services: Services) -> _Built:
    try:
        with open_index(services, cfg.index) as index:
            alias = cfg.index.collection
            made = releases(index, alias=alias, model=cfg.register_.model)
            return _Built(
                {name: (release.version, release.fingerprint) for name, release in made.items()},
                index.aliases().get(alias),
            )
    except ServiceError:
        return _Built(None, None)


def _entry(
    version: ModelVersion,
    run: Run | None,
    aliases: dict[str, int],
    built: _Built,
    metrics: tuple[str, ...],
) -> dict[str, Any]:
    tags = version.tags
    own: list[str] = []
    if built.collections is not None:
        identity = (version.version, tags.get("coembed.fingerprint"))
        own = [name for name, made in built.collections.items() if made == identity]
    collection = tags.get("coembed.collection") or next(iter(own), None)
    if built.served in own:
        collection = built.served
    return {
        "version": version.version,
        "aliases": sorted(alias for alias, number in aliases.items() if number == version.version),
        "metrics": _measured(tags, run, metrics),
        "gate": tags.get("coembed.gate"),
        "gate_reason": tags.get("coembed.gate_reason"),
        "rolled_back_to": int(tags[ROLLED_BACK]) if tags.get(ROLLED_BACK) else None,
        "collection": collection,
        "in_index": None if built.collections is None else collection in own,
        "served": None if built.collections is None else built.served in own,
        "git_commit": tags.get("coembed.git_commit"),
        "data_md5": tags.get("coembed.data_md5"),
        "fingerprint": tags.get("coembed.fingerprint"),
        "run_id": version.run_id,
        "run_deleted": run is None,
        "created": version.created.isoformat(timespec="seconds"),
    }


def _row(entry: dict[str, Any], metrics: tuple[str, ...]) -> tuple[str, ...]:
    return (
        str(entry["version"]),
        ", ".join(entry["aliases"]) or _NONE,
        *(_shown(entry["metrics"][name], entry) for name in metrics),
        (entry["gate"] or _NONE) + (", rolled back" if entry["rolled_back_to"] else ""),
        _place(entry),
        (entry["git_commit"] or _NONE)[:8],
        (entry["data_md5"] or _NONE)[:8],
        clock(entry["created"]),
    )


def _measured(
    tags: Mapping[str, str], run: Run | None, metrics: tuple[str, ...]
) -> dict[str, float | None]:
    """The metrics as the run has them; without it, those that the version's own tags kept."""
    if run is not None:
        return {name: run.metrics.get(name) for name in metrics}
    kept = {name: tags.get(METRIC_TAG + name) for name in metrics}
    return {name: None if value is None else float(value) for name, value in kept.items()}


def _shown(value: float | None, entry: dict[str, Any]) -> str:
    if value is None:
        return "run deleted" if entry["run_deleted"] else _NONE
    return f"{value:.4f}"


def _place(entry: dict[str, Any]) -> str:
    if entry["collection"] is None:
        return "not built" if entry["in_index"] is not None else "the index does not answer"
    what = {None: "the index does not answer", True: "", False: "gone from the index"}
    note = "served" if entry["served"] else what[entry["in_index"]]
    return f"{entry['collection']} ({note})" if note else str(entry["collection"])
