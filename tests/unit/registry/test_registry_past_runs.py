"""From a version, an alias or a run's id to what the run left about itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from release_case import World

from coembed.errors import UserError
from coembed.files import sha256_file
from coembed.registry.past_runs import find_past_run, log_lock_again
from coembed.registry.store import Registry, open_registry
from coembed.stages.register import Lineage

COMMIT, DATA = "c0ffee00" * 5, "d" * 32 + ".dir"
FLOW = "0a1b2c3d-0000-4000-8000-0123456789ab"


def _lock(path: Path, **outs: str) -> Path:
    stages: dict[str, Any] = {
        name: {"outs": [{"path": name, "md5": md5}]} for name, md5 in outs.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    return path


@pytest.fixture
def world(fresh_world: World) -> World:
    """With version 1, as a flow registers it."""
    lock = _lock(fresh_world.root / "logged" / "dvc.lock", curate="1", train="2", evaluate="3")
    environment = lock.with_name("environment.json")
    environment.write_text('{"packages": {"torch": "1.0+cpu"}}')
    lineage = Lineage(COMMIT, DATA, (lock, environment), {"coembed.flow_run": FLOW})
    fresh_world.register("a", lineage=lineage)
    return fresh_world


@pytest.fixture
def registry(world: World) -> Registry:
    return open_registry(world.services, world.cfg.register_)


def test_every_name_leads_to_the_run(world: World, registry: Registry) -> None:
    found = find_past_run(registry, "1")
    assert found.run_id == registry.version(1).run_id
    for wanted in ("v1", "challenger", found.run_id, FLOW):
        assert find_past_run(registry, wanted) == found
    assert (found.name, found.commit, found.data_md5) == ("version 1 of shop", COMMIT, DATA)
    assert found.weights_sha256 == sha256_file(world.path("a") / "model.safetensors")
    assert yaml.safe_load(found.dvc_lock)["stages"]["train"] == {
        "outs": [{"path": "train", "md5": "2"}]
    }
    assert found.environment == {"packages": {"torch": "1.0+cpu"}}
    metrics = json.loads((world.path("a-evaluation") / "metrics.json").read_text())
    assert found.metrics == metrics


def test_what_is_not_there_is_said(registry: Registry) -> None:
    with pytest.raises(UserError, match=r"'nope' is no version, alias, .*there: 1; aliases: chall"):
        find_past_run(registry, "nope")
    with pytest.raises(UserError, match="has no version 2 of 'shop'; versions there: 1"):
        find_past_run(registry, "v2")
    with pytest.raises(UserError, match=f"Run with id={'0' * 32} not found"):
        find_past_run(registry, "0" * 32)
    other = FLOW.replace("0a", "1a")
    with pytest.raises(UserError, match=f"came of the flow run {other}\n.*refs/coembed/runs/"):
        find_past_run(registry, other)


def test_a_deleted_run_and_one_that_registered_nothing(registry: Registry) -> None:
    idle = registry.start_run("idle")
    with pytest.raises(UserError, match=f"run {idle} names no git commit: it registered no model"):
        find_past_run(registry, idle)
    run_id = registry.version(1).run_id
    registry._client.delete_run(run_id)
    for wanted in ("1", run_id):
        with pytest.raises(UserError, match=f"{run_id} of version 1 .* deleted.*\n.*runs restore"):
            find_past_run(registry, wanted)
    registry._client.restore_run(run_id)
    assert find_past_run(registry, "1").run_id == run_id


def test_lost_artifacts_are_named(world: World, registry: Registry) -> None:
    root = world.services.artifact_root
    assert root is not None
    logged = root / "runs" / registry.version(1).run_id / "artifacts"
    (logged / "lineage" / "environment.json").unlink()
    assert find_past_run(registry, "1").environment is None
    shutil.rmtree(logged / "evaluation")
    with pytest.raises(UserError, match=r"version 1 of shop lacks .*: evaluation/metrics\.json"):
        find_past_run(registry, "1")
    (logged / "lineage" / "dvc.lock").unlink()
    with pytest.raises(UserError, match=r"lineage/dvc\.lock, evaluation/metrics\.json"):
        find_past_run(registry, "1")


def test_a_lock_that_tells_more_of_the_same_is_logged(registry: Registry, tmp_path: Path) -> None:
    made = {"curate": "1", "train": "2", "evaluate": "3"}
    before = find_past_run(registry, "1")
    same = _lock(tmp_path / "same" / "dvc.lock", **made)
    other = _lock(tmp_path / "other" / "dvc.lock", **{**made, "train": "9"}, embed="4")
    for lock in (same, other, tmp_path / "missing" / "dvc.lock"):
        assert not log_lock_again(registry, 1, lock)
    assert find_past_run(registry, "1") == before
    more = _lock(tmp_path / "more" / "dvc.lock", **made, embed="4")
    assert log_lock_again(registry, 1, more)
    assert not log_lock_again(registry, 1, more)
    assert find_past_run(registry, "1") == replace(before, dvc_lock=more.read_text())
    version = registry.version(1)
    for tags in (version.tags, registry.tags(version.run_id)):
        assert tags["coembed.dvc_lock"] == sha256_file(more)
    registry._client.delete_run(before.run_id)
    assert not log_lock_again(registry, 1, _lock(more, **made, embed="5"))
