"""Read the media files of a pool, and nothing but those: no path leads out of its folder."""

from __future__ import annotations

import errno
import os
import re
import stat
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

# What is refused before any filter is asked.
INTAKE_REASONS = (
    "missing_path",
    "path_outside_pool",
    "unknown_modality",
    "missing_file",
    "not_a_file",
    "empty_file",
    "file_too_large",
    "unreadable_file",
)
# These may end without any change of the file's size or time: by a permission, say, or a mount.
PASSING_REASONS = ("path_outside_pool", "not_a_file", "unreadable_file")

# Not blocking, and looked at before it is read: a pipe would wait for ever. A link as the last
# part of the path is looked at before it is followed.
_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
)
# DVC checks a pool out as links into its cache where the disk allows nothing cheaper. An object of
# that cache is named by the MD5 of its content, so that nobody can point at anything else there.
_DVC_OBJECT = re.compile(rb"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}\Z")
_MANY_FOLDERS = 20_000


class MediaFile(NamedTuple):
    """The bytes of a file, or b"" with the reason and detail of why they were not read.

    `size` and `mtime_ns` are those of the opened file, None where none could be opened.
    """

    data: bytes
    reason: str = ""
    detail: str = ""
    size: int | None = None
    mtime_ns: int | None = None


class MediaReader:
    """Reads files of the pool at `pool` of at most `max_bytes` bytes."""

    def __init__(self, pool: Path, max_bytes: int) -> None:
        self._pool = os.fsencode(pool)
        self._root = os.path.realpath(self._pool)
        self._max_bytes = max_bytes
        self._inside: dict[str, bool] = {}

    def read(self, path: str) -> MediaFile:
        """The file at `path`, relative to the pool. Never raises an OSError."""
        if not path:
            return MediaFile(b"", "missing_path", "the row names no file")
        if path.startswith("/") or "\0" in path or ".." in path.split("/"):
            return _outside(path, "is not a path inside the pool")
        if not self._folder_is_inside(path.rpartition("/")[0]):
            return _outside(path, "lies in a folder that is a link out of the pool")
        name = self._pool + b"/" + path.encode()
        try:
            descriptor = os.open(name, _FLAGS)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EMLINK):
                return _refusal(error)
            # A link. Where it leads may be read; what lies there is opened by its true name.
            name = os.path.realpath(name)
            if not self._is_inside(name) and not _DVC_OBJECT.search(name):
                return _outside(path, "is a link out of the pool")
            try:
                descriptor = os.open(name, _FLAGS)
            except OSError as second:
                return _refusal(second)
        try:
            return self._read(descriptor)
        except OSError as error:
            return _refusal(error)
        finally:
            os.close(descriptor)

    def status(self, path: str) -> tuple[int, int] | None:
        """Size and mtime_ns of the file at `path` now, None where there is no file."""
        try:
            found = os.stat(self._pool + b"/" + path.encode())  # noqa: PTH116 - bytes
        except (OSError, ValueError):
            return None
        return found.st_size, found.st_mtime_ns

    def _read(self, descriptor: int) -> MediaFile:
        status = os.fstat(descriptor)
        size, mtime_ns = status.st_size, status.st_mtime_ns
        if not stat.S_ISREG(status.st_mode):
            return MediaFile(b"", "not_a_file", "a folder, device or pipe, not a file")
        if size > self._max_bytes:
            found = f"{size:,} bytes > {self._max_bytes:,} bytes"
            return MediaFile(b"", "file_too_large", found, size, mtime_ns)
        data = os.read(descriptor, size + 1)
        if len(data) != size:  # cut short by a signal, or the file grows
            pieces = [data]
            while pieces[-1] and sum(map(len, pieces)) <= self._max_bytes:
                pieces.append(os.read(descriptor, 1 << 20))
            data = b"".join(pieces)
            if len(data) > self._max_bytes:
                found = f"more than {self._max_bytes:,} bytes"
                return MediaFile(b"", "file_too_large", found, size, mtime_ns)
        if not data:
            return MediaFile(b"", "empty_file", "0 bytes", size, mtime_ns)
        return MediaFile(data, "", "", size, mtime_ns)

    def _folder_is_inside(self, folder: str) -> bool:
        known = self._inside.get(folder)
        if known is None:
            if len(self._inside) >= _MANY_FOLDERS:
                self._inside.clear()
            real = os.path.realpath(self._pool + b"/" + folder.encode())
            known = self._inside[folder] = self._is_inside(real)
        return known

    def _is_inside(self, real: bytes) -> bool:
        return real == self._root or real.startswith(self._root.rstrip(b"/") + b"/")


def read_media(pool: Path, path: str, max_bytes: int) -> tuple[bytes, str, str]:
    """The bytes of one file of the pool, or b"" with the reason and detail of why not."""
    return _reader(pool, max_bytes).read(path)[:3]


@lru_cache(maxsize=4)
def _reader(pool: Path, max_bytes: int) -> MediaReader:
    return MediaReader(pool, max_bytes)


def _outside(path: str, what: str) -> MediaFile:
    return MediaFile(b"", "path_outside_pool", f"{path!r} {what}")


def _refusal(error: OSError) -> MediaFile:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return MediaFile(b"", "missing_file", "no such file")
    if error.errno == errno.ENXIO:  # a socket
        return MediaFile(b"", "not_a_file", "a socket, not a file")
    return MediaFile(b"", "unreadable_file", error.strerror or type(error).__name__)
