"""What a flow run says of its data, on real versions made with git and DVC."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from coembed.lineage import dvc, git
from coembed.stages import standing
from flows.data_change import Told, curation_costs, data_change

POOL = Path("data")


def _git(project: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@t")
    subprocess.run(["git", *identity, *arguments], cwd=project, check=True, capture_output=True)


def _commit(project: Path, captions: list[str]) -> tuple[str, str]:
    """Make a version of the data; its commit and its hash."""
    (project / "data" / "pairs").mkdir(parents=True, exist_ok=True)
    table = project / "data" / "pairs" / "a.csv"
    table.unlink(missing_ok=True)  # DVC may have made it a link to its cache
    lines = [f"p{i},media/{i}.jpg,{caption}" for i, caption in enumerate(captions)]
    table.write_text("\n".join(["pair_id,path,caption", *lines, ""]))
    dvc.add(project, POOL)
    _git(project, "add", "--all")
    _git(project, "commit", "--quiet", "--allow-empty", "-m", "data")
    md5 = dvc.data_hash(project, POOL)
    assert md5
    return git.head_commit(project), md5


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    _git(root, "init", "--quiet")
    dvc.dvc(root, "init", "--quiet")
    return root


def _told(project: Path, tmp_path: Path, commit: str, md5: str) -> Told:
    receipt = tmp_path / "retrain.json"
    standing.leave(
        receipt,
        recipe="r",
        outcomes={},
        served={"version": 1, "collection": "c"},
        data={"commit": commit, "md5": md5},
    )
    return data_change(project, POOL, receipt)


def test_what_changed_since_the_last_run(project: Path, tmp_path: Path) -> None:
    assert (
        data_change(project, POOL, tmp_path / "none.json").line == "no earlier run to compare with"
    )
    old, old_md5 = _commit(project, ["one", "two", "three"])
    _, new_md5 = _commit(project, ["one", "2", "three", "four"])

    same = _told(project, tmp_path, old, new_md5)
    assert same.line == f"the same as in the last run ({new_md5[:10]})"
    assert "The same as in the last run" in same.page

    told = _told(project, tmp_path, old, old_md5)
    assert told.line == f"3 → 4 pairs since the last run ({old[:10]}): 1 added, 1 recaptioned"
    assert "four" in told.page and told.page.startswith("# Data:")

    # Git lost the commit, DVC the version: neither is worth a run.
    lost = _told(project, tmp_path, "0" * 40, old_md5)
    assert "cannot be told: git knows no revision" in lost.line and lost.line[1:] in lost.page
    cached = project / ".dvc" / "cache" / "files" / "md5" / old_md5[:2] / old_md5[2:]
    cached.rename(tmp_path / "gone")
    gone = _told(project, tmp_path, old, old_md5)
    assert "cannot be told" in gone.line and "is not in DVC's cache" in gone.line


@pytest.mark.parametrize(
    "left", ["", "[1]", "{}", '{"data": {"commit": "abc"}}', '{"data": {"commit": 1, "md5": "x"}}']
)
def test_a_receipt_that_does_not_say_is_no_earlier_run(
    project: Path, tmp_path: Path, left: str
) -> None:
    (tmp_path / "retrain.json").write_text(left)
    told = data_change(project, POOL, tmp_path / "retrain.json")
    assert told.line == "no earlier run to compare with"


def test_costs_are_those_of_a_curation_that_ran(tmp_path: Path) -> None:
    costs = tmp_path / "costs.json"
    examine = {"num_rows": 6000, "num_read": 5803, "num_cached": 634}
    steps = {"examine": 5.25, "check near_duplicate": 10.5, "pack": 1.0}
    costs.write_text(json.dumps({"steps_s": steps, "examine": examine}))
    told = curation_costs("ran", costs)
    assert told.line == (
        "16.8 s (check near_duplicate 10.5 s, examine 5.2 s); "
        "6,000 pairs, 5,803 files read, 634 known from earlier runs"
    )
    assert told.page.index("check near_duplicate | 10.5") < told.page.index("pack | 1.0")
    # What lies there is another run's.
    assert curation_costs("cached", costs).line == "not run: cached"
    for broken in ("", "[]", '{"steps_s": {"examine": "x"}}'):
        costs.write_text(broken)
        assert "no costs that can be read" in curation_costs("ran", costs).line
