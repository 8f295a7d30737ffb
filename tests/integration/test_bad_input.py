"""A user's mistake is one clear error and exit code 2; ours is 1; never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from project import Project, small_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return small_project(tmp_path_factory.mktemp("bad") / "shop", num_pairs=120)


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("search x", 2, "coembed retrain"),
        ("search", 2, "give a text, --image FILE or --audio FILE"),
        ("search --audio nowhere.wav", 2, "nowhere.wav"),
        ("search --image nowhere.jpg", 2, "nowhere.jpg"),
        ("search x --limit 0", 2, "limit"),
        ("search x --filter colour", 2, "nothing is served as 'shop' yet"),
        ("train", 2, "coembed curate"),
        ("evaluate", 2, "coembed train"),
        ("embed", 2, "coembed train"),
        ("register", 2, "coembed train"),
        ("index", 2, "coembed register"),
        ("promote", 2, "coembed register"),
        ("gate", 2, "coembed register"),
        ("gate 7", 2, "has no version 7"),
        ("promote 7 --force", 2, "a forced promotion needs a reason"),
        ("approve 7 --by Ada", 2, "has no version 7"),
        ("approve 7", 2, "--by"),
        ("compare champion 1", 2, "'champion' is neither a version's number nor an alias"),
        ("gate --set promote.tolerance=0.1", 2, "it is called `margin` now"),
        ("curate --set curate.nonsense=1", 2, "unknown key"),
        ("curate --set curate.filters=none", 2, "curate.filters"),
        ("curate -C /nowhere", 2, "no params file"),
        ("retrain --set train.lr=fast", 2, "train.lr"),
        ("ingest nowhere.csv", 2, "nowhere.csv"),
        ("ingest params.yaml", 2, "params.yaml"),
        ("ingest [/z].csv", 2, "[/z].csv"),
        ("doctor -C /nowhere", 2, ""),
        ("demo-pool --seed 9", 2, "--overwrite"),
        ("frobnicate", 2, "No such command"),
        ("train --epochs 3", 2, "No such option"),
    ],
)
def test_one_clear_error(project: Project, command: str, code: int, words: str) -> None:
    done = project.coembed(*command.split(), code=code)
    assert words in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) <= 14, done.stderr


def test_an_architecture_that_cannot_be_is_named(project: Project) -> None:
    project.coembed("curate")
    done = project.coembed("train", "--set", "model.architecture=ViT-B-33", code=2)
    assert "ViT-B-32" in done.stderr, done.stderr
    done = project.coembed("train", "--set", "train.batch_size=100000", code=2)
    assert "batch_size" in done.stderr


def test_data_edited_behind_dvcs_back_stops_a_run(project: Project) -> None:
    extra = project.root / "data" / "pairs" / "more.csv"
    extra.write_text("path,caption\nnowhere.jpg,a chair\n")
    try:
        done = project.coembed("retrain", code=2)
        assert "has changed since data.dvc was written" in done.stderr
        assert "dvc add data" in done.stderr
        for verb in ("demo-pool --overwrite", "ingest products.csv --replace"):
            done = project.coembed(*verb.split(), code=2)
            assert "has changed" in done.stderr, "unversioned data must not be replaced"
            assert extra.exists()
    finally:
        extra.unlink()


def test_pairs_are_not_added_to_a_pool_that_is_not_here(project: Project, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    project.git("clone", "--quiet", str(project.root), str(clone))
    pointer = (clone / "data.dvc").read_bytes()
    (clone / "more.csv").write_text("path,caption\nnowhere.jpg,a chair\n")
    done = Project(clone).coembed("ingest", "more.csv", code=2)
    assert "not here and not in the DVC cache" in done.stderr
    done = Project(clone).coembed("demo-pool", code=2)  # the clone pins a smaller shop
    assert "is not the pool that data.dvc pins" in done.stderr
    assert (clone / "data.dvc").read_bytes() == pointer
    assert not (clone / "data").exists()


def test_a_folder_without_git_is_refused(project: Project, tmp_path: Path) -> None:
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(project.root, bare, ignore=shutil.ignore_patterns(".git", "runs", "artifacts"))
    done = Project(bare).coembed("retrain", code=2)
    assert "not a git repository" in done.stderr


def test_doctor_says_what_to_do(project: Project) -> None:
    done = project.coembed("doctor")
    assert "params.yaml" in done.stdout
    params = project.root / "params.yaml"
    good = params.read_text()
    params.write_text(good + "\nnonsense: 1\n")
    try:
        done = project.coembed("doctor", code=2)
        assert "unknown key" in done.stdout
    finally:
        params.write_text(good)
