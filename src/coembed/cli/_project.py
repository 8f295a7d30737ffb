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
    from coembed.stages.result import Listing, Result

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


def print_listing(listing: Listing, as_json: bool) -> None:
    """Show what a verb lists."""
    if as_json:
        print(json.dumps(listing.receipt, indent=2, sort_keys=True, ensure_ascii=False))
    else:
        from coembed.console import print_grid

        print_grid(listing.title, listing.columns, listing.rows)


def registered_version(here: Project, version: int | None) -> int:
    """The version asked for, else the one that the last `coembed register` left a receipt of."""
    if version is not None:
        return version
    from coembed.files import read_json

    path = here.path("runs") / "register.json"
    receipt = read_json(path, what="register receipt", hint="run `coembed register` first")
    return int(receipt["version"])


def person(here: Project) -> str:
    """Who runs this, for the record: git's user.name, else the system's user."""
    import getpass

    from coembed.lineage import git

    return git.user_name(here.root) or getpass.getuser()


def print_table(title: str, rows: tuple[tuple[str, str], ...] | Any) -> None:
    """Show (label, value) rows."""
    from coembed.console import print_rows

    print_rows(title, rows)
