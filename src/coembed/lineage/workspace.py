"""A workspace: a git worktree of its own for one run, with the project's DVC cache.

Two runs never meet in one folder, and an edit in the project while a run is under way cannot become
part of what the run says it was made from. What a flow run reproduced is published back to the
project where the project still stands as the run found it. A past run is made again in a workspace
at that run's commit, of which nothing comes back.
"""

from __future__ import annotations

import configparser
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import yaml

from coembed.config import override, read_params
from coembed.errors import DataError, ServiceError, UserError
from coembed.files import write_text
from coembed.lineage import dvc, git

_PARAMS = "params.yaml"


@dataclass(frozen=True, slots=True)
class Workspace:
    """One run's place. `tree` is the worktree of `commit`; `ref` is the run's name in git, "" for a
    past run's second making.

    `lock` is held open, and so locked, while the run lives: a workspace whose lock is free belongs
    to a dead run. `found_lock` is the project's dvc.lock as the run found it.
    """

    project: Path
    tree: Path
    commit: str
    ref: str
    lock: IO[str]
    found_lock: bytes | None = None


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
    ref = f"{git.RUN_REFS}/{run_id}"
    found_lock = _bytes(project / dvc.LOCK)
    with _begun(project, project / runs / "flows", run_id) as (tree, lock):
        commit = git.snapshot(project, ref)
        git.add_worktree(project, tree, commit)
        if overrides:
            values = override(read_params(tree / _PARAMS), overrides)
            write_text(tree / _PARAMS, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
            commit = git.snapshot(tree, ref)
        _share_stores(project, tree)
        _link(project, tree, runs)
        dvc.dvc(tree, "checkout", "--quiet", f"{pool}.dvc")
        dvc.dvc(tree, "checkout", "--quiet", "--allow-missing", "--force")
    return Workspace(project, tree, commit, ref, lock, found_lock)


def open_past_workspace(
    project: Path, run_id: str, commit: str, *, home: Path, links: Sequence[Path]
) -> Workspace:
    """Make a workspace at the `commit` of an earlier run: its code and settings, and its data.

    Nothing is made in it yet, and its folder for checkpoints is its own, so that none of the
    project's is taken up. `home` is the folder for such workspaces and `links` are what the
    project lends them, all relative to the project.

    Raises:
        UserError: git does not have the commit, or an earlier workspace of the run was kept.
        DataError: that version of the data is in no cache and no remote.
    """
    project = project.resolve()
    if git.find_commit(project, commit) is None:
        raise UserError(
            f"git has no commit {commit} here",
            hint=f"another clone may have it: `git fetch REMOTE '+{git.RUN_REFS}/*:{git.RUN_REFS}"
            "/*'` brings what its runs stood on; what no branch or ref keeps, git collects",
        )
    kept = project / home / run_id
    if kept.exists() and not kept.with_name(f"{run_id}.lock").exists():
        raise UserError(
            f"the workspace of an earlier reproduction was kept: {kept}",
            hint=f"`git worktree remove --force {kept}` removes it",
        )
    with _begun(project, project / home, run_id) as (tree, lock):
        git.add_worktree(project, tree, commit)
        _share_stores(project, tree)
        for name in links:
            if (project / name).exists():
                _link(project, tree, name)
        _bring_data(tree, pool_of(tree))
    return Workspace(project, tree, commit, "", lock)


def pool_of(tree: Path) -> Path:
    """The pool's folder that the params file in `tree` names, whatever else it says: an earlier
    version's settings need not be those of today."""
    paths = read_params(tree / _PARAMS).get("paths")
    return Path(str(paths.get("pool", "data")) if isinstance(paths, dict) else "data")


def _bring_data(tree: Path, pool: Path) -> None:
    """Check the data version of the tree's own .dvc file out, from the cache or from a remote."""
    pointer = f"{pool}.dvc"
    md5 = dvc.data_hash(tree, pool)
    if md5 is None:
        raise DataError(f"the run's commit has no {pointer}: its pool was not versioned")
    try:
        dvc.dvc(tree, "checkout", "--quiet", pointer)
        return
    except ServiceError:
        pass
    try:
        dvc.dvc(tree, "pull", "--quiet", pointer)
    except ServiceError as error:
        raise DataError(
            f"the data of the run, {md5} ({pointer} at its commit), is in no cache and no remote "
            f"here: {error.message}",
            hint="`dvc remote list` names the remotes; a clone that has this data can `dvc push` "
            "it, and the same command then goes on",
        ) from error


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


def close_workspace(workspace: Workspace, *, keep: bool = False) -> None:
    """Remove the worktree, unless it is to be kept, and let go of its lock. The run's ref and its
    checkpoints stay."""
    _leave(workspace.project, workspace.tree, workspace.lock, keep=keep)


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


@contextmanager
def _begun(project: Path, home: Path, run_id: str) -> Iterator[tuple[Path, IO[str]]]:
    """Where the worktree of a new workspace goes, and its lock; both are gone if making it fails.

    What killed runs left in `home` is cleared away first.
    """
    home.mkdir(parents=True, exist_ok=True)
    clear_dead_workspaces(project, home)
    lock = _take_lock(home / f"{run_id}.lock")
    try:
        yield home / run_id, lock
    except BaseException:
        _leave(project, home / run_id, lock)
        raise


def _leave(project: Path, tree: Path, lock: IO[str], *, keep: bool = False) -> None:
    if not keep:
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


def _share_stores(project: Path, tree: Path) -> None:
    """Point the worktree at the project's DVC cache and remotes."""
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


def _link(project: Path, tree: Path, name: Path) -> None:
    """Make the project's folder `name` the worktree's as well."""
    link = tree / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(project / name, target_is_directory=True)


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
