"""Git: the commit a run stands on, snapshots of a dirty tree, and worktrees of their own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from coembed.errors import UserError
from coembed.lineage.process import capture

# Snapshots are made by coembed, not by the user: they need no user.name to be configured.
_AUTHOR = {
    f"GIT_{role}_{field}": value
    for role in ("AUTHOR", "COMMITTER")
    for field, value in (("NAME", "coembed"), ("EMAIL", "coembed@localhost"))
}
RUN_REFS = "refs/coembed/runs"


def git(project: Path, *arguments: str, extra: Mapping[str, str] | None = None) -> str:
    """Standard output of a git command in `project`; a failing one is a UserError."""
    done = capture(["git", *arguments], cwd=project, extra=extra)
    if done.returncode != 0:
        raise UserError(
            f"git {arguments[0]} failed in {project}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


def head_commit(project: Path) -> str:
    """The commit that is checked out. No repository or no commit yet is a UserError."""
    done = capture(["git", "rev-parse", "--verify", "--quiet", "HEAD^{commit}"], cwd=project)
    if done.returncode != 0:
        raise UserError(
            f"{project} is not a git repository with at least one commit",
            hint="a run is pinned to a commit: `git init`, `git add -A`, `git commit` first",
        )
    return done.stdout.strip()


def is_dirty(project: Path) -> bool:
    """Whether anything differs from HEAD: changed, staged or untracked (ignored files aside)."""
    return bool(git(project, "status", "--porcelain", "--untracked-files=all").strip())


def snapshot(project: Path, ref: str) -> str:
    """The commit that holds the tree of `project` as it is now.

    A clean tree is its HEAD. A dirty one, untracked files included, becomes a commit under `ref`;
    the user's branch, index and files stay as they are.
    """
    head = head_commit(project)
    if not is_dirty(project):
        return head
    with tempfile.TemporaryDirectory() as scratch:
        index = Path(scratch) / "index"
        own_index = Path(git(project, "rev-parse", "--git-path", "index").strip())
        own_index = own_index if own_index.is_absolute() else project / own_index
        if own_index.exists():  # Starting from the user's index spares hashing unchanged files.
            shutil.copy2(own_index, index)
        extra = {**_AUTHOR, "GIT_INDEX_FILE": os.fspath(index)}
        git(project, "add", "--all", extra=extra)
        tree = git(project, "write-tree", extra=extra).strip()
        message = f"coembed run {ref.rsplit('/', 1)[-1]}: the tree as it was"
        commit = git(project, "commit-tree", tree, "-p", head, "-m", message, extra=extra).strip()
    git(project, "update-ref", ref, commit)
    return commit


def add_worktree(project: Path, folder: Path, commit: str) -> None:
    """Check `commit` out into `folder`, a new worktree with no branch and no hooks run."""
    git(
        project,
        "-c", f"core.hooksPath={os.devnull}",
        "worktree", "add", "--quiet", "--detach", "--force", str(folder), commit,
    )  # fmt: skip


def remove_worktree(project: Path, folder: Path) -> None:
    """Remove the worktree and what is left of its folder. Idempotent."""
    capture(["git", "worktree", "remove", "--force", str(folder)], cwd=project)
    shutil.rmtree(folder, ignore_errors=True)
    capture(["git", "worktree", "prune"], cwd=project)
