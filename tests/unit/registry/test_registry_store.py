"""Runs, versions and aliases in an embedded registry."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError
from release_case import World, make_world

from coembed.errors import ServiceError, UserError
from coembed.registry.settings import PromoteSettings, RegisterSettings
from coembed.registry.store import Registry, flatten_metrics, open_registry

SETTINGS = RegisterSettings(model="shop", experiment="tests")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> World:
    made = make_world(tmp_path_factory.mktemp("registry"), store=empty_store)
    made.make_model("a", 1)
    return made


@pytest.fixture
def registry(world: World) -> Registry:
    return open_registry(world.services, world.cfg.register_)


def test_a_run_keeps_params_metrics_history_and_files(registry: Registry, tmp_path: Path) -> None:
    run_id = registry.start_run("one", {"coembed.key": "k1"})
    registry.log_params(
        run_id, {"train": {"lr": 1e-3, "ks": [1, 5]}, "long": "x" * 9000, "no": None}
    )
    registry.log_params(run_id, {"train": {"lr": 1e-3}})
    registry.log_metrics(run_id, {"retrieval": {"recall_at_10": 0.5, "bad": math.nan}, "n": 3})
    history = tmp_path / "history.csv"
    rows = "".join(f"{step},{step / 2},\n" for step in range(1500))
    history.write_text("step,loss,val\n" + rows, encoding="utf-8")
    registry.log_history(run_id, history)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.txt").write_text("x", encoding="utf-8")
    registry.log_files(run_id, [history, tmp_path / "folder"])
    assert registry.metrics(run_id) == {
        "retrieval/recall_at_10": 0.5, "n": 3.0, "train/loss": 1499 / 2,
    }  # fmt: skip
    run = registry._client.get_run(run_id)
    assert run.data.params["train/lr"] == "0.001"
    assert run.data.params["train/ks"] == "[1, 5]"
    assert len(run.data.params["long"]) == 6000
    points = registry._client.get_metric_history(run_id, "train/loss")
    assert [(point.step, point.value) for point in points[:3]] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert len(points) == 1500
    names = {item.path for item in registry._client.list_artifacts(run_id)}
    assert names == {"history.csv", "folder"}
    assert registry.find_run({"coembed.key": "k1"}) == run_id
    assert registry.find_run({"coembed.key": "k2"}) is None


def test_files_lie_under_the_project_wherever_it_is_called_from(
    world: World, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_id = registry.start_run("two")
    registry.log_files(run_id, [world.path("a") / "history.csv"])
    assert list(tmp_path.iterdir()) == []
    found = [path for path in (world.root / "mlflow").rglob("history.csv") if run_id in str(path)]
    assert len(found) == 1


def test_the_machine_is_watched_while_the_block_runs(registry: Registry) -> None:
    run_id = registry.start_run("watched")
    with registry.monitor(run_id, interval_s=0.1):
        time.sleep(0.8)
    found = registry.metrics(run_id)
    assert "system/cpu_utilization_percentage" in found
    assert "system/system_memory_usage_megabytes" in found
    first = len(registry._client.get_metric_history(run_id, "system/cpu_utilization_percentage"))
    registry.end_run(run_id)
    with registry.monitor(run_id, interval_s=0.1):  # a run that goes on after a kill
        time.sleep(0.5)
    points = registry._client.get_metric_history(run_id, "system/cpu_utilization_percentage")
    assert len(points) > first
    assert len({point.step for point in points}) == len(points)


def test_the_same_model_and_evaluation_are_one_version(world: World, registry: Registry) -> None:
    first = world.register("a")
    again = world.register("a")
    assert first.receipt["created"]
    assert not again.receipt["created"]
    assert again.receipt == {**first.receipt, "created": False}
    number = first.receipt["version"]
    assert [version.version for version in registry.versions()] == [number]
    assert registry.aliases() == {"challenger": number}
    version = registry.version(number)
    assert version.tags["coembed.git_commit"] == "c0ffee" * 6
    assert version.tags["coembed.data_md5"] == "d" * 32
    assert version.evaluation_set == first.receipt["evaluation_set"]
    run = registry._client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["seed"] == "1"
    assert run.data.params["register/model"] == "shop"
    assert registry.metrics(version.run_id)["train/loss"] == 1.5


def test_a_registration_cut_short_goes_on_in_its_run(
    world: World, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.make_model("cut", 7)
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "add_version", _die)
        with pytest.raises(KeyboardInterrupt):
            world.register("cut")
    before = {run.info.run_id for run in registry._client.search_runs([registry._experiment_id()])}
    done = world.register("cut")
    after = {run.info.run_id for run in registry._client.search_runs([registry._experiment_id()])}
    assert done.receipt["created"]
    assert done.receipt["run_id"] in before
    assert after == before
    history = registry._client.get_metric_history(done.receipt["run_id"], "train/loss")
    assert len(history) == 2


def _die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_version_is_downloaded_once_and_whole(
    world: World, registry: Registry, tmp_path: Path
) -> None:
    version = registry.version(world.register("a").receipt["version"])
    folder = registry.download(version, tmp_path / "models" / "x")
    for path in world.path("a").rglob("*"):
        if path.is_file():
            assert (folder / path.relative_to(world.path("a"))).read_bytes() == path.read_bytes()
    (folder / "mark").touch()
    assert registry.download(version, folder) == folder
    assert (folder / "mark").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["x"]


def test_the_evaluation_of_another_model_is_refused(world: World) -> None:
    world.make_model("other", 8)
    with pytest.raises(UserError, match=r"the evaluation is of the model \w{12}; the one in"):
        world.register("other", evaluation=world.path("a-evaluation"))


def test_aliases_move_and_go(world: World, registry: Registry) -> None:
    number = world.register("a").receipt["version"]
    registry.set_alias("champion", number)
    registry.set_alias("champion", number)
    assert registry.aliases()["champion"] == number
    registry.delete_alias("champion")
    registry.delete_alias("champion")
    assert "champion" not in registry.aliases()


def test_a_version_that_is_not_there_is_named(world: World, registry: Registry) -> None:
    world.register("a")
    with pytest.raises(UserError, match=r"no version 99 of 'shop'; versions there: 1") as caught:
        registry.version(99)
    assert "coembed register" in str(caught.value)
    nothing = Registry(
        world.services.tracking_uri, world.services.artifact_root, RegisterSettings(model="none")
    )
    assert nothing.versions() == []
    assert nothing.aliases() == {}


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        ("http://127.0.0.1:9", ServiceError, "http://127.0.0.1:9 does not answer"),
        ("./mlruns", UserError, "MLFLOW_TRACKING_URI is './mlruns'"),
    ],
)
def test_a_registry_that_is_not_there_is_one_quick_error(
    uri: str, error: type[Exception], message: str
) -> None:
    start = time.monotonic()
    with pytest.raises(error, match=message):
        Registry(uri, None, SETTINGS)
    assert time.monotonic() - start < 5


def test_a_new_store_is_made_without_a_word_and_without_telemetry(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from coembed.registry.store import Registry\n"
        "from coembed.registry.settings import RegisterSettings\n"
        "root = Path(sys.argv[1])\n"
        "registry = Registry(f'sqlite:///{root}/store/m.db', root, RegisterSettings())\n"
        "registry.end_run(registry.start_run('x'))\n"
        "from mlflow.telemetry.client import get_telemetry_client\n"
        "assert get_telemetry_client() is None\n"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
    clean.pop("DO_NOT_TRACK", None)
    # Two at once: whoever comes first makes the tables.
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            env=clean, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in started:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out, err) == (0, "", "")


def test_mlflow_is_the_package_and_not_the_folder_of_that_name() -> None:
    import mlflow

    assert "site-packages" in str(mlflow.__file__)
    assert logging.getLogger("mlflow").getEffectiveLevel() >= logging.WARNING


def test_metrics_are_flattened_and_what_is_no_number_is_left_out() -> None:
    nested = {"a": {"b": {"c": 1}, "d": math.inf}, "e": 0.5, "f": "x"}
    assert flatten_metrics(nested) == {"a/b/c": 1.0, "e": 0.5}


def test_settings_refuse_what_cannot_be() -> None:
    for settings, message in (
        ({"guards": {"m": -1.0}}, "guards: the margin of m is -1"),
        ({"protected_slices": {"colour": float("nan")}}, "protected_slices: the margin of colour"),
        ({"floors": {"m": float("inf")}}, "floors: the floor of m is inf"),
        ({"metric": "m", "guards": {"m": 0.1}}, "which is the headline; set `margin`"),
        ({"margin": -0.1}, "greater than or equal to 0"),
        ({"index": {"min_recall": 1.1}}, "less than or equal to 1"),
        ({"max_model_mb": 0}, "greater than 0"),
        ({"proof": "superiority"}, "'regression' or 'non_inferiority'"),
        ({"tolerance": 0.0}, "no tolerance: it is called `margin` now"),
        ({"minimum": 0.5}, "no minimum: it is a floor now"),
        ({"floor": {}}, "Extra inputs"),
    ):
        with pytest.raises(ValidationError, match=message):
            PromoteSettings.model_validate(settings)
    with pytest.raises(ValidationError):
        RegisterSettings(model="a/b")
