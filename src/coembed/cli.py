"""`coembed VERB`: load the config, call one function, print the result.

Every verb imports what it needs when it is called, so that `coembed --help` stays quick.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coembed.errors import CoembedError

if TYPE_CHECKING:
    from coembed.config import Config
    from coembed.services import Services
    from coembed.stages.result import Result

app = typer.Typer(
    name="coembed",
    help="From pairs to a joint-embedding model, a registry, an index and a search.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
config_app = typer.Typer(no_args_is_help=True, help="Look at the configuration.")

ProjectOption = Annotated[
    Path, typer.Option("--project", "-C", help="The project's folder.", show_default=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one setting; repeatable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

_DATA = "1 · Data"
_STAGES = "2 · Stages, one at a time"
_EFFECTS = "3 · Effects, one at a time"
_RUN = "4 · All at once, and search"
_HELP = "5 · Help"


@dataclass(frozen=True, slots=True)
class _Project:
    """The folder that a verb works on, and its config."""

    root: Path
    cfg: Config
    overridden: bool

    def path(self, name: str) -> Path:
        """The folder that `paths.NAME` of the params file says, under the project's."""
        return self.root / getattr(self.cfg.paths, name)


def _open(project: Path, overrides: list[str] | None) -> _Project:
    from coembed.config import load_config

    root = project.resolve()
    return _Project(root, load_config(root / "params.yaml", overrides or ()), bool(overrides))


# ---------------------------------------------------------------------------------------------
# Data


@app.command("demo-pool", rich_help_panel=_DATA)
def demo_pool(
    project: ProjectOption = Path(),
    seed: Annotated[int | None, typer.Option(help="The shop's seed.", show_default="7")] = None,
    num_pairs: Annotated[
        int | None, typer.Option(min=100, help="About how many pairs.", show_default="6000")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the pool that is there.")] = False,
) -> None:
    """Draw the demo: a small shop's product pictures and captions, faults included."""
    import shutil

    from coembed.errors import UserError
    from coembed.lineage import dvc
    from coembed.pairs.shop import draw_pool

    here = _open(project, None)
    pool = here.cfg.paths.pool
    folder, pointer = here.root / pool, here.root / f"{pool}.dvc"
    if not overwrite and folder.exists() and pointer.exists():
        if seed is not None or num_pairs is not None:
            raise UserError(
                f"{pool}/ is there already, and would not be drawn with this seed or size",
                hint="--overwrite draws it anew; DVC keeps the old version",
            )
        dvc.require_versioned(here.root, pool)
        print(f"{pool}/ is as {pool}.dvc says: nothing to draw (--overwrite draws it anew)")
        return
    _keep_old_version(here.root, pool)
    summary = draw_pool(folder, seed=seed or 7, num_pairs=num_pairs or 6000, overwrite=overwrite)
    if pointer.exists() and not overwrite and not dvc.holds_what_it_says(here.root, pool):
        shutil.rmtree(folder)
        raise UserError(
            f"the shop that was drawn is not the pool that {pointer.name} pins",
            hint="`dvc pull` brings that pool; --overwrite pins the shop in its place",
        )
    changed = dvc.add(here.root, pool)
    _print_table(
        f"The shop is drawn into {pool}/",
        (
            ("pairs", f"{summary.num_pairs:,}"),
            ("pictures", f"{summary.num_items:,}"),
            ("products", f"{summary.num_products:,}"),
            ("planted faults", f"{sum(summary.faults.values()):,} (truth in truth.parquet)"),
            ("never seen in training", ", ".join(f"{c} {k}" for c, k in summary.unseen)),
            ("version", f"{pool}.dvc {'written' if changed else 'unchanged'}"),
        ),
    )


@app.command(rich_help_panel=_DATA)
def ingest(
    source: Annotated[
        Path, typer.Argument(help="A CSV, TSV, Parquet or JSONL table, COCO JSON, folder or tars.")
    ],
    project: ProjectOption = Path(),
    reader: Annotated[
        str | None, typer.Option(help="How to read it, where the name does not say.")
    ] = None,
    path_column: Annotated[str, typer.Option(help="The column with the media's path.")] = "path",
    caption_column: Annotated[str, typer.Option(help="The column with the caption.")] = "caption",
    rename: Annotated[
        list[str] | None, typer.Option(metavar="NEW=OLD", help="Rename a further column.")
    ] = None,
    media_root: Annotated[
        Path | None, typer.Option(help="The folder that media paths start from.")
    ] = None,
    link: Annotated[
        bool, typer.Option(help="Hard-link the media (DVC's cache holds a copy all the same).")
    ] = False,
    replace: Annotated[
        bool, typer.Option(help="Start a new pool; DVC keeps the one that was there.")
    ] = False,
    version: Annotated[bool, typer.Option(help="Version the pool with `dvc add`.")] = True,
) -> None:
    """Take pairs into the pool and version it. Taking them twice changes nothing."""
    import shutil

    from coembed.errors import UserError
    from coembed.lineage import dvc
    from coembed.pairs.ingest import ingest as take

    columns = {"path": path_column, "caption": caption_column}
    for text in rename or ():
        new, sign, old = text.partition("=")
        if not sign or not new or not old:
            raise UserError(
                f"--rename {text!r} is not NEW=OLD", hint="for example --rename label=kind"
            )
        columns[new] = old
    here = _open(project, None)
    pool = here.cfg.paths.pool
    refused = here.path("runs") / "ingest-refused.csv"
    target = here.root / pool
    if not replace and (here.root / f"{pool}.dvc").exists() and not target.exists():
        dvc.require_versioned(here.root, pool)  # else the new pairs would be all of the pool
    if replace and target.exists():
        _keep_old_version(here.root, pool)
        # The new pool grows elsewhere, so that a source that turns out wrong leaves the old one.
        target = here.path("runs") / "new-pool"
        shutil.rmtree(target, ignore_errors=True)
    summary = take(
        source,
        target,
        reader=reader,
        columns=columns,
        media_root=media_root,
        link=link,
        refused=refused,
    )
    if target != here.root / pool:
        shutil.rmtree(here.root / pool)
        shutil.move(target, here.root / pool)
    rows = list(summary.rows())
    if version:
        changed = dvc.add(here.root, pool)
        rows.append(("version", f"{pool}.dvc {'written' if changed else 'unchanged'}"))
    _print_table(f"Ingested {source}", tuple(rows))


def _keep_old_version(root: Path, pool: Path) -> None:
    """Before a pool is replaced: refuse if it is not versioned, else see that DVC holds it."""
    from coembed.lineage import dvc

    if (root / pool).exists() and any((root / pool).iterdir()):
        dvc.require_versioned(root, pool)
        dvc.add(root, pool)  # The files may be as the .dvc file says, and yet not in the cache.
        print(f"{pool}/ is replaced; the old version is {dvc.data_hash(root, pool)} in DVC's cache")


# ---------------------------------------------------------------------------------------------
# Stages


def _run_stage(
    stage: str,
    project: Path,
    overrides: list[str] | None,
    as_json: bool,
    call: Callable[[_Project], Result],
) -> None:
    """Run one reproducible stage and, unless DVC does so itself, write it into dvc.lock."""
    from coembed.lineage import dvc
    from coembed.lineage.process import die_with_parent

    under_dvc = os.environ.get("DVC_STAGE") == stage
    if under_dvc:
        die_with_parent()
    here = _open(project, overrides)
    try:
        result = call(here)
    except CoembedError as error:
        if under_dvc:
            _leave_error(here.root, stage, error)
        raise
    _print_result(result, as_json)
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


@app.command(rich_help_panel=_STAGES)
def curate(
    project: ProjectOption = Path(), overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Pool → curated pairs: filter, say why, split, shard."""
    from coembed.stages import curate as stage

    _run_stage(
        "curate", project, overrides, as_json,
        lambda p: stage.run(p.cfg, pool=p.path("pool"), out=p.path("pairs")),
    )  # fmt: skip


@app.command(rich_help_panel=_STAGES)
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


@app.command(rich_help_panel=_STAGES)
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


@app.command(rich_help_panel=_STAGES)
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


# ---------------------------------------------------------------------------------------------
# Effects: registry and index


def _services(here: _Project) -> Services:
    from coembed.services import find_services

    return find_services(here.root, os.environ)


@app.command(rich_help_panel=_EFFECTS)
def register(
    project: ProjectOption = Path(), overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Model + evaluation → a model version in MLflow, the challenger."""
    from coembed.lineage import dvc, git
    from coembed.stages import register as stage

    here = _open(project, overrides)
    pool = here.cfg.paths.pool
    files = ("params.yaml", "dvc.yaml", dvc.LOCK, f"{pool}.dvc")
    result = stage.run(
        here.cfg,
        services=_services(here),
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
    _print_result(result, as_json)


@app.command(rich_help_panel=_EFFECTS)
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

    here = _open(project, overrides)
    result = stage.run(
        here.cfg,
        services=_services(here),
        embeddings=here.path("embeddings"),
        version=_version(here, version),
        out=here.path("runs") / "index.json",
    )
    _print_result(result, as_json)


@app.command(rich_help_panel=_EFFECTS)
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

    here = _open(project, overrides)
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
        services=_services(here),
        version=chosen,
        collection=built["collection"],
        evaluation=here.path("evaluation"),
        evaluate_champion=evaluate_champion,
        models=runs / "models",
        out=runs / "promote.json",
        asked_for=version is not None,
    )
    _print_result(result, as_json)


@app.command(rich_help_panel=_EFFECTS)
def rollback(
    project: ProjectOption = Path(),
    version: Annotated[
        int | None, typer.Option(help="The model version to serve; else the previous champion.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve an earlier model version again: its collection's alias, then the registry's."""
    from coembed.stages import rollback as stage

    here = _open(project, None)
    out = here.path("runs") / "rollback.json"
    result = stage.run(here.cfg, services=_services(here), out=out, version=version)
    _print_result(result, as_json)


def _version(here: _Project, version: int | None) -> int:
    """The version asked for, else the one that the last `coembed register` left a receipt of."""
    if version is not None:
        return version
    from coembed.files import read_json

    path = here.path("runs") / "register.json"
    receipt = read_json(path, what="register receipt", hint="run `coembed register` first")
    return int(receipt["version"])


# ---------------------------------------------------------------------------------------------
# Run and search


@app.command(rich_help_panel=_RUN)
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

    here = _open(project, overrides)
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
            here.cfg, services=_services(here), project=here.root, receipt=receipt
        )
        if stands is not None:
            _print_result(stands, as_json=False)
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


@app.command(rich_help_panel=_RUN)
def search(
    text: Annotated[str | None, typer.Argument(help="What to look for.")] = None,
    image: Annotated[Path | None, typer.Option(help="Look for items like this picture.")] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="COLUMN=VALUE", help="colour=red, price<50; repeatable."),
    ] = None,
    limit: Annotated[int, typer.Option(help="How many hits.")] = 10,
    sheet: Annotated[
        Path | None, typer.Option(help="Write the hits' pictures as a contact sheet (PNG).")
    ] = None,
    project: ProjectOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Find the items that a text or a picture means."""
    from coembed.console import print_hits
    from coembed.errors import UserError
    from coembed.stages import search as stage

    if (text is None) == (image is None):
        raise UserError("give a text or --image FILE, one of the two")
    here = _open(project, None)
    query: str | Path = text if text is not None else image  # type: ignore[assignment]
    found = stage.run(
        here.cfg,
        services=_services(here),
        pool=here.path("pool"),
        models=here.path("runs") / "models",
        query=query,
        filters=filters or (),
        limit=limit,
        sheet=sheet,
    )
    if as_json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
        return
    release = found.release
    # The columns that the evaluation classifies are the ones that people ask about.
    print_hits(f"{str(query)!r}", found.hits, [task.column for task in here.cfg.evaluate.zero_shot])
    print(f"model {release.model} version {release.version}, collection {found.collection}")
    if sheet is not None:
        print(f"contact sheet: {sheet}")


# ---------------------------------------------------------------------------------------------
# Help


@app.command(rich_help_panel=_STAGES)
def export(
    folder: Annotated[Path, typer.Argument(help="A new folder for the exported model.")],
    project: ProjectOption = Path(),
) -> None:
    """Trained model → open_clip's format: open_clip.create_model("local-dir:FOLDER") loads it."""
    from coembed.errors import UserError
    from coembed.files import atomic_folder
    from coembed.models.checkpoint import load_model
    from coembed.models.export import export_open_clip

    here = _open(project, None)
    if folder.exists():
        raise UserError(f"{folder} is there already", hint="name a new folder")
    model, spec = load_model(here.path("model"))
    with atomic_folder(folder) as partial:
        export_open_clip(model, spec, partial)
    rows = (("folder", str(folder)), ("dimension", str(spec.embed_dim)))
    _print_table("Exported to open_clip's format", rows)


@app.command(rich_help_panel=_HELP)
def doctor(project: ProjectOption = Path(), as_json: JsonOption = False) -> None:
    """Check versions, devices, services, DVC and disk, and say what to do."""
    from coembed.doctor import examine

    checks = examine(project.resolve(), os.environ)
    if as_json:
        print(json.dumps([check.as_dict() for check in checks], indent=2))
    else:
        from coembed.console import print_checks

        print_checks(checks)
    if any(check.verdict == "bad" for check in checks):
        raise typer.Exit(2)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of params.yaml: every setting, its type and default."""
    from coembed.config import Config

    print(json.dumps(Config.model_json_schema(), indent=2))


@config_app.command("show")
def config_show(project: ProjectOption = Path(), overrides: SetOption = None) -> None:
    """Print the configuration as it is read, defaults filled in."""
    import yaml

    values = _open(project, overrides).cfg.model_dump(mode="json", by_alias=True)
    print(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), end="")


app.add_typer(config_app, name="config", rich_help_panel=_HELP)


def _print_result(result: Result, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.receipt, indent=2, sort_keys=True, ensure_ascii=False))
    else:
        _print_table(result.title, result.rows)


def _print_table(title: str, rows: tuple[tuple[str, str], ...] | Any) -> None:
    from coembed.console import print_rows

    print_rows(title, rows)


def main() -> None:
    """The entry point. Exit codes: 0 done, 1 our fault or a service's, 2 the user's mistake."""
    try:
        app()
    except CoembedError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
