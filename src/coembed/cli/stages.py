"""Verbs that run one reproducible stage each, and the export of what they made."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from coembed.cli._project import (
    JsonOption,
    Project,
    ProjectOption,
    SetOption,
    open_project,
    print_result,
    print_table,
    services,
)
from coembed.errors import CoembedError

if TYPE_CHECKING:
    from coembed.registry.store import Registry
    from coembed.stages.result import Result
    from coembed.training.distributed import Place


def _run_stage(
    stage: str,
    project: Path,
    overrides: list[str] | None,
    as_json: bool,
    call: Callable[[Project], Result | None],
) -> None:
    """Run one reproducible stage, show what it did and, unless DVC does so itself, write it into
    dvc.lock. `call` gives None where another process has shown it.
    """
    from coembed.parent import die_with_parent

    under_dvc = os.environ.get("DVC_STAGE") == stage
    if under_dvc:
        die_with_parent()
    here = open_project(project, overrides)
    with _error_left_for_the_flow(here, stage, under_dvc):
        result = call(here)
    if result is not None:
        print_result(result, as_json)
    _record(here, stage, under_dvc)


def _record(here: Project, stage: str, under_dvc: bool) -> None:
    """Write into dvc.lock that the stage has run, where DVC does not do so itself."""
    from coembed.lineage import dvc

    if under_dvc or not (here.root / "dvc.yaml").exists():
        return
    if here.overridden:
        print(
            "not written into dvc.lock: --set made it another run; the next run of the stage "
            "without it, or of the flow, replaces its output",
            file=sys.stderr,
        )
    else:
        dvc.record(here.root, stage)


@contextmanager
def _error_left_for_the_flow(here: Project, stage: str, under_dvc: bool) -> Iterator[None]:
    """Where DVC called the verb, leave its error for the flow: DVC only passes "it failed" on."""
    from coembed.errors import kind_of
    from coembed.files import write_json
    from coembed.lineage.dvc import EXIT_FOLDER

    try:
        yield
    except CoembedError as error:
        if under_dvc:
            said = {"error": error.message, "hint": error.hint, "kind": kind_of(error)}
            write_json(here.root / EXIT_FOLDER / f"{stage}.json", said)
        raise


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
    from coembed.training.distributed import torchrun_place

    def call(here: Project) -> Result | None:
        if here.cfg.train.distributed.num_processes == 1:
            return _train(here, None)
        _launch_training(here, overrides, as_json)
        return None

    place = torchrun_place(os.environ)
    if place is None:
        _run_stage("train", project, overrides, as_json, call)
    else:
        _train_in_place(place, project, overrides, as_json)


def _train(here: Project, place: Place | None) -> Result:
    from coembed.stages import train as stage

    with _followed(here, place):
        result = stage.run(
            here.cfg, root=here.root, pairs=here.path("pairs"), out=here.path("model"),
            runs=here.path("runs"), place=place,
        )  # fmt: skip
    if place is None or place.rank == 0:
        _leave_record(here)
    return result


def _leave_record(here: Project) -> None:
    """Say what this model was trained on. Outside of its folder: the same model trained elsewhere
    has the same bytes."""
    from coembed.lineage.environment import leave_record, record
    from coembed.models.checkpoint import read_card
    from coembed.training.device import choose_device

    weights = read_card(here.path("model")).weights_sha256
    device = choose_device(here.cfg.train).type
    leave_record(here.path("runs"), weights, record("training", device))


def _followed(here: Project, place: Place | None) -> AbstractContextManager[None]:
    """Live metrics into the MLflow run that MLFLOW_RUN_ID names, where it names one."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id or (place is not None and place.rank != 0):
        return nullcontext()
    from coembed.registry.live import follow_training  # imports no mlflow by itself

    def registry() -> Registry:  # called in the follower's thread
        from coembed.registry.store import open_registry

        return open_registry(services(here), here.cfg.register_)

    return follow_training(registry, run_id)


def _launch_training(here: Project, overrides: list[str] | None, as_json: bool) -> None:
    """Start this very command once a process; the first of them shows the result."""
    from coembed.training.launch import launch

    # -P: what lies in the folder where the command was given is not on the path of imports.
    command = [sys.executable, "-P", "-m", "coembed.cli", "train", "--project", str(here.root)]
    for override in overrides or ():
        command += ["--set", override]
    if as_json:
        command.append("--json")
    settings = here.cfg.train.distributed
    launch(command, num_processes=settings.num_processes, max_restarts=settings.max_restarts)


def _train_in_place(
    place: Place, project: Path, overrides: list[str] | None, as_json: bool
) -> None:
    """Be one of the processes that torchrun started: this verb's own, or the user's."""
    from coembed.parent import die_with_parent
    from coembed.training.launch import leave_error

    die_with_parent()
    try:
        here = open_project(project, overrides)
        result = _train(here, place)
    except CoembedError as error:
        leave_error(error, os.environ)
        if place.launched:
            sys.exit(error.exit_code)  # the launching process says why
        raise
    if place.rank == 0:
        print_result(result, as_json)
        if not place.launched:
            _record(here, "train", under_dvc=os.environ.get("DVC_STAGE") == "train")


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
    share: Annotated[
        str | None,
        typer.Option(
            metavar="K/N",
            help="Embed share K of N only, for as many processes or machines on one runs/ folder; "
            "a run without it then puts the corpus together.",
        ),
    ] = None,
    project: ProjectOption = Path(),
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Model + corpus → embeddings; goes on where it was interrupted."""
    from coembed.embedding.settings import read_share
    from coembed.stages import embed as stage

    def call(p: Project) -> Result:
        return stage.run(
            p.cfg, model=p.path("model"), pairs=p.path("pairs"), out=p.path("embeddings"),
            runs=p.path("runs"), share=None if share is None else read_share(share),
        )  # fmt: skip

    if share is None:
        _run_stage("embed", project, overrides, as_json, call)
    else:  # no output yet that dvc.lock could speak of
        print_result(call(open_project(project, overrides)), as_json)


def export(
    folder: Annotated[Path, typer.Argument(help="A new folder for the exported model.")],
    to: Annotated[
        Literal["open_clip", "onnx"], typer.Option("--format", help="What to write.")
    ] = "open_clip",
    project: ProjectOption = Path(),
) -> None:
    """Trained model → a format of others: open_clip's, or ONNX.

    open_clip: open_clip.create_model("local-dir:FOLDER") loads it. onnx: a file a tower, which
    onnxruntime runs, and preprocessing.json.
    """
    from coembed.errors import UserError
    from coembed.files import atomic_folder
    from coembed.models.checkpoint import load_model

    here = open_project(project, None)
    if folder.exists():
        raise UserError(f"{folder} is there already", hint="name a new folder")
    model, spec = load_model(here.path("model"))
    rows = [("folder", str(folder)), ("dimension", str(spec.embed_dim))]
    with atomic_folder(folder) as partial:
        if to == "onnx":
            from coembed.models.onnx_export import export_onnx

            for modality, difference in export_onnx(model, spec, partial).items():
                rows.append((f"{modality}.onnx", f"within {difference:.1e} of torch"))
        else:
            from coembed.models.export import export_open_clip

            left_out = export_open_clip(model, spec, partial)
            rows += [("left out", f"the {name} tower") for name in left_out]
    print_table("Exported to ONNX" if to == "onnx" else "Exported to open_clip's format", rows)
