"""How large the parts of a table may be, so that any table is read in bounded memory, and how
foreign text is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coembed.errors import DataError

# All of these are guesses far above what pools hold and far below what hurts.
MAX_COLUMNS = 4096
MAX_ROW_BYTES = 4 << 20
# 8,192 rows, the pool's usual batch: 64 KiB a row.
MAX_BATCH_BYTES = 512 << 20
PARQUET_LIMITS: dict[str, Any] = {
    # Names and statistics in a footer; a million column chunks is 1,000 columns x 1,000 groups.
    "thrift_string_size_limit": 64 << 20,
    "thrift_container_size_limit": 4_000_000,
    "page_checksum_verification": True,
    "pre_buffer": False,
    "buffer_size": 1 << 20,  # column chunks are read in pieces, not whole
}


def shown(text: str, limit: int = 500) -> str:
    """Foreign text as one line of up to about `limit` characters that any terminal and any UTF-8
    file can hold."""
    if len(text) > limit:
        text = f"{text[:limit]}…"
    return "".join(c if c.isprintable() else "�" for c in text)


def listed(names: Sequence[str]) -> str:
    """Names of columns as an error lists them: quoted, the first forty, long ones cut."""
    quoted = [f"'{shown(name, 60)}'" for name in names[:40]]
    more = [f"and {len(names) - 40:,} more"] if len(names) > 40 else []
    return ", ".join(quoted + more) or "none"


def utf8(text: str) -> str:
    """`text` without what UTF-8 cannot hold (lone surrogates)."""
    return text.encode("utf-8", "replace").decode()


def check_columns(names: Sequence[str], path: Path) -> list[str]:
    """`names`, if there are not too many and none is there twice (but the empty one)."""
    if len(names) > MAX_COLUMNS:
        raise DataError(
            f"{path} has {len(names):,} columns; a table may have {MAX_COLUMNS:,}",
            hint="keep path, caption and the attributes that searches and slices use",
        )
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{path}: the name of a column is not UTF-8 text: {shown(name, 60)}",
                hint="save it as UTF-8",
            ) from None
    twice = [name for name, num in Counter(names).items() if num > 1 and name]
    if twice:
        raise DataError(
            f"{path} has more than one column '{shown(twice[0], 60)}'",
            hint="rename or remove all but one",
        )
    return list(names)
