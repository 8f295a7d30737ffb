"""A registry that hangs, fails, goes away, or has lost what is asked of it: one clear error."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from coembed.errors import ServiceError, UserError
from coembed.registry._mlflow import RETRIES, TIMEOUT, patience
from coembed.registry.settings import RegisterSettings
from coembed.registry.store import Registry

SETTINGS = RegisterSettings(model="shop", experiment="tests")
FAILING = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\nConnection: close\r\n\r\nlost"
)


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[float]]]:
    """A real socket that accepts everybody and then does as `answer` says; address and times."""
    seen: list[float] = []
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                seen.append(time.monotonic())
                held.append(connection)
                answer(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}", seen
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=10)
            for connection in held:
                connection.close()


def _say_nothing(_: socket.socket) -> None:
    pass


def _fail(connection: socket.socket) -> None:
    connection.settimeout(0.5)
    try:
        connection.recv(65536)
        connection.sendall(FAILING)
    except OSError:  # the first look at whether anybody listens says nothing
        pass
    connection.close()


def _hang_up(connection: socket.socket) -> None:
    connection.close()


@pytest.mark.slow
def test_a_server_that_never_answers_is_one_error_in_half_a_minute() -> None:
    """With the settings that a project has."""
    with listening(_say_nothing) as (url, seen):
        start = time.monotonic()
        with pytest.raises(ServiceError, match=f"{url} does not answer: .* 3 times over"):
            Registry(url, None, SETTINGS)
        assert 20 < time.monotonic() - start < 45
    assert len(seen) == 4, "one look, one try and two more"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (_say_nothing, r"does not answer: no answer in time, 1 times over(.|\n)*REQUEST_TIMEOUT"),
        (_fail, r"refused: .*500(.|\n)*server's log"),
        (_hang_up, r"went away: (.|\n)*is the MLflow server still running\?"),
    ],
)
def test_what_a_person_set_is_heeded_and_every_failure_is_explained(
    answer: Callable[[socket.socket], None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TIMEOUT, "1")
    monkeypatch.setenv(RETRIES, "0")
    with listening(answer) as (url, _):
        start = time.monotonic()
        with pytest.raises(ServiceError, match=message):
            Registry(url, None, SETTINGS)
        assert time.monotonic() - start < 15


def test_files_are_given_more_time_unless_a_person_said_how_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(TIMEOUT, "8")
    with patience():
        with patience():
            assert os.environ[TIMEOUT] == "300"
        assert os.environ[TIMEOUT] == "300"
    assert os.environ[TIMEOUT] == "8"
    monkeypatch.setenv(TIMEOUT, "17")
    with patience():
        assert os.environ[TIMEOUT] == "17"


@pytest.fixture
def registry(empty_store: Path, tmp_path: Path) -> Registry:
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    return Registry(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "files", SETTINGS)


def test_a_run_that_is_gone_or_deleted_is_the_users_to_mend(
    registry: Registry, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"Run with id=0{32} not found(.|\n)*mlflow runs restore"):
        registry.metrics("0" * 32)
    run_id = registry.start_run("one")
    registry._client.delete_run(run_id)
    with pytest.raises(UserError, match=r"'active' state(.|\n)*mlflow runs restore"):
        registry.log_tags(run_id, {"a": "b"})
    (tmp_path / "x").write_text("x")
    with pytest.raises(UserError, match=r"'active' state(.|\n)*mlflow runs restore"):
        registry.log_metrics(run_id, {"a": 1.0})
    assert registry.runs() == []


def test_an_experiment_that_was_deleted_is_named(registry: Registry) -> None:
    registry.start_run("one")
    client = registry._client
    client.delete_experiment(client.get_experiment_by_name("tests").experiment_id)
    with pytest.raises(UserError, match=r"'active' state(.|\n)*mlflow experiments restore"):
        registry.start_run("two")
