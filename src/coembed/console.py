"""What verbs print at their end: one short table. Colours and frames only on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from coembed.doctor import Check
    from coembed.types import Hit

_VERDICT_STYLE = {"good": "green", "warn": "yellow", "bad": "bold red"}


def _console() -> Console:
    # A pipe or a log has no width of its own: give it enough that no value is folded away.
    return Console() if sys.stdout.isatty() else Console(width=140)


def print_rows(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print labels and values under a title."""
    table = Table(title=Text(title), title_justify="left", show_header=False, box=SIMPLE_HEAD)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(Text(label), Text(value))
    _console().print(table)


def print_grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a header. A metric's path is broken where a name in it ends."""
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD)
    for name in columns:
        table.add_column(Text(name.replace("/", "/\n")), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    _console().print(table)


def print_hits(
    title: str, hits: Sequence[Hit], matches: Sequence[float | None], columns: Sequence[str]
) -> None:
    """Print search hits: rank, score, how good a match that is (a share, as long as `hits`), the
    first caption, the attributes `columns`, the file."""
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD)
    table.add_column("#", justify="right")
    table.add_column("score", justify="right")
    calibrated = any(match is not None for match in matches)
    if calibrated:
        table.add_column("match", justify="right")
    table.add_column("caption", overflow="fold")
    for name in columns:
        table.add_column(Text(name), overflow="fold")
    table.add_column("file", no_wrap=True)
    for hit, match in zip(hits, matches, strict=True):
        captions = hit.payload.get("captions")
        caption = str(captions[0]) if isinstance(captions, list) and captions else ""
        values = hit.payload.get("attributes")
        own = values if isinstance(values, dict) else {}
        table.add_row(
            str(hit.rank),
            f"{hit.score:.3f}",
            *((f"{match:.0%}" if match is not None else "",) if calibrated else ()),
            Text(caption),
            *(Text(str(own.get(name, ""))) for name in columns),
            Text(str(hit.payload.get("path", ""))),
        )
    _console().print(table)


def print_checks(checks: Sequence[Check]) -> None:
    """Print what the doctor found, with what to do about it."""
    table = Table(title="coembed doctor", title_justify="left", box=SIMPLE_HEAD)
    for header in ("check", "", "found", "what to do"):
        table.add_column(header, overflow="fold")
    for check in checks:
        table.add_row(
            Text(check.name),
            Text(check.verdict, style=_VERDICT_STYLE[check.verdict]),
            Text(check.found),
            Text(check.advice),
        )
    _console().print(table)
