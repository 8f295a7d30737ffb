"""Files written whole or not at all, hashes, and receipts.

Everything coembed writes is written beside its place and renamed, so that a reader never meets half
a file and a killed process leaves nothing that looks finished. A receipt is written last: where it
exists, the work it stands for is whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from coembed.errors import DataError, ServiceError, UserError

RECEIPT = "receipt.json"
_IMPOSSIBLE_PLACES = (
    errno.EISDIR, errno.ENOTDIR, errno.ENOENT, errno.ENAMETOOLONG, errno.EEXIST,
)  # fmt: skip


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of the file's bytes in hexadecimal, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of `value` written as canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256_bytes(text.encode())


def sha256_tree(folder: Path) -> str:
    """SHA-256 over the relative names and contents of all files under `folder`, in name order."""
    entries = [
        (path.relative_to(folder).as_posix(), sha256_file(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return sha256_json(entries)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed and renamed to `path`."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        with suppress(OSError):  # Its folder may never have been there.
            partial.unlink(missing_ok=True)


def sweep_partials(folder: Path) -> None:
    """Remove what killed processes left of files in `folder`. Only one process may write there."""
    for path in folder.glob(".*.partial"):
        path.unlink(missing_ok=True)


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out`; on success it takes the place of `out`.

    The name is fixed, so that what a killed run left behind is cleared by the next one.
    """
    partial = out.with_name(f".{out.name}.partial")
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()
        yield partial
        if out.exists():
            shutil.rmtree(out)
        partial.replace(out)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path, *, what: str, hint: str | None = None) -> Any:
    """Read JSON; a missing or malformed file is a DataError that says `what` it was."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"no {what} at {path}", hint=hint) from None
    except (ValueError, OSError) as error:
        raise DataError(f"the {what} at {path} cannot be read: {error}", hint=hint) from error


def write_receipt(folder: Path, receipt: Mapping[str, Any]) -> None:
    """Write the receipt of `folder`. Call it last."""
    write_json(folder / RECEIPT, dict(receipt))


def read_receipt(folder: Path, *, what: str, made_by: str) -> dict[str, Any]:
    """Read the receipt of `folder`; `made_by` is the command that makes the folder."""
    hint = f"run `{made_by}` first"
    receipt = read_json(folder / RECEIPT, what=f"{what} (receipt)", hint=hint)
    if not isinstance(receipt, dict):
        raise DataError(f"the receipt of {folder} is not a JSON object", hint=hint)
    return receipt


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden place into one clear error that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ServiceError(
                f"no space left on the disk while writing {path}",
                hint=f"free some space (`df -h {path.parent}`) and run the same command again",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ServiceError(
                f"may not write {path}: {error.strerror}",
                hint="check the owner and the permissions of that folder",
            ) from error
        if error.errno in _IMPOSSIBLE_PLACES:
            raise UserError(
                f"cannot write {path}: {error.strerror}",
                hint="name a file in a folder that is there",
            ) from error
        raise
