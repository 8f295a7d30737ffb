"""A run's commit holds the tree as it was, and the user's branch, index and files stay put."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from coembed.errors import UserError
from coembed.lineage import git


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments],
        cwd=folder, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    _git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / "a.txt").write_text("one\n")
    (folder / ".gitignore").write_text("/ignored\n")
    _git(folder, "add", "--all")
    _git(folder, "commit", "--quiet", "-m", "first")
    return folder


def test_a_clean_tree_is_its_head_and_is_kept(project: Path) -> None:
    head = git.head_commit(project)
    assert git.snapshot(project, "refs/coembed/runs/x") == head
    _git(project, "commit", "--quiet", "--amend", "-m", "amended", "--date", "2001-01-01 00:00 +0")
    assert git.head_commit(project) != head
    _git(project, "reflog", "expire", "--expire=now", "--all")
    _git(project, "gc", "--quiet", "--prune=now")
    assert git.find_commit(project, head) == head
    _git(project, "update-ref", "-d", "refs/coembed/runs/x")
    _git(project, "gc", "--quiet", "--prune=now")
    assert git.find_commit(project, head) is None, "the ref is what kept it"


def test_the_same_tree_is_the_same_commit(project: Path) -> None:
    (project / "a.txt").write_text("two\n")
    (project / "new.txt").write_text("untracked\n")
    commit = git.snapshot(project)
    assert git.snapshot(project) == git.snapshot(project, "refs/coembed/runs/x") == commit
    assert _git(project, "rev-parse", f"refs/coembed/runs/tree-{commit[:12]}").strip() == commit
    (project / "new.txt").write_text("another\n")
    assert git.snapshot(project) != commit


def test_what_git_ignores_is_refused_where_it_must_be_kept(project: Path) -> None:
    (project / "new one.csv").write_text("untracked, not ignored\n")
    git.require_kept(project, ("a.txt", "new one.csv", "ignored", "not there"))
    (project / "ignored").write_text("needed\n")
    with pytest.raises(UserError, match=r"git ignores ignored: no commit would hold .*\n.*--force"):
        git.require_kept(project, ("a.txt", "ignored"))
    _git(project, "add", "--force", "ignored")
    git.require_kept(project, ("a.txt", "ignored"))


def test_a_dirty_tree_is_kept_whole_and_the_user_notices_nothing(project: Path) -> None:
    (project / "a.txt").write_text("two\n")
    (project / "new.txt").write_text("untracked\n")
    (project / "staged.txt").write_text("staged\n")
    _git(project, "add", "staged.txt")
    (project / "ignored").write_text("secret\n")
    before = _git(project, "status", "--porcelain"), git.head_commit(project)
    commit = git.snapshot(project, "refs/coembed/runs/x")
    assert (_git(project, "status", "--porcelain"), git.head_commit(project)) == before
    assert _git(project, "show", f"{commit}:a.txt") == "two\n"
    assert _git(project, "show", f"{commit}:new.txt") == "untracked\n"
    assert _git(project, "show", f"{commit}:staged.txt") == "staged\n"
    assert "ignored\n" not in _git(project, "ls-tree", "--name-only", commit)
    assert _git(project, "rev-parse", "refs/coembed/runs/x").strip() == commit


def test_a_worktree_comes_and_goes(project: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    git.add_worktree(project, tree, git.head_commit(project))
    assert (tree / "a.txt").read_text() == "one\n"
    (tree / "a.txt").write_text("changed in the worktree\n")
    git.remove_worktree(project, tree)
    git.remove_worktree(project, tree)
    assert not tree.exists()
    assert len(_git(project, "worktree", "list").splitlines()) == 1
    assert (project / "a.txt").read_text() == "one\n"


def test_no_repository_and_no_commit_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a git repository with at least one commit"):
        git.head_commit(tmp_path)
    _git(tmp_path, "init", "--quiet")
    with pytest.raises(UserError, match="at least one commit") as caught:
        git.head_commit(tmp_path)
    assert "git commit" in (caught.value.hint or "")
