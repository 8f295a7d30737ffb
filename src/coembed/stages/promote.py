"""promote: the gate, and behind it the switch of search and registry to a new model version."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coembed.config import Config
from coembed.errors import ConfigError, UserError
from coembed.files import read_json, read_receipt, write_json
from coembed.index.base import VectorIndex
from coembed.index.build import read_release
from coembed.index.qdrant import open_index
from coembed.registry.settings import CHAMPION, ROLLED_BACK, PromoteSettings
from coembed.registry.store import ModelVersion, Registry, flatten_metrics, open_registry
from coembed.services import Services
from coembed.stages.release import prune, reconcile, serve
from coembed.stages.result import Result

# Two runs of one model may differ in the last digits of a metric; that is not "worse".
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the decision. `champion` and `difference` are None for the first version."""

    metric: str
    champion: float | None
    challenger: float
    difference: float | None
    lowest_accepted: float | None
    passed: bool


def run(
    cfg: Config,
    *,
    services: Services,
    version: int,
    collection: str,
    evaluation: Path,
    evaluate_champion: Callable[[Path], Mapping[str, Any]],
    models: Path,
    out: Path,
    asked_for: bool = False,
) -> Result:
    """Promote model version `version`, served from `collection`, if it passes the gate.

    `evaluate_champion` measures a model directory on the evaluation set of `evaluation`; it is
    called when the champion's logged metrics were taken on another set. `models` is the folder for
    downloaded models. `out` is the receipt's file. A promotion that a crash cut short is finished
    first. A version that fails stays challenger, with tags that say why.

    A version that was rolled back stays so, whatever its metrics: they have not changed since. Only
    a person who names it (`asked_for`) promotes it again.
    """
    evaluated = read_receipt(evaluation, what="evaluation", made_by="coembed evaluate")
    metrics = read_json(evaluation / "metrics.json", what="metrics")
    registry = open_registry(services, cfg.register_)
    with open_index(services, cfg.index) as index:
        alias = cfg.index.collection
        finished = reconcile(registry, index, alias=alias)
        candidate = registry.version(version)
        _check_collection(index, collection, candidate)
        champion = _champion(registry)
        before = champion.version if champion else None
        reference = None
        if champion is not None and champion.version != version:
            reference = _champion_metrics(
                registry,
                champion,
                cfg.promote,
                str(evaluated["evaluation_set"]),
                evaluate_champion,
                models,
            )
        checks = decide(cfg.promote, metrics, reference)
        rolled_back = bool(candidate.tags.get(ROLLED_BACK)) and before != version
        promoted = all(check.passed for check in checks) and (asked_for or not rolled_back)
        reason = _reason(checks, version, before)
        if rolled_back and not asked_for:
            reason = (
                f"version {version} was rolled back; `coembed promote --version {version}` "
                "serves it all the same"
            )
        registry.tag_version(
            version,
            {
                "coembed.gate": "passed" if promoted else "failed",
                "coembed.gate_reason": reason,
                "coembed.collection": collection,
            },
        )
        if promoted:
            if rolled_back:
                registry.tag_version(version, {ROLLED_BACK: ""})
            serve(registry, index, alias=alias, collection=collection, version=version)
        pruned = prune(registry, index, alias=alias, keep=cfg.index.keep, spare=collection)
    receipt = {
        "promoted": promoted,
        "reason": reason,
        "model": candidate.name,
        "version": version,
        "collection": collection,
        "alias": alias,
        "champion_before": before,
        "checks": [asdict(check) for check in checks],
        "finished_version": finished,
        "pruned": pruned,
    }
    write_json(out, receipt)
    rows = [_row(check) for check in checks]
    if finished is not None:
        rows.insert(0, ("finished first", f"the promotion of version {finished}, cut short before"))
    rows.append(("decision", reason))
    if promoted:
        rows.append(("search", f"{alias} → {collection}"))
    if pruned:
        rows.append(("removed", ", ".join(pruned)))
    title = f"{candidate.name} version {version} is the champion"
    if not promoted:
        title = f"{candidate.name} version {version} stays challenger"
    return Result(title, tuple(rows), receipt)


def decide(
    settings: PromoteSettings,
    challenger: Mapping[str, Any],
    champion: Mapping[str, Any] | None,
) -> tuple[Check, ...]:
    """The gate itself, on nested metrics; `champion` is None when there is nothing to beat.

    The same goes for a metric that the champion alone lacks: it has no tower for that modality.
    Raises ConfigError when a metric that the gate names was not measured.
    """
    checks = []
    for metric, tolerance in {settings.metric: settings.tolerance, **settings.guards}.items():
        value = _find(challenger, metric)
        if value is None:
            raise ConfigError(
                f"promote names the metric {metric!r}, which was not measured; there are "
                f"{', '.join(sorted(flatten_metrics(challenger)))}",
                hint="name one of these in promote.metric or promote.guards",
            )
        known = None if champion is None else _find(champion, metric)
        bounds = []
        if known is not None and math.isfinite(known):
            bounds.append(known - tolerance)
        if metric == settings.metric and settings.minimum is not None:
            bounds.append(settings.minimum)
        lowest = max(bounds, default=None)
        checks.append(
            Check(
                metric=metric,
                champion=known,
                challenger=value,
                difference=None if known is None else value - known,
                lowest_accepted=lowest,
                passed=math.isfinite(value) and (lowest is None or value >= lowest - _ROUNDING),
            )
        )
    return tuple(checks)


def _find(metrics: Mapping[str, Any], path: str) -> float | None:
    value: Any = metrics
    for key in path.split("/"):
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return None


def _check_collection(index: VectorIndex, collection: str, version: ModelVersion) -> None:
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


def _champion(registry: Registry) -> ModelVersion | None:
    number = registry.aliases().get(CHAMPION)
    return None if number is None else registry.version(number)


def _champion_metrics(
    registry: Registry,
    champion: ModelVersion,
    settings: PromoteSettings,
    evaluation_set: str,
    evaluate: Callable[[Path], Mapping[str, Any]],
    models: Path,
) -> Mapping[str, Any]:
    """The champion's metrics on this evaluation set: as logged, or measured now."""
    if champion.evaluation_set == evaluation_set:
        logged = registry.metrics(champion.run_id)
        if {settings.metric, *settings.guards} <= logged.keys():
            return _nest(logged)
    return evaluate(registry.download(champion, models / champion.fingerprint))


def _nest(flat: Mapping[str, float]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, name = path.split("/")
        node = nested
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = value
    return nested


def _reason(checks: tuple[Check, ...], version: int, champion: int | None) -> str:
    failed = [_failure(check) for check in checks if not check.passed]
    if failed:
        return "; ".join(failed)
    if champion is None:
        return "the first version: there is no champion to beat"
    if champion == version:
        return "it is the champion already"
    return f"not worse than the champion, version {champion}"


def _failure(check: Check) -> str:
    if check.lowest_accepted is None or not math.isfinite(check.challenger):
        return f"{check.metric} is {check.challenger}, not a number"
    return f"{check.metric} is {check.challenger:.4f}, accepted from {check.lowest_accepted:.4f}"


def _row(check: Check) -> tuple[str, str]:
    verdict = "passed" if check.passed else "FAILED"
    if check.champion is None or check.difference is None:
        return check.metric, f"{check.challenger:.4f}  {verdict}"
    return (
        check.metric,
        f"{check.challenger:.4f}, champion {check.champion:.4f} "
        f"({check.difference:+.4f})  {verdict}",
    )
