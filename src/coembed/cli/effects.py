"""Verbs that act on the registry and the index, one step each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from coembed.cli._project import (
    JsonOption,
    Project,
    ProjectOption,
    SetOption,
    open_project,
    print_result,
    services,
)


def register(
    project: ProjectOption = Path(), overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Model + evaluation → a model version in MLflow, the challenger."""
    from coembed.lineage import dvc, git
    from coembed.stages import register as stage

    here = open_project(project, overrides)
    pool = here.cfg.paths.pool
    files = ("params.yaml", "dvc.yaml", dvc.LOCK, f"{pool}.dvc")
    result = stage.run(
        here.cfg,
        services=services(here),
        model=here.path("model"),
        evaluation=here.path("evaluation"),
        lineage=stage.Lineage(
            git_commit=git.head_commit(here.root),
            data_md5=dvc.data_hash(here.root, pool) or "",
            files=tuple(here.root / name for name in files if (here.root / name).exists()),
            tags={"dirty": str(git.is_dirty(here.root)).lower()},
        ),
        out=here.path("runs") / "register.json",
    )
    print_result(result, as_json)


def index(
    project: ProjectOption = Path(),
    version: Annotated[
        int | None, typer.Option(help="The model version; else the one last registered.")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Embeddings → a new, verified collection that nobody sees yet."""
    from coembed.stages import index as stage

    here = open_project(project, overrides)
    result = stage.run(
        here.cfg,
        services=services(here),
        embeddings=here.path("embeddings"),
        version=_version(here, version),
        out=here.path("runs") / "index.json",
    )
    print_result(result, as_json)


def promote(
    project: ProjectOption = Path(),
    version: Annotated[
        int | None, typer.Option(help="The model version; else the one last registered.")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """If it is not worse than the champion: swap the collection's alias, then the registry's."""
    from coembed.errors import DataError
    from coembed.files import read_json
    from coembed.stages import evaluate as evaluate_stage
    from coembed.stages import promote as stage

    here = open_project(project, overrides)
    runs = here.path("runs")
    chosen = _version(here, version)
    built = read_json(runs / "index.json", what="index receipt", hint="run `coembed index` first")
    if built.get("version") != chosen:
        raise DataError(
            f"the collection last built is of model version {built.get('version')}, not {chosen}",
            hint=f"run `coembed index --version {chosen}` first",
        )

    def evaluate_champion(model: Path) -> dict[str, Any]:
        out = runs / "champion-evaluation"
        evaluate_stage.run(here.cfg, model=model, pairs=here.path("pairs"), out=out)
        return dict(read_json(out / "metrics.json", what="champion's metrics"))

    result = stage.run(
        here.cfg,
        services=services(here),
        version=chosen,
        collection=built["collection"],
        evaluation=here.path("evaluation"),
        evaluate_champion=evaluate_champion,
        models=runs / "models",
        out=runs / "promote.json",
        asked_for=version is not None,
    )
    print_result(result, as_json)


def rollback(
    project: ProjectOption = Path(),
    version: Annotated[
        int | None, typer.Option(help="The model version to serve; else the previous champion.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve an earlier model version again: its collection's alias, then the registry's."""
    from coembed.stages import rollback as stage

    here = open_project(project, None)
    out = here.path("runs") / "rollback.json"
    result = stage.run(here.cfg, services=services(here), out=out, version=version)
    print_result(result, as_json)


def _version(here: Project, version: int | None) -> int:
    """The version asked for, else the one that the last `coembed register` left a receipt of."""
    if version is not None:
        return version
    from coembed.files import read_json

    path = here.path("runs") / "register.json"
    receipt = read_json(path, what="register receipt", hint="run `coembed register` first")
    return int(receipt["version"])


def fetch(
    project: ProjectOption = Path(),
    version: Annotated[
        int | None, typer.Option(help="The model version to fetch; else the champion.")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """A registered model → a model directory under runs/models, to score pairs with."""
    from coembed.stages import fetch as stage

    here = open_project(project, overrides)
    result = stage.run(
        here.cfg,
        services=services(here),
        root=here.root,
        models=here.cfg.paths.runs / "models",
        version=version,
    )
    print_result(result, as_json)
