"""Git: the commit a run stands on, snapshots of a dirty tree, and worktrees of their own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
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


def user_name(project: Path) -> str:
    """The user.name that git knows in `project`; empty where it knows none."""
    return capture(["git", "config", "user.name"], cwd=project).stdout.strip()


def is_dirty(project: Path) -> bool:
    """Whether anything differs from HEAD: changed, staged or untracked (ignored files aside)."""
    return bool(git(project, "status", "--porcelain", "--untracked-files=all").strip())


def snapshot(project: Path, ref: str | None = None) -> str:
    """The commit that holds the tree of `project` as it is now, kept for good under a ref.

    A clean tree is its HEAD. Of a dirty one, untracked files included, a commit is made; the user's
    branch, index and files stay as they are. The same tree on the same HEAD is the same commit.
    `ref` is the name to keep it under; where None, one that is made from the commit.
    """
    head = head_commit(project)
    commit = _tree_commit(project, head) if is_dirty(project) else head
    # HEAD as well: an amended or rebased branch would leave it to git's garbage collection.
    git(project, "update-ref", ref or f"{RUN_REFS}/tree-{commit[:12]}", commit)
    return commit


def _tree_commit(project: Path, head: str) -> str:
    """A commit on top of `head` of all that is in the tree and not ignored."""
    date = git(project, "show", "--no-patch", "--format=%cI", head).strip()
    with tempfile.TemporaryDirectory() as scratch:
        index = Path(scratch) / "index"
        own_index = Path(git(project, "rev-parse", "--git-path", "index").strip())
        own_index = own_index if own_index.is_absolute() else project / own_index
        if own_index.exists():  # Starting from the user's index spares hashing unchanged files.
            shutil.copy2(own_index, index)
        extra = {
            **_AUTHOR, "GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date,
            "GIT_INDEX_FILE": os.fspath(index),
        }  # fmt: skip
        git(project, "add", "--all", extra=extra)
        tree = git(project, "write-tree", extra=extra).strip()
        message = "coembed: the tree as a run found it"
        return git(project, "commit-tree", tree, "-p", head, "-m", message, extra=extra).strip()


def find_commit(project: Path, revision: str) -> str | None:
    """The commit that `revision` names; None where git has none. UserError where there is no git
    repository."""
    arguments = ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"]
    done = capture(["git", *arguments], cwd=project)
    if done.returncode != 0:
        git(project, "rev-parse", "--git-dir")
        return None
    return done.stdout.strip()


def require_kept(project: Path, names: Iterable[str]) -> None:
    """Refuse files and folders that are there but ignored: no commit would hold them."""
    present = [name for name in names if (project / name).exists()]
    found = capture(["git", "check-ignore", "--", *present], cwd=project).stdout.splitlines()
    if found:
        raise UserError(
            f"git ignores {', '.join(found)}: no commit would hold what the model was made with",
            hint="`git add --force` takes them in, or mend .gitignore",
        )


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
