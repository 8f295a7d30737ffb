"""A folder of things that are made once and used by many runs, bounded in size.

    <root>/<key>/           an entry: what its writer put there, and entry.json with the sizes
    <root>/<key>.lock       held shared by every process that uses the entry, exclusively by the
                            one that writes or removes it; then it holds the estimate
    <root>/.<key>.partial/  an entry being written, or what a killed writer left
    <root>/.<key>.removed/  an entry being removed
    <root>/.lock            held while room is made: short, and never while an entry is written

The kernel frees the locks of a dead process, so what is in use is what a living process uses, and
what lies there half done under a lock that is free is a dead one's. The folder belongs to the cache
alone: what is in it under a key's name and is no whole entry is swept.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Self

from coembed.errors import CoembedError, DataError
from coembed.files import disk_errors, read_json, write_json
from coembed.locking import exclusive

_ENTRY: Final = "entry.json"
_KEY: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]*")
_NAME: Final = re.compile(
    rf"(?:({_KEY.pattern})(?:\.lock)?|\.({_KEY.pattern})\.(?:partial|removed))"
)
_RETRY_S: Final = 0.02
# A guess: the run that fills the cache still has checkpoints and a model to write.
_RESERVE_BYTES: Final = 10**9

# Locks end with their file objects. A cache that nobody holds any more may still have its entries
# mapped, so those with entries in use live on until `close` or the end of the process.
_in_use: set[CacheFolder] = set()


class CacheFolder:
    """The cache under `root`, whose entries take at most `max_bytes` and leave `reserve_bytes` of
    the disk free. Where room is needed, the entries go that were used longest ago; one that a
    living process uses never goes.
    """

    def __init__(self, root: Path, max_bytes: int, *, reserve_bytes: int = _RESERVE_BYTES) -> None:
        self._root, self._max_bytes, self._reserve_bytes = root, max_bytes, reserve_bytes
        self._held: dict[str, _Lock] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Say that this process no longer uses the entries that it opened here."""
        for lock in self._held.values():
            lock.close()
        self._held.clear()
        _in_use.discard(self)

    def open(
        self,
        key: str,
        estimate_bytes: int | float,
        write: Callable[[Path], None],
        *,
        doing: str = "writing this part of the cache",
    ) -> Path | None:
        """The folder of the entry `key`, written first where it is not there; None without room.

        The entry stays until `close` or the end of this process. Of several processes that ask at
        once, one writes and the others wait; a reason for None is printed to stderr.

        Args:
            key: letters, digits, - and _; a hash of all that the content depends on.
            estimate_bytes: what the entry is going to take. Where it takes more, the bound is kept
                again at the next `open`.
            write: fills the empty folder that it is given, with anything but "entry.json".
            doing: what `write` does, for the message to processes that wait.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(f"the key {key!r}; expected letters, digits, - and _")
        place = self._root / key
        if key in self._held:
            return place
        with disk_errors(place):
            self._root.mkdir(parents=True, exist_ok=True)
            lock = _Lock(self._root / f"{key}.lock")
        try:
            while True:
                lock.share(doing)
                if _is_whole(place):
                    break
                if not lock.claim():  # another process has come to the same point
                    time.sleep(_RETRY_S)
                elif not self._write(key, lock, int(estimate_bytes), write):
                    lock.discard()
                    return None
                # Between an exclusive and a shared lock others may come in: look again.
            os.utime(place / _ENTRY)  # for whoever asks what was used longest ago
        except BaseException:
            lock.close()
            raise
        self._held[key] = lock
        _in_use.add(self)
        with exclusive(self._root / ".lock", doing="making room in the cache", wait=True):
            self._make_room(0)
        return place

    def _write(self, key: str, lock: _Lock, estimate: int, write: Callable[[Path], None]) -> bool:
        """Write the entry, holding its lock alone; False where there is no room."""
        place, partial = self._root / key, self._root / f".{key}.partial"
        if _is_whole(place):
            return True
        try:
            with exclusive(self._root / ".lock", doing="making room in the cache", wait=True):
                for left in (place, partial):
                    if left.exists():
                        shutil.rmtree(left)
                why = self._make_room(estimate, own=key)
                if why is not None:
                    return self._refuse(estimate, why)
                # From here on others see that this room is taken.
                lock.note(estimate)
                partial.mkdir()
            write(partial)
            _finish(partial)
            partial.rename(place)
            _sync(self._root)
        except (OSError, CoembedError) as error:
            if not _is_full_disk(error):
                raise
            return self._refuse(estimate, "the disk became full")
        finally:
            with suppress(FileNotFoundError):
                shutil.rmtree(partial)
        return True

    def _refuse(self, estimate: int, why: str) -> bool:
        print(
            f"the cache {self._root} has no room for {_amount(estimate)}: {why}",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        return False

    def _make_room(self, num_bytes: int, own: str | None = None) -> str | None:
        """Sweep, then remove what was used longest ago until `num_bytes` more fit.

        Returns why they do not, having removed nothing; with 0, removes all that it takes and may.
        Call it with the folder's lock. `own` is the key whose lock this process holds alone.
        """
        entries = [self._look_at(key) for key in self._keys() if key != own]
        try:
            free = sorted((e for e in entries if e.lock is not None), key=lambda e: e.used_ns)
            kept = sum(entry.num_bytes for entry in entries if entry.lock is None)
            removable = sum(entry.num_bytes for entry in free)
            most = self._max_bytes - kept
            # What others were promised and have not written yet is as good as gone.
            promised = sum(entry.promised for entry in entries)
            on_disk = shutil.disk_usage(self._root).free - promised - self._reserve_bytes
            if num_bytes and (num_bytes > most or num_bytes > on_disk + removable):
                return (
                    f"at most {_amount(self._max_bytes)} are allowed, {_amount(kept)} are in use, "
                    f"and {_amount(max(0, on_disk + removable))} of the disk can be had"
                )
            for entry in free:
                if removable + num_bytes <= most and num_bytes <= on_disk:
                    break
                self._remove(entry)
                removable -= entry.num_bytes
                on_disk += entry.num_bytes
            return None
        finally:
            for entry in entries:
                if entry.lock is not None:
                    entry.lock.close()

    def _look_at(self, key: str) -> _Entry:
        """Tell whether the entry `key` is in use, and sweep what of it is a dead process's."""
        place, partial = self._root / key, self._root / f".{key}.partial"
        lock = _Lock(self._root / f"{key}.lock")
        if not lock.claim():
            written = _size(partial)
            estimate = max(lock.noted(), written) if partial.exists() else 0
            lock.close()
            return _Entry(key, None, _size(place) + estimate, promised=estimate - written)
        for left in (partial, self._root / f".{key}.removed"):
            if left.exists():
                shutil.rmtree(left)
        if _is_whole(place):
            return _Entry(key, lock, _size(place), (place / _ENTRY).stat().st_mtime_ns)
        if place.exists():
            shutil.rmtree(place)
        lock.discard()
        return _Entry(key, None, 0)

    def _keys(self) -> list[str]:
        names = (_NAME.fullmatch(path.name) for path in self._root.iterdir())
        return sorted({name[1] or name[2] for name in names if name is not None})

    def _remove(self, entry: _Entry) -> None:
        """Remove a free entry; killed half way, it leaves nothing that looks whole."""
        assert entry.lock is not None
        aside = self._root / f".{entry.key}.removed"
        (self._root / entry.key).rename(aside)
        shutil.rmtree(aside)
        entry.lock.discard()


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry as it was found: free, its `lock` held alone; or in use by others (None).

    num_bytes: what it takes, or is going to. promised: the part of that which a living writer has
    not written yet.
    """

    key: str
    lock: _Lock | None
    num_bytes: int
    used_ns: int = 0
    promised: int = 0


class _Lock:
    """A lock file that may be held by many or by one, and removed by the one.

    A file that was removed while somebody waited for it is no lock any more: whoever gets it looks
    whether it still is the one at its path.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] = path.open("a+b")

    def share(self, doing: str) -> None:
        """Hold the lock with others, waiting for one who holds it alone; `doing` says why."""
        if not self._take(fcntl.LOCK_SH | fcntl.LOCK_NB):
            print(f"waiting for another process that is {doing}", file=sys.stderr, flush=True)
            self._take(fcntl.LOCK_SH)

    def claim(self) -> bool:
        """Hold the lock alone; False, holding nothing, where others hold it."""
        fcntl.flock(self._file, fcntl.LOCK_UN)
        return self._take(fcntl.LOCK_EX | fcntl.LOCK_NB)

    def note(self, number: int) -> None:
        """Leave `number` for those who find the lock taken."""
        self._file.truncate(0)
        self._file.write(str(number).encode())
        self._file.flush()

    def noted(self) -> int:
        """What the holder has noted; 0 where nothing."""
        self._file.seek(0)
        return int(self._file.read() or 0)

    def discard(self) -> None:
        """Remove the lock file, held alone, and let go."""
        self._path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let go. Idempotent."""
        self._file.close()

    def _take(self, how: int) -> bool:
        while True:
            try:
                fcntl.flock(self._file, how)
            except BlockingIOError:
                return False
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._file.fileno()), self._path.stat()):
                    return True
            self._file.close()
            self._file = self._path.open("a+b")


def _finish(folder: Path) -> None:
    """Bring a written entry to the disk, and say last of all what belongs to it.

    Without that a power cut could leave files of the right size that hold nothing.
    """
    files = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    for path in files.values():
        _sync(path)
    write_json(folder / _ENTRY, {"files": {name: p.stat().st_size for name, p in files.items()}})
    _sync(folder)


def _is_whole(place: Path) -> bool:
    """Whether `place` was written to its end and its files have the sizes they had then."""
    if not (place / _ENTRY).exists():
        return False
    try:
        sizes = read_json(place / _ENTRY, what="cache entry")["files"]
        return all((place / name).stat().st_size == size for name, size in sizes.items())
    except (DataError, OSError, KeyError, TypeError, AttributeError):
        return False


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _size(folder: Path) -> int:
    """Bytes of the files under `folder`; another process may be writing or renaming it."""
    total = 0
    with suppress(FileNotFoundError):
        for path in _files(folder):
            with suppress(FileNotFoundError):
                total += path.stat().st_size
    return total


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_full_disk(error: BaseException) -> bool:
    """Whether `error`, or what it explains, is a full disk."""
    causes = (error, error.__cause__)
    full = (errno.ENOSPC, errno.EDQUOT)
    return any(isinstance(cause, OSError) and cause.errno in full for cause in causes)


def _amount(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.3g} MB"
