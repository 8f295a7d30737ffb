"""One process at a time: a lock file that a killed process frees."""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coembed.errors import ServiceError
from coembed.files import disk_errors


@contextmanager
def exclusive(path: Path, *, doing: str, wait: bool) -> Iterator[None]:
    """Hold the lock file `path`, for `doing` (said in messages).

    The lock belongs to the open file, so a killed process frees it. Where another process holds it:
    wait for it, or raise a ServiceError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(path), path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise ServiceError(
                    f"another process is {doing} ({path} is locked)",
                    hint="wait for it to end, or end it, and run the same command again",
                ) from None
            print(f"waiting for another process that is {doing}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
