"""Decisions about the layout that a slip would undo unseen."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import grimp
import mlflow
import pytest
import yaml
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[3]
DVC_YAML = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())
# What every stage stands on. A change here changes no output; where it would, a room changes too.
_FOUNDATION = "code errors files locking progress services settings stages.result types"
FOUNDATION = {f"coembed.{name}" for name in _FOUNDATION.split()}


def test_our_mlflow_folder_does_not_shadow_the_package() -> None:
    assert "site-packages" in (mlflow.__file__ or "")
    assert not list((REPOSITORY / "mlflow").glob("*.py"))


def test_fastapi_and_sqlalchemy_are_in_the_ranges_that_prefect_works_with() -> None:
    """`pip check` is clean outside of them; the server then fails (see pyproject.toml)."""
    declared = map(Requirement, importlib.metadata.requires("coembed") or [])
    ranges = {requirement.name.lower(): requirement.specifier for requirement in declared}
    for name in ("fastapi", "sqlalchemy", "prefect"):
        assert "<" in str(ranges[name]), f"{name} needs an upper bound"
        assert ranges[name].contains(importlib.metadata.version(name)), name


def test_the_constraints_pin_every_requirement() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    for text in importlib.metadata.requires("coembed") or []:
        assert Requirement(text).name.lower().replace("_", "-") in pinned, text
    assert not [line for line in lines if "://" in line or " @ " in line]


@pytest.mark.parametrize("stage", sorted(DVC_YAML["stages"]))
def test_a_stages_dependencies_cover_the_code_that_it_imports(stage: str) -> None:
    """Else DVC would call a result up to date that other code made."""
    graph = grimp.build_graph("coembed")
    graph.remove_module("coembed.config")  # It reaches every room's settings; params cover those.
    used = graph.find_upstream_modules(f"coembed.stages.{stage}") - FOUNDATION - {"coembed"}
    covered = [dep for dep in DVC_YAML["stages"][stage]["deps"] if dep.startswith("src/")]
    for module in sorted(used | {f"coembed.stages.{stage}"}):
        path = "src/" + module.replace(".", "/")
        assert module == "coembed.stages" or any(
            path == dep.removesuffix(".py") or path.startswith(dep + "/") or path == dep
            for dep in covered
        ), f"{stage} imports {module}, but dvc.yaml's deps do not name it"


@pytest.mark.parametrize("stage", sorted(DVC_YAML["stages"]))
def test_a_stage_calls_the_verb_of_its_name(stage: str) -> None:
    assert DVC_YAML["stages"][stage]["cmd"] == f"coembed {stage}"


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from coembed import cli; "
        "heavy = {'torch', 'mlflow', 'prefect', 'dvc', 'qdrant_client', 'pandas', 'open_clip'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_readme_names_only_targets_and_verbs_that_exist() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    for target in re.findall(r"\bmake ([a-z-]+)", readme):
        assert target in targets, target
    from typer.main import get_command

    from coembed.cli import app

    verbs = set(get_command(app).commands)  # type: ignore[attr-defined]
    for verb in re.findall(r"^\s*(?:\$ )?coembed ([a-z-]+)", readme, re.M):
        assert verb in verbs, verb
