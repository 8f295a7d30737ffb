"""The item cache: what goes in comes out, and no trouble with it is an error."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coembed.curation.candidate import Facts
from coembed.curation.examination.item_cache import CacheReader, ItemCache, decode, encode, item_key
from coembed.curation.filters.base import Cell

_TEXT = st.text(max_size=20)
_CELLS = st.dictionaries(
    _TEXT, st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | _TEXT | st.binary()
)
_FACTS = st.builds(
    Facts,
    num_bytes=st.integers(0, 2**60),
    fault=st.none() | _TEXT,
    fault_detail=_TEXT,
    format=st.none() | _TEXT,
    width_px=st.none() | st.integers(0, 10**6),
    duration_s=st.none() | st.floats(0, 1e9),
)
KEY = item_key(bytes(range(32)), "image")


@settings(deadline=None)
@given(facts=_FACTS, columns=_CELLS)
def test_what_goes_in_comes_out(facts: Facts, columns: dict[str, Cell]) -> None:
    found = decode(KEY, encode(KEY, facts, columns))
    assert found == (facts, columns)
    assert [type(cell) for cell in found[1].values()] == [type(columns[name]) for name in found[1]]


def test_no_number_comes_out_as_such() -> None:
    found = decode(KEY, encode(KEY, Facts(1), {"a": math.nan, "b": math.inf}))
    assert found is not None and math.isnan(found[1]["a"]) and found[1]["b"] == math.inf  # type: ignore[arg-type]


@settings(deadline=None)
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7), cut=st.integers(0, 10**6))
def test_damage_is_a_miss(at: int, bit: int, cut: int) -> None:
    value = encode(KEY, Facts(9, format="JPEG"), {"a": 0.5, "b": b"\0\1\2"})
    hurt = bytearray(value)
    hurt[at % len(value)] ^= 1 << bit
    assert decode(KEY, bytes(hurt)) is None
    assert decode(KEY, value[: cut % len(value)]) is None
    assert decode(item_key(bytes(32), "image"), value) is None
    assert decode(item_key(bytes(range(32)), "audio"), value) is None


def _entries(start: int, stop: int) -> dict[bytes, bytes]:
    keys = [item_key(i.to_bytes(32, "little"), "image") for i in range(start, stop)]
    return {key: encode(key, Facts(i), {"n": i}) for i, key in enumerate(keys, start)}


def test_readers_see_what_is_written_meanwhile(tmp_path: Path) -> None:
    entries = _entries(0, 2000)
    with ItemCache(tmp_path, "a") as cache:
        reader = CacheReader(cache.path)
        assert reader.look_up(list(entries)) == {}
        cache.add(entries.items())
        found = reader.look_up([*entries, *_entries(5000, 5010)])
        assert set(found) == set(entries)
        assert [columns["n"] for _, columns in found.values()].count(7) == 1
        cache.add(entries.items())  # twice is once
    assert len(CacheReader(cache.path).look_up(list(entries))) == 2000


@pytest.mark.parametrize("what", ["text", "foreign", "empty", "damaged", "folder"])
def test_a_broken_or_foreign_database_is_put_aside(tmp_path: Path, what: str) -> None:
    entries = _entries(0, 3000)
    with ItemCache(tmp_path, "a") as cache:
        cache.add(entries.items())
    path = cache.path
    if what == "text":
        path.write_bytes(b"no database" * 1000)
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "damaged":
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(path.stat().st_size - 4096))
    else:
        path.unlink()
        if what == "folder":
            path.mkdir()
        else:
            with sqlite3.connect(path) as other:
                other.execute("CREATE TABLE things (a)")
            other.close()
    reader = CacheReader(path)
    assert reader.look_up(list(entries)) == {}
    assert reader.look_up(list(entries)) == {}
    with ItemCache(tmp_path, "a") as cache:
        cache.add(entries.items())
        cache.add(_entries(3000, 3001).items())
    found = CacheReader(path).look_up(list(entries))
    assert len(found) == (0 if what == "folder" else 3000)


def test_no_database_is_a_miss(tmp_path: Path) -> None:
    assert CacheReader(tmp_path / "none").look_up([KEY]) == {}
    assert CacheReader(None).look_up([KEY]) == {}


def test_a_locked_database_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coembed.curation.examination.item_cache._PATIENCE_S", 0.05)
    with ItemCache(tmp_path, "a") as cache:
        other = sqlite3.connect(cache.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        cache.add(_entries(0, 5).items())
        other.execute("COMMIT")
        other.close()
    assert cache.path.exists() and not list(tmp_path.glob("*.broken"))
    assert CacheReader(cache.path).look_up(list(_entries(0, 5))) == {}


def test_the_disk_is_not_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coembed.curation.examination.item_cache._LEAVE_FREE_BYTES", 2**70)
    with ItemCache(tmp_path, "a") as cache:
        cache.add(_entries(0, 5).items())
    assert CacheReader(cache.path).look_up(list(_entries(0, 5))) == {}


def test_the_identities_used_last_are_kept(tmp_path: Path) -> None:
    for identity in ("a", "b", "a", "c"):
        with ItemCache(tmp_path, identity):
            time.sleep(0.02)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.sqlite3", "c.sqlite3"]


_SCRIPT = """
import sys
from pathlib import Path
from coembed.curation.examination.item_cache import ItemCache, encode, item_key
from coembed.curation.candidate import Facts
cache = ItemCache(Path(sys.argv[1]), "a")
for part in range(10**6):
    keys = [item_key((part * 100 + i).to_bytes(32, "little"), "image") for i in range(100)]
    cache.add([(key, encode(key, Facts(part), {})) for key in keys])
    print(part, flush=True)
"""


def test_a_killed_writer_leaves_whole_transactions(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 20:
            break
    child.send_signal(signal.SIGKILL)
    child.communicate()
    with ItemCache(tmp_path, "a") as cache:
        keys = [item_key(i.to_bytes(32, "little"), "image") for i in range(20_000)]
        num = len(CacheReader(cache.path).look_up(keys))
    assert num >= 2100 and num % 100 == 0
    assert not list(tmp_path.glob("*.broken"))
