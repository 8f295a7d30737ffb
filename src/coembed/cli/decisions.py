"""Verbs that decide about a model version: the gate, a person's approval, the promotion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coembed.cli._project import (
    JsonOption,
    Project,
    ProjectOption,
    SetOption,
    open_project,
    person,
    print_listing,
    print_result,
    registered_version,
    services,
)

if TYPE_CHECKING:
    from coembed.stages.evaluations import Places
    from coembed.stages.result import Listing

_NOT_PASSED = 3
VersionArgument = Annotated[
    int | None,
    typer.Argument(help="The model version; else the one last registered.", show_default=False),
]


def gate(
    version: VersionArgument = None,
    project: ProjectOption = Path(),
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge a version by the policy (params.yaml, `promote:`), compared with what is served.

    Nothing moves. The decision goes to runs/gates/, to the version's MLflow run and to its tags.
    Exit code 0: it passed; 3: it is refused, or waits for an approval.
    """
    from coembed.stages import gate as stage

    here = open_project(project, overrides)
    chosen = registered_version(here, version)
    found = stage.run(
        here.cfg,
        services=services(here),
        places=_places(here),
        version=chosen,
        collection=_built_for(here, chosen),
        asked_for=version is not None,
        out=here.path("runs") / "gate.json",
    )
    _show(found, as_json)
    if found.receipt["verdict"] != "passed":
        raise typer.Exit(_NOT_PASSED)


def promote(
    version: VersionArgument = None,
    project: ProjectOption = Path(),
    force: Annotated[
        bool, typer.Option("--force", help="Serve it whatever the gate says; needs --reason.")
    ] = False,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; kept for the audit.")] = "",
    by: Annotated[
        str, typer.Option(metavar="NAME", help="Who; else git's user.name.", show_default=False)
    ] = "",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """If it passes the gate: swap the collection's alias, then the registry's.

    A version that was rolled back is promoted again only where it is named. Exit code 0: it is
    served; 3: it is refused, or waits for an approval, and what is served stays.
    """
    from coembed.stages import promote as stage

    here = open_project(project, overrides)
    chosen = registered_version(here, version)
    result = stage.run(
        here.cfg,
        services=services(here),
        places=_places(here),
        version=chosen,
        collection=_built_for(here, chosen),
        asked_for=version is not None,
        force=force,
        by=by or person(here),
        why=reason,
        out=here.path("runs") / "promote.json",
    )
    print_result(result, as_json)
    if not result.receipt["promoted"]:
        raise typer.Exit(_NOT_PASSED)


def approve(
    version: Annotated[int, typer.Argument(help="The model version.")],
    by: Annotated[str, typer.Option(metavar="NAME", help="Who approves it.")],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why.")] = "",
    project: ProjectOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Say yes to a version, where the policy asks for a person's approval. Nothing moves."""
    from coembed.stages import approve as stage

    here = open_project(project, None)
    result = stage.run(
        here.cfg,
        services=services(here),
        version=version,
        by=by,
        why=reason,
        out=here.path("runs") / "approve.json",
    )
    print_result(result, as_json)


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A version, or an alias: champion.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The version to compare with A.")],
    project: ProjectOption = Path(),
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Two versions on the same items: differences, intervals, the slices that lost most, a page."""
    from coembed.stages import compare as stage

    here = open_project(project, overrides)
    found = stage.run(
        here.cfg,
        services=services(here),
        places=_places(here),
        first=first,
        second=second,
        out=here.path("runs") / "compare",
    )
    _show(found, as_json)


def _show(found: Listing, as_json: bool) -> None:
    print_listing(found, as_json)
    if not as_json:
        print(f"report: {found.receipt['report']}")


def _places(here: Project) -> Places:
    from coembed.stages.evaluations import Places

    return Places(here.path("evaluation"), here.path("pairs"), here.path("runs"))


def _built_for(here: Project, version: int) -> str | None:
    """The collection last built, if it is that version's; None leaves it to the index."""
    from coembed.errors import DataError
    from coembed.files import read_json

    try:
        built = read_json(here.path("runs") / "index.json", what="index receipt")
    except DataError:
        return None
    return str(built["collection"]) if built.get("version") == version else None
