"""register: an evaluated model becomes a version in the registry, with alias `challenger`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coembed.config import Config
from coembed.errors import UserError
from coembed.files import read_json, read_receipt, sha256_file, sha256_json, write_json
from coembed.models.checkpoint import read_card
from coembed.models.encoder import Encoder, load_encoder
from coembed.registry.past_runs import COMMIT, DATA, LOCK, WEIGHTS
from coembed.registry.settings import CHALLENGER, CHAMPION, EVALUATED, METRIC_TAG
from coembed.registry.store import Registry, flatten_metrics, open_registry
from coembed.services import Services
from coembed.stages.result import Result

_MADE_BY = "coembed evaluate"


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a model came from. `files` (dvc.lock, params.yaml, data.dvc, environment.json) go into
    the run's `lineage/`, `tags` to run and version."""

    git_commit: str
    data_md5: str
    files: tuple[Path, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)


def run(
    cfg: Config,
    *,
    services: Services,
    model: Path,
    evaluation: Path,
    lineage: Lineage,
    out: Path,
    run_id: str | None = None,
) -> Result:
    """Log the run and add a version, unless this very model and evaluation are registered already.

    `run_id` is a run that the caller has started (for the machine's metrics in training); without
    it the run is found again by its tag, or made. `out` is the receipt's file.
    """
    evaluated = read_receipt(evaluation, what="evaluation", made_by=_MADE_BY)
    metrics = read_json(evaluation / "metrics.json", what="metrics", hint=f"run `{_MADE_BY}`")
    encoder = load_encoder(model, device="cpu", precision=cfg.embed.precision)
    _check_evaluated(cfg, model, encoder, evaluated)
    identity = {
        "coembed.fingerprint": encoder.fingerprint,
        "coembed.precision": cfg.embed.precision,
        "coembed.evaluation_set": str(evaluated["evaluation_set"]),
        "coembed.metrics": sha256_json(metrics),
    }
    key = {"coembed.key": sha256_json(identity)}
    registry = open_registry(services, cfg.register_)
    version = registry.find_version(key)
    created = version is None
    if version is None:
        run_id = run_id or registry.find_run(key)
        if run_id is None:
            run_id = registry.start_run(f"{lineage.git_commit[:8]}-{encoder.fingerprint[:8]}", key)
        tags = {
            **identity,
            **key,
            EVALUATED: str(evaluated["fingerprint"]),
            WEIGHTS: read_card(model).weights_sha256,
            **_lineage_tags(lineage),
            **_metric_tags(cfg, metrics),
        }
        if registry.tags(run_id).get("coembed.logged") != key["coembed.key"]:
            _log(registry, run_id, cfg, model, evaluation, metrics, lineage, tags)
            registry.log_tags(run_id, {"coembed.logged": key["coembed.key"]})
        version = registry.add_version(
            run_id, model, dim=encoder.embed_dim, precision=cfg.embed.precision, tags=tags
        )
        registry.end_run(run_id)
    if registry.aliases().get(CHAMPION) != version.version:
        registry.set_alias(CHALLENGER, version.version)
    receipt = {
        "model": version.name,
        "version": version.version,
        "run_id": version.run_id,
        "fingerprint": encoder.fingerprint,
        "evaluation_set": identity["coembed.evaluation_set"],
        "created": created,
    }
    write_json(out, receipt)
    headline = flatten_metrics(metrics).get(cfg.promote.metric)
    return Result(
        f"Registered {version.name} version {version.version}"
        if created
        else f"{version.name} version {version.version} was registered already",
        (
            ("model version", f"{version.name} v{version.version}"),
            ("fingerprint", encoder.fingerprint[:16]),
            ("run", version.run_id),
            ("git commit", lineage.git_commit[:12]),
            (cfg.promote.metric, "not measured" if headline is None else f"{headline:.4f}"),
        ),
        receipt,
    )


def _check_evaluated(
    cfg: Config, model: Path, encoder: Encoder, evaluated: Mapping[str, Any]
) -> None:
    """Refuse the evaluation of another model."""
    fingerprint = encoder.fingerprint
    if cfg.evaluate.precision != cfg.embed.precision:
        fingerprint = load_encoder(
            model, device="cpu", precision=cfg.evaluate.precision
        ).fingerprint
    if evaluated["fingerprint"] != fingerprint:
        raise UserError(
            f"the evaluation is of the model {str(evaluated['fingerprint'])[:12]}; the one in "
            f"{model} is {fingerprint[:12]}",
            hint=f"run `{_MADE_BY}` for this model first",
        )


def _lineage_tags(lineage: Lineage) -> dict[str, str]:
    tags = {
        COMMIT: lineage.git_commit,
        DATA: lineage.data_md5,
        **lineage.tags,
    }
    # MLflow's own page shows the commit of a run under this name.
    tags["mlflow.source.git.commit"] = lineage.git_commit
    for path in lineage.files:
        if path.name == "dvc.lock":
            tags[LOCK] = sha256_file(path)
    return tags


def _metric_tags(cfg: Config, metrics: Mapping[str, Any]) -> dict[str, str]:
    """The metrics that the policy names, so that they stay when the run is deleted."""
    flat = flatten_metrics(metrics)
    named = dict.fromkeys((cfg.promote.metric, *cfg.promote.guards, *cfg.promote.floors))
    return {METRIC_TAG + path: f"{flat[path]:.6f}" for path in named if path in flat}


def _log(
    registry: Registry,
    run_id: str,
    cfg: Config,
    model: Path,
    evaluation: Path,
    metrics: Mapping[str, Any],
    lineage: Lineage,
    tags: Mapping[str, str],
) -> None:
    registry.log_tags(run_id, tags)
    registry.log_params(run_id, cfg.model_dump(mode="json", by_alias=True))
    registry.log_metrics(run_id, metrics)
    history = model / "history.csv"
    if history.is_file():
        registry.log_history(run_id, history)
        registry.log_files(run_id, [history], folder="training")
    registry.log_files(run_id, [evaluation], folder="evaluation")
    registry.log_files(run_id, lineage.files, folder="lineage")
