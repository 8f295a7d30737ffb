"""The registry on a real MLflow server: the same stages, with nothing kept on this side."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from release_case import METRIC, World, make_world
from release_shelf import Shelf, fill_shelf, outcomes, standing

from coembed.errors import CoembedError, ServiceError, UserError
from coembed.models.encoder import load_encoder
from coembed.registry.store import open_registry
from coembed.services import find_services
from coembed.stages import audit, models, reconcile, rollback, search

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Server:
    """A running `mlflow server`, the leader of its process group; `files` are its artifacts."""

    url: str
    group: int
    files: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (root / "log").open("w") as log:
        process = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("mlflow")), "server", "--host", "127.0.0.1",
                "--port", str(port), "--workers", "1", "--serve-artifacts",
                "--backend-store-uri", f"sqlite:///{root}/server.db",
                "--artifacts-destination", str(root / "artifacts"),
            ],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            cwd=root, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline, (root / "log").read_text()
                    time.sleep(0.3)
            yield Server(f"http://127.0.0.1:{port}", process.pid, root / "artifacts")
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)


@pytest.fixture(scope="module")
def world(server: Server, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Models of texts, pictures and sounds."""
    made = make_world(tmp_path_factory.mktemp("registry-server"), num_sounds=6)
    made = replace(made, services=find_services(made.root, {"MLFLOW_TRACKING_URI": server.url}))
    for name, seed in (("a", 1), ("b", 2)):
        made.make_model(name, seed)
    return made


def test_register_promote_and_search_over_the_network(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    one, _, _ = world.release("a")
    assert not world.register("a").receipt["created"]
    two, collection, _ = world.release("b")
    found = search.run(
        world.cfg, services=world.services, pool=world.path("data"),
        models=world.path("runs") / "models", query="a red disc",
    )  # fmt: skip
    assert (found.release.version, found.collection) == (two, collection)
    registry = open_registry(world.services, world.cfg.register_)
    assert registry.aliases() == {"champion": two, "previous": one}
    assert registry.metrics(registry.version(one).run_id)["train/loss"] == 1.5
    assert not (world.root / "mlflow").exists()
    assert capfd.readouterr().out == ""


@pytest.fixture
def shelf(world: World, request: pytest.FixtureRequest) -> Shelf:
    """Versions 1 and 2 of a registered model of the test's own; 2 is served."""
    name = request.node.name.replace("_", "-")[:60]
    own = world.with_settings(
        register={"model": name, "experiment": name}, index={"collection": name}
    )
    return fill_shelf(own, "ab", serve=2)


def test_models_audit_a_moved_alias_and_rollback_over_the_network(
    shelf: Shelf, server: Server
) -> None:
    world, name = shelf.world, shelf.world.cfg.register_.model
    client = MlflowClient(tracking_uri=server.url, registry_uri=server.url)
    runs = world.path("runs")
    listing = models.run(world.cfg, services=world.services)
    rows = [dict(zip(listing.columns, row, strict=True)) for row in listing.rows]
    assert [row["aliases"] for row in rows] == ["champion", "previous"]
    assert rows[0]["collection"] == f"{shelf.collections[2]} (served)"
    assert float(rows[0][METRIC]) >= 0

    # As a person does it on MLflow's page: back to version 1, and to a version no gate has seen.
    client.set_registered_model_alias(name, "champion", "1")
    done = reconcile.run(world.cfg, services=world.services, runs=runs, out=runs / "reconcile.json")
    assert done.receipt["served"] == 1
    assert client.get_model_version_by_alias(name, "previous").version == "2"
    first = client.get_model_version(name, "1")
    client.create_model_version(name, first.source, first.run_id)
    client.set_registered_model_alias(name, "champion", "3")
    done = reconcile.run(world.cfg, services=world.services, runs=runs, out=runs / "reconcile.json")
    assert "no gate has judged it" in done.receipt["missing"]
    assert (done.receipt["champion"], done.receipt["served"]) == (3, 1)

    start = time.monotonic()
    back = rollback.run(
        world.cfg, services=world.services, runs=runs, out=runs / "rollback.json", by="Ada",
        why="it is a bad day",
    )  # fmt: skip
    assert time.monotonic() - start < 60, "a rollback takes seconds"
    assert back.receipt["version"] == 2
    with shelf.open() as stores:
        assert standing(stores) == (shelf.collections[2], {"champion": 2, "previous": 1})
    told = audit.run(world.cfg, services=world.services).receipt["entries"]
    assert [(one["version"], one["kind"], one["by"], one["why"]) for one in told] == [
        (1, "promotion", "Ada", "it is better"),
        (2, "promotion", "Ada", "it is better"),
        (1, "reconcile", "MLflow", "the alias champion was set by hand"),
        (2, "rollback", "Ada", "it is a bad day"),
    ]
    # MLflow's own pages show who and why, too.
    shown = client.get_run(told[-1]["entry"]).data.tags
    assert (shown["mlflow.user"], shown["mlflow.note.content"]) == ("Ada", "it is a bad day")


def test_a_server_that_hangs_leaves_nothing_half_promoted(
    shelf: Shelf, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with shelf.open() as stores:
        before = standing(stores)
        os.killpg(server.group, signal.SIGSTOP)
        try:
            with pytest.raises(ServiceError, match="does not answer: no answer in time, 1 times"):
                shelf.switch(stores, 1, kind="rollback")
        finally:
            os.killpg(server.group, signal.SIGCONT)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
        assert standing(stores) == before
        assert outcomes(stores) == [("promotion", 1, "done"), ("promotion", 2, "done")]
        assert shelf.switch(stores, 1, kind="rollback")


def test_the_champion_takes_texts_pictures_and_sounds(
    shelf: Shelf, server: Server, tmp_path: Path
) -> None:
    """Loaded by MLflow alone, in a process that coembed's own code is not imported into."""
    world = shelf.world
    folder = world.path("data") / "media"
    picture, sound = next(folder.glob("*.jpg")), next(folder.glob("*.wav"))
    script = f"""
import mlflow, numpy as np, pandas as pd
model = mlflow.pyfunc.load_model("models:/{world.cfg.register_.model}@champion")
image, audio = (open(path, "rb").read() for path in {(str(picture), str(sound))!r})
rows = pd.DataFrame([{{"text": "a red disc"}}, {{"image": image}}, {{"audio": audio}}])
np.save({str(tmp_path / "out.npy")!r}, model.predict(rows.replace({{np.nan: None}})))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
        env={
            **os.environ, "MLFLOW_TRACKING_URI": server.url,
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    encoder = load_encoder(world.path("b"), device="cpu")
    expected = [
        encoder.encode("text", ["a red disc"])[0],
        encoder.encode("image", [picture.read_bytes()])[0],
        encoder.encode("audio", [sound.read_bytes()])[0],
    ]
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5)


def test_a_version_whose_files_are_gone_is_not_served(
    shelf: Shelf, server: Server, tmp_path: Path
) -> None:
    with shelf.open() as stores:
        version = stores.registry.version(1)
        place = version.source.removeprefix("mlflow-artifacts:/").lstrip("/")
        shutil.rmtree(server.files / place)
        with pytest.raises(UserError, match="files of version 1 are not in the registry any more"):
            shelf.switch(stores, 1, kind="rollback")
        assert standing(stores)[0] == shelf.collections[2]
        with pytest.raises(CoembedError, match="the registry at http"):
            stores.registry.download(version, tmp_path / "model")
        assert not (tmp_path / "model").exists()
