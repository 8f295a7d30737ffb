"""Opening a registry: an embedded store by one process at a time, a server where there is one."""

from __future__ import annotations

import contextlib
import fcntl
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from coembed.errors import ServiceError, UserError
from coembed.files import disk_errors

_EMBEDDED = "sqlite:///"


@contextlib.contextmanager
def opening(uri: str) -> Iterator[None]:
    """Hold this while a client is made for `uri`. Raises UserError or ServiceError.

    An embedded store's tables are made by whoever comes first: two at once would collide.
    """
    if not uri.startswith(_EMBEDDED):
        _check_server(uri)
        yield
        return
    database = Path(uri.removeprefix(_EMBEDDED))
    with disk_errors(database):
        database.parent.mkdir(parents=True, exist_ok=True)
        lock = database.with_suffix(".lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_server(uri: str) -> None:
    """Fail at once where nothing listens: MLflow's own client would retry for minutes."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.hostname is None:
        raise UserError(
            f"MLFLOW_TRACKING_URI is {uri!r}",
            hint="expected http://HOST:PORT of an MLflow server; unset it to use the store in "
            "this project's folder",
        )
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=10).close()
    except OSError as error:
        raise ServiceError(
            f"the registry at {uri} does not answer ({error})",
            hint="is the MLflow server running? Unset MLFLOW_TRACKING_URI to use the store in "
            "this project's folder",
        ) from error
