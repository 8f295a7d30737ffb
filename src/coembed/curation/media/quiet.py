"""Keep C libraries from writing to the standard error."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.Lock()


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Throw away what is written to file descriptor 2 meanwhile.

    libtiff and mpg123 write what they think of a file there, and Pillow and libsndfile give no way
    to stop them. Other threads' words are lost, too, for the milliseconds that it takes.
    """
    with _LOCK:
        saved = os.dup(2)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            os.close(nowhere)
