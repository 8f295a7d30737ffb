"""What was measured of an item, kept by the hash of its bytes: a grown pool costs its new items.

One SQLite database for each measuring identity (code, filters and settings that measuring depends
on). It is only a cache: without it, or with a broken one, the outcome is the same.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from operator import attrgetter
from pathlib import Path

from coembed.curation.candidate import Facts
from coembed.curation.filters.base import Cell
from coembed.files import disk_errors

Measured = tuple[Facts, dict[str, Cell]]

_values = attrgetter(*(field.name for field in fields(Facts)))
_write_json = json.JSONEncoder(separators=(",", ":")).encode
_APPLICATION_ID = 0x636F656D  # "coem"
_KEEP = 2
_PATIENCE_S = 5.0
_LEAVE_FREE_BYTES = 2_000_000_000
_ASK_AT_ONCE = 512
_NUMBER = struct.Struct("<I")
_SIDE_FILES = ("-wal", "-shm", "-journal")


def item_key(digest: bytes, modality: str) -> bytes:
    """The key of an item: its SHA-256 (32 bytes) and its modality."""
    return digest + modality.encode()


def encode(key: bytes, facts: Facts, columns: Mapping[str, Cell]) -> bytes:
    """What was measured as bytes: CRC-32, length of the JSON, JSON, binary cells."""
    others, sizes, blobs = {}, {}, []
    for name, cell in columns.items():
        if isinstance(cell, bytes):
            sizes[name] = len(cell)
            blobs.append(cell)
        else:
            others[name] = cell
    text = _write_json([_values(facts), others, sizes]).encode()
    rest = b"".join([_NUMBER.pack(len(text)), text, *blobs])
    return _NUMBER.pack(zlib.crc32(rest, zlib.crc32(key))) + rest


def decode(key: bytes, value: bytes) -> Measured | None:
    """The inverse of `encode`; None where `value` is damaged or belongs to another key."""
    if len(value) < 2 * _NUMBER.size:
        return None
    (checksum,) = _NUMBER.unpack_from(value)
    rest = value[_NUMBER.size :]
    if zlib.crc32(rest, zlib.crc32(key)) != checksum:
        return None
    at = _NUMBER.unpack_from(rest)[0] + _NUMBER.size
    facts, columns, sizes = json.loads(rest[_NUMBER.size : at])
    for name, size in sizes.items():
        columns[name] = rest[at : at + size]
        at += size
    return Facts(*facts), columns


class CacheReader:
    """Looks items up; what worker processes hold. Any trouble with the database is a miss."""

    def __init__(self, path: Path | None) -> None:
        self._connection: sqlite3.Connection | None = None
        if path is not None and path.exists():
            with suppress(sqlite3.Error):
                self._connection = sqlite3.connect(
                    f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_PATIENCE_S
                )

    def look_up(self, keys: Sequence[bytes]) -> dict[bytes, Measured]:
        """What is known of `keys`."""
        found: dict[bytes, Measured] = {}
        if self._connection is None:
            return found
        try:
            for start in range(0, len(keys), _ASK_AT_ONCE):
                # In order of the index, whose pages are then read once each.
                some = sorted(keys[start : start + _ASK_AT_ONCE])
                marks = ",".join("?" * len(some))
                asked = self._connection.execute(
                    f"SELECT key, value FROM items WHERE key IN ({marks})", some
                )
                for key, value in asked:
                    measured = decode(key, value)
                    if measured is not None:
                        found[key] = measured
        except (sqlite3.Error, ValueError, TypeError):
            self.close()
        return found

    def close(self) -> None:
        """Ask no more."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


class ItemCache:
    """The cache of one measuring identity in `folder`; what the parent process holds and writes.

    The databases of the identities used last are kept, older ones removed. A context manager.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.path = folder / f"{identity[:32]}.sqlite3"
        self._connection: sqlite3.Connection | None = None
        with disk_errors(self.path):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = self._open()
        except sqlite3.OperationalError:  # locked by another run, or a disk that cannot do it
            return
        except sqlite3.DatabaseError:  # not ours, or broken
            self._put_aside()
            with suppress(sqlite3.Error):
                self._connection = self._open()
        with suppress(OSError):
            self.path.touch()
        _prune(folder, self.path)

    def add(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """Write (key, encoded) entries, all or none. A cache that cannot be written stops, and so
        does one that would fill the disk."""
        if self._connection is None:
            return
        if shutil.disk_usage(self.path.parent).free < _LEAVE_FREE_BYTES:
            return
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO items VALUES (?, ?)", entries)
        except sqlite3.Error as error:
            self.close()
            if not isinstance(error, sqlite3.OperationalError):
                self._put_aside()
                with suppress(sqlite3.Error):
                    self._connection = self._open()

    def close(self) -> None:
        """Write no more."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        is_new = not self.path.exists()
        connection = sqlite3.connect(self.path, timeout=_PATIENCE_S)
        try:
            if is_new:
                # Values of two to three kilobytes would leave SQLite's usual pages half empty.
                connection.execute("PRAGMA page_size = 16384")
                connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            (found,) = connection.execute("PRAGMA application_id").fetchone()
            if found != _APPLICATION_ID:
                raise sqlite3.DatabaseError("not an item cache")
            # Readers go on while the parent writes; a killed process leaves whole transactions.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS items (key BLOB PRIMARY KEY, value BLOB NOT NULL)"
            )
            connection.execute("SELECT key, value FROM items LIMIT 1").fetchone()
            connection.commit()
        except BaseException:
            connection.close()
            raise
        return connection

    def _put_aside(self) -> None:
        with suppress(OSError):
            self.path.replace(self.path.with_suffix(".broken"))
        _remove_side_files(self.path)

    def __enter__(self) -> ItemCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _prune(folder: Path, own: Path) -> None:
    with suppress(OSError):
        others = sorted(folder.glob("*.sqlite3"), key=lambda path: -path.stat().st_mtime_ns)
        for path in [path for path in others if path != own][_KEEP - 1 :]:
            path.unlink()
            _remove_side_files(path)


def _remove_side_files(path: Path) -> None:
    for ending in _SIDE_FILES:
        with suppress(OSError):
            path.with_name(path.name + ending).unlink()
