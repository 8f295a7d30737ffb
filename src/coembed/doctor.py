"""What `coembed doctor` looks at. Each check says what it found and what to do about it."""

from __future__ import annotations

import http.client
import importlib.metadata
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

from coembed.errors import CoembedError
from coembed.services import find_services

_MIN_PYTHON = (3, 11)
_MIN_FREE_GIB = 5.0
_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: `good`, `warn` (it works, but) or `bad` (it will not work)."""

    name: str
    verdict: Literal["good", "warn", "bad"]
    found: str
    advice: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The check as plain values."""
        return asdict(self)


def examine(project: Path, environ: Mapping[str, str]) -> list[Check]:
    """All checks of the project folder, in the order in which one would mend things."""
    if not project.is_dir():
        return [Check("project", "bad", f"there is no folder {project}", "name it with --project")]
    checks = [_python(), *_packages(), _device(), _git(project), _params(project)]
    checks += [_dvc(project), _data(project)]
    services = find_services(project, environ)
    checks.append(_registry(services.tracking_uri, services.artifact_root))
    checks.append(
        _reachable("Qdrant", services.qdrant_url, "/readyz", "QDRANT_URL")
        if services.qdrant_url
        else _embedded_index(services.qdrant_path)
    )
    prefect = environ.get("PREFECT_API_URL")
    checks.append(
        _reachable("Prefect", prefect, "/health", "PREFECT_API_URL")
        if prefect
        else Check("Prefect", "good", "ephemeral: started with each flow run")
    )
    checks.append(_disk(project))
    return checks


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= _MIN_PYTHON:
        return Check("Python", "good", found)
    return Check("Python", "bad", found, "install Python 3.11 or newer")


def _packages() -> list[Check]:
    """Every package that coembed asks for, against the range that it asks for.

    `pip check` does not do this job: two of the ranges (fastapi, SQLAlchemy) are narrower here than
    what Prefect itself declares, because Prefect stops working silently outside of them.
    """
    try:
        declared = importlib.metadata.requires("coembed") or []
    except importlib.metadata.PackageNotFoundError:
        return [Check("packages", "bad", "coembed is not installed", "run `make setup`")]
    wrong, num_good = [], 0
    for text in declared:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
        if version == "missing" or not requirement.specifier.contains(version, prereleases=True):
            found = f"{version}, needs {requirement.specifier or 'any version'}"
            wrong.append(
                Check(
                    requirement.name,
                    "bad",
                    found,
                    f"pip install -c constraints.txt '{requirement.name}{requirement.specifier}'",
                )
            )
        else:
            num_good += 1
    rest = f"{num_good} {'others ' if wrong else ''}in the ranges that are known to work"
    return [*wrong, Check("packages", "good", rest)]


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        return Check(
            "device", "good", f"{torch.cuda.get_device_name(0)} (torch {torch.__version__})"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check(
        "device",
        "warn",
        f"no GPU; {cores} CPU cores (torch {torch.__version__})",
        "fine for the demo; train real data on a GPU",
    )


def _git(project: Path) -> Check:
    from coembed.lineage import git

    if shutil.which("git") is None:
        return Check("git", "bad", "not installed", "install git")
    try:
        return Check("git", "good", f"commit {git.head_commit(project)[:12]}")
    except CoembedError as error:
        return Check("git", "bad", error.message, error.hint or "")


def _params(project: Path) -> Check:
    from coembed.config import load_config

    try:
        load_config(project / "params.yaml")
    except CoembedError as error:
        return Check("params.yaml", "bad", error.message, error.hint or "")
    return Check("params.yaml", "good", "read and checked")


def _dvc(project: Path) -> Check:
    from coembed.lineage import dvc

    if not (project / ".dvc").is_dir():
        return Check("DVC", "bad", "not initialised here", "run `dvc init`")
    try:
        # Not `dvc remote list`: that folds long addresses.
        settings = dvc.dvc(project, "config", "--list").splitlines()
    except CoembedError as error:
        return Check("DVC", "bad", error.message, error.hint or "")
    found = []
    for line in settings:
        key, _, url = line.partition("=")
        section, _, name = key.removesuffix(".url").partition(".")
        if section != "remote" or not key.endswith(".url"):
            continue
        if "://" in url:
            found.append(f"{name} at {url} (not contacted)")
            continue
        folder = Path(os.path.normpath(project / ".dvc" / url))
        if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
            return Check("DVC", "bad", f"remote {name}: cannot write {url}", "mount or make it")
        found.append(f"{name} at {url}")
    if not found:
        return Check("DVC", "warn", "no remote", "`dvc remote add -d NAME URL` keeps a copy")
    return Check("DVC", "good", f"remote {', '.join(found)}")


def _data(project: Path) -> Check:
    from coembed.config import load_config
    from coembed.lineage import dvc

    try:
        pool = load_config(project / "params.yaml").paths.pool
        if not (project / pool).exists():
            return Check(
                "pool",
                "warn",
                f"there is no {pool}/ yet",
                "`coembed demo-pool --audio`, or `dvc pull`",
            )
        dvc.require_versioned(project, pool)
    except CoembedError as error:
        return Check("pool", "warn", error.message, error.hint or "")
    return Check("pool", "good", f"{pool}/ is as {pool}.dvc says")


def _registry(uri: str, artifact_root: Path | None) -> Check:
    if uri.startswith(("http://", "https://")):
        return _reachable("MLflow", uri, "/health", "MLFLOW_TRACKING_URI")
    if artifact_root is not None:
        return Check("MLflow", "good", f"embedded: SQLite and {artifact_root.parent.name}/")
    return Check(
        "MLflow", "bad", f"MLFLOW_TRACKING_URI is {uri}", "expected http://HOST:PORT; or unset it"
    )


def _reachable(name: str, url: str | None, path: str, variable: str) -> Check:
    assert url is not None
    try:
        with urllib.request.urlopen(url.rstrip("/") + path, timeout=_TIMEOUT_S) as answer:
            return Check(name, "good", f"{url} answers {answer.status}")
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Check(
            name, "bad", f"{url}: {reason}", f"start it, or unset {variable} to run embedded"
        )


def _embedded_index(folder: Path) -> Check:
    """What is in the embedded index. Its files are compared with their checksums when opened."""
    from coembed.index.edge_store import Store

    try:
        survey = Store(folder).survey()
    except CoembedError as error:
        return Check("Qdrant", "bad", error.message, error.hint or "")
    found = "embedded: nothing indexed yet"
    if survey.collections:
        found = f"embedded: {folder.name}/ with {_num(survey.collections, 'collection')}"
        found += f", {_num(survey.aliases, 'alias')}"
    found += "".join(f"; {name} is being built" for name in survey.building)
    if survey.is_old:
        return Check(
            "Qdrant",
            "warn",
            f"{found}; and the index of an older coembed, which is not read any more",
            f"remove {folder.name}/collection and {folder.name}/meta.json",
        )
    return Check("Qdrant", "good", found)


def _num(things: Collection[object], noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{len(things)} {noun if len(things) == 1 else plural}"


def _disk(project: Path) -> Check:
    free_gib = shutil.disk_usage(project).free / 2**30
    found = f"{free_gib:,.1f} GiB free"
    if free_gib >= _MIN_FREE_GIB:
        return Check("disk", "good", found)
    return Check("disk", "warn", found, "`dvc gc --workspace` frees what no version here needs")
