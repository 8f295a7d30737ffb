"""`coembed serve` as a command: one process and several, their end, and what it refuses."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from served_releases import Shop, make_releases

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    made = make_releases(
        tmp_path_factory.mktemp("processes") / "shop", num=2, num_images=8, num_sounds=3
    )
    values = made.cfg.model_dump(mode="json", by_alias=True)
    (made.root / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return made


def command(shop: Shop, *options: str) -> list[str]:
    return [sys.executable, "-m", "coembed.cli", "serve", "-C", str(shop.root), *options]


@contextmanager
def running(shop: Shop, *options: str, **env: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, and the address it printed once it listens."""
    process = subprocess.Popen(
        command(shop, "--port", "0", *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, **env}, start_new_session=True,
    )  # fmt: skip
    errors: list[str] = []
    assert process.stderr is not None and process.stdout is not None
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
    reader.start()
    try:
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line + "".join(errors)
        wait(lambda: is_ready(found[0]), "".join(errors))
        yield process, found[0]
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        reader.join(5)


def is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/ready", timeout=60).status_code == 200
    except httpx.TransportError:
        return False


def wait(condition: Callable[[], bool], what: str = "", within_s: float = 180.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def serving(address: str) -> dict[str, float]:
    """Processes that answer with each collection."""
    text = httpx.get(f"{address}/metrics", timeout=60).text
    found = re.findall(r'coembed_release_serving\{collection="([^"]+)".*\} ([\d.]+)', text)
    return {collection: float(num) for collection, num in found if float(num)}


def version_of(address: str) -> int:
    answer = httpx.post(f"{address}/search", json={"text": "a red disc"}, timeout=60)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["release"]["version"])


def test_one_process_follows_a_promotion_and_ends_when_told(shop: Shop) -> None:
    one, two = shop.releases
    with shop.opened() as index:
        index.set_alias("items", one)
        with running(shop) as (process, address):
            assert version_of(address) == 1
            index.set_alias("items", two)
            wait(lambda: version_of(address) == 2)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0


def test_processes_share_a_port_follow_promotions_and_are_replaced(shop: Shop) -> None:
    one, two = shop.releases
    with shop.opened() as index:
        index.set_alias("items", one)
        with running(shop, "--processes", "2") as (process, address):
            wait(lambda: serving(address) == {one: 2})
            index.set_alias("items", two)
            wait(lambda: serving(address) == {two: 2})
            assert {version_of(address) for _ in range(20)} == {2}

            workers = [
                child for child in psutil.Process(process.pid).children()
                if "spawn_main" in " ".join(child.cmdline())
            ]  # fmt: skip
            assert len(workers) == 2
            workers[0].kill()
            wait(lambda: serving(address) == {two: 1})  # the dead one's gauges are not counted
            assert {version_of(address) for _ in range(10)} == {2}
            wait(lambda: serving(address) == {two: 2})
            children = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            assert process.wait(30) == 0
            _, alive = psutil.wait_procs(children, timeout=20)
            assert not alive


def test_processes_end_with_the_first_one_however_that_ends(shop: Shop) -> None:
    with running(shop, "--processes", "2") as (process, _):
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive


def test_a_key_from_the_environment_is_asked_for(shop: Shop) -> None:
    key = "a-key-from-the-environment"
    with running(shop, COEMBED_API_KEY=key) as (_, address):
        body = {"text": "a red disc"}
        assert httpx.post(f"{address}/search", json=body).status_code == 401
        answer = httpx.post(f"{address}/search", json=body, headers={"x-api-key": key})
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "there is no key"),
        (["--host", "::"], "there is no key"),
        (["--processes", "0"], "expected 1 or more"),
        (["--port", "-1"], "expected 0 to 65535"),
        (["--set", "serve.unknown=1"], "unknown key"),
    ],
)
def test_what_cannot_be_is_one_clear_error(shop: Shop, options: list[str], said: str) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "COEMBED_API_KEY"}
    done = subprocess.run(command(shop, *options), capture_output=True, text=True, env=environ)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_project_without_a_release_says_so_and_waits_for_one(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text((shop.root / "params.yaml").read_text())
    process = subprocess.Popen(
        [sys.executable, "-m", "coembed.cli", "serve", "-C", str(tmp_path), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert found
        ready = httpx.get(f"{found[0]}/ready", timeout=120)
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        answer = httpx.post(f"{found[0]}/search", json={"text": "a"})
        assert answer.status_code == 503 and "coembed retrain" in answer.json()["hint"]
        assert httpx.get(f"{found[0]}/").status_code == 200
    finally:
        process.terminate()
        assert process.wait(30) == 0
