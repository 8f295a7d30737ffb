"""Ingest: bring pairs from a table, folder, tar or COCO file into a pool.

Media go to `media/<aa>/<sha256>.<ending>`, so that the same bytes are there once, and the new pairs
to tables of their own in `pairs/`. Nothing that is there is changed: ingesting a source twice, or
again after a kill, ends with the same files, byte for byte.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from coembed.errors import DataError, ServiceError, UserError
from coembed.files import disk_errors, sweep_partials
from coembed.pairs.history import HistoryWriter
from coembed.pairs.intake import Intake
from coembed.pairs.known_pairs import KnownPairs
from coembed.pairs.limits import shown
from coembed.pairs.media_store import MediaStore
from coembed.pairs.readers.base import Reader, ReadOptions, Refusal, Row
from coembed.pairs.refusals import Refusals
from coembed.progress import tracker
from coembed.settings import component_names

_READERS = "coembed.pairs.readers"
_FEW_ROWS = 500_000  # whose paths are in memory in no time


@dataclass(frozen=True)
class IngestSummary:
    """What an ingest did. `num_known` pairs were in the pool already or came twice."""

    reader: str
    num_added: int
    num_known: int
    num_media_added: int
    num_media_bytes: int
    refused: Mapping[str, int]
    examples: tuple[Refusal, ...]
    parts: tuple[Path, ...]

    @property
    def num_refused(self) -> int:
        """Rows that were not taken."""
        return sum(self.refused.values())

    def rows(self) -> tuple[tuple[str, str], ...]:
        """(label, value) as a person reads them."""
        table = [
            ("read as", self.reader),
            ("pairs added", f"{self.num_added:,}"),
            ("pairs that were there", f"{self.num_known:,}"),
            ("media added", f"{self.num_media_added:,} ({self.num_media_bytes / 1e6:,.1f} MB)"),
            ("rows refused", f"{self.num_refused:,}"),
        ]
        ranked = sorted(self.refused.items(), key=lambda refusal: (-refusal[1], refusal[0]))
        table += [(f"refused: {reason}", f"{num:,}") for reason, num in ranked]
        table += [(f"  {r.where}", f"{r.reason}: {r.detail}") for r in self.examples]
        return tuple(table)


def ingest(
    source: Path,
    pool: Path,
    *,
    reader: str | None = None,
    columns: Mapping[str, str] | None = None,
    media_root: Path | None = None,
    link: bool = False,
    refused: Path | None = None,
    max_media_bytes: int = 1 << 30,
    index: Path | None = None,
) -> IngestSummary:
    """Add the pairs of `source` to the pool at `pool`, which is made if it is not there.

    `reader` is the name of a format (guessed when None); `columns` maps our names ("path",
    "caption", attributes) to the source's; relative paths start at `media_root` (the source's own
    folder when None). Media are copied, or hard-linked with `link` (copied where that cannot be).
    Every refused row goes to the CSV at `refused`. `index` is a file, not in the pool, that keeps
    the ids of its pairs for the next ingest; where None, they are read from the pool's tables.

    Raises UserError when the source is missing, of no known format, lacks a column, or has not one
    usable row, and ServiceError while another process ingests into the pool.
    """
    chosen, name = _choose_reader(source, reader)
    if media_root is not None and not media_root.is_dir():
        raise UserError(f"the media root {media_root} is not a folder")
    options = ReadOptions(dict(columns or {}), media_root, max_media_bytes)
    incoming = pool / ".ingest"
    with ExitStack() as stack:
        found: Iterator[Row | Refusal] = chosen.read(source, options)
        # The first row is read before anything is made: a wrong source leaves no trace.
        row = next(found, None)
        stack.enter_context(disk_errors(pool))
        if not pool.exists():
            pool.mkdir(parents=True)
            stack.callback(_remove_if_empty, pool)
        stack.enter_context(_alone(pool))
        shutil.rmtree(incoming, ignore_errors=True)  # what a killed run left
        sweep_partials(pool)
        sweep_partials(pool / "pairs")
        incoming.mkdir()
        stack.callback(shutil.rmtree, incoming, ignore_errors=True)
        media = MediaStore(pool, incoming, link=link, max_bytes=max_media_bytes)
        where = index or incoming / "known.sqlite"
        known = stack.enter_context(KnownPairs(pool / "pairs", where, lasting=index is not None))
        history = HistoryWriter(pool, source=shown(source.resolve().name), reader=name)
        intake = Intake(pool, media=media, known=known, history=history)
        ledger = stack.enter_context(Refusals(refused))
        progress = tracker(total=None, label=f"ingest {source.name}", unit="rows")
        stack.callback(progress.close)
        while row is not None:
            problem = row if isinstance(row, Refusal) else intake.take(row)
            if problem is not None:
                ledger.add(problem)
            progress.advance()
            row = next(found, None)
        intake.flush()
        if not intake.num_added and not intake.num_known:
            raise DataError(_nothing(source, name, ledger), hint=_hint(ledger))
        history.complete(
            num_pairs=_num_rows(history.tables),
            num_media=_num_media(history.tables, incoming),
            num_refused=sum(ledger.counts.values()),
        )
        return IngestSummary(
            reader=name,
            num_added=intake.num_added,
            num_known=intake.num_known,
            num_media_added=media.num_added,
            num_media_bytes=media.num_bytes,
            refused=dict(sorted(ledger.counts.items())),
            examples=tuple(ledger.examples),
            parts=tuple(intake.parts),
        )


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def _alone(pool: Path) -> Iterator[None]:
    """Keep other ingests out of the pool. The lock is on the folder: nothing is left in it."""
    folder = os.open(pool, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServiceError(
                f"another process is ingesting into {pool}",
                hint="wait for it to end, and run the same command again",
            ) from None
        yield
    finally:
        os.close(folder)


def _num_rows(tables: list[Path]) -> int:
    return sum(pq.read_metadata(table).num_rows for table in tables)


def _num_media(tables: list[Path], scratch: Path) -> int:
    """How many different media the tables name, counted in bounded memory."""
    if _num_rows(tables) <= _FEW_ROWS:
        paths = [pq.read_table(table, columns=["path"]).column("path") for table in tables]
        return len(pc.unique(pa.chunked_array([c for p in paths for c in p.chunks], pa.string())))
    import duckdb

    settings = {"memory_limit": "256MB", "temp_directory": str(scratch), "threads": 1}
    with duckdb.connect(config=settings) as database:
        question = "SELECT count(DISTINCT path) FROM read_parquet(?)"
        found = database.execute(question, [[str(table) for table in tables]]).fetchone()
    assert found is not None
    return int(found[0])


def reader_names() -> tuple[str, ...]:
    """The formats that can be ingested."""
    return component_names(_READERS)


def load_reader(name: str) -> Reader:
    """The reader of that name."""
    return cast(Reader, importlib.import_module(f"{_READERS}.{name}"))


def _choose_reader(source: Path, name: str | None) -> tuple[Reader, str]:
    known = ", ".join(reader_names())
    if name is not None and name not in reader_names():
        raise UserError(f"no reader {name!r}; expected one of {known}")
    if not source.exists():
        remote = ":/" in str(source)  # a Path makes one slash of two
        raise UserError(
            f"no file or folder {source}",
            hint="coembed downloads nothing: fetch it first, then name the local file"
            if remote
            else None,
        )
    if name is not None:
        return load_reader(name), name
    matches = [n for n in reader_names() if load_reader(n).recognises(source)]
    if len(matches) == 1:
        return load_reader(matches[0]), matches[0]
    if matches:
        raise UserError(
            f"{source} could be {' or '.join(matches)}", hint="say which with `--reader NAME`"
        )
    raise UserError(
        f"{source} is of no format that is known here ({known})",
        hint="name the format with `--reader NAME`, or name the file itself, not its folder",
    )


def _nothing(source: Path, reader: str, ledger: Refusals) -> str:
    lines = [f"{source}, read as {reader}, has no row that can be taken"]
    lines += [f"{num:,} x {reason}" for reason, num in ledger.counts.most_common()]
    lines += [f"{r.where}: {r.detail}" for r in ledger.examples]
    return "\n  ".join(lines)


def _hint(ledger: Refusals) -> str | None:
    most = ledger.counts.most_common(1)
    if most and most[0][0] == "missing_file":
        return "say where relative paths start with `--media-root FOLDER`"
    if most and most[0][0] == "is_url":
        return "fetch the media with img2dataset and ingest its output folder"
    return None
