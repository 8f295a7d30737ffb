"""Verbs on versions of the data: what changed between two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coembed.cli._project import JsonOption, ProjectOption, open_project, print_table

data_app = typer.Typer(no_args_is_help=True, help="Compare versions of the data.")


@data_app.callback()
def _data() -> None:
    """Compare versions of the data."""


@data_app.command("diff")
def diff(
    old: Annotated[str, typer.Argument(metavar="REV", help="A commit, branch or tag.")],
    new: Annotated[
        str | None,
        typer.Argument(metavar="REV2", help="Another; the data as versioned now if left out."),
    ] = None,
    project: ProjectOption = Path(),
    limit: Annotated[int, typer.Option(min=0, help="Examples of each kind of change.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Say what changed from one version of the data to another."""
    import json

    from coembed.lineage.data_diff import diff_data

    here = open_project(project, None)
    found = diff_data(here.root, here.cfg.paths.pool, old, new, limit=limit)
    if as_json:
        print(json.dumps(found.as_dict(), indent=2, sort_keys=True, ensure_ascii=False))
        return
    title = "The data has not changed" if found.is_empty else "What changed in the data"
    print_table(title, found.rows())
