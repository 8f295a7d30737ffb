"""Worker processes: results in order, errors passed on, no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coembed.curation.examination.workers import Workers, choose_num_workers
from coembed.errors import DataError, ServiceError


def _square(number: int) -> int:
    time.sleep(0.002 * (number % 3))
    return number * number


def _fail(number: int) -> int:
    raise DataError(f"row {number} is wrong", hint="mend it")


def _die(number: int) -> int:  # noqa: ARG001
    os._exit(9)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_come_in_the_order_of_the_tasks(num_workers: int) -> None:
    with Workers(num_workers) as workers:
        for num in (0, 1, 40):
            assert list(workers.map(_square, range(num))) == [n * n for n in range(num)]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_of_a_task_arrives_whole(num_workers: int) -> None:
    with pytest.raises(DataError) as caught, Workers(num_workers) as workers:
        list(workers.map(_fail, range(3)))
    assert caught.value.message == "row 0 is wrong" and caught.value.hint == "mend it"


def test_a_dead_worker_is_a_clear_error() -> None:
    with pytest.raises(ServiceError, match="worker process of the curation died"), Workers(2) as w:
        list(w.map(_die, range(3)))


def test_zero_means_the_cores() -> None:
    assert choose_num_workers(0) >= 1 and choose_num_workers(3) == 3


_SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
from test_curation_workers import note_and_sleep
from coembed.curation.examination.workers import Workers
with Workers(2) as workers:  # no `if __name__ == "__main__"`: the workers do not run this again
    list(workers.map(note_and_sleep, [{folder!r}] * 2))
"""


def note_and_sleep(folder: str) -> None:
    """Leave this process's id in `folder` and stay."""
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(60)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT.format(here=str(Path(__file__).parent), folder=str(notes)))
    parent = subprocess.Popen([sys.executable, str(script)])
    try:
        deadline = time.monotonic() + 60
        while len(list(notes.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        pids = [int(path.name) for path in notes.iterdir()]
        assert len(pids) == 2 and all(map(_is_running, pids))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 20
    while any(map(_is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_is_running, pids))
