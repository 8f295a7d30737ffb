"""What the verbs share: the project a verb works on, its options, and how a result is shown."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from coembed.config import Config
    from coembed.services import Services
    from coembed.stages.result import Result

ProjectOption = Annotated[
    Path, typer.Option("--project", "-C", help="The project's folder.", show_default=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one setting; repeatable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@dataclass(frozen=True, slots=True)
class Project:
    """The folder that a verb works on, and its config."""

    root: Path
    cfg: Config
    overridden: bool

    def path(self, name: str) -> Path:
        """The folder that `paths.NAME` of the params file says, under the project's."""
        return self.root / getattr(self.cfg.paths, name)


def open_project(project: Path, overrides: list[str] | None) -> Project:
    """Read the config of the project at `project`. Raises ConfigError."""
    from coembed.config import load_config

    root = project.resolve()
    return Project(root, load_config(root / "params.yaml", overrides or ()), bool(overrides))


def services(here: Project) -> Services:
    """The services that the environment names, embedded ones where it names none."""
    from coembed.services import find_services

    return find_services(here.root, os.environ)


def print_result(result: Result, as_json: bool) -> None:
    """Show what a stage did."""
    if as_json:
        print(json.dumps(result.receipt, indent=2, sort_keys=True, ensure_ascii=False))
    else:
        print_table(result.title, result.rows)


def print_table(title: str, rows: tuple[tuple[str, str], ...] | Any) -> None:
    """Show (label, value) rows."""
    from coembed.console import print_rows

    print_rows(title, rows)
