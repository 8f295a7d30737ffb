"""gate: is this model version fit to be served? Compared with what is served, by the policy.

Nothing moves here. The decision goes into a folder of its own, to the version's run as the artifact
`gate/`, and as tags to the version: a refused version stays registered and says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coembed.config import Config
from coembed.errors import DataError, ModelError, UserError
from coembed.evaluation.comparison import Comparison, compare
from coembed.evaluation.outcomes_file import OUTCOMES, RecordedOutcomes, read_outcomes
from coembed.evaluation.verdict_page import render_verdict
from coembed.files import atomic_folder, read_json, read_receipt, write_json, write_text
from coembed.index.release import SearchMeasured, read_search
from coembed.locking import exclusive
from coembed.models.pretrained import WEIGHTS
from coembed.pairs.shards import read_samples
from coembed.registry.settings import ROLLED_BACK
from coembed.registry.store import ModelVersion, Registry
from coembed.services import Services
from coembed.stages import gates
from coembed.stages.decision import Decision
from coembed.stages.evaluations import Comparable, GoneError, Places, evaluation_of, model_of
from coembed.stages.leakage import Leaks, find_leaks
from coembed.stages.promotion import (
    Stores,
    check_collection,
    find_collection,
    open_stores,
    recover,
    served,
    served_version,
)
from coembed.stages.result import Listing

APPROVED_BY, APPROVED_WHY = "coembed.approved_by", "coembed.approved_why"
_CHAMPION_SAW = "the champion was trained on the item"
_ARTIFACT = "gate"
_LONGEST_TAG = 5000  # MLflow's own limit of a version's tag
_MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Judged:
    """A decision, and what it is about. `before` is the version that was served meanwhile.

    `finished` are versions whose promotion a crash had cut short, and that were finished first.
    `folder` holds decision.json, comparison.json (where there is a champion) and report.html.
    """

    decision: Decision
    version: ModelVersion
    collection: str
    before: int | None
    finished: tuple[int, ...]
    folder: Path

    def to_json(self) -> dict[str, Any]:
        """For receipts: the decision without its lists."""
        return {
            "model": self.version.name,
            "version": self.decision.version,
            "verdict": self.decision.verdict,
            "reason": self.decision.reason,
            "collection": self.collection,
            "champion": self.decision.champion,
            "served": self.before,
            "evaluation_set": self.decision.evaluation_set,
            "policy": self.decision.policy,
            "gates": [asdict(gate) for gate in self.decision.gates],
            "report": str(self.folder / "report.html"),
        }


@dataclass(frozen=True, slots=True)
class _Standing:
    """What the two stores say."""

    version: ModelVersion
    collection: str
    search: SearchMeasured | None
    served: ModelVersion | None
    stranger: str
    finished: tuple[int, ...]


def run(
    cfg: Config,
    *,
    services: Services,
    places: Places,
    version: int,
    out: Path,
    collection: str | None = None,
    asked_for: bool = False,
) -> Listing:
    """Ask every gate about `version` and list what they say. `out` is the receipt's file.

    `collection` is the one it would be served from, else the one that the index holds of it. A
    version that was rolled back passes only if a person names it (`asked_for`).
    """
    judged = judge(
        cfg, services=services, places=places, version=version, collection=collection,
        asked_for=asked_for,
    )  # fmt: skip
    write_json(out, judged.to_json())
    return listing(judged)


def listing(judged: Judged) -> Listing:
    """The decision as a table."""
    decision = judged.decision
    verdict = {"passed": "passes", "refused": "is REFUSED", "waiting": "waits for approval"}
    rows = tuple((one.name, one.value, one.limit, one.verdict) for one in decision.gates)
    return Listing(
        f"{judged.version.name} version {decision.version} {verdict[decision.verdict]}: "
        f"{decision.reason}",
        ("gate", "value", "limit", "verdict"),
        rows,
        judged.to_json(),
    )


def judge(
    cfg: Config,
    *,
    services: Services,
    places: Places,
    version: int,
    collection: str | None,
    asked_for: bool,
) -> Judged:
    """Decide on `version`, write the decision down, attach and tag it.

    What was written of the served version stays: that is why it was promoted.

    Raises:
        UserError: no such version, a deleted run, or a collection that is not that version's.
        ConfigError: the policy names what was not measured.
        DataError: no evaluation to compare with, or curated pairs of another evaluation set.
        GoneError: the version's own files were deleted.
        ServiceError: a store that does not answer.
    """
    with open_stores(cfg, services, runs=places.runs) as stores:
        found = _look(stores, version, collection)
        registry = stores.registry
    # The index is let go of: nobody could search while a champion is evaluated.
    _check_run(registry, found.version)
    like = Comparable.of(places.evaluation)
    challenger = evaluation_of(cfg, registry, found.version, like=like, places=places)
    model = model_of(registry, found.version, places)
    leaks = _leaks(cfg, model, places, challenger)
    outcomes = read_outcomes(challenger / OUTCOMES)
    champion, comparison, incomparable = None, None, found.stranger
    if found.served is not None and found.served.version != version:
        try:
            champion = evaluation_of(cfg, registry, found.served, like=like, places=places)
            comparison = compare_recorded(
                cfg,
                read_outcomes(champion / OUTCOMES),
                outcomes,
                dict.fromkeys(trained_on(cfg, registry, found.served, places), _CHAMPION_SAW),
            )
        except ModelError as error:
            incomparable = f"version {found.served.version} is served, but {error.message}"
    facts = gates.Facts(
        version=version,
        champion=found.served.version if found.served else None,
        evaluation_set=like.evaluation_set,
        measured=measured(cfg, challenger, outcomes),
        comparison=comparison,
        incomparable=incomparable,
        search=found.search,
        model_mb=(model / WEIGHTS).stat().st_size / _MB,
        leaks=leaks,
        rolled_back_to=found.version.tags.get(ROLLED_BACK, ""),
        asked_for=asked_for,
        approved_by=_approval(found.version),
    )
    decision = gates.decide(cfg.promote, facts)
    judged = Judged(
        decision=decision,
        version=found.version,
        collection=found.collection,
        before=facts.champion,
        finished=found.finished,
        folder=places.runs / "gates" / f"v{version}",
    )
    if facts.champion == version and _is_written(registry, judged):
        return judged
    page = render_verdict(
        decision,
        evaluation=challenger,
        champion=champion if comparison is not None else None,
        comparison=comparison,
        samples=read_samples(places.pairs, cfg.evaluate.split),
        settings=cfg.evaluate,
        protected=tuple(cfg.promote.protected_slices),
        facts=_facts(found, facts),
    )
    with (
        exclusive(places.runs / "gates.lock", doing="writing a decision", wait=True),
        atomic_folder(judged.folder) as partial,
    ):
        write_json(partial / "decision.json", _decision_json(decision, cfg, found, leaks))
        if comparison is not None:
            write_json(partial / "comparison.json", comparison.to_json())
        write_text(partial / "report.html", page)
    registry.log_files(found.version.run_id, [judged.folder], folder=_ARTIFACT)
    registry.tag_version(
        version,
        {
            "coembed.gate": decision.verdict,
            "coembed.gate_reason": decision.reason[:_LONGEST_TAG],
            "coembed.gate_policy": decision.policy,
            "coembed.collection": found.collection,
        },
    )
    return judged


def _is_written(registry: Registry, judged: Judged) -> bool:
    """Whether the decision that the champion was promoted by is there; it is not written over by
    one that compares the champion with itself."""
    if "coembed.gate" not in judged.version.tags:
        return False
    if judged.folder.is_dir():
        return True
    return registry.fetch_files(judged.version.run_id, _ARTIFACT, judged.folder) is not None


def _look(stores: Stores, version: int, collection: str | None) -> _Standing:
    """What the two stores say of `version` and of what is served."""
    closed = recover(stores)
    candidate = stores.registry.version(version)
    if collection is None:
        collection = find_collection(stores, candidate)
    check_collection(stores.index, collection, candidate)
    now, current = served(stores), served_version(stores)
    stranger = ""
    if now is not None and current is None:
        stranger = (
            f"version {now.release.version} of {now.release.model} is served ({now.collection}), "
            "and this registry does not have that version any more: there is nothing to compare "
            "with"
        )
    return _Standing(
        version=candidate,
        collection=collection,
        search=read_search(stores.index.describe(collection)),
        served=current,
        stranger=stranger,
        finished=tuple(one.intent.version for one in closed if one.outcome == "done"),
    )


def _check_run(registry: Registry, version: ModelVersion) -> None:
    if version.run_id not in registry.runs_of([version]):
        raise UserError(
            f"the run {version.run_id} of version {version.version} was deleted: there is nowhere "
            "to write a decision on it",
            hint=f"`mlflow runs restore --run-id {version.run_id}` brings it back; else register "
            "the model again",
        )


def _leaks(cfg: Config, model: Path, places: Places, evaluation: Path) -> Leaks:
    """The challenger's leaks, from pairs that are those of the evaluation."""
    leaks = find_leaks(model, places.pairs, cfg.evaluate.split)
    receipt = read_receipt(evaluation, what="evaluation", made_by="coembed evaluate")
    if leaks.num_evaluated != receipt["num_items"]:
        raise DataError(
            f"the {cfg.evaluate.split} split of {places.pairs} has {leaks.num_evaluated:,} items, "
            f"the evaluation was taken on {receipt['num_items']:,}",
            hint="run `coembed evaluate` again",
        )
    return leaks


def trained_on(
    cfg: Config, registry: Registry, version: ModelVersion, places: Places
) -> frozenset[str]:
    """The evaluation items that a version was trained on, as far as anybody knows."""
    try:
        model = model_of(registry, version, places)
    except GoneError:  # its evaluation may still be there
        return frozenset()
    return find_leaks(model, places.pairs, cfg.evaluate.split).item_ids


def compare_recorded(
    cfg: Config,
    champion: RecordedOutcomes,
    challenger: RecordedOutcomes,
    leave_out: Mapping[str, str],
) -> Comparison:
    """Compare two evaluations. `leave_out` are items a model was trained on, and so does better on
    than it is, with the reason. Raises ModelError where nothing is left to compare."""
    try:
        return compare(
            champion,
            challenger,
            headline=cfg.promote.metric,
            bootstrap=cfg.evaluate.bootstrap,
            min_slice=cfg.evaluate.min_slice,
            leave_out=leave_out,
        )
    except DataError as error:
        raise ModelError(error.message, hint=error.hint) from error


def measured(cfg: Config, evaluation: Path, outcomes: RecordedOutcomes) -> gates.Measured:
    """What an evaluation has to compare."""
    tasks = {task.path(metric): task for task in outcomes.tasks.values() for metric in task.values}
    headline = tasks.get(cfg.promote.metric)
    return gates.Measured(
        metrics=read_json(evaluation / "metrics.json", what="metrics"),
        by_query=frozenset(tasks),
        columns=tuple(sorted(headline.labels)) if headline else (),
    )


def _approval(version: ModelVersion) -> str:
    by, why = (version.tags.get(tag, "") for tag in (APPROVED_BY, APPROVED_WHY))
    return f"{by}: {why}" if by and why else by


def _facts(found: _Standing, facts: gates.Facts) -> list[tuple[str, str]]:
    tags = found.version.tags
    rows = [
        ("model version", f"{found.version.name} v{found.version.version}"),
        ("model", found.version.fingerprint[:12]),
        ("size", f"{facts.model_mb:.1f} MB"),
        ("git commit", tags.get("coembed.git_commit", "")[:12]),
        ("data", tags.get("coembed.data_md5", "")[:12]),
        ("dvc.lock", tags.get("coembed.dvc_lock", "")[:12]),
        ("run", found.version.run_id),
        ("collection", found.collection),
    ]
    return [(name, value) for name, value in rows if value]


def _decision_json(
    decision: Decision, cfg: Config, found: _Standing, leaks: Leaks
) -> Mapping[str, Any]:
    return {
        **asdict(decision),
        "verdict": decision.verdict,
        "model": found.version.name,
        "fingerprint": found.version.fingerprint,
        "collection": found.collection,
        "settings": cfg.promote.model_dump(mode="json"),
        "leaks": asdict(leaks),
    }
