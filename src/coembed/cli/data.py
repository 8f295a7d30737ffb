"""Verbs on the pool: draw the demo, take pairs in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coembed.cli._project import ProjectOption, open_project, print_table


def demo_pool(
    project: ProjectOption = Path(),
    seed: Annotated[int | None, typer.Option(help="The shop's seed.", show_default="7")] = None,
    num_pairs: Annotated[
        int | None, typer.Option(min=100, help="About how many pairs.", show_default="6000")
    ] = None,
    audio: Annotated[
        bool, typer.Option(help="Add sounds with captions: 8 to every 100 pairs, 96 at least.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the pool that is there.")] = False,
) -> None:
    """Draw the demo: a small shop's product pictures, sounds, captions, faults included."""
    import shutil

    from coembed.errors import UserError
    from coembed.lineage import dvc
    from coembed.pairs.shop import SOUNDS_TABLE, draw_pool

    here = open_project(project, None)
    pool = here.cfg.paths.pool
    folder, pointer = here.root / pool, here.root / f"{pool}.dvc"
    if not overwrite and folder.exists() and pointer.exists():
        if seed is not None or num_pairs is not None:
            raise UserError(
                f"{pool}/ is there already, and would not be drawn with this seed or size",
                hint="--overwrite draws it anew; DVC keeps the old version",
            )
        dvc.require_versioned(here.root, pool)
        if audio and not (folder / SOUNDS_TABLE).exists():
            raise UserError(
                f"{pool}/ is there already, and has none of the demo's sounds",
                hint="--overwrite draws it anew with them; DVC keeps the old version",
            )
        print(f"{pool}/ is as {pool}.dvc says: nothing to draw (--overwrite draws it anew)")
        return
    _keep_old_version(here.root, pool)
    num_pairs = num_pairs or 6000
    summary = draw_pool(
        folder,
        seed=7 if seed is None else seed,
        num_pairs=num_pairs,
        num_sounds=max(96, num_pairs * 8 // 100) if audio else 0,
        overwrite=overwrite,
    )
    if pointer.exists() and not overwrite and not dvc.holds_what_it_says(here.root, pool):
        shutil.rmtree(folder)
        raise UserError(
            f"the shop that was drawn is not the pool that {pointer.name} pins",
            hint=f"try it {'without' if audio else 'with'} --audio; `dvc pull` brings that pool; "
            "--overwrite pins the shop in its place",
        )
    changed = dvc.add(here.root, pool)
    sounds = f"{summary.num_sounds:,}, {summary.num_sound_pairs:,} pairs" if audio else "none"
    print_table(
        f"The shop is drawn into {pool}/",
        (
            ("pictures", f"{summary.num_items:,}, {summary.num_pairs:,} pairs"),
            ("products", f"{summary.num_products:,}"),
            ("sounds", sounds),
            ("planted faults", f"{sum(summary.faults.values()):,} (truth in truth.parquet)"),
            ("never seen in training", ", ".join(f"{c} {k}" for c, k in summary.unseen)),
            ("version", f"{pool}.dvc {'written' if changed else 'unchanged'}"),
        ),
    )


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
    here = open_project(project, None)
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
        index=here.path("runs") / "pool-index.sqlite",
    )
    if target != here.root / pool:
        shutil.rmtree(here.root / pool)
        shutil.move(target, here.root / pool)
    rows = list(summary.rows())
    if version:
        changed = dvc.add(here.root, pool)
        rows.append(("version", f"{pool}.dvc {'written' if changed else 'unchanged'}"))
    print_table(f"Ingested {source}", tuple(rows))


def _keep_old_version(root: Path, pool: Path) -> None:
    """Before a pool is replaced: refuse if it is not versioned, else see that DVC holds it."""
    from coembed.lineage import dvc

    if (root / pool).exists() and any((root / pool).iterdir()):
        dvc.require_versioned(root, pool)
        dvc.add(root, pool)  # The files may be as the .dvc file says, and yet not in the cache.
        print(f"{pool}/ is replaced; the old version is {dvc.data_hash(root, pool)} in DVC's cache")
