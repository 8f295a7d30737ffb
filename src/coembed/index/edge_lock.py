"""Who builds a collection: a lock file that says so, and is removed by its last owner."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path


def lock(path: Path, *, wait_s: float, owner: str) -> int | None:
    """Take the lock file `path` until this process ends; None if another has it for `wait_s`.

    `owner` is written into it, for others to read. Whoever holds the lock may remove the file.
    """
    deadline = time.monotonic() + wait_s
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(descriptor, path):
                os.truncate(descriptor, 0)
                os.write(descriptor, owner.encode())
                return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
            time.sleep(0.05)
        os.close(descriptor)


def _is_still(descriptor: int, path: Path) -> bool:
    """Whether the file at `path` is the open one: its last owner may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def is_held(path: Path) -> bool:
    """Whether a process has the lock file `path` now."""
    try:
        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
