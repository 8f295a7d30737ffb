"""Qdrant's embedded store: a folder that one process at a time may open.

The client keeps a collection in an SQLite file, and the points in it as pickles: a folder that
coembed did not write itself must never be opened.
"""

from __future__ import annotations

import json
import os
import shlex
import sqlite3
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient

from coembed.errors import ServiceError
from coembed.files import write_json

_NOTE = "opened-by.json"


def open_store(path: Path, *, wait_s: float) -> QdrantClient:
    """Open the store in the folder `path`, waiting up to `wait_s` for another process to leave it.

    Raises ServiceError that says which process has it open.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "not recommended for more than 20,000 points"
                client = QdrantClient(path=str(path), force_disable_check_same_thread=True)
        except RuntimeError as error:
            if "already accessed" not in str(error):
                raise
            if time.monotonic() >= deadline:
                raise ServiceError(
                    f"the index in {path} is open in another process{_opened_by(path)}",
                    hint="wait for it to end or stop it; to search and build at the same time, "
                    "run a Qdrant server and set QDRANT_URL",
                ) from None
            time.sleep(0.2)
        except (ValueError, KeyError, TypeError, sqlite3.Error) as error:
            raise ServiceError(
                f"the index in {path} cannot be opened: {error}",
                hint="if it is damaged, move that folder away; `coembed index` and "
                "`coembed promote` build it again from artifacts/embeddings",
            ) from error
        else:
            command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
            # Only a note for that message: the lock is the store's own.
            write_json(path / _NOTE, {"pid": os.getpid(), "command": command})
            return client


def _opened_by(path: Path) -> str:
    """Text such as " (process 123: coembed index)", empty when it is not known who."""
    try:
        note = json.loads((path / _NOTE).read_text(encoding="utf-8"))
        pid, command = int(note["pid"]), str(note["command"])
        os.kill(pid, 0)
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" (process {pid}: {command})"


def load_fast(client: QdrantClient, name: str) -> None:
    """Stop waiting for the disk at every point of a collection, until `settle`.

    The store commits point by point: with a busy disk 47 points/s were written, without the wait
    6,600. A killed process still loses nothing, only a power cut does; the collection's metadata
    then says that it is not whole, and it is loaded again.
    """
    connection = _connection(client, name)
    if connection is not None:
        connection.execute("PRAGMA synchronous=OFF")


def settle(client: QdrantClient, name: str) -> None:
    """Bring everything that `load_fast` left to the system onto the disk."""
    connection = _connection(client, name)
    if connection is None:
        return
    connection.execute("PRAGMA synchronous=FULL")
    for _, _, file in connection.execute("PRAGMA database_list").fetchall():
        if file:
            for path in (Path(file), Path(file).parent):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)


def _connection(client: QdrantClient, name: str) -> sqlite3.Connection | None:
    """The collection's own connection. Not public: where a client has none, loading is slower."""
    local: Any = getattr(client, "_client", None)
    collection = getattr(local, "collections", {}).get(name)
    connection = getattr(getattr(collection, "storage", None), "storage", None)
    return connection if isinstance(connection, sqlite3.Connection) else None
