"""Examined parts: taken over where nothing changed, made again where anything did."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from examined_pools import Examined, write_pool
from hostile_filters import settings

PART = 20


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coembed.curation.examination.examine.PART_ROWS", PART)


def _rows(num: int) -> list[dict[str, Any]]:
    return [{"path": f"m/{i}.txt", "caption": f"caption {i}", "price": i} for i in range(num)]


def _media(num: int) -> dict[str, bytes]:
    return {f"m/{i}.txt": f"text {i}".encode() for i in range(num)}


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """50 rows: two full parts and one of 10 rows. The file of row 5 is missing."""
    write_pool(tmp_path / "pool", _rows(50), _media(50))
    (tmp_path / "pool" / "m" / "5.txt").unlink()
    return tmp_path / "pool"


def _examine(pool: Path, lasting: Path, num_workers: int = 1) -> Examined:
    """Examine the pool; and it is as if examined afresh."""
    found = Examined(pool, lasting, [settings()], num_workers=num_workers)
    fresh = Examined(pool, lasting.parent / f"fresh{time.monotonic_ns()}", [settings()])
    assert fresh.costs.num_reused == fresh.costs.num_cached == 0
    assert [part.read_bytes() for part in found.parts] == [p.read_bytes() for p in fresh.parts]
    return found


def test_an_unchanged_pool_is_taken_over_whole(pool: Path, tmp_path: Path) -> None:
    assert Examined(pool, tmp_path / "runs", [settings()]).costs.num_reused == 0
    pool.rename(tmp_path / "elsewhere")  # where the pool lies is no part of what it is
    assert _examine(tmp_path / "elsewhere", tmp_path / "runs").costs.num_reused == 50


def test_a_grown_pool_costs_its_new_rows_and_a_shrunk_one_nothing(
    pool: Path, tmp_path: Path
) -> None:
    Examined(pool, tmp_path / "runs", [settings()])
    # The new rows have a cell missing, the old ones none.
    rows = [*_rows(50), *({**row, "price": None} for row in _rows(70)[50:])]
    write_pool(pool, rows, {f"m/{i}.txt": b"new %d" % i for i in range(50, 70)})
    grown = Examined(pool, tmp_path / "runs", [settings()])
    assert grown.costs.num_reused == 40
    # The last part had grown: its 10 old items are known by their content.
    assert (grown.costs.num_cached, grown.costs.num_measured) == (10, 20)
    write_pool(pool, _rows(20), {})
    shrunk = Examined(pool, tmp_path / "runs", [settings()])
    assert shrunk.costs.num_reused == 20
    assert list(shrunk.parts[0].parent.glob("*.parquet")) == shrunk.parts


def _touch(path: Path, seconds: int) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + seconds * 10**9))


def test_only_parts_where_something_changed_are_made_again(tmp_path: Path) -> None:
    pool, rows = tmp_path / "pool", _rows(14 * PART)
    write_pool(pool, rows, _media(14 * PART))
    media = [pool / "m" / f"{part * PART + 3}.txt" for part in range(14)]
    media[3].unlink()
    media[6].unlink()
    media[6].symlink_to(tmp_path / "outside")  # what was refused may be allowed without a trace
    (tmp_path / "outside").write_bytes(b"x")
    first = Examined(pool, tmp_path / "runs", [settings()])
    assert first.reasons == {63: "missing_file", 123: "path_outside_pool"}
    before = [part.stat().st_ino for part in first.parts]

    media[1].write_bytes(b"more than it was")
    media[2].write_bytes(media[2].read_bytes()[::-1])
    _touch(media[2], 7)
    media[3].write_bytes(b"here")
    media[4].unlink()
    media[5].unlink()
    media[5].mkdir()
    rows[7 * PART + 4]["caption"] = "another"
    rows[8 * PART + 4]["price"] = None
    rows[9 * PART + 4]["path"] = rows[9 * PART + 5]["path"]
    write_pool(pool, rows, {})
    whole = first.parts[10].read_bytes()
    first.parts[10].write_bytes(whole[:-100])
    first.parts[11].write_bytes(b"no part")
    pq.write_table(pq.read_table(first.parts[12]).slice(0, 5), first.parts[12])
    again = _examine(pool, tmp_path / "runs", num_workers=2)
    after = [part.stat().st_ino for part in again.parts]
    same = [part for part in range(14) if before[part] == after[part]]
    assert same == [0, 13] and again.costs.num_reused == 2 * PART


def test_other_settings_are_another_job(pool: Path, tmp_path: Path) -> None:
    Examined(pool, tmp_path / "runs", [settings()])
    other = Examined(pool, tmp_path / "runs", [settings(longest_caption=9)])
    # Nothing is taken over, but what was measured is known: only the judging differs.
    assert (other.costs.num_reused, other.costs.num_cached, other.costs.num_measured) == (0, 49, 0)
    assert set(other.reasons.values()) == {"missing_file", "long_words"}
    assert Examined(pool, tmp_path / "runs", [settings()]).costs.num_reused == 50
    assert Examined(pool, tmp_path / "runs").costs.num_cached == 0  # measured by other filters
    assert len(list((tmp_path / "runs" / "examined").iterdir())) == 2  # the oldest has gone


def test_neither_cache_nor_workers_change_a_byte(pool: Path, tmp_path: Path) -> None:
    first = Examined(pool, tmp_path / "a", [settings()])
    for database in (tmp_path / "a" / "items").iterdir():
        database.write_bytes(b"broken")
    for part in first.parts:
        part.unlink()
    second = Examined(pool, tmp_path / "a", [settings()], num_workers=3)
    assert second.costs.num_cached == 0
    again = [part.read_bytes() for part in second.parts]
    for part in second.parts:
        part.unlink()
    third = Examined(pool, tmp_path / "a", [settings()], num_workers=2)
    assert third.costs.num_cached == 49
    assert again == [part.read_bytes() for part in third.parts]
    assert second.table.equals(first.table)


_SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
import coembed.curation.examination.examine as examine
from examined_pools import Examined
from hostile_filters import settings
examine.PART_ROWS = {part}
Examined(Path({pool!r}), Path({lasting!r}), [settings()], num_workers=2)
"""


def test_a_killed_run_is_taken_up_where_it_was(tmp_path: Path) -> None:
    pool, lasting = tmp_path / "pool", tmp_path / "runs"
    write_pool(pool, _rows(600), _media(600))
    # The last file takes for ever, so that the run cannot end before it is killed.
    (pool / "m" / "599.txt").write_bytes(b"SLEEP now")
    script = tmp_path / "script.py"
    tests = str(Path(__file__).parents[2])
    script.write_text(_SCRIPT.format(tests=tests, part=PART, pool=str(pool), lasting=str(lasting)))
    child = subprocess.Popen([sys.executable, str(script)])
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline and child.poll() is None:
            if len(list(lasting.glob("examined/*/*.parquet"))) >= 5:
                break
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    (pool / "m" / "599.txt").write_bytes(b"fine now")
    for partial in lasting.glob("examined/*"):
        (partial / ".part-000029.parquet.1.partial").write_bytes(b"half")
    found = Examined(pool, lasting, [settings()], num_workers=2)
    assert 100 <= found.costs.num_reused < 600
    fresh = Examined(pool, tmp_path / "fresh", [settings()], num_workers=2)
    assert found.table.equals(fresh.table) and fresh.costs.num_reused == 0
    assert not list(lasting.glob("examined/*/.*"))
