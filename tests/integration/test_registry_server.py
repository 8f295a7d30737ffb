"""The registry on a real MLflow server: the same stages, with nothing kept on this side."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from release_case import World, make_world

from coembed.registry.store import open_registry
from coembed.services import find_services
from coembed.stages import search

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
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
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)


@pytest.fixture(scope="module")
def world(server: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    made = make_world(tmp_path_factory.mktemp("registry-server"))
    made = replace(made, services=find_services(made.root, {"MLFLOW_TRACKING_URI": server}))
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
