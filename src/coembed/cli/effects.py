"""Verbs that act on the registry and the index, one step each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coembed.cli._project import (
    JsonOption,
    Project,
    ProjectOption,
    SetOption,
    open_project,
    print_listing,
    print_result,
    registered_version,
    services,
)


def register(
    project: ProjectOption = Path(), overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Model + evaluation → a model version in MLflow, the challenger."""
    from coembed.lineage import dvc, git
    from coembed.lineage.environment import record_of
    from coembed.stages import register as stage

    here = open_project(project, overrides)
    pool = here.cfg.paths.pool
    versioned = ("params.yaml", "dvc.yaml", f"{pool}.dvc")
    git.require_kept(here.root, (*versioned, str(here.cfg.paths.overrides), "src"))
    files = [here.root / name for name in (*versioned, dvc.LOCK) if (here.root / name).exists()]
    files.append(record_of(here.path("runs"), here.path("model")))
    dirty = git.is_dirty(here.root)
    result = stage.run(
        here.cfg,
        services=services(here),
        model=here.path("model"),
        evaluation=here.path("evaluation"),
        lineage=stage.Lineage(
            git_commit=git.snapshot(here.root),
            data_md5=dvc.data_hash(here.root, pool) or "",
            files=tuple(files),
            tags={"dirty": str(dirty).lower()},
        ),
        out=here.path("runs") / "register.json",
    )
    print_result(result, as_json)


def index(
    project: ProjectOption = Path(),
    version: Annotated[
        int | None, typer.Option(help="The model version; else the one last registered.")
    ] = None,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="Build nothing: measure what quantisation and search settings find and cost.",
        ),
    ] = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Embeddings → a new, verified collection that nobody sees yet."""
    if tune:
        _tune(open_project(project, overrides), version, as_json)
        return
    from coembed.lineage import dvc
    from coembed.registry.past_runs import log_lock_again
    from coembed.registry.store import open_registry
    from coembed.stages import index as stage

    here = open_project(project, overrides)
    chosen = registered_version(here, version)
    registry = open_registry(services(here), here.cfg.register_)
    log_lock_again(registry, chosen, here.root / dvc.LOCK)
    result = stage.run(
        here.cfg,
        services=services(here),
        embeddings=here.path("embeddings"),
        version=chosen,
        out=here.path("runs") / "index.json",
    )
    print_result(result, as_json)


def _tune(here: Project, version: int | None, as_json: bool) -> None:
    from coembed.errors import UserError
    from coembed.stages import tune as stage

    if version is not None:
        raise UserError(
            "--tune measures the embeddings as they are: --version has no part in it",
            hint="leave one of them out",
        )
    listing = stage.run(
        here.cfg,
        services=services(here),
        embeddings=here.path("embeddings"),
        runs=here.path("runs"),
    )
    print_listing(listing, as_json)


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
