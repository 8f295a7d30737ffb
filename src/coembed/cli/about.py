"""Verbs that look at the machine and at the configuration."""

from __future__ import annotations

import json
import os
from pathlib import Path

import typer

from coembed.cli._project import JsonOption, ProjectOption, SetOption, open_project


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


def config_schema() -> None:
    """Print the JSON schema of params.yaml: every setting, its type and default."""
    from coembed.config import Config

    print(json.dumps(Config.model_json_schema(), indent=2))


def config_show(project: ProjectOption = Path(), overrides: SetOption = None) -> None:
    """Print the configuration as it is read, defaults filled in."""
    import yaml

    values = open_project(project, overrides).cfg.model_dump(mode="json", by_alias=True)
    print(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), end="")
