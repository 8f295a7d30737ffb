"""Making a past run again, and saying what came out equal and what did not.

The run's commit, params, data version and dvc.lock are set up in a workspace of their own, every
stage runs for real (from no cache, from no checkpoint), and what the new dvc.lock, model and
metrics say is held against what the run left.

On a CPU of the same kind, with the same packages, everything is the same to the last bit, so that
is demanded. A GPU's kernels need not all be deterministic, and two kinds of GPU round differently:
where a GPU trained, then or now, the weights' hashes are told but not demanded, and a metric may be
off by what `close_enough` allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from coembed.errors import DataError, UserError
from coembed.files import read_json, sha256_file, write_json, write_text
from coembed.lineage import dvc
from coembed.lineage.environment import (
    Difference,
    Environment,
    differences,
    parse_record,
    read_record,
    record,
    record_path,
)
from coembed.lineage.workspace import (
    Workspace,
    close_workspace,
    open_past_workspace,
    pool_of,
)
from coembed.models.pretrained import WEIGHTS
from coembed.registry.past_runs import PastRun
from coembed.registry.store import flatten_metrics

Verdict = Literal["equal", "close", "differs", "not compared"]
HOME = "reproductions"
_CURATE, _TRAIN, _EVALUATE, _EMBED = "curate", "train", "evaluate", "embed"
# Where the evaluation gave no interval (a count, a rank, an evaluation from before intervals), a
# metric that a GPU made may be off by this share of it, or by this much where it is below 1: a
# guess, twice the standard error of a share of 0.9 of a thousand queries.
_TOLERANCE = 0.02
_NUM_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was compared. `lines` tell more, one difference each. What is not `demanded`
    may differ in a run that counts as equal."""

    name: str
    verdict: Verdict
    then: str | None
    now: str | None
    lines: tuple[str, ...] = ()
    demanded: bool = True

    @property
    def words(self) -> str:
        """As a table shows it."""
        if self.verdict in ("equal", "not compared"):
            return f"{self.verdict}{f' ({self.now})' if self.now else ''}"
        verdict = self.verdict if self.demanded else f"{self.verdict}, which a GPU may do"
        return f"{verdict}: {self.now if self.then is None else f'{self.then} → {self.now}'}"


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What making a run again has shown. `findings` are data, curated pairs, weights, metrics and
    embeddings.

    recipe: stages whose code, settings or files at the commit are not those that the run's dvc.lock
    names. metrics: path → value then and now, of those that differ. environment: what is not as
    it was; None where the run recorded none. describes: what its record is of, "training" or
    "registration". kept: the workspace, where it was to be kept.
    """

    run: PastRun
    findings: tuple[Finding, ...]
    recipe: tuple[str, ...]
    metrics: Mapping[str, tuple[float | None, float | None]]
    environment: tuple[Difference, ...] | None
    describes: str
    on_gpu: bool
    kept: Path | None = None

    @property
    def is_equal(self) -> bool:
        """Whether all that is demanded came out equal, or on a GPU close enough."""
        return not any(one.verdict == "differs" and one.demanded for one in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return {
            "run": {
                "name": self.run.name,
                "run_id": self.run.run_id,
                "git_commit": self.run.commit,
                "data_md5": self.run.data_md5,
            },
            "equal": self.is_equal,
            "on_gpu": self.on_gpu,
            "findings": [asdict(finding) for finding in self.findings],
            "recipe": list(self.recipe),
            "metrics": {
                name: {"then": then, "now": now} for name, (then, now) in self.metrics.items()
            },
            "environment": None
            if self.environment is None
            else [asdict(difference) for difference in self.environment],
            "environment_describes": self.describes,
        }

    def rows(self) -> tuple[tuple[str, str], ...]:
        """(label, value) as a person reads them on a terminal."""
        return tuple(self._rows())

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield "run", f"{self.run.name}, run {self.run.run_id}, commit {self.run.commit[:12]}"
        for finding in self.findings:
            yield finding.name, finding.words
            yield from _folded(finding.lines)
        if self.recipe:
            yield "recipe", "not the one that the run's dvc.lock names"
            yield from _folded(self.recipe)
        yield from self._environment_rows()
        if self.on_gpu:
            told = "a GPU trained: metrics within the evaluation's 95 % interval, or "
            yield "tolerance", f"{told}{_TOLERANCE:.0%} where it has none, count as equal"
        if self.kept is not None:
            yield "workspace", str(self.kept)

    def _environment_rows(self) -> Iterator[tuple[str, str]]:
        if self.environment is None:
            yield "environment", "the run recorded none"
            return
        if self.describes == "registration":
            told = "recorded of the machine that registered it, which had not trained it itself"
            yield "environment", told
        if not self.environment:
            yield "environment", "the same packages, Python and machine"
        for label, kinds in (
            ("packages", ("package",)),
            ("Python", ("python",)),
            ("hardware", ("hardware",)),
            ("system", ("system", "setting")),
        ):
            found = [one for one in self.environment if one.what in kinds]
            if found:
                yield label, str(found[0])
                yield from _folded([str(one) for one in found[1:]])


def reproduce(
    project: Path,
    run: PastRun,
    *,
    runs: Path,
    stage: str | None = None,
    keep: bool = False,
    show: bool = True,
) -> Reproduction:
    """Make `run` again, all of it or up to `stage`, and compare.

    The project's tree, branch, dvc.lock and outputs stay as they are, and so does its DVC cache but
    for data that had to come from a remote. What was found is written to
    `runs/reproductions/<run id>.json`; nothing else is left unless `keep` keeps the workspace.
    `runs` is relative to `project`; `show` passes on what the stages print.

    Raises:
        UserError: the commit or the stage is not there; or a stage failed by what the user said.
        DataError: the data is nowhere, or what the run logged cannot be read.
        CoembedError: a stage failed.
    """
    project = project.resolve()
    _read_lock(run.dvc_lock)  # what cannot be compared need not be made
    before = None if run.environment is None else parse_record(run.environment)
    space = open_past_workspace(
        project, run.run_id, run.commit, home=runs / HOME, links=[runs / "models"]
    )
    kept = False
    try:
        stages = _stages_of(space.tree)
        if stage is not None and stage not in stages:
            raise UserError(
                f"the run has no stage {stage!r}; its stages are {', '.join(stages)}",
                hint="leave --stage out to make all of it again",
            )
        write_text(space.tree / dvc.LOCK, run.dvc_lock)
        _run(space, stage, before, show=show)
        found = compare(space.tree, run, runs=runs, stage=stage)
        write_json(project / runs / HOME / f"{run.run_id}.json", found.as_dict())
        kept = keep
    finally:
        close_workspace(space, keep=kept)
    return replace(found, kept=space.tree if kept else None)


def compare(tree: Path, run: PastRun, *, runs: Path, stage: str | None = None) -> Reproduction:
    """Hold what `dvc repro`, of all or up to `stage`, made in `tree` against what `run` left.

    `runs` is the folder for checkpoints and records, relative to `tree`.
    """
    then = _read_lock(run.dvc_lock)
    made = _read_lock((tree / dvc.LOCK).read_text(encoding="utf-8"))
    # The entry of a stage that did not run is the run's own still.
    ran = _stages_of(tree) if stage is None else _needed(made, stage)
    now = {name: made[name] for name in ran if name in made}
    weights = _weights(tree, now)
    before = None if run.environment is None else parse_record(run.environment)
    environment = _environment_now(tree / runs, weights)
    on_gpu = "cuda" in (environment.device, before.device if before else "")
    measured, metrics = _metrics(tree, run, then, now, exact=not on_gpu)
    # A GPU's weights may differ, so long as there are metrics to judge them by.
    demanded = not on_gpu or measured.verdict == "not compared"
    return Reproduction(
        run=run,
        findings=(
            _data(tree, run, then),
            _output("curated pairs", _CURATE, then, now),
            _compare_weights(run, then, now, weights, demanded=demanded),
            measured,
            replace(_embeddings(then, now), demanded=demanded),
        ),
        recipe=tuple(_recipe_changes(then, now)),
        metrics=metrics,
        environment=None if before is None else differences(before, environment),
        describes=before.describes if before else "",
        on_gpu=on_gpu,
    )


def close_enough(then: float, now: float, interval: Sequence[float] | None) -> bool:
    """Whether a metric that a GPU made again may count as the same.

    It may where it lies in the 95 % interval that the evaluation gave the first one: the held-out
    items cannot tell the two apart then, and a decision that rested on the one rests on the other
    as well. Where there is no interval, it may be off by `_TOLERANCE`.
    """
    if interval is not None:
        return interval[0] <= now <= interval[1]
    return abs(now - then) <= _TOLERANCE * max(1.0, abs(then))


def _run(space: Workspace, stage: str | None, before: Environment | None, *, show: bool) -> None:
    """Run the workspace's stages with its own code."""
    hint = "the run itself got through this stage: its packages or its machine were others"
    if before is not None:
        differ = [str(one) for one in differences(before, record("now")) if one.what != "system"]
        named = ", ".join(differ[:_NUM_SHOWN])
        hint = f"since the run these have changed: {named}" if differ else (
            "the run itself got through this stage, with the same packages and on such a machine"
        )  # fmt: skip
    # An MLFLOW_RUN_ID from outside would have the stage log its numbers into that run.
    extra = {"PYTHONPATH": str(space.tree / "src"), "MLFLOW_RUN_ID": ""}
    dvc.reproduce_anew(space.tree, stage, extra=extra, show=show, hint=hint)


def _stages_of(tree: Path) -> list[str]:
    """The stages of a project, as its dvc.yaml names them."""
    return list(yaml.safe_load((tree / "dvc.yaml").read_text(encoding="utf-8"))["stages"])


def _needed(lock: Mapping[str, Any], stage: str) -> list[str]:
    """`stage` and those that it needs: what `dvc repro STAGE` runs."""
    makers = {out: name for name in lock for out in _hashes(lock[name], "outs")}
    found = [stage]
    for name in found:  # it grows as it goes
        needed = {makers[dep] for dep in _hashes(lock[name], "deps") if dep in makers}
        found += sorted(needed - set(found))
    return found


def _read_lock(text: str) -> dict[str, Any]:
    """The stages of a dvc.lock."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"the run's {dvc.LOCK} is not readable YAML: {error}") from error
    stages = values.get("stages") if isinstance(values, dict) else None
    if not isinstance(stages, dict) or not stages:
        raise DataError(
            f"the run's {dvc.LOCK} names no stages",
            hint="it was registered before any stage had run",
        )
    return stages


def _hashes(entry: Mapping[str, Any], part: str) -> dict[str, str]:
    """Path → DVC's hash, of the `deps` or `outs` of one stage's entry."""
    return {str(one["path"]): str(one.get("md5")) for one in entry.get(part, ())}


def _output_hash(lock: Mapping[str, Any], stage: str) -> str | None:
    """DVC's hash of what a stage made; None where it has no entry."""
    return next(iter(_hashes(lock[stage], "outs").values()), None) if stage in lock else None


def _output_folder(tree: Path, lock: Mapping[str, Any], stage: str) -> Path:
    return tree / next(iter(_hashes(lock[stage], "outs")))


def _data(tree: Path, run: PastRun, then: Mapping[str, Any]) -> Finding:
    """The pool that the run curated (the one of its commit, where its dvc.lock says nothing), and
    the one that was curated now."""
    pool = pool_of(tree)
    before = _hashes(then.get(_CURATE, {}), "deps").get(pool.as_posix(), run.data_md5)
    now = dvc.data_hash(tree, pool)
    return Finding("data", "equal" if now == before else "differs", before, now)


def _output(name: str, stage: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Finding:
    before, after = _output_hash(then, stage), _output_hash(now, stage)
    if after is None or before is None:
        why = "not made" if after is None else "the run recorded none"
        return Finding(name, "not compared", before, why)
    return Finding(name, "equal" if before == after else "differs", before, after)


def _weights(tree: Path, now: Mapping[str, Any]) -> str | None:
    """SHA-256 of the weights that were made."""
    if _TRAIN not in now:
        return None
    return sha256_file(_output_folder(tree, now, _TRAIN) / WEIGHTS)


def _compare_weights(
    run: PastRun,
    then: Mapping[str, Any],
    now: Mapping[str, Any],
    weights: str | None,
    *,
    demanded: bool,
) -> Finding:
    if weights is None:
        return Finding("weights", "not compared", run.weights_sha256, "not made")
    before = run.weights_sha256
    if before is None and _output_hash(then, _TRAIN) == _output_hash(now, _TRAIN):
        before = weights  # DVC's hash of the folder covers them
    if before == weights:
        return Finding("weights", "equal", before, weights)
    before = before or "a hash that was not recorded"
    return Finding("weights", "differs", before, weights, demanded=demanded)


def _metrics(
    tree: Path,
    run: PastRun,
    then: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    exact: bool,
) -> tuple[Finding, dict[str, tuple[float | None, float | None]]]:
    """Every metric beside its first value."""
    if _EVALUATE not in now:
        return Finding("metrics", "not compared", None, "not made"), {}
    before = flatten_metrics(run.metrics)
    folder = _output_folder(tree, now, _EVALUATE)
    after = flatten_metrics(read_json(folder / "metrics.json", what="metrics made again"))
    differ = {
        name: (before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }
    if not differ:
        same = _output_hash(then, _EVALUATE) == _output_hash(now, _EVALUATE)
        rest = "report and all" if same else "the folder's other files differ"
        return Finding("metrics", "equal", None, f"{len(after):,} values, {rest}"), {}
    close = not exact and all(
        was is not None and is_ is not None and close_enough(was, is_, run.intervals.get(name))
        for name, (was, is_) in differ.items()
    )
    lines = tuple(f"{name}: {_number(was)} → {_number(is_)}" for name, (was, is_) in differ.items())
    finding = Finding(
        "metrics", "close" if close else "differs",
        None, f"{len(differ):,} of {len(before):,} values", lines,
    )  # fmt: skip
    return finding, differ


def _embeddings(then: Mapping[str, Any], now: Mapping[str, Any]) -> Finding:
    """The embeddings, if the run's dvc.lock tells of its own: until a run has embedded, it has the
    entry of the run before."""
    if _EMBED in then and _TRAIN in then:
        model, used = _hashes(then[_TRAIN], "outs"), _hashes(then[_EMBED], "deps")
        if any(used.get(path) != md5 for path, md5 in model.items()):
            then = {name: entry for name, entry in then.items() if name != _EMBED}
    return _output("embeddings", _EMBED, then, now)


def _recipe_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What a stage's entry names that the commit has otherwise; what other stages make aside."""
    made = {path for entry in now.values() for path in _hashes(entry, "outs")}
    for stage, entry in now.items():
        if stage not in then:
            yield f"{stage}: the run had no such stage"
            continue
        before, after = _hashes(then[stage], "deps"), _hashes(entry, "deps")
        for path in sorted(before.keys() | after.keys()):
            if path not in made and before.get(path) != after.get(path):
                yield f"{stage}: {path} is another"
        if then[stage].get("params") != entry.get("params"):
            yield f"{stage}: its settings in params.yaml are others"
        if then[stage].get("cmd") != entry.get("cmd"):
            yield f"{stage}: {then[stage].get('cmd')!r} → {entry.get('cmd')!r}"


def _environment_now(runs: Path, weights: str | None) -> Environment:
    """What the training just now left of its environment; code from before records leaves none."""
    path = record_path(runs, weights) if weights is not None else None
    return read_record(path) if path is not None and path.exists() else record("training")


def _folded(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Lines under a row's first; of many the first ones, for the file has all."""
    for line in lines[:_NUM_SHOWN]:
        yield "", line
    if len(lines) > _NUM_SHOWN:
        yield "", f"and {len(lines) - _NUM_SHOWN:,} more, in the file"


def _number(value: float | None) -> str:
    return "not there" if value is None else repr(value)
