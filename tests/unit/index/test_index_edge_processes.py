"""The embedded index between processes: killed builders, many readers, and a swap under load."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from edge_case import (
    NAME,
    build,
    children,
    contents,
    create,
    environment,
    left_over,
    make_points,
    open_edge,
    runs,
)

NUM = 1500

# Loads the points that are marked b, in steps; says when it has made each.
BUILD = """
import sys
from pathlib import Path
from edge_case import *

store, num, dim, mark = Path(sys.argv[1]), *map(int, sys.argv[2:4]), sys.argv[4]
with open_edge(store) as index:
    if not index.exists(NAME):
        create(index, NAME, dim=dim)
    print("created", flush=True)
    points = make_points(num, dim=dim, mark=mark)
    for start in range(0, num, num // 5):
        index.upsert(NAME, points[start : start + num // 5])
        print("written", flush=True)
    index.finish(NAME)
    print("finished", flush=True)
"""

# Searches what an alias points at until it is told to stop; every answer is one collection's.
READ = """
import sys
import time
from pathlib import Path
from edge_case import *

store, stop = Path(sys.argv[1]), Path(sys.argv[2])
queries = make_points(40, seed=3)
num_answers, seen, last = 0, [], None
with open_edge(store) as index:
    while True:
        ending = stop.exists()
        name = index.aliases()["shop"]
        point = queries[num_answers % 40]
        hits = index.query(name, VECTOR, point.vector, limit=20)
        marks = {hit.payload["attributes"]["mark"] for hit in hits}
        assert len(hits) == 20 and len(marks) == 1, (name, marks)
        if (name, *marks) != last:
            last = (name, *marks)
            seen.append(last)
            print(*last, flush=True)
        num_answers += 1
        time.sleep(0.005)  # searching is not all that this machine has to do
        if ending:
            break
print("answers", num_answers, flush=True)
"""


def _start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        assert process.stderr is not None
        raise AssertionError(process.stderr.read())
    return line.strip()


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill a process as a power cut would, and see that its child goes with it."""
    started = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 60
    while any(runs(child) for child in started):
        assert time.monotonic() < deadline, "the builder outlived its parent"
        time.sleep(0.02)


@contextmanager
def _building(store: Path, num: int, dim: int, mark: str) -> Iterator[subprocess.Popen[str]]:
    process = _start(BUILD, store, num, dim, mark)
    try:
        yield process
    finally:
        if process.poll() is None:
            _kill(process)


@pytest.mark.parametrize("num_steps", [1, 3, 6])
def test_a_build_that_is_killed_leaves_nothing_and_is_done_again(
    num_steps: int, tmp_path: Path
) -> None:
    store = tmp_path / "qdrant"
    with _building(store, NUM, 16, "a") as process:
        for _ in range(num_steps):
            _line(process)
        assert len(children(process.pid)) == 1
        _kill(process)
    assert left_over(store) != [], "it was killed too late to prove anything"
    with open_edge(store) as index:
        assert not index.exists(NAME) and index.collections() == []
        # Any load sweeps; this is the same again.
        build(index, NAME, make_points(NUM))
        assert len(contents(index, NAME)) == NUM
    assert left_over(store) == []


def test_the_builder_alone_killed_takes_only_its_load_along(tmp_path: Path) -> None:
    store = tmp_path / "qdrant"
    with _building(store, NUM, 16, "a") as process:
        assert _line(process) == "created"
        (builder,) = children(process.pid)
        os.kill(builder, signal.SIGKILL)
        output, said = process.communicate()
        assert "finished" not in output and "was ended by SIGKILL" in said
    with _building(store, NUM, 16, "a") as process:
        output, said = process.communicate()
        assert "finished" in output, said
    with open_edge(store) as index:
        assert len(contents(index, NAME)) == NUM
    assert left_over(store) == []


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_the_old_points_or_the_new(tmp_path: Path) -> None:
    """With a graph to build, so that most of the time is spent in `finish`."""
    store, num, dim = tmp_path / "qdrant", 5200, 512
    with open_edge(store) as index:
        build(index, NAME, make_points(num, dim=dim))
    start = time.monotonic()
    with _building(store, num, dim, "x") as process:
        output, said = process.communicate()
        assert "finished" in output, said
    whole_s = time.monotonic() - start
    outcomes, mark = [], "x"
    for moment in range(1, 10):
        new = f"m{moment}"
        with _building(store, num, dim, new) as process:
            try:
                process.wait(timeout=whole_s * moment / 9)
            except subprocess.TimeoutExpired:
                _kill(process)
        with open_edge(store) as index:
            marks = contents(index, NAME)
            assert len(marks) == num
            (found,) = set(marks.values())
            assert found in (mark, new)
            outcomes.append(found == new)
            mark = found
    assert not all(outcomes), "no kill came in time"
    with _building(store, num, dim, "z") as process:
        output, said = process.communicate()
        assert "finished" in output, said
    with open_edge(store) as index:
        assert set(contents(index, NAME).values()) == {"z"}
    assert left_over(store) == []
    assert len(list((store / "collections" / NAME).iterdir())) == 2


def test_readers_in_other_processes_see_every_swap_whole(tmp_path: Path) -> None:
    store, stop = tmp_path / "qdrant", tmp_path / "stop"
    points = make_points(400, mark="m0")
    with open_edge(store) as index:
        build(index, "shop__v0", points)
        index.set_alias("shop", "shop__v0")
        readers = [_start(READ, store, stop) for _ in range(3)]
        try:
            for reader in readers:
                assert _line(reader) == "shop__v0 m0"
            for number in range(1, 5):
                name, marked = f"shop__v{number}", make_points(400, mark=f"m{number}")
                assert create(index, name, base=f"shop__v{number - 1}")
                index.upsert(name, marked)
                index.finish(name)
                index.set_alias("shop", name)
                if number > 1:  # kept: the last one, as by `index.keep`
                    index.delete(f"shop__v{number - 2}")
            # And the served one itself is loaded anew.
            index.upsert("shop__v4", make_points(400, mark="again"))
            index.finish("shop__v4")
            for reader in readers:
                lines = []
                while "again" not in (lines[-1] if lines else ""):
                    lines.append(_line(reader))
                order = [int(line.split("__v")[1].split()[0]) for line in lines]
                assert order == sorted(order), "an alias never goes back"
            stop.touch()
            for reader in readers:
                output, said = reader.communicate()
                assert reader.returncode == 0, said
                assert int(output.split()[-1]) > 50
        finally:
            for reader in readers:
                if reader.poll() is None:
                    _kill(reader)
        assert index.collections() == ["shop__v3", "shop__v4"]
    assert left_over(store) == []
