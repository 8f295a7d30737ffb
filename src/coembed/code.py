"""Which code made something: a hash over the rooms that decide about it."""

from __future__ import annotations

from pathlib import Path

from coembed.files import sha256_file, sha256_json

_PACKAGE = Path(__file__).parent


def code_hash(*rooms: str) -> str:
    """SHA-256 over the names and contents of the Python files of `rooms`: packages ("training") or
    single modules ("draws")."""
    single = [_PACKAGE / f"{room}.py" for room in rooms]
    files = sorted(
        [file for room in rooms for file in (_PACKAGE / room).rglob("*.py")]
        + [file for file in single if file.is_file()]
    )
    return sha256_json(
        [(file.relative_to(_PACKAGE).as_posix(), sha256_file(file)) for file in files]
    )
