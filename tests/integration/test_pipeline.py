"""The main job on real parts: pool → … → search; one execution path for CLI, DVC and flow."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest
from project import Project, small_project, wait_until_no_stage_lives

pytestmark = pytest.mark.slow

# A policy that asks nothing but a person.
WAITING = (
    "--set", "promote.approval=true", "--set", "promote.margin=1", "--set", "promote.guards={}",
    "--set", "promote.protected_slices={}",
)  # fmt: skip


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return small_project(tmp_path_factory.mktemp("clean") / "shop")


@pytest.fixture(scope="module")
def retrained(clean: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = clean.copy(tmp_path_factory.mktemp("retrained") / "shop")
    project.coembed("retrain")
    return project


def _served(project: Project) -> dict[str, object]:
    done = project.coembed("search", "red sneakers", "--json", "--limit", "3")
    return json.loads(done.stdout)["release"]


def test_the_flow_ends_in_a_search_that_answers(retrained: Project, tmp_path: Path) -> None:
    sheet = tmp_path / "hits.png"
    done = retrained.coembed("search", "red sneakers", "--sheet", str(sheet), "--limit", "5")
    assert sheet.read_bytes().startswith(b"\x89PNG")
    assert "version 1" in done.stdout
    filtered = retrained.coembed("search", "a chair", "--filter", "colour=red", "--json")
    hits = json.loads(filtered.stdout)["hits"]
    assert hits and {hit["attributes"]["colour"] for hit in hits} == {"red"}
    assert [hit["score"] for hit in hits] == sorted((h["score"] for h in hits), reverse=True)


def test_a_picture_finds_itself(retrained: Project) -> None:
    found = json.loads(retrained.coembed("search", "a mug", "--json", "--limit", "1").stdout)
    picture = retrained.root / "data" / found["hits"][0]["path"]
    alike = json.loads(retrained.coembed("search", "--image", str(picture), "--json").stdout)
    assert alike["hits"][0]["item_id"] == found["hits"][0]["item_id"]
    assert alike["hits"][0]["score"] == pytest.approx(1.0, abs=1e-3)


def test_a_second_retrain_sees_that_there_is_nothing_to_do(retrained: Project) -> None:
    before, lock = _served(retrained), retrained.lock()
    done = retrained.coembed("retrain")
    assert "nothing to retrain" in done.stdout
    # As if the last run had other data: the flow compares with what its commit names.
    receipt = retrained.root / "runs" / "retrain.json"
    left = json.loads(receipt.read_text())
    receipt.write_text(json.dumps({**left, "data": {**left["data"], "md5": f"{0:032}.dir"}}))
    forced = retrained.coembed("retrain", "--force")
    since = f"since the last run ({left['data']['commit'][:10]})"
    assert f"360 → 360 pairs {since}: no pair differs" in " ".join(forced.stdout.split())
    with closing(sqlite3.connect(retrained.root / "runs" / "prefect" / "prefect.db")) as database:
        told = [
            json.loads(page)
            for (page,) in database.execute(
                "SELECT data FROM artifact WHERE key = 'data' ORDER BY created"
            )
        ]
        gates = json.loads(
            database.execute("SELECT data FROM artifact WHERE key = 'gate'").fetchone()[0]
        )
    first, last = told[0], told[-1]
    assert "No earlier run to compare with" in first and "| examine |" in first
    assert "Nothing changed." in last and "Curation did not run: unchanged." in last
    assert set(json.loads(gates)[0] if isinstance(gates, str) else gates[0]) == {
        "gate", "value", "limit", "verdict",
    }  # fmt: skip
    outcomes = dict(
        line.split(maxsplit=1)
        for line in forced.stdout.split("Retrain")[-1].splitlines()
        if line.strip()
    )
    assert {outcomes[stage].strip() for stage in ("curate", "train", "evaluate", "embed")} == {
        "unchanged"
    }
    assert outcomes["register"].strip() == "model version 1"
    assert outcomes["gate"].strip() == "passed"
    assert outcomes["promote"].strip() == "it is the champion already"
    decision = json.loads((retrained.root / "runs" / "gates" / "v1" / "decision.json").read_text())
    assert decision["reason"] == "the first version: there is no champion to beat"
    assert retrained.lock() == lock
    assert _served(retrained) == before


def test_an_alias_moved_by_hand_is_something_to_do(retrained: Project) -> None:
    code = (
        "import os; from pathlib import Path; from coembed.config import load_config;"
        "from coembed.registry.store import open_registry;"
        "from coembed.services import find_services;"
        "r = open_registry(find_services(Path('.'), os.environ),"
        " load_config(Path('params.yaml')).register_); r.delete_alias('champion')"
    )
    retrained.run("python", "-c", code)
    done = retrained.coembed("retrain")
    assert "nothing to retrain" not in done.stdout
    assert "nothing to retrain" in retrained.coembed("retrain").stdout


def test_after_the_flow_dvc_has_nothing_to_do_and_the_users_branch_is_untouched(
    clean: Project, retrained: Project
) -> None:
    assert json.loads(retrained.run("dvc", "status", "--json").stdout) == {}
    assert retrained.git("rev-parse", "HEAD") == clean.git("rev-parse", "HEAD")
    assert retrained.git("status", "--porcelain").strip() in ("?? dvc.lock", "M dvc.lock")
    assert len(retrained.git("worktree", "list").splitlines()) == 1


def test_dvc_repro_the_verbs_and_the_flow_leave_the_same_lock_byte_for_byte(
    clean: Project, retrained: Project, tmp_path: Path
) -> None:
    by_dvc = clean.copy(tmp_path / "by-dvc")
    by_dvc.run("dvc", "repro")
    by_verbs = clean.copy(tmp_path / "by-verbs")
    for verb in ("curate", "train", "evaluate", "embed"):
        by_verbs.coembed(verb)
    assert by_dvc.lock() == retrained.lock()
    assert by_verbs.lock() == retrained.lock()
    assert "up to date" in by_dvc.run("dvc", "repro").stdout
    metrics = json.loads(by_dvc.run("dvc", "metrics", "show", "--json").stdout)
    assert "retrieval" in str(metrics)
    changed = by_dvc.run("dvc", "repro", "--dry", "--force", "evaluate").stdout
    assert "coembed evaluate" in changed


def test_one_changed_parameter_reruns_only_what_depends_on_it(retrained: Project) -> None:
    assert json.loads(retrained.run("dvc", "status", "--json").stdout) == {}
    params = retrained.root / "params.yaml"
    before = params.read_text()
    try:
        params.write_text(before.replace("part_size: 1024", "part_size: 2048"))
        changed = json.loads(retrained.run("dvc", "status", "--json").stdout)
        assert set(changed) == {"embed"}
    finally:
        params.write_text(before)


def test_an_override_is_a_run_of_its_own(retrained: Project) -> None:
    lock = retrained.lock()
    done = retrained.coembed("retrain", "--set", "train.epochs=1", *WAITING)
    assert retrained.lock() == lock, "the project's own lock says what its own params made"
    refs = retrained.git("for-each-ref", "--format=%(refname)", "refs/coembed/runs").split()
    assert refs, done.stdout
    # A dirty tree's runs have refs too (dvc.lock is not committed), and the names are random.
    kept = [retrained.git("show", f"{ref}:params.yaml") for ref in refs]
    assert sum("epochs: 1" in params for params in kept) == 1
    assert "epochs: 2" in (retrained.root / "params.yaml").read_text()
    assert "waiting for approval: `coembed approve 2 --by NAME`" in " ".join(done.stdout.split())


def test_a_version_that_waits_is_served_once_a_person_approves_it(retrained: Project) -> None:
    before = _served(retrained)
    shown = retrained.coembed("gate", "2", *WAITING, code=3)
    assert "Approval" in shown.stdout and "nobody yet" in shown.stdout
    assert "waits for approval" in retrained.coembed("promote", "2", *WAITING, code=3).stdout
    assert _served(retrained) == before
    retrained.coembed("approve", "2", "--by", "Ada", "--reason", "looked at the page")
    compared = json.loads(retrained.coembed("compare", "champion", "v2", "--json").stdout)
    assert (compared["champion"], compared["challenger"]) == (1, 2)
    retrained.coembed("gate", "2", *WAITING)
    retrained.coembed("promote", "2", *WAITING, "--by", "Grace", "--reason", "it is time")
    assert _served(retrained)["version"] == 2
    decision = json.loads((retrained.root / "runs" / "gates" / "v2" / "decision.json").read_text())
    assert (decision["verdict"], decision["champion"]) == ("passed", 1)
    last = json.loads(retrained.coembed("audit", "--json").stdout)["entries"][-1]
    assert (last["version"], last["by"], last["why"]) == (2, "Grace", "it is time")
    retrained.coembed("rollback")
    assert _served(retrained) == before
    refused = retrained.coembed("promote", *WAITING, code=3)
    assert "version 2 was rolled back" in " ".join(refused.stdout.split())


def test_a_flow_killed_anywhere_goes_on_and_ends_the_same(
    clean: Project, retrained: Project, tmp_path: Path
) -> None:
    project = clean.copy(tmp_path / "killed")
    rng = random.Random(3)
    for wait_s in (rng.uniform(12, 18), rng.uniform(18, 30)):
        process = subprocess.Popen(
            ["coembed", "retrain"], cwd=project.root, env=project.environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(wait_s)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        wait_until_no_stage_lives(project)
    project.coembed("retrain")
    assert project.lock() == retrained.lock()
    assert len(project.git("worktree", "list").splitlines()) == 1
    assert _served(project)["fingerprint"] == _served(retrained)["fingerprint"]
