"""Verbs of what is and was served: the versions, the way back, the record, and setting right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coembed.cli._project import (
    JsonOption,
    ProjectOption,
    SetOption,
    open_project,
    person,
    print_listing,
    print_result,
    services,
)


def models(
    project: ProjectOption = Path(), overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """The versions in the registry: aliases, metrics, gate, collection, commit and data."""
    from coembed.stages import models as stage

    here = open_project(project, overrides)
    print_listing(stage.run(here.cfg, services=services(here)), as_json)


def releases(
    project: ProjectOption = Path(), overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """The collections in the index: items, Recall@10, latency, quantisation; which is served."""
    from coembed.stages import releases as stage

    here = open_project(project, overrides)
    print_listing(stage.run(here.cfg, services=services(here)), as_json)


def rollback(
    version: Annotated[
        int | None,
        typer.Argument(
            help="The model version to serve; else the previous champion.", show_default=False
        ),
    ] = None,
    project: ProjectOption = Path(),
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Why; it is kept for the audit.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Serve an earlier model version again: its collection's alias, then the registry's."""
    from coembed.stages import rollback as stage

    here = open_project(project, None)
    runs = here.path("runs")
    result = stage.run(
        here.cfg,
        services=services(here),
        runs=runs,
        out=runs / "rollback.json",
        by=person(here),
        why=reason,
        version=version,
    )
    print_result(result, as_json)


def audit(project: ProjectOption = Path(), as_json: JsonOption = False) -> None:
    """Which version served when, trained on which data, promoted by whom and why."""
    from coembed.stages import audit as stage

    here = open_project(project, None)
    print_listing(stage.run(here.cfg, services=services(here)), as_json)


def reconcile(project: ProjectOption = Path(), as_json: JsonOption = False) -> None:
    """Finish what a crash left; carry out a champion set by hand in MLflow, or say what lacks."""
    from coembed.stages import reconcile as stage

    here = open_project(project, None)
    runs = here.path("runs")
    result = stage.run(here.cfg, services=services(here), runs=runs, out=runs / "reconcile.json")
    print_result(result, as_json)
    if result.receipt["missing"]:
        raise typer.Exit(2)
