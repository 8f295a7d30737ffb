"""Verbs that run one reproducible stage each, and the export of what they made."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coembed.cli._project import (
    JsonOption,
    Project,
    ProjectOption,
    SetOption,
    open_project,
    print_result,
    print_table,
)
from coembed.errors import CoembedError

if TYPE_CHECKING:
    from coembed.stages.result import Result


def _run_stage(
    stage: str,
    project: Path,
    overrides: list[str] | None,
    as_json: bool,
    call: Callable[[Project], Result],
) -> None:
    """Run one reproducible stage and, unless DVC does so itself, write it into dvc.lock."""
    from coembed.lineage import dvc
    from coembed.lineage.process import die_with_parent

    under_dvc = os.environ.get("DVC_STAGE") == stage
    if under_dvc:
        die_with_parent()
    here = open_project(project, overrides)
    try:
        result = call(here)
    except CoembedError as error:
        if under_dvc:
            _leave_error(here.root, stage, error)
        raise
    print_result(result, as_json)
    if not under_dvc and (here.root / "dvc.yaml").exists():
        if here.overridden:
            print(
                "not written into dvc.lock: --set made it another run; the next run of the stage "
                "without it, or of the flow, replaces its output",
                file=sys.stderr,
            )
        else:
            dvc.record(here.root, stage)


def _leave_error(root: Path, stage: str, error: CoembedError) -> None:
    from coembed.errors import ServiceError, UserError
    from coembed.files import write_json
    from coembed.lineage.dvc import EXIT_FOLDER

    kind = "user" if isinstance(error, UserError) else "other"
    kind = "service" if isinstance(error, ServiceError) else kind
    said = {"error": error.message, "hint": error.hint, "kind": kind}
    write_json(root / EXIT_FOLDER / f"{stage}.json", said)


def curate(
    project: ProjectOption = Path(), overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Pool → curated pairs: filter, say why, split, shard."""
    from coembed.stages import curate as stage

    _run_stage(
        "curate", project, overrides, as_json,
        lambda p: stage.run(
            p.cfg, root=p.root, pool=p.path("pool"), out=p.path("pairs"), runs=p.path("runs"),
            overrides=p.path("overrides"),
        ),
    )  # fmt: skip


def train(
    project: ProjectOption = Path(), overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Curated pairs → model: contrastive training; goes on where it was interrupted."""
    from coembed.stages import train as stage

    _run_stage(
        "train", project, overrides, as_json,
        lambda p: stage.run(
            p.cfg, root=p.root, pairs=p.path("pairs"), out=p.path("model"), runs=p.path("runs")
        ),
    )  # fmt: skip


def evaluate(
    project: ProjectOption = Path(), overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Model + held-out pairs → metrics, slices and a report."""
    from coembed.stages import evaluate as stage

    _run_stage(
        "evaluate", project, overrides, as_json,
        lambda p: stage.run(
            p.cfg, model=p.path("model"), pairs=p.path("pairs"), out=p.path("evaluation")
        ),
    )  # fmt: skip


def embed(
    project: ProjectOption = Path(), overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Model + corpus → embeddings; goes on where it was interrupted."""
    from coembed.stages import embed as stage

    _run_stage(
        "embed", project, overrides, as_json,
        lambda p: stage.run(
            p.cfg, model=p.path("model"), pairs=p.path("pairs"), out=p.path("embeddings"),
            runs=p.path("runs"),
        ),
    )  # fmt: skip


def export(
    folder: Annotated[Path, typer.Argument(help="A new folder for the exported model.")],
    project: ProjectOption = Path(),
) -> None:
    """Trained model → open_clip's format: open_clip.create_model("local-dir:FOLDER") loads it."""
    from coembed.errors import UserError
    from coembed.files import atomic_folder
    from coembed.models.checkpoint import load_model
    from coembed.models.export import export_open_clip

    here = open_project(project, None)
    if folder.exists():
        raise UserError(f"{folder} is there already", hint="name a new folder")
    model, spec = load_model(here.path("model"))
    with atomic_folder(folder) as partial:
        export_open_clip(model, spec, partial)
    rows = (("folder", str(folder)), ("dimension", str(spec.embed_dim)))
    print_table("Exported to open_clip's format", rows)
