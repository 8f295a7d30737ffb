"""A started Prefect server really creates scheduled runs.

With some versions of fastapi and SQLAlchemy (`pip check` sees nothing wrong with them) the server
starts, the UI works and no run is ever scheduled. constraints.txt pins a set that this test holds.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
_DEPLOY_AND_LOOK = """
import sys, time
from datetime import timedelta
from prefect.client.orchestration import get_client
from flows.retrain import retrain

deployment = retrain.to_deployment("scheduled", interval=timedelta(minutes=5))
deployment_id = deployment.apply()
with get_client(sync_client=True) as client:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        runs = [r for r in client.read_flow_runs() if r.deployment_id == deployment_id]
        if runs:
            print("scheduled", len(runs), runs[0].state.type.value)
            sys.exit(0)
        time.sleep(0.5)
sys.exit("no scheduled run within 60 s")
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[dict[str, str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": url}
    log = (tmp_path / "server.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1",
         "--port", str(port), "--no-ui"],
        env=environment, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    try:
        _wait_until_healthy(url, process, tmp_path / "server.log")
        yield environment
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise AssertionError(f"Prefect's server did not answer: {log.read_text()[-2000:]}")


def test_a_started_server_creates_the_scheduled_run_of_a_deployment(
    server: dict[str, str],
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _DEPLOY_AND_LOOK],
        cwd=REPOSITORY, env=server, text=True, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("scheduled"), done.stdout
    assert "SCHEDULED" in done.stdout
