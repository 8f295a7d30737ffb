"""The media of a pool: files named after the SHA-256 of their bytes, so that each is there once."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from coembed.files import sha256_bytes, sha256_file
from coembed.pairs.media_types import file_ending, sniff
from coembed.pairs.readers.base import Refusal, Row


class MediaStore:
    """Puts media into `pool`, by way of `incoming`, a folder on the same disk.

    Files are copied, or hard-linked with `link` where the disk allows it; never moved.
    """

    def __init__(self, pool: Path, incoming: Path, *, link: bool, max_bytes: int) -> None:
        self._pool, self._incoming = pool, incoming
        self._link, self._max_bytes = link, max_bytes
        self.num_added = 0
        self.num_bytes = 0

    def put(self, row: Row) -> tuple[str, str] | Refusal:
        """Put the media of `row` into the pool: (item id, path in the pool), or why not."""
        if isinstance(row.media, bytes):
            return self._store_bytes(row, row.media)
        try:
            return self._store_file(row, row.media)
        except (FileNotFoundError, NotADirectoryError):
            return Refusal(row.where, "missing_file", f"no file {row.media}")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            return Refusal(row.where, "unreadable_file", f"{row.media}: {error.strerror}")

    def _store_bytes(self, row: Row, media: bytes) -> tuple[str, str] | Refusal:
        if refusal := self._check_size(row, len(media)):
            return refusal
        item_id = sha256_bytes(media)
        path, target = self._place(item_id, media[:64], row.name)
        if not _is_there(target, len(media)):
            held = self._incoming / item_id
            held.write_bytes(media)
            self._move_in(held, target, len(media))
        return item_id, path

    def _store_file(self, row: Row, source: Path) -> tuple[str, str] | Refusal:
        if not source.is_file():
            if source.exists():
                return Refusal(row.where, "not_a_file", f"{source} is a folder, device or pipe")
            raise FileNotFoundError
        size = source.stat().st_size
        if refusal := self._check_size(row, size):
            return refusal
        with source.open("rb") as file:
            head = file.read(64)
            file.seek(0)
            item_id = hashlib.file_digest(file, "sha256").hexdigest()
        path, target = self._place(item_id, head, source.name)
        if not _is_there(target, size):
            held = self._incoming / item_id
            if not (self._link and _try_link(source, held)):
                with source.open("rb") as file, held.open("wb") as copy:
                    _copy(file, copy, size)
            # A file that is being written would lie under the name of what it no longer is.
            if sha256_file(held) != item_id:
                held.unlink()
                return Refusal(row.where, "changed_file", f"{source} changed while it was read")
            self._move_in(held, target, size)
        return item_id, path

    def _check_size(self, row: Row, size: int) -> Refusal | None:
        if not size:
            return Refusal(row.where, "empty_file", f"{row.name}: 0 bytes")
        if size > self._max_bytes:
            detail = f"{row.name}: {size:,} bytes > {self._max_bytes:,} bytes"
            return Refusal(row.where, "file_too_large", detail)
        return None

    def _place(self, item_id: str, head: bytes, name: str) -> tuple[str, Path]:
        """Where media lie: relative to the pool, and as a path. The ending is what the bytes say,
        so that one picture called .jpg and .jpeg is one file."""
        ending = sniff(head) or file_ending(name)
        if not (ending.isascii() and ending.isalnum() and len(ending) <= 8):
            ending = "bin"
        path = f"media/{item_id[:2]}/{item_id}.{ending}"
        return path, self._pool / path

    def _move_in(self, held: Path, target: Path, size: int) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        held.replace(target)
        self.num_added += 1
        self.num_bytes += size


def _is_there(target: Path, size: int) -> bool:
    """Whether media are in the pool already. A file of the wrong size (a power cut) is not."""
    try:
        return target.stat().st_size == size
    except FileNotFoundError:
        return False


def _copy(file: BinaryIO, copy: BinaryIO, size: int) -> None:
    """Copy `size` bytes: a file that grows without end must not fill the disk."""
    while size and (data := file.read(min(size, 1 << 20))):
        copy.write(data)
        size -= len(data)


def _try_link(source: Path, held: Path) -> bool:
    try:
        os.link(source.resolve(), held)
    except OSError:  # another disk, or a file system without links
        return False
    return True
