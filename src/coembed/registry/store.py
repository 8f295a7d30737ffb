"""Runs, model versions and aliases, in an embedded store or on an MLflow server.

Nothing here uses MLflow's global state (active run, tracking URI): every call names its run and
goes through one client, so that a flow, a service and a test can each have their own registry.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from coembed.errors import CoembedError, ServiceError, UserError
from coembed.files import atomic_folder
from coembed.registry._mlflow import RETRIES, TIMEOUT, mlflow, patience
from coembed.registry.opening import opening
from coembed.registry.package import save_package
from coembed.registry.settings import RegisterSettings
from coembed.services import Services

_ENTITIES_A_CALL = 100  # MLflow takes at most 100 params, 100 tags and 1,000 metrics in one call
_METRICS_A_CALL = 1000
_LONGEST_PARAM = 6000
_PACKAGE = "model"
TRAINING = "train/"  # what a training's metrics begin with


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of the registered model. `source` is where its package is kept; `created` is
    UTC."""

    name: str
    version: int
    run_id: str
    source: str
    tags: Mapping[str, str]
    created: datetime

    @property
    def fingerprint(self) -> str:
        """The encoder's fingerprint."""
        return self._tag("coembed.fingerprint")

    @property
    def precision(self) -> str:
        """The precision that the fingerprint holds for."""
        return self._tag("coembed.precision")

    @property
    def evaluation_set(self) -> str:
        """Hash of the evaluation set that its logged metrics were taken on."""
        return self._tag("coembed.evaluation_set")

    def _tag(self, name: str) -> str:
        try:
            return self.tags[name]
        except KeyError:
            raise UserError(
                f"version {self.version} of {self.name!r} has no tag {name}: coembed did not "
                "register it",
                hint="delete that version in MLflow, or keep such models under another name than "
                "register.model",
            ) from None


@dataclass(frozen=True, slots=True)
class Run:
    """One run. `status` and the times (UTC) are MLflow's; `metrics` are the last values."""

    run_id: str
    status: str
    began: datetime
    ended: datetime | None
    tags: Mapping[str, str]
    metrics: Mapping[str, float]


def open_registry(services: Services, settings: RegisterSettings) -> Registry:
    """The registry that the services name. Raises ServiceError if a server does not answer."""
    return Registry(services.tracking_uri, services.artifact_root, settings)


class Registry:
    """The registered model `settings.model`, and the runs of `settings.experiment`.

    `artifact_root` is where an embedded store keeps files; None leaves it to the server.
    """

    def __init__(
        self, tracking_uri: str, artifact_root: Path | None, settings: RegisterSettings
    ) -> None:
        self.settings = settings
        self._uri = tracking_uri
        self._artifact_root = artifact_root
        with self._explained(), opening(tracking_uri):
            self._client = mlflow.MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
            self._client.search_registered_models(max_results=1)  # the registry's own connection

    # Runs

    def start_run(
        self, name: str, tags: Mapping[str, str] | None = None, *, experiment: str | None = None
    ) -> str:
        """Start a run, of the settings' experiment or of another, and return its id."""
        with self._explained():
            run = self._client.create_run(
                self._experiment_id(experiment), run_name=name, tags=dict(tags or {})
            )
        return str(run.info.run_id)

    def runs(self, experiment: str | None = None, *, where: str = "") -> list[Run]:
        """The runs of the settings' experiment or of another, oldest first; deleted ones aside.

        `where` is a filter in MLflow's own words. No such experiment: no runs.
        """
        found: list[Run] = []
        token = None
        with self._explained():
            known = self._client.get_experiment_by_name(experiment or self.settings.experiment)
            if known is None:
                return []
            while True:
                page = self._client.search_runs(
                    [known.experiment_id],
                    filter_string=where,
                    order_by=["attributes.start_time ASC"],
                    page_token=token,
                )
                found.extend(_read_run(run) for run in page)
                token = page.token
                if not token:
                    return found

    def runs_of(self, versions: Sequence[ModelVersion]) -> dict[str, Run]:
        """Run id → run of these versions; one that somebody deleted is left out."""
        found: dict[str, Run] = {}
        ids = sorted({version.run_id for version in versions})
        for start in range(0, len(ids), _ENTITIES_A_CALL):
            some = ", ".join(f"'{run_id}'" for run_id in ids[start : start + _ENTITIES_A_CALL])
            for run in self.runs(where=f"attributes.run_id IN ({some})"):
                found[run.run_id] = run
        return found

    def find_run(self, tags: Mapping[str, str]) -> str | None:
        """Id of the newest run that has all of these tags."""
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        with self._explained():
            runs = self._client.search_runs(
                [self._experiment_id()],
                filter_string=query,
                order_by=["attributes.start_time DESC"],
                max_results=1,
            )
        return str(runs[0].info.run_id) if runs else None

    def end_run(
        self, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED"
    ) -> None:
        """Say that a run is over."""
        with self._explained():
            self._client.set_terminated(run_id, status)

    def log_params(self, run_id: str, values: Mapping[str, Any]) -> None:
        """Log nested settings as `section/key`. A value too long for MLflow is cut."""
        params = [
            mlflow.entities.Param(key, text[:_LONGEST_PARAM])
            for key, text in _flatten_params(values).items()
        ]
        with self._explained():
            for start in range(0, len(params), _ENTITIES_A_CALL):
                self._client.log_batch(run_id, params=params[start : start + _ENTITIES_A_CALL])

    def log_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        with self._explained():
            for key, value in tags.items():
                self._client.set_tag(run_id, key, value)

    def tags(self, run_id: str) -> dict[str, str]:
        """Tags of a run."""
        with self._explained():
            return dict(self._client.get_run(run_id).data.tags)

    def log_metrics(self, run_id: str, metrics: Mapping[str, Any]) -> None:
        """Log nested final metrics as `section/name`."""
        flat = flatten_metrics(metrics)
        self.log_points(run_id, [(key, value, 0) for key, value in flat.items()])

    def log_history(self, run_id: str, history: Path) -> None:
        """Log every column of a history.csv as `train/column`, at its step.

        What the run has already, because it was watched while it trained (`live.follow_training`)
        or because an earlier call was cut short, is not logged again.
        """
        points: dict[str, list[tuple[str, float, int]]] = {}
        with history.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                step = int(float(row["step"]))
                for column, text in row.items():
                    if column != "step" and text not in ("", None):
                        name = f"{TRAINING}{column}"
                        points.setdefault(name, []).append((name, float(text), step))
        for name in self.metrics(run_id).keys() & points.keys():
            known = self._steps(run_id, name)
            points[name] = [point for point in points[name] if point[2] not in known]
        self.log_points(run_id, [point for column in points.values() for point in column])

    def last_training_step(self, run_id: str) -> int:
        """The last step that a training was logged at into this run; 0 where none was."""
        return max(self._steps(run_id, f"{TRAINING}loss"), default=0)

    def _steps(self, run_id: str, name: str) -> set[int]:
        with self._explained():
            return {int(p.step) for p in self._client.get_metric_history(run_id, name)}

    def log_points(self, run_id: str, points: Sequence[tuple[str, float, int]]) -> None:
        """Log metrics as (name, value, step)."""
        now_ms = int(time.time() * 1000)
        metrics = [mlflow.entities.Metric(key, value, now_ms, step) for key, value, step in points]
        with self._explained():
            for start in range(0, len(metrics), _METRICS_A_CALL):
                self._client.log_batch(run_id, metrics=metrics[start : start + _METRICS_A_CALL])

    def metrics(self, run_id: str) -> dict[str, float]:
        """The last value of every metric of a run."""
        with self._explained():
            return dict(self._client.get_run(run_id).data.metrics)

    def log_files(self, run_id: str, paths: Sequence[Path], *, folder: str | None = None) -> None:
        """Attach files and whole folders to a run."""
        with self._explained(), patience():
            for path in paths:
                if path.is_dir():
                    self._client.log_artifacts(run_id, str(path), folder or path.name)
                else:
                    self._client.log_artifact(run_id, str(path), folder)

    def fetch_files(self, run_id: str, folder: str, into: Path) -> Path | None:
        """Copy what was attached to a run as `folder` to `into`; None where nothing was."""
        with self._explained(), patience():
            if not self._client.list_artifacts(run_id, folder):
                return None
            with (
                atomic_folder(into) as partial,
                tempfile.TemporaryDirectory(dir=partial.parent) as scratch,
            ):
                found = mlflow.artifacts.download_artifacts(
                    run_id=run_id, artifact_path=folder, dst_path=scratch, tracking_uri=self._uri
                )
                for path in Path(found).iterdir():
                    path.rename(partial / path.name)
        return into

    @contextlib.contextmanager
    def monitor(self, run_id: str, *, interval_s: float = 5.0) -> Iterator[None]:
        """Log the machine's CPU, memory, disk, network and GPU into a run while the block runs."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        with self._explained():
            self._client.update_run(run_id, status="RUNNING")  # it stops by itself on others
            monitor = SystemMetricsMonitor(
                run_id,
                sampling_interval=interval_s,
                resume_logging=True,
                tracking_uri=self._uri,
            )
        logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    # Versions

    def add_version(
        self, run_id: str, model: Path, *, dim: int, precision: str, tags: Mapping[str, str]
    ) -> ModelVersion:
        """Pack the model directory into the run and register it as a new version."""
        name = self.settings.model
        with self._explained():
            artifact_uri = self._client.get_run(run_id).info.artifact_uri
            with tempfile.TemporaryDirectory() as scratch:
                package = Path(scratch) / _PACKAGE
                save_package(package, model, dim=dim, precision=precision)
                with patience():
                    self._client.log_artifacts(run_id, str(package), _PACKAGE)
            self._ensure_model()
            created = self._client.create_model_version(
                name, f"{artifact_uri}/{_PACKAGE}", run_id, tags=dict(tags)
            )
        return _read_version(created)

    def _ensure_model(self) -> None:
        try:
            self._client.create_registered_model(self.settings.model)
        except mlflow.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def versions(self) -> list[ModelVersion]:
        """All versions, oldest first."""
        found: list[ModelVersion] = []
        token = None
        with self._explained():
            while True:
                page = self._client.search_model_versions(
                    f"name = '{self.settings.model}'", page_token=token
                )
                found.extend(_read_version(version) for version in page)
                token = page.token
                if not token:
                    return sorted(found, key=lambda version: version.version)

    def version(self, number: int) -> ModelVersion:
        """One version. Raises UserError when there is none of that number."""
        with self._explained():
            try:
                return _read_version(
                    self._client.get_model_version(self.settings.model, str(number))
                )
            except mlflow.exceptions.MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        present = ", ".join(str(version.version) for version in self.versions()) or "none"
        raise UserError(
            f"the registry has no version {number} of {self.settings.model!r}; "
            f"versions there: {present}",
            hint="`coembed register` adds one",
        )

    def find_version(self, tags: Mapping[str, str]) -> ModelVersion | None:
        """The newest version that has all of these tags."""
        for version in reversed(self.versions()):
            if all(version.tags.get(key) == value for key, value in tags.items()):
                return version
        return None

    def tag_version(self, number: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        with self._explained():
            for key, value in tags.items():
                self._client.set_model_version_tag(self.settings.model, str(number), key, value)

    def aliases(self) -> dict[str, int]:
        """Alias → version number; empty while nothing is registered."""
        with self._explained():
            try:
                model = self._client.get_registered_model(self.settings.model)
            except mlflow.exceptions.MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return {}
        return {alias: int(version) for alias, version in model.aliases.items()}

    def set_alias(self, alias: str, number: int) -> None:
        """Point an alias at a version."""
        if self.aliases().get(alias) != number:
            with self._explained():
                self._client.set_registered_model_alias(self.settings.model, alias, str(number))

    def delete_alias(self, alias: str) -> None:
        """Take an alias away, if it is there."""
        if alias in self.aliases():
            with self._explained():
                self._client.delete_registered_model_alias(self.settings.model, alias)

    def has_package(self, version: ModelVersion) -> bool:
        """Whether the files of a version are there: they go with its run, when that is deleted for
        good."""
        with self._explained():
            found = mlflow.artifacts.list_artifacts(
                artifact_uri=version.source, tracking_uri=self._uri
            )
        return bool(found)

    def download(self, version: ModelVersion, into: Path) -> Path:
        """The model directory of a version, copied to `into` unless it is there already."""
        if into.is_dir():
            return into
        with (
            self._explained(),
            patience(),
            atomic_folder(into) as partial,
            tempfile.TemporaryDirectory(dir=partial.parent) as scratch,
        ):
            found = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{version.source}/artifacts",
                dst_path=scratch,
                tracking_uri=self._uri,
            )
            folders = [path for path in Path(found).iterdir() if path.is_dir()]
            if len(folders) != 1:
                raise ServiceError(
                    f"version {version.version} of {version.name!r} holds no model directory",
                    hint=f"register it again; its package is at {version.source}",
                )
            for path in folders[0].iterdir():
                path.rename(partial / path.name)
        return into

    def _experiment_id(self, experiment: str | None = None) -> str:
        name = experiment or self.settings.experiment
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        location = None
        if self._artifact_root is not None:
            self._artifact_root.mkdir(parents=True, exist_ok=True)
            # Without this an embedded store would put artifacts into the current folder.
            location = (self._artifact_root.resolve() / "runs").as_uri()
        try:
            return str(self._client.create_experiment(name, artifact_location=location))
        except mlflow.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(self._client.get_experiment_by_name(name).experiment_id)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Say what the registry could not do, instead of a traceback."""
        try:
            yield
        except mlflow.exceptions.MlflowException as error:
            raise _explain(error, self._uri) from error


# What MLflow says of a run or experiment that was deleted, and can be brought back.
_DELETED = "must be in the 'active' state"


def _explain(error: Any, uri: str) -> CoembedError:
    """What an MlflowException means to a person."""
    causes = list(_causes(error))
    if any(isinstance(cause, TimeoutError) for cause in causes):
        return ServiceError(
            f"the registry at {uri} does not answer: no answer in time, "
            f"{int(os.environ[RETRIES]) + 1} times over",
            hint=f"does the MLflow server hang, or is it slow? {TIMEOUT} (seconds) and {RETRIES} "
            "in the environment give it more time",
        )
    if any(isinstance(cause, ConnectionError) for cause in causes):
        return ServiceError(
            f"the registry at {uri} went away: {error.message}",
            hint="is the MLflow server still running? Run the same command again when it is",
        )
    if error.error_code == "RESOURCE_DOES_NOT_EXIST" or _DELETED in error.message:
        return UserError(
            f"the registry at {uri} no longer has what was asked for: {error.message}",
            hint="was a run, an experiment or a version deleted in MLflow? `mlflow runs restore` "
            "and `mlflow experiments restore` bring back what was not yet collected",
        )
    return ServiceError(
        f"the registry at {uri} refused: {error.message}",
        hint="is MLFLOW_TRACKING_URI right? The server's log says more",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception, those that it was raised from and those in whose handling it was."""
    yield error
    for link in dict.fromkeys((error.__cause__, error.__context__)):
        if link is not None:
            yield from _causes(link)


def flatten_metrics(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested metrics as `a/b/c` → value. What is no finite number is left out."""
    flat: dict[str, float] = {}
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            flat.update(flatten_metrics(value, f"{prefix}{key}/"))
        elif isinstance(value, int | float) and math.isfinite(value):
            flat[f"{prefix}{key}"] = float(value)
    return flat


def _flatten_params(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten_params(value, f"{prefix}{key}/"))
        else:
            text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            flat[f"{prefix}{key}"] = text
    return flat


def _read_run(found: Any) -> Run:
    return Run(
        run_id=str(found.info.run_id),
        status=str(found.info.status),
        began=_read_time(found.info.start_time),
        ended=None if found.info.end_time is None else _read_time(found.info.end_time),
        tags=dict(found.data.tags),
        metrics=dict(found.data.metrics),
    )


def _read_version(found: Any) -> ModelVersion:
    return ModelVersion(
        name=found.name,
        version=int(found.version),
        run_id=str(found.run_id),
        source=str(found.source),
        tags=dict(found.tags),
        created=_read_time(found.creation_timestamp),
    )


def _read_time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC)
