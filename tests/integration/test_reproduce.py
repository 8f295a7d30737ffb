"""A past run made again: by the verb, by git and DVC alone; what differs; what cannot be made."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from project import Project, small_project, wait_until_no_stage_lives

from coembed.files import sha256_file

pytestmark = pytest.mark.slow

_LR = ("lr: 0.002\n", "lr: 0.0015\n")


@dataclass(frozen=True)
class Past:
    """A project whose tree has moved on since its flow run of a dirty tree, version 1."""

    project: Project
    flow_id: str
    run_id: str
    weights: str

    @property
    def artifacts(self) -> Path:
        return self.project.root / "mlflow/store/artifacts/runs" / self.run_id / "artifacts"


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Past:
    project = small_project(tmp_path_factory.mktemp("past") / "shop")
    root = project.root
    # Neither committed nor staged; the second is not even known to git, and part of the code.
    params = (root / "params.yaml").read_text()
    assert _LR[0] in params
    (root / "params.yaml").write_text(params.replace(*_LR))
    (root / "src/coembed/training/untracked.py").write_text('"""New."""\n')
    project.coembed("retrain")
    weights = sha256_file(root / "artifacts/model/model.safetensors")
    (flow,) = project.git("for-each-ref", "--format=%(refname:lstrip=3)", "refs/coembed").split()
    # The project moves on: the dirty tree is gone, the code is another, so is the data.
    (root / "params.yaml").write_text(params)
    (root / "src/coembed/training/untracked.py").unlink()
    with (root / "src/coembed/losses/softmax.py").open("a") as file:
        file.write("# another version\n")
    project.coembed("demo-pool", "--num-pairs", "300", "--overwrite")
    project.git("commit", "--quiet", "--all", "-m", "moved on")
    receipt = json.loads((root / "runs" / "register.json").read_text())
    return Past(project, flow, receipt["run_id"], weights)


def _state(project: Project) -> dict[str, Any]:
    """All that a reproduction must leave alone: files, DVC's cache, branch, refs, worktrees."""
    known = project.git("rev-parse", "HEAD"), project.git("symbolic-ref", "HEAD")
    apart = ("mlflow", ".git", ".dvc/tmp", "runs/reproductions")
    files = {
        path.relative_to(project.root).as_posix(): sha256_file(path)
        for path in project.root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return {
        "branch": known,
        "status": project.git("status", "--porcelain", "--ignored"),
        "refs": project.git("for-each-ref"),
        "worktrees": project.git("worktree", "list"),
        "files": {name: sha for name, sha in files.items() if not name.startswith(apart)},
    }


def test_a_flow_run_of_a_dirty_tree_is_made_again(past: Past) -> None:
    before = _state(past.project)
    done = past.project.coembed("reproduce", "champion")
    told = done.stdout.split("Reproduced")[-1]
    for name in ("data", "curated pairs", "weights", "metrics", "embeddings"):
        assert f"{name} equal (" in " ".join(told.split()), told
    assert past.weights in told and "the same packages, Python and machine" in told
    assert "Running stage 'train'" in done.stdout and "12/12 steps" in done.stderr
    assert "taken up at" not in done.stdout, "from no checkpoint"
    assert _state(past.project) == before
    folder = past.project.root / "runs" / "reproductions"
    assert [path.name for path in folder.iterdir()] == [f"{past.run_id}.json"]
    left = json.loads((folder / f"{past.run_id}.json").read_text())
    assert left["equal"] and left["environment"] == [] and left["recipe"] == []


def test_git_and_dvc_alone_make_the_same(past: Past, tmp_path: Path) -> None:
    """What the README says to type."""
    project = past.project
    ref = f"refs/coembed/runs/{past.flow_id}"
    store = f"MLFLOW_TRACKING_URI=sqlite:///{project.root}/mlflow/store/mlflow.db"
    project.run(
        "env", store, "mlflow", "artifacts", "download", "--run-id", past.run_id,
        "--artifact-path", "lineage/dvc.lock", "--dst-path", str(tmp_path / "logged"),
    )  # fmt: skip
    (logged,) = (tmp_path / "logged").rglob("dvc.lock")
    then = Project(tmp_path / "then")
    project.git("worktree", "add", "--quiet", "--detach", str(then.root), ref)
    try:
        assert _LR[1] in (then.root / "params.yaml").read_text()
        then.run("dvc", "cache", "dir", "--local", str(project.root / ".dvc" / "cache"))
        then.run("dvc", "checkout", "data.dvc")
        then.run("dvc", "repro", "--force", "--no-run-cache")
        assert then.lock() == logged.read_bytes()
        assert sha256_file(then.root / "artifacts/model/model.safetensors") == past.weights
    finally:
        project.git("worktree", "remove", "--force", str(then.root))


@contextmanager
def _rewritten(path: Path) -> Iterator[dict[str, Any]]:
    """A logged JSON file with other values, until the block ends."""
    before = path.read_bytes()
    values = json.loads(before)
    try:
        yield values
    finally:
        path.write_bytes(before)


def test_what_differs_is_named_exactly(past: Past) -> None:
    lock = past.artifacts / "lineage" / "dvc.lock"
    text, other = lock.read_text(), f"{0:032x}.dir"
    now = json.loads((past.artifacts / "lineage" / "environment.json").read_text())["packages"]
    data = text.split("- path: data\n")[1].split("md5: ")[1].split()[0]
    # The flow's id this time.
    command = ("reproduce", past.flow_id, "--stage", "evaluate", "--json")
    with (
        _rewritten(past.artifacts / "lineage" / "environment.json") as record,
        _rewritten(past.artifacts / "evaluation" / "metrics.json") as metrics,
    ):
        record["packages"] |= {"torch": "1.13.1+cu117", "gone": "0.1"}
        record["kernels"] = "AVX2"
        retrieval = metrics["retrieval"]["text_to_image"]
        recall, retrieval["recall_at_10"] = retrieval["recall_at_10"], 0.25
        (past.artifacts / "lineage" / "environment.json").write_text(json.dumps(record))
        (past.artifacts / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
        lock.write_text(text.replace(data, other))
        try:
            told = json.loads(past.project.coembed(*command, code=1).stdout)
        finally:
            lock.write_text(text)
    assert told["equal"] is False
    verdicts = {one["name"]: (one["verdict"], one["then"], one["now"]) for one in told["findings"]}
    assert verdicts["data"] == ("differs", other, data)
    assert verdicts["curated pairs"][0] == "equal"
    assert verdicts["weights"] == ("equal", past.weights, past.weights)
    assert verdicts["metrics"][0] == "differs" and verdicts["embeddings"][0] == "not compared"
    assert told["metrics"] == {
        "retrieval/text_to_image/recall_at_10": {"then": 0.25, "now": recall}
    }
    assert told["recipe"] == ["curate: data is another"]
    differ = {one["name"]: (one["then"], one["now"]) for one in told["environment"]}
    assert differ.pop("CPU kernels")[0] == "AVX2"
    assert differ == {"torch": ("1.13.1+cu117", now["torch"]), "gone": ("0.1", None)}


def test_a_registration_by_hand_keeps_the_tree_as_it_was(past: Past, tmp_path: Path) -> None:
    project = _copy(past, tmp_path)
    params = project.root / "params.yaml"
    committed = params.read_text()
    params.write_text(committed.replace(_LR[0], "lr: 0.0011\n"))
    for verb in ("curate", "train", "evaluate"):
        project.coembed(verb)
    (project.root / "note.txt").write_text("untracked\n")
    before = project.git("status", "--porcelain"), project.git("rev-parse", "HEAD")
    project.coembed("register")
    assert (project.git("status", "--porcelain"), project.git("rev-parse", "HEAD")) == before
    weights = sha256_file(project.root / "artifacts/model/model.safetensors")
    assert weights != past.weights
    params.write_text(committed)
    (project.root / "note.txt").unlink()
    told = json.loads(
        project.coembed("reproduce", "2", "--stage", "train", "--keep", "--json").stdout
    )
    assert told["equal"], told
    assert {one["name"]: one["now"] for one in told["findings"]}["weights"] == weights
    kept = project.root / "runs" / "reproductions" / told["run"]["run_id"]
    assert (kept / "note.txt").read_text() == "untracked\n"
    refused = project.coembed("reproduce", "v2", code=2).stderr
    assert "was kept: " in refused and "`git worktree remove --force " in refused
    (project.root / "overrides.csv").unlink()
    project.git("rm", "--quiet", "--cached", "overrides.csv")
    (project.root / "overrides.csv").write_text("pair_id,decision,reason\n")
    with (project.root / ".gitignore").open("a") as file:
        file.write("*.csv\n")
    assert "git ignores overrides.csv" in project.coembed("register", code=2).stderr


def _copy(past: Past, folder: Path) -> Project:
    """The project with all that it has made, in another place. The registry's artifacts stay where
    they are; its rows are the copy's own."""
    shutil.copytree(past.project.root, folder / "shop", symlinks=True)
    return Project(folder / "shop")


def test_what_cannot_be_made_again_is_said(past: Past, tmp_path: Path) -> None:
    project = _copy(past, tmp_path)

    def refused(*arguments: str, code: int = 2) -> str:
        return " ".join(project.coembed("reproduce", *arguments, code=code).stderr.split())

    assert "has no version 7 of 'coembed-shop'; versions there: 1" in refused("7")
    assert "'nobody' is no version, alias, MLflow run id or flow run id" in refused("nobody")
    assert f"Run with id={'0' * 32} not found" in refused("0" * 32)
    another = past.flow_id[:-1] + ("1" if past.flow_id.endswith("0") else "0")
    assert f"no model in the registry came of the flow run {another}" in refused(another)
    assert "the run has no stage 'trian'; its stages are curate, train, evaluate, embed" in refused(
        "1", "--stage", "trian"
    )

    change = (
        "import sys, mlflow;"
        f"c = mlflow.MlflowClient('sqlite:///{project.root}/mlflow/store/mlflow.db');"
        f"getattr(c, sys.argv[1])('{past.run_id}')"
    )
    project.run("python", "-c", change, "delete_run")
    said = refused("1")
    assert f"the MLflow run {past.run_id} of version 1 of coembed-shop was deleted" in said
    assert f"`mlflow runs restore --run-id {past.run_id}`" in said
    project.run("python", "-c", change, "restore_run")

    data = project.git("show", f"refs/coembed/runs/{past.flow_id}:data.dvc")
    md5 = data.split("md5: ")[1].split()[0]
    cached = Path("files/md5") / md5[:2] / md5[2:]
    (project.root / ".dvc" / "cache" / cached).unlink()
    shutil.rmtree(project.root / ".dvcstore")
    said = refused("1")
    assert f"the data of the run, {md5} (data.dvc at its commit), is in no cache and no" in said

    commit = project.git("rev-parse", f"refs/coembed/runs/{past.flow_id}").strip()
    project.git("update-ref", "-d", f"refs/coembed/runs/{past.flow_id}")
    project.git("reflog", "expire", "--expire=now", "--all")
    project.git("gc", "--quiet", "--prune=now")
    said = refused("1")
    assert f"git has no commit {commit} here" in said and "refs/coembed/runs/*" in said
    assert len(project.git("worktree", "list").splitlines()) == 1
    assert list((project.root / "runs" / "reproductions").glob("*/")) == []


def test_the_data_comes_back_from_a_remote(past: Past, tmp_path: Path) -> None:
    project = _copy(past, tmp_path)
    shutil.rmtree(project.root / ".dvc" / "cache")
    project.coembed("reproduce", past.run_id, "--stage", "curate")


def test_a_killed_reproduction_is_cleared_by_the_next(past: Past, tmp_path: Path) -> None:
    project = _copy(past, tmp_path)
    home = project.root / "runs" / "reproductions"
    shutil.rmtree(home, ignore_errors=True)
    process = subprocess.Popen(
        ["coembed", "reproduce", "1"], cwd=project.root, env=project.environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    tree, deadline = home / past.run_id, time.monotonic() + 300
    while not (tree / "artifacts" / "pairs").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert tree.exists()
    wait_until_no_stage_lives(project)
    project.coembed("reproduce", "1", "--stage", "curate")
    assert [path.name for path in home.iterdir()] == [f"{past.run_id}.json"]
    assert len(project.git("worktree", "list").splitlines()) == 1
