"""The verb that makes a past run again and compares."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coembed.cli._project import JsonOption, ProjectOption, open_project, print_table, services


def reproduce(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN_ID|VERSION",
            help="A version's number or alias (3, champion), an MLflow run's id, a flow run's id.",
        ),
    ],
    project: ProjectOption = Path(),
    stage: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="Go only so far: curate, train, evaluate, embed."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the worktree it was made in.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a past run again, in a worktree of its own, and say what came out equal.

    Exit code 0: equal. 1: not equal, and the table says what differs (or a stage failed). 2: there
    is no such run, commit or data. Your tree, branch, dvc.lock and outputs stay as they are.
    """
    import json

    from coembed.lineage import reproduce as lineage
    from coembed.registry.past_runs import find_past_run
    from coembed.registry.store import open_registry

    here = open_project(project, None)
    registry = open_registry(services(here), here.cfg.register_)
    found = lineage.reproduce(
        here.root,
        find_past_run(registry, run),
        runs=here.cfg.paths.runs,
        stage=stage,
        keep=keep,
        show=not as_json,
    )
    if as_json:
        print(json.dumps(found.as_dict(), indent=2, sort_keys=True, ensure_ascii=False))
    else:
        title = "Reproduced" if found.is_equal else "Not reproduced: this differs"
        print_table(title, found.rows())
    if not found.is_equal:
        raise typer.Exit(1)
