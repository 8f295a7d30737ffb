"""A pool's history: what each ingest brought, in `history.jsonl`, which is versioned with the pool.

No dates and no machine's paths: the same sources, ingested in the same order, give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from coembed.errors import DataError
from coembed.files import write_text

HISTORY = "history.jsonl"


@dataclass(frozen=True, slots=True)
class Ingested:
    """What one ingest brought. `version` counts from 1.

    `source` is a name without its folder. `tables` are the tables it wrote, by name in `pairs/`;
    `num_pairs` and `num_media` count their rows and the distinct media these name, `num_refused`
    the rows of the source that were not taken. Where `complete` is false the ingest was broken off,
    and its numbers are 0.
    """

    version: int
    source: str
    reader: str
    tables: tuple[str, ...]
    num_pairs: int = 0
    num_media: int = 0
    num_refused: int = 0
    complete: bool = False


def read_history(pool: Path) -> tuple[Ingested, ...]:
    """The ingests into `pool`, oldest first; none for a pool that was not made by `ingest`.

    Raises DataError when the file is not as `write_history` leaves it.
    """
    path = pool / HISTORY
    if not path.exists():
        return ()
    history = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            history.append(Ingested(**{**entry, "tables": tuple(entry["tables"])}))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path}, line {len(history) + 1} is not an entry of a pool's history: {error}",
            hint="`dvc checkout` brings the versioned file back; the pool can do without it",
        ) from error
    return tuple(history)


def write_history(pool: Path, history: Sequence[Ingested]) -> None:
    """Write all of the history, whole or not at all."""
    lines = [json.dumps(asdict(entry), ensure_ascii=False, sort_keys=True) for entry in history]
    write_text(pool / HISTORY, "".join(f"{line}\n" for line in lines))


class HistoryWriter:
    """Keeps the entry of one ingest.

    The entry is there, incomplete, before the first table is, so that a killed ingest that is run
    again goes on with it and ends with the same file as one that was never killed.
    """

    def __init__(self, pool: Path, *, source: str, reader: str) -> None:
        self._pool = pool
        self._history = list(read_history(pool))
        mine = [
            index
            for index, entry in enumerate(self._history)
            if not entry.complete and (entry.source, entry.reader) == (source, reader)
        ]
        self._place = mine[-1] if mine else len(self._history)
        if not mine:
            self._history.append(Ingested(len(self._history) + 1, source, reader, ()))

    @property
    def tables(self) -> list[Path]:
        """The tables of this ingest that are there, those of its killed runs first."""
        named = [self._pool / "pairs" / name for name in self._history[self._place].tables]
        return [path for path in named if path.exists()]

    def announce(self, table: Path) -> None:
        """Say that `table` is about to be written."""
        names = [path.name for path in self.tables if path != table]
        self._write(tables=(*names, table.name))

    def complete(self, *, num_pairs: int, num_media: int, num_refused: int) -> None:
        """Say that all tables are written. Nothing is said of an ingest that wrote none."""
        names = tuple(path.name for path in self.tables)
        if names:
            self._write(
                tables=names,
                num_pairs=num_pairs,
                num_media=num_media,
                num_refused=num_refused,
                complete=True,
            )

    def _write(self, **changes: object) -> None:
        changed = replace(self._history[self._place], **changes)  # type: ignore[arg-type]
        self._history[self._place] = changed
        write_history(self._pool, self._history)
