"""A workspace: a git worktree of its own for one flow run, with the project's DVC cache.

Two runs never meet in one folder, and an edit in the project while a run is under way cannot become
part of what the run says it was made from. What the run reproduced is published back to the project
where the project still stands as the run found it.
"""

from __future__ import annotations

import configparser
import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import yaml

from coembed.config import override, read_params
from coembed.errors import ServiceError
from coembed.files import write_text
from coembed.lineage import dvc, git

_PARAMS = "params.yaml"


@dataclass(frozen=True, slots=True)
class Workspace:
    """One run's place. `tree` is the worktree of `commit`; `ref` is the run's name in git.

    `lock` is held open, and so locked, while the run lives: a workspace whose lock is free belongs
    to a dead run. `found_lock` is the project's dvc.lock as the run found it.
    """

    project: Path
    tree: Path
    commit: str
    ref: str
    lock: IO[str]
    found_lock: bytes | None


def require_startable(project: Path, *, pool: Path) -> None:
    """Refuse what no run could start from: no commit to stand on, or data that is not versioned."""
    git.head_commit(project)
    dvc.require_versioned(project, pool)


def open_workspace(
    project: Path, run_id: str, *, pool: Path, runs: Path, overrides: Sequence[str] = ()
) -> Workspace:
    """Make the workspace of run `run_id`, its data and the outputs that are up to date in it.

    Args:
        project: the user's folder, a git repository.
        pool: the pool's folder, relative to the project.
        runs: the folder for what must outlive a run (checkpoints), relative to the project.
        overrides: `section.key=value`; they are written into the workspace's params file.
    """
    project = project.resolve()
    require_startable(project, pool=pool)
    home = project / runs / "flows"
    home.mkdir(parents=True, exist_ok=True)
    clear_dead_workspaces(project, home)
    lock = _take_lock(home / f"{run_id}.lock")
    ref = f"{git.RUN_REFS}/{run_id}"
    tree = home / run_id
    found_lock = _bytes(project / dvc.LOCK)
    try:
        commit = git.snapshot(project, ref)
        git.add_worktree(project, tree, commit)
        if overrides:
            values = override(read_params(tree / _PARAMS), overrides)
            write_text(tree / _PARAMS, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
            commit = git.snapshot(tree, ref)
        _share_stores(project, tree, runs)
        dvc.dvc(tree, "checkout", "--quiet", f"{pool}.dvc")
        dvc.dvc(tree, "checkout", "--quiet", "--allow-missing", "--force")
    except BaseException:
        _leave(project, tree, lock)
        raise
    return Workspace(project, tree, commit, ref, lock, found_lock)


def publish(workspace: Workspace, *, pool: Path) -> bool:
    """Bring dvc.lock and the outputs back to the project, if its recipe is still the run's.

    Returns False, and touches nothing, where params.yaml, dvc.yaml, dvc.lock or the data version
    differ: the run had overrides, or the project was edited, or ran something else, meanwhile.
    """
    project, tree = workspace.project, workspace.tree
    recipe = (_PARAMS, "dvc.yaml", f"{pool}.dvc")
    edited = any(_bytes(project / name) != _bytes(tree / name) for name in recipe)
    if edited or _bytes(project / dvc.LOCK) != workspace.found_lock:
        return False
    lock = (tree / dvc.LOCK).read_text(encoding="utf-8")
    if _bytes(project / dvc.LOCK) != lock.encode():
        write_text(project / dvc.LOCK, lock)
    stages = list(yaml.safe_load(lock).get("stages", {}))
    dvc.dvc(project, "checkout", "--quiet", "--force", *stages)
    return True


def push(workspace: Workspace) -> bool:
    """Copy what the run made to the default DVC remote. False where the project has none."""
    if not dvc.dvc(workspace.tree, "remote", "list").strip():
        return False
    dvc.dvc(workspace.tree, "push", "--quiet")
    return True


def close_workspace(workspace: Workspace) -> None:
    """Remove the worktree and let go of its lock. The run's ref and its checkpoints stay."""
    _leave(workspace.project, workspace.tree, workspace.lock)


def clear_dead_workspaces(project: Path, home: Path) -> int:
    """Remove what killed runs left in `home`, and say how many there were."""
    num_cleared = 0
    for lock_path in sorted(home.glob("*.lock")):
        try:
            lock = _take_lock(lock_path)
        except ServiceError:
            continue
        _leave(project, home / lock_path.stem, lock)
        num_cleared += 1
    return num_cleared


def _leave(project: Path, tree: Path, lock: IO[str]) -> None:
    git.remove_worktree(project, tree)
    Path(lock.name).unlink(missing_ok=True)
    lock.close()


def _take_lock(path: Path) -> IO[str]:
    lock = path.open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ServiceError(f"the run {path.stem} is already under way") from None
    return lock


def _share_stores(project: Path, tree: Path, runs: Path) -> None:
    """Point the worktree at the project's DVC cache, remotes and resumable runs."""
    local = tree / ".dvc" / "config.local"
    own = project / ".dvc" / "config.local"
    settings = configparser.ConfigParser(interpolation=None)
    settings.read([project / ".dvc" / "config", own], encoding="utf-8")
    for section in settings.sections():
        url = settings[section].get("url")
        if (
            section.startswith("'remote")
            and url
            and "://" not in url
            and not Path(url).is_absolute()
        ):
            # A relative address is meant from the project's .dvc folder, not from the worktree's.
            settings[section]["url"] = os.path.normpath(project / ".dvc" / str(url))
    for section, key, value in (
        ("cache", "dir", dvc.dvc(project, "cache", "dir").strip()),
        # DVC's table of file hashes goes with the worktree and not into a shared system folder.
        ("core", "site_cache_dir", str(tree / ".dvc" / "tmp" / "site")),
    ):
        if not settings.has_section(section):
            settings.add_section(section)
        settings[section][key] = value if section != "cache" else str((project / value).resolve())
    with local.open("w", encoding="utf-8") as file:
        settings.write(file)
    link = tree / runs
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(project / runs, target_is_directory=True)


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
