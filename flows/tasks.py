"""The tasks that flows chain: one a stage or effect.

DVC is the only cache of the reproducible stages, so no task has a Prefect cache. Only what a
service refused is tried again: a user's mistake or a bug would fail the same way, at the same cost.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import State, Task, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.tasks import exponential_backoff

from coembed.config import Config, load_config
from coembed.console import print_grid, print_rows
from coembed.errors import CoembedError, ServiceError
from coembed.files import read_json
from coembed.lineage import dvc, workspace
from coembed.lineage.dvc import Outcome
from coembed.lineage.environment import record_of
from coembed.lineage.workspace import Workspace
from coembed.registry.live import follow_training
from coembed.registry.past_runs import FLOW, log_lock_again
from coembed.registry.store import open_registry
from coembed.services import Services, find_services
from coembed.stages import gate as gate_stage
from coembed.stages import index as index_stage
from coembed.stages import promote as promote_stage
from coembed.stages import reconcile as reconcile_stage
from coembed.stages import register as register_stage
from coembed.stages import standing
from coembed.stages.evaluations import Places
from coembed.stages.gate import Judged
from coembed.stages.result import Result
from flows.data_change import curation_costs, data_change

_RECEIPT = "retrain.json"


@dataclass(frozen=True, slots=True)
class Run:
    """What every task of a flow run needs to know."""

    space: Workspace
    cfg: Config
    services: Services

    @property
    def receipts(self) -> Path:
        """Where the effects leave their receipts."""
        return self.space.project / self.cfg.paths.runs

    def made(self, name: str) -> Path:
        """The workspace's folder that `paths.NAME` says."""
        return self.space.tree / getattr(self.cfg.paths, name)


def _worth_retrying(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether another try could end differently: a service may answer then, a bug will not."""
    return isinstance(state.result(raise_on_failure=False), ServiceError)


class _WithoutTraceback(logging.Filter):
    """Takes the traceback off Prefect's report of an error that explains itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], CoembedError):
            record.exc_info = record.exc_text = None
        return True


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_WithoutTraceback())


def _job(function: Callable[..., Any]) -> Any:
    """A task with the retries that all of them have."""
    name = function.__name__
    return task(
        name=name,
        task_run_name=name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=2,
        retry_delay_seconds=exponential_backoff(backoff_factor=2),
        retry_condition_fn=_worth_retrying,
    )(function)


@contextmanager
def opened(project: Path, run_id: str, overrides: Sequence[str]) -> Iterator[Run]:
    """A run in a workspace of its own, cleared away at the end."""
    cfg = load_config(project / "params.yaml", overrides)
    space = workspace.open_workspace(
        project, run_id, pool=cfg.paths.pool, runs=cfg.paths.runs, overrides=overrides
    )
    try:
        yield Run(space, cfg, find_services(project, os.environ))
    finally:
        workspace.close_workspace(space)


def _reproduce(run: Run, stage: str, **environment: str) -> Outcome:
    """Bring a DVC stage of the workspace up to date, with the workspace's own code."""
    source = {"PYTHONPATH": str(run.space.tree / "src")}
    return dvc.reproduce(run.space.tree, stage, extra=source | environment)


def _told(result: Result) -> dict[str, Any]:
    """Print what an effect did, as its verb would, and pass its receipt on."""
    print_rows(result.title, result.rows)
    return result.receipt


@_job
def reconcile(run: Run) -> dict[str, Any]:
    """What a crash left, and what was moved by hand: finished, undone, carried out or reported."""
    return _told(
        reconcile_stage.run(
            run.cfg,
            services=run.services,
            runs=run.receipts,
            out=run.receipts / "reconcile.json",
        )
    )


@_job
def curate(run: Run) -> Outcome:
    """Pool → curated pairs."""
    return _reproduce(run, "curate")


@_job
def train(run: Run) -> tuple[Outcome, str | None]:
    """Curated pairs → model. A training that really happens gets an MLflow run around it."""
    if not dvc.changes(run.space.tree, "train"):
        return "unchanged", None
    registry = open_registry(run.services, run.cfg.register_)
    run_id = registry.start_run(run.space.ref.rsplit("/", 1)[-1], {})
    failed = True
    try:
        # An MLFLOW_RUN_ID from outside would have the stage log its numbers into that run as well.
        with registry.monitor(run_id), follow_training(lambda: registry, run_id):
            outcome = _reproduce(run, "train", MLFLOW_RUN_ID="")
        failed = False
    finally:
        # Ended here, for no later task may come to it; `register` goes on logging into it.
        registry.end_run(run_id, "FAILED" if failed else "FINISHED")
    return outcome, run_id


@_job
def evaluate(run: Run) -> Outcome:
    """Model + held-out pairs → metrics and a report."""
    return _reproduce(run, "evaluate")


@_job
def embed(run: Run) -> Outcome:
    """Model + corpus → embeddings."""
    return _reproduce(run, "embed")


@_job
def register(run: Run, run_id: str | None) -> dict[str, Any]:
    """Model + evaluation → a model version, the challenger."""
    tree, pool = run.space.tree, run.cfg.paths.pool
    lineage = register_stage.Lineage(
        git_commit=run.space.commit,
        data_md5=dvc.data_hash(tree, pool) or "",
        files=(
            *(tree / name for name in ("params.yaml", "dvc.yaml", dvc.LOCK, f"{pool}.dvc")),
            record_of(run.receipts, run.made("model")),
        ),
        tags={FLOW: run.space.ref.rsplit("/", 1)[-1]},
    )
    return _told(
        register_stage.run(
            run.cfg,
            services=run.services,
            model=run.made("model"),
            evaluation=run.made("evaluation"),
            lineage=lineage,
            out=run.receipts / "register.json",
            run_id=run_id,
        )
    )


@_job
def index(run: Run, version: int) -> dict[str, Any]:
    """Embeddings → a verified collection that nobody sees yet."""
    log_lock_again(
        open_registry(run.services, run.cfg.register_), version, run.space.tree / dvc.LOCK
    )
    return _told(
        index_stage.run(
            run.cfg,
            services=run.services,
            embeddings=run.made("embeddings"),
            version=version,
            out=run.receipts / "index.json",
        )
    )


@_job
def gate(run: Run, version: int, collection: str) -> Judged:
    """What the policy says of the version, compared with what is served."""
    judged = gate_stage.judge(
        run.cfg,
        services=run.services,
        places=_places(run),
        version=version,
        collection=collection,
        asked_for=False,
    )
    table = gate_stage.listing(judged)
    print_grid(table.title, table.columns, table.rows)
    create_table_artifact(
        key="gate",
        table=[dict(zip(table.columns, row, strict=True)) for row in table.rows],
        description=table.title,
    )
    create_markdown_artifact(
        key="decision",
        markdown=f"{table.title}\n\n[The page]({(judged.folder / 'report.html').as_uri()})",
        description=f"The decision on version {version}",
    )
    return judged


@_job
def promote(run: Run, judged: Judged) -> dict[str, Any]:
    """Gates passed → the collection's alias, then the registry's."""
    return _told(
        promote_stage.run(
            run.cfg,
            services=run.services,
            places=_places(run),
            version=judged.decision.version,
            judged=judged,
            by=f"flow retrain {run.space.ref.rsplit('/', 1)[-1]}",
            out=run.receipts / "promote.json",
        )
    )


def _places(run: Run) -> Places:
    return Places(run.made("evaluation"), run.made("pairs"), run.receipts)


@_job
def publish(run: Run) -> str:
    """dvc.lock and the outputs → the project, and all of it → the DVC remote."""
    published = workspace.publish(run.space, pool=run.cfg.paths.pool)
    pushed = workspace.push(run.space)
    where = "in the project" if published else f"kept under {run.space.ref} only"
    return f"{where}, {'pushed to' if pushed else 'no'} DVC remote"


def show_data(run: Run, curated: str) -> None:
    """What changed in the data since the last run, and what curating them took (`curated`: whether
    it ran), on the terminal and as an artifact."""
    changed = data_change(run.space.tree, run.cfg.paths.pool, run.receipts / _RECEIPT)
    costs = curation_costs(curated, run.receipts / "curate" / "costs.json")
    print_rows("Data", (("pool", changed.line), ("curation", costs.line)))
    create_markdown_artifact(
        key="data",
        markdown=f"{changed.page}\n# What curation took\n\n{costs.page}",
        description="What changed in the data, and what curation took",
    )


def leave_receipt(
    run: Run, outcomes: dict[str, str], version: dict[str, Any], decision: dict[str, Any]
) -> None:
    """Say, last of all, what this run left served. A refused challenger leaves no receipt."""
    if decision["promoted"]:
        standing.leave(
            run.receipts / _RECEIPT,
            recipe=standing.recipe_hash(run.space.tree, run.cfg.paths.pool),
            outcomes=outcomes,
            served={"version": version["version"], "collection": decision["collection"]},
            data={
                "commit": run.space.commit,
                "md5": dvc.data_hash(run.space.tree, run.cfg.paths.pool),
            },
        )


def show(run: Run, outcomes: dict[str, str], version: dict[str, Any]) -> None:
    """The run's artifacts in Prefect: what each stage did, the metrics, where the report is."""
    create_table_artifact(
        key="stages",
        table=[{"stage": stage, "outcome": outcome} for stage, outcome in outcomes.items()],
        description="What each stage of this run did",
    )
    metrics = read_json(run.made("evaluation") / "metrics.json", what="metrics")
    create_table_artifact(
        key="metrics",
        table=[{"metric": name, "value": value} for name, value in _flat(metrics)],
        description=f"Model version {version['version']} on held-out pairs",
    )
    report = run.space.project / run.cfg.paths.evaluation / "report.html"
    create_markdown_artifact(
        key="report", markdown=f"[Evaluation report]({report.as_uri()})", description="The report"
    )


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Nested metrics as (path, value), in order."""
    found: list[tuple[str, float]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            found.append((f"{prefix}{key}", float(value)))
    return found
