"""The whole flow, and the search."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from coembed.cli._project import (
    JsonOption,
    ProjectOption,
    SetOption,
    open_project,
    print_result,
    services,
)


def retrain(
    project: ProjectOption = Path(),
    overrides: SetOption = None,
    force: Annotated[bool, typer.Option(help="Run the flow even if all is up to date.")] = False,
) -> None:
    """Run the whole flow: curate, train, evaluate, register, embed, index, promote."""
    from coembed.errors import UserError
    from coembed.lineage import dvc
    from coembed.lineage.process import child_environment
    from coembed.lineage.workspace import require_startable

    here = open_project(project, overrides)
    if not (here.root / "flows" / "retrain.py").exists():
        raise UserError(
            f"{here.root} has no flows/retrain.py",
            hint="run it in a clone of the project, or name the clone with --project",
        )
    require_startable(here.root, pool=here.cfg.paths.pool)  # before Prefect's ten seconds
    receipt = here.path("runs") / "retrain.json"
    if receipt.exists() and not overrides and not force and not dvc.changes(here.root):
        from coembed.stages import standing

        stands = standing.find(
            here.cfg, services=services(here), project=here.root, receipt=receipt
        )
        if stands is not None:
            print_result(stands, as_json=False)
            return
    home = Path(os.environ.get("PREFECT_HOME") or here.path("runs") / "prefect")
    home.mkdir(parents=True, exist_ok=True)
    quiet = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Prefect gives its ephemeral server 20 s, which a busy machine's first start outlasts.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(here.root), os.environ.get("PYTHONPATH", "")])
        ),
    }
    command = [sys.executable, "-m", "flows.retrain", "--project", str(here.root)]
    for text in overrides or ():
        command += ["--set", text]
    # Prefect's flow takes this process over: the terminal, signals and exit code are its own.
    os.chdir(here.root)
    os.execve(command[0], command, child_environment(quiet))


def search(
    text: Annotated[str | None, typer.Argument(help="What to look for.")] = None,
    image: Annotated[Path | None, typer.Option(help="Look for items like this picture.")] = None,
    audio: Annotated[
        Path | None, typer.Option(help="Look for items like this sound (WAV, FLAC, OGG, MP3).")
    ] = None,
    modality: Annotated[
        Literal["image", "audio"] | None, typer.Option(help="Find only pictures, or only sounds.")
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="COLUMN=VALUE", help="colour=red, price<50; repeatable."),
    ] = None,
    limit: Annotated[int, typer.Option(help="How many hits.")] = 10,
    sheet: Annotated[
        Path | None, typer.Option(help="Draw the hits on a contact sheet (PNG).")
    ] = None,
    project: ProjectOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Find the items that a text, a picture or a sound means."""
    from coembed.console import print_hits
    from coembed.errors import UserError
    from coembed.stages import search as stage

    queries: list[str | stage.MediaQuery] = [text] if text is not None else []
    if image is not None:
        queries.append(stage.MediaQuery("image", image))
    if audio is not None:
        queries.append(stage.MediaQuery("audio", audio))
    if len(queries) != 1:
        raise UserError("give a text, --image FILE or --audio FILE: one of the three")
    here = open_project(project, None)
    found = stage.run(
        here.cfg,
        services=services(here),
        pool=here.path("pool"),
        models=here.path("runs") / "models",
        query=queries[0],
        filters=filters or (),
        modality=modality,
        limit=limit,
        sheet=sheet,
    )
    if as_json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
        return
    release = found.release
    # The columns that the evaluation classifies are the ones that people ask about.
    columns = list(dict.fromkeys(task.column for task in here.cfg.evaluate.zero_shot))
    print_hits(f"{text or str(image or audio)!r}", found.hits, found.matches, columns)
    if found.weak:
        print("nothing matches well: these are only the nearest")
    print(f"model {release.model} version {release.version}, collection {found.collection}")
    if sheet is not None:
        print(f"contact sheet: {sheet}")
