"""The bounded cache: written once, kept while it is used, removed where room is short."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from coembed.errors import ServiceError
from coembed.training.cache_folder import CacheFolder

_KB = 1000


def _writer(num_bytes: int, calls: list[int] | None = None) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        if calls is not None:
            calls.append(num_bytes)
        (folder / "part").mkdir()
        (folder / "part" / "data").write_bytes(b"x" * num_bytes)

    return write


def _fill(root: Path, key: str, num_bytes: int, *, used_s: int, most: int = 10**9) -> None:
    """An entry that nobody uses, last used at `used_s`."""
    with CacheFolder(root, most, reserve_bytes=0) as cache:
        place = cache.open(key, num_bytes, _writer(num_bytes))
        assert place is not None
    os.utime(place / "entry.json", (used_s, used_s))


def _left(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()} - {".lock"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cache(root: Path) -> Iterator[CacheFolder]:
    with CacheFolder(root, 100 * _KB, reserve_bytes=0) as cache:
        yield cache


def test_an_entry_is_written_once(root: Path, cache: CacheFolder) -> None:
    calls: list[int] = []
    place = cache.open("a", 5, _writer(5, calls))
    assert place == root / "a"
    assert (place / "part" / "data").read_bytes() == b"xxxxx"
    assert cache.open("a", 5, _writer(5, calls)) == place
    with CacheFolder(root, 100 * _KB) as other:
        assert other.open("a", 5, _writer(5, calls)) == place
    assert calls == [5]
    assert _left(root) == {"a", "a.lock"}


def test_an_entry_whose_files_are_not_as_they_were_is_written_again(root: Path) -> None:
    _fill(root, "cut", 50, used_s=1)
    (root / "cut" / "part" / "data").write_bytes(b"short")
    _fill(root, "bare", 50, used_s=1)
    (root / "bare" / "entry.json").write_text("[]", encoding="utf-8")
    with CacheFolder(root, 100 * _KB, reserve_bytes=0) as cache:
        for key in ("cut", "bare"):
            place = cache.open(key, 50, _writer(50))
            assert place is not None
            assert (place / "part" / "data").stat().st_size == 50


def test_what_was_used_longest_ago_goes_first(root: Path, cache: CacheFolder) -> None:
    for key, used_s in (("old", 10), ("older", 5), ("new", 20)):
        _fill(root, key, 30 * _KB, used_s=used_s)
    assert cache.open("more", 30 * _KB, _writer(30 * _KB)) is not None
    assert _left(root) == {"old", "old.lock", "new", "new.lock", "more", "more.lock"}


def test_use_is_what_counts_and_not_age(root: Path, cache: CacheFolder) -> None:
    for key, used_s in (("first", 1), ("second", 2), ("third", 3)):
        _fill(root, key, 30 * _KB, used_s=used_s)
    with CacheFolder(root, 10**9, reserve_bytes=0) as other:
        other.open("first", 0, _writer(0))
    assert cache.open("more", 30 * _KB, _writer(30 * _KB)) is not None
    assert {"first", "third", "more"} <= _left(root)
    assert "second" not in _left(root)


def test_what_does_not_fit_is_refused_and_removes_nothing(
    root: Path, cache: CacheFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(root, "free", 30 * _KB, used_s=1)
    assert cache.open("used", 50 * _KB, _writer(50 * _KB)) is not None
    calls: list[int] = []
    assert cache.open("huge", 60 * _KB, _writer(1, calls)) is None
    assert calls == []
    assert _left(root) == {"free", "free.lock", "used", "used.lock"}
    said = capsys.readouterr().err
    assert "has no room for 0.06 MB: at most 0.1 MB are allowed, 0.05" in said


def test_the_disk_keeps_its_reserve(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(root, "free", 30 * _KB, used_s=1)
    taken = os.statvfs(root)

    def usage(_: Path) -> object:
        size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        return type("Usage", (), {"free": 100 * _KB - size})

    assert taken.f_bavail > 0
    monkeypatch.setattr("shutil.disk_usage", usage)
    with CacheFolder(root, 10**9, reserve_bytes=50 * _KB) as cache:
        assert cache.open("a", 51 * _KB, _writer(0)) is None
        assert "of the disk can be had" in capsys.readouterr().err
        assert "free" in _left(root)
        assert cache.open("a", 40 * _KB, _writer(40 * _KB)) is not None
        assert _left(root) == {"a", "a.lock"}


def test_an_estimate_that_was_too_low_is_made_good(root: Path) -> None:
    _fill(root, "old", 30 * _KB, used_s=1)
    with CacheFolder(root, 100 * _KB, reserve_bytes=0) as cache:
        assert cache.open("more", 1, _writer(80 * _KB)) is not None
        assert _left(root) == {"more", "more.lock"}


def test_a_lower_bound_takes_effect_when_an_entry_is_opened(root: Path) -> None:
    for used_s, key in enumerate(("a", "b", "c")):
        _fill(root, key, 30 * _KB, used_s=1 + used_s)
    with CacheFolder(root, 70 * _KB, reserve_bytes=0) as cache:
        assert cache.open("a", 0, _writer(0)) is not None
    assert _left(root) == {"a", "a.lock", "c", "c.lock"}


def test_a_writer_that_fails_leaves_nothing(root: Path, cache: CacheFolder) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        cache.open("a", 5, fail)
    assert _left(root) == {"a.lock"}
    assert cache.open("a", 5, _writer(5)) is not None


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_disk_that_fills_up_is_a_refusal(
    root: Path, cache: CacheFolder, capsys: pytest.CaptureFixture[str], wrapped: bool
) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        full = OSError(errno.ENOSPC, "no space")
        if wrapped:
            raise ServiceError("no space left on the disk") from full
        raise full

    assert cache.open("a", 5, fail) is None
    assert _left(root) == set()
    assert "the disk became full" in capsys.readouterr().err


def test_what_dead_processes_left_is_swept(root: Path, cache: CacheFolder) -> None:
    for name in (".dead.partial", ".gone.removed", "half", ".a.partial"):
        (root / name).mkdir(parents=True)
        (root / name / "data").write_bytes(b"x" * 90 * _KB)
    (root / "dead.lock").write_text("90000", encoding="utf-8")
    (root / "lonely.lock").touch()
    (root / "not one of ours").mkdir()
    assert cache.open("a", 50 * _KB, _writer(50 * _KB)) is not None
    assert _left(root) == {"a", "a.lock", "not one of ours"}


def test_a_key_is_no_path(cache: CacheFolder) -> None:
    for key in ("../x", "", ".a.partial", "a.lock"):
        with pytest.raises(ValueError, match="expected letters"):
            cache.open(key, 1, _writer(1))


def test_a_cache_that_is_forgotten_still_holds_what_is_mapped(root: Path) -> None:
    assert CacheFolder(root, 100 * _KB, reserve_bytes=0).open("a", 1, _writer(60 * _KB))
    with CacheFolder(root, 100 * _KB, reserve_bytes=0) as other:
        assert other.open("b", 60 * _KB, _writer(0)) is None
        assert "a" in _left(root)


_CHILD = """
import sys
from pathlib import Path
from coembed.training.cache_folder import CacheFolder

root, key, num_bytes, limit, how = sys.argv[1:]

def write(folder):
    print("writing", flush=True)
    if how == "slow":
        assert sys.stdin.readline()
    (folder / "data").write_bytes(b"y" * int(num_bytes))

place = CacheFolder(Path(root), int(limit), reserve_bytes=0).open(key, int(num_bytes), write)
print("opened" if place else "refused", flush=True)
sys.stdin.readline()
"""


class _Child:
    """Another process that opens an entry and uses it until it is told to end."""

    def __init__(self, root: Path, key: str, num_bytes: int, *, slow: bool = False) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable, "-c", _CHILD, str(root), key, str(num_bytes), str(100 * _KB),
                "slow" if slow else "quick",
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def says(self) -> str:
        return _pipe(self.process.stdout).readline().strip()

    def go_on(self) -> None:
        stdin = _pipe(self.process.stdin)
        stdin.write("\n")
        stdin.flush()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


@pytest.fixture
def start(root: Path) -> Iterator[Callable[..., _Child]]:
    children: list[_Child] = []

    def begin(key: str, num_bytes: int, *, slow: bool = False) -> _Child:
        children.append(_Child(root, key, num_bytes, slow=slow))
        return children[-1]

    yield begin
    for child in children:
        child.kill()


def test_what_another_process_uses_is_never_removed(
    root: Path, cache: CacheFolder, start: Callable[..., _Child]
) -> None:
    child = start("used", 60 * _KB)
    assert [child.says(), child.says()] == ["writing", "opened"]
    os.utime(root / "used" / "entry.json", (1, 1))
    assert cache.open("mine", 60 * _KB, _writer(60 * _KB)) is None
    assert (root / "used" / "data").stat().st_size == 60 * _KB
    child.kill()
    assert cache.open("mine", 60 * _KB, _writer(60 * _KB)) is not None
    assert _left(root) == {"mine", "mine.lock"}


def test_one_writes_and_the_other_waits(
    root: Path, cache: CacheFolder, start: Callable[..., _Child]
) -> None:
    first = start("a", 10, slow=True)
    assert first.says() == "writing"
    second = start("a", 10)
    assert "waiting for another process" in _pipe(second.process.stderr).readline()
    first.go_on()
    assert first.says() == "opened"
    assert second.says() == "opened"  # and never "writing"
    # Both use it, and it is there for a third without waiting for either.
    assert cache.open("a", 10, _writer(0)) == root / "a"


def test_the_room_of_a_living_writer_is_taken(
    root: Path, cache: CacheFolder, start: Callable[..., _Child]
) -> None:
    child = start("a", 60 * _KB, slow=True)
    assert child.says() == "writing"
    assert cache.open("b", 50 * _KB, _writer(50 * _KB)) is None
    assert (root / ".a.partial").is_dir()
    child.kill()
    assert cache.open("b", 50 * _KB, _writer(50 * _KB)) is not None
    assert _left(root) == {"b", "b.lock"}


def test_an_entry_of_a_killed_writer_is_written_by_the_next(
    cache: CacheFolder, start: Callable[..., _Child]
) -> None:
    child = start("a", 10, slow=True)
    assert child.says() == "writing"
    found: list[Path | None] = []
    thread = threading.Thread(target=lambda: found.append(cache.open("a", 10, _writer(7))))
    thread.start()
    child.kill()
    thread.join(timeout=30)
    assert found[0] is not None
    assert (found[0] / "part" / "data").stat().st_size == 7


def test_many_at_once_write_one_entry(root: Path, start: Callable[..., _Child]) -> None:
    children = [start("a", 10) for _ in range(3)]
    said = [[child.says()] for child in children]
    for child, words in zip(children, said, strict=True):
        if words == ["writing"]:
            words.append(child.says())
    assert sorted(words[-1] for words in said) == ["opened"] * 3
    assert sum(words[0] == "writing" for words in said) == 1
    assert _left(root) == {"a", "a.lock"}
