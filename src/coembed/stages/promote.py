"""promote: the gate, and behind it the switch of search and registry to a new model version."""

from __future__ import annotations

from pathlib import Path

from coembed.config import Config
from coembed.errors import UserError
from coembed.files import write_json
from coembed.services import Services
from coembed.stages.evaluations import Places
from coembed.stages.gate import Judged, judge
from coembed.stages.promotion import open_stores, prune, switch
from coembed.stages.result import Result

_FORCED_BY, _FORCED_WHY = "coembed.forced_by", "coembed.forced_why"


def run(
    cfg: Config,
    *,
    services: Services,
    places: Places,
    version: int,
    out: Path,
    by: str,
    why: str = "",
    collection: str | None = None,
    asked_for: bool = False,
    force: bool = False,
    judged: Judged | None = None,
) -> Result:
    """Promote model version `version`, if it passes the gate, or `force`d with a reason `why`.

    `judged` is the gate's decision, where it was asked already; nothing moves if another version
    is served by now. `by` and `why` are kept in the journal. `collection` and `asked_for` are the
    gate's. `out` is the receipt's file. A version that does not pass stays as it is, with tags that
    say why.

    A person can force what the gate refuses or has not been approved yet. Nobody can force a
    collection that another model made, or one that is not whole: it would answer nonsense.
    """
    if force and not why.strip():
        raise UserError(
            "a forced promotion needs a reason: it is kept for those who ask later",
            hint=f"`coembed promote {version} --force --reason TEXT`",
        )
    if judged is None:
        judged = judge(
            cfg, services=services, places=places, version=version, collection=collection,
            asked_for=asked_for,
        )  # fmt: skip
    passed = judged.decision.verdict == "passed"
    forced = force and not passed
    with open_stores(cfg, services, runs=places.runs) as stores:
        if passed or forced:
            switch(
                stores,
                kind="forced" if forced else "promotion",
                version=version,
                collection=judged.collection,
                before=judged.before,
                by=by,
                why=why or judged.decision.reason,
                gate=judged.decision.verdict,
            )
        if forced:
            stores.registry.tag_version(version, {_FORCED_BY: by, _FORCED_WHY: why})
        pruned = prune(stores, keep=cfg.index.keep, spare=judged.collection)
    reason = judged.decision.reason
    if forced:
        reason = f"forced by {by}: {why} (the gate: {reason})"
    receipt = {
        **judged.to_json(),
        "promoted": passed or forced,
        "forced": forced,
        "reason": reason,
        "by": by,
        "alias": cfg.index.collection,
        "champion_before": judged.before,
        "finished_versions": list(judged.finished),
        "pruned": pruned,
    }
    write_json(out, receipt)
    return Result(_title(judged, promoted=passed or forced), _rows(judged, receipt), receipt)


def _title(judged: Judged, *, promoted: bool) -> str:
    name = f"{judged.version.name} version {judged.decision.version}"
    if promoted:
        return f"{name} is the champion"
    if judged.decision.verdict == "waiting":
        return f"{name} waits for approval"
    return f"{name} is refused; what is served stays"


def _rows(judged: Judged, receipt: dict[str, object]) -> tuple[tuple[str, str], ...]:
    rows = [
        ("finished first", f"the promotion of version {version}, cut short before")
        for version in judged.finished
    ]
    rows += [
        (gate.name, f"{gate.value}, asked for {gate.limit}: {gate.verdict}")
        for gate in judged.decision.gates
    ]
    rows.append(("decision", str(receipt["reason"])))
    if receipt["promoted"]:
        rows.append(("search", f"{receipt['alias']} → {judged.collection}"))
    if judged.decision.verdict == "waiting" and not receipt["promoted"]:
        rows.append(("then", "`coembed promote` does the rest"))
    pruned = receipt["pruned"]
    if isinstance(pruned, list) and pruned:
        rows.append(("removed", ", ".join(pruned)))
    return tuple(rows)
