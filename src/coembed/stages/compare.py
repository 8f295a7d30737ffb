"""compare: two registered versions side by side, on the same items. Nothing is decided or moved."""

from __future__ import annotations

import re
from pathlib import Path

from coembed.config import Config
from coembed.errors import UserError
from coembed.evaluation.comparison import Comparison, Difference
from coembed.evaluation.outcomes_file import OUTCOMES, read_outcomes
from coembed.evaluation.verdict_page import render_verdict
from coembed.files import atomic_folder, write_json, write_text
from coembed.pairs.shards import read_samples
from coembed.registry.store import ModelVersion, Registry, open_registry
from coembed.services import Services
from coembed.stages import gates
from coembed.stages.decision import Decision
from coembed.stages.evaluations import Comparable, Places, evaluation_of
from coembed.stages.gate import compare_recorded, measured, trained_on
from coembed.stages.result import Listing

_NUM_SLICES = 10


def run(
    cfg: Config, *, services: Services, places: Places, first: str, second: str, out: Path
) -> Listing:
    """Compare version `second` with version `first` (numbers, or aliases such as `champion`).

    Lists every metric that is a mean over queries, then the slices that lost most. `out` is the
    folder that gets a page and comparison.json for each pair of versions.

    Raises:
        UserError: no such version or alias, or one and the same version twice.
        ModelError: a version whose files are gone, or two that share no query.
    """
    registry = open_registry(services, cfg.register_)
    before, after = (_find(registry, name) for name in (first, second))
    if before.version == after.version:
        raise UserError(
            f"{first} and {second} are one and the same version, {before.version}",
            hint="`coembed models` lists the versions",
        )
    like = Comparable.of(places.evaluation)
    folders = [
        evaluation_of(cfg, registry, version, like=like, places=places)
        for version in (before, after)
    ]
    outcomes = [read_outcomes(folder / OUTCOMES) for folder in folders]
    leave_out = {
        item_id: f"version {version.version} was trained on the item"
        for version in (after, before)
        for item_id in trained_on(cfg, registry, version, places)
    }
    comparison = compare_recorded(cfg, outcomes[0], outcomes[1], leave_out)
    found = measured(cfg, folders[1], outcomes[1])
    decision = Decision(
        version=after.version,
        champion=before.version,
        evaluation_set=like.evaluation_set,
        policy=gates.policy_hash(cfg.promote),
        gates=tuple(gates.comparison_gates(cfg.promote, found, comparison, alone="")),
        reason=f"compared with version {before.version}: nothing was decided",
    )
    page = render_verdict(
        decision,
        evaluation=folders[1],
        champion=folders[0],
        comparison=comparison,
        samples=read_samples(places.pairs, cfg.evaluate.split),
        settings=cfg.evaluate,
        protected=tuple(cfg.promote.protected_slices),
        title=f"Version {after.version} compared with version {before.version}",
    )
    folder = out / f"v{before.version}-v{after.version}"
    with atomic_folder(folder) as partial:
        write_json(partial / "comparison.json", comparison.to_json())
        write_text(partial / "report.html", page)
    receipt = {
        "model": after.name,
        "champion": before.version,
        "challenger": after.version,
        "report": str(folder / "report.html"),
        **comparison.to_json(),
    }
    left_out = "".join(f"; left out: {num:,} ({reason})" for reason, num in comparison.left_out)
    return Listing(
        f"{after.name} version {after.version} compared with version {before.version}: "
        f"{comparison.num_queries:,} queries{left_out}",
        (
            "metric", "slice", f"v{before.version}", f"v{after.version}", "difference", "95 %",
            "significant",
        ),
        tuple(_row(one) for one in _shown(comparison)),
        receipt,
    )  # fmt: skip


def _find(registry: Registry, name: str) -> ModelVersion:
    """A version by its number ("3", "v3") or alias."""
    if number := re.fullmatch(r"v?([0-9]{1,9})", name):
        return registry.version(int(number[1]))
    aliases = registry.aliases()
    if name in aliases:
        return registry.version(aliases[name])
    raise UserError(
        f"{name!r} is neither a version's number nor an alias; aliases there: "
        f"{', '.join(sorted(aliases)) or 'none'}",
        hint="`coembed models` lists the versions",
    )


def _shown(comparison: Comparison) -> list[Difference]:
    """All metrics, and the slices of the headline that lost most; small ones aside."""
    slices = [
        one for one in comparison.slices
        if one.path == comparison.headline and not one.small and one.difference < 0
    ]  # fmt: skip
    worst = sorted(slices, key=lambda one: (one.difference, str(one.column), str(one.value)))
    return [*comparison.overall, *worst[:_NUM_SLICES]]


def _row(one: Difference) -> tuple[str, ...]:
    return (
        one.path,
        "" if one.column is None else f"{one.column} = {one.value}",
        f"{one.champion:.4f}",
        f"{one.challenger:.4f}",
        f"{one.difference:+.4f}",
        f"{one.low:+.4f} to {one.high:+.4f}",
        "yes" if one.significant else "no",
    )
