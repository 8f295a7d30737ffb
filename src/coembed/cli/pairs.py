"""Verbs on curated pairs: why is one in or out, which are, and people's decisions about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coembed.cli._project import JsonOption, ProjectOption, SetOption, open_project, print_table

if TYPE_CHECKING:
    from coembed.stages.pairs import Shown

pairs_app = typer.Typer(no_args_is_help=True, help="Ask what became of pairs, and decide.")

ReasonOption = Annotated[
    str | None, typer.Option("--reason", help="Pairs that were dropped for this reason.")
]


@pairs_app.command()
def why(
    pair_ids: Annotated[list[str], typer.Argument(metavar="PAIR_ID...", show_default=False)],
    project: ProjectOption = Path(),
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say all that is known of a pair: kept or dropped, by what, why, and where it went."""
    from coembed.stages import pairs as stage

    here = open_project(project, overrides)
    found = stage.why(
        here.cfg, pairs=here.path("pairs"), overrides=here.path("overrides"), pair_ids=pair_ids
    )
    if as_json:
        print(json.dumps([one.facts for one in found], indent=2, ensure_ascii=False, default=str))
        return
    for one in found:
        print_table(one.title, one.lines)


@pairs_app.command()
def show(
    project: ProjectOption = Path(),
    reason: ReasonOption = None,
    kept: Annotated[bool, typer.Option("--kept", help="Pairs that stayed.")] = False,
    split: Annotated[str | None, typer.Option(help="Pairs in train, val or test.")] = None,
    doubtful: Annotated[
        bool, typer.Option("--doubtful", help="Kept pairs, the most doubtful first.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 20,
    sheet: Annotated[
        Path | None, typer.Option(help="Write their pictures as a contact sheet (PNG).")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """List pairs by what became of them."""
    from coembed.errors import UserError
    from coembed.stages import pairs as stage
    from coembed.types import SPLITS

    if split is not None and split not in SPLITS:
        raise UserError(f"--split {split!r} is none of {', '.join(SPLITS)}")
    here = open_project(project, overrides)
    found = stage.show(
        here.cfg, pairs=here.path("pairs"), reason=reason, kept=kept, split=split,
        doubtful=doubtful, limit=limit,
    )  # fmt: skip
    if sheet is not None:
        stage.draw(found, pool=here.path("pool"), out=sheet)
    if as_json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False, default=str))
        return
    _print_pairs(found)
    if sheet is not None:
        print(f"contact sheet: {sheet}")


@pairs_app.command()
def review(
    project: ProjectOption = Path(),
    reason: ReasonOption = None,
    doubtful: Annotated[
        bool, typer.Option("--doubtful", help="The most doubtful kept pairs (the default).")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 200,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: any that is free.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    overrides: SetOption = None,
) -> None:
    """Decide about pairs one by one, on a page of this machine, into overrides.csv."""
    from coembed.errors import UserError
    from coembed.serve import review as page

    if reason is not None and doubtful:
        raise UserError("a pair with a drop reason is not kept: --reason or --doubtful, one of two")
    here = open_project(project, overrides)
    done = page.run(
        here.cfg,
        pairs=here.path("pairs"),
        pool=here.path("pool"),
        overrides=here.path("overrides"),
        reason=reason,
        limit=limit,
        port=port,
        browser=browser,
    )
    print_table("Reviewed", done.rows())


def _print_pairs(found: Shown) -> None:
    import sys

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from coembed.curation.report.report_text import visible

    title = f"{found.title}: {found.num:,}"
    if found.num > len(found.rows):
        title += f", the first {len(found.rows):,}"
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD)
    for header in ("pair_id", "became", "found", "caption", "file"):
        table.add_column(header, overflow="fold")
    for row in found.rows:
        became = row.text("split") or "kept" if row.kept else row.text("drop_reason")
        doubt = f"doubt {row['doubt']:.2f}, {row.text('doubt_by')}" if row["doubt"] else ""
        table.add_row(
            *(
                Text(visible(cell, 160))
                for cell in (
                    row.text("pair_id"),
                    became,
                    row.text("drop_detail") or doubt,
                    row.text("caption"),
                    row.text("path"),
                )
            )
        )
    # A pipe or a log has no width of its own: give it enough that no value is folded away.
    (Console() if sys.stdout.isatty() else Console(width=180)).print(table)
