"""Where a past run came from, as the registry tells it: enough to make it again."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from coembed.errors import UserError
from coembed.files import read_json, sha256_file
from coembed.registry.store import ModelVersion, Registry

COMMIT, DATA, LOCK, WEIGHTS, FLOW = (
    "coembed.git_commit", "coembed.data_md5", "coembed.dvc_lock", "coembed.weights",
    "coembed.flow_run",
)  # fmt: skip
_REGISTERED = ("curate", "train", "evaluate")  # the stages that made what is registered
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_FLOW_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_VERSION = re.compile(r"v?([0-9]+)")


@dataclass(frozen=True, slots=True)
class PastRun:
    """What the registry says of a run.

    name: as a person calls it. run_id: MLflow's. commit: git's, of the whole tree. data_md5: DVC's
    hash of the pool. weights_sha256: of model.safetensors; None where it was not recorded.
    dvc_lock: the text of its dvc.lock. environment: its record of the machine, as
    `lineage.environment` writes it; None where there is none. metrics: metrics.json. intervals: of
    each metric that has one the 95 % interval, [low, high].
    """

    name: str
    run_id: str
    commit: str
    data_md5: str
    weights_sha256: str | None
    dvc_lock: str
    environment: Any
    metrics: Mapping[str, Any]
    intervals: Mapping[str, Sequence[float]]


def find_past_run(registry: Registry, wanted: str) -> PastRun:
    """The run that `wanted` names: a version (3, v3), an alias (champion), an MLflow run's id, or a
    flow run's id.

    Raises UserError for what is not there, was deleted, or was never registered.
    """
    run_id, version = _resolve(registry, wanted)
    tags = registry.tags(run_id)
    name = f"version {version.version} of {version.name}" if version else f"run {run_id}"
    if not registry.runs(where=f"attributes.run_id = '{run_id}'"):
        raise UserError(
            f"the MLflow run {run_id} of {name} was deleted, or is of another experiment than "
            f"{registry.settings.experiment!r}",
            hint=f"`mlflow runs restore --run-id {run_id}` brings it back while `mlflow gc` has "
            "not collected it",
        )
    if COMMIT not in tags:
        raise UserError(
            f"{name} names no git commit: it registered no model",
            hint="only what `coembed register` or a flow registered can be made again",
        )
    with tempfile.TemporaryDirectory(prefix="coembed-past-run-") as scratch:
        lineage, evaluation = Path(scratch) / "lineage", Path(scratch) / "evaluation"
        for folder in (lineage, evaluation):
            registry.fetch_files(run_id, folder.name, folder)
        needed = (lineage / "dvc.lock", evaluation / "metrics.json")
        missing = [f"{path.parent.name}/{path.name}" for path in needed if not path.is_file()]
        if missing:
            raise UserError(
                f"{name} lacks artifacts of its MLflow run {run_id}: {', '.join(missing)}",
                hint="they are logged when a model is registered; is the artifact store whole?",
            )
        environment, intervals = lineage / "environment.json", evaluation / "intervals.json"
        return PastRun(
            name=name,
            run_id=run_id,
            commit=tags[COMMIT],
            data_md5=tags.get(DATA, ""),
            weights_sha256=tags.get(WEIGHTS),
            dvc_lock=needed[0].read_text(encoding="utf-8"),
            environment=_read(environment) if environment.exists() else None,
            metrics=_read(needed[1]),
            intervals=_read(intervals) if intervals.exists() else {},
        )


def log_lock_again(registry: Registry, number: int, lock: Path) -> bool:
    """Log a dvc.lock that has come to tell of the stages after the registration (embed), too.

    Only one that tells the same of what was registered: version `number` was not made by what a
    project has become since. Returns whether it was logged; a deleted run takes nothing.
    """
    version = registry.version(number)
    if not registry.runs_of([version]):
        return False
    with tempfile.TemporaryDirectory(prefix="coembed-past-run-") as scratch:
        lineage = registry.fetch_files(version.run_id, "lineage", Path(scratch) / "lineage")
        logged = None if lineage is None else lineage / lock.name
        if logged is None or not logged.is_file() or not lock.is_file():
            return False
        if sha256_file(logged) == sha256_file(lock):
            return False
        before, now = (yaml.safe_load(path.read_text("utf-8")) for path in (logged, lock))
    if any(before["stages"].get(stage) != now["stages"].get(stage) for stage in _REGISTERED):
        return False
    registry.log_files(version.run_id, [lock], folder="lineage")
    tags = {LOCK: sha256_file(lock)}
    registry.log_tags(version.run_id, tags)
    registry.tag_version(number, tags)
    return True


def _read(path: Path) -> Any:
    return read_json(path, what=f"run's {path.name}")


def _resolve(registry: Registry, wanted: str) -> tuple[str, ModelVersion | None]:
    """The MLflow run that `wanted` names, and its version where it has one."""
    if _RUN_ID.fullmatch(wanted):
        return wanted, _version_of(registry, wanted)
    if _FLOW_ID.fullmatch(wanted):
        run_id = registry.find_run({FLOW: wanted})
        if run_id is None:
            raise UserError(
                f"no model in the registry came of the flow run {wanted}",
                hint="it found its model registered already, or ended early; "
                f"`git worktree add FOLDER refs/coembed/runs/{wanted}` shows what it stood on",
            )
        return run_id, _version_of(registry, run_id)
    aliases = registry.aliases()
    found = _VERSION.fullmatch(wanted)
    if wanted not in aliases and found is None:
        raise UserError(
            f"{wanted!r} is no version, alias, MLflow run id or flow run id; versions there: "
            f"{', '.join(str(version.version) for version in registry.versions()) or 'none'}; "
            f"aliases: {', '.join(sorted(aliases)) or 'none'}",
            hint="`coembed models` lists the versions",
        )
    version = registry.version(aliases[wanted] if found is None else int(found[1]))
    return version.run_id, version


def _version_of(registry: Registry, run_id: str) -> ModelVersion | None:
    return next((one for one in registry.versions() if one.run_id == run_id), None)
