"""Ingest: bring pairs from a table, folder, tar or COCO file into a pool.

Media go to `media/<aa>/<sha256>.<ending>`, so that the same bytes are there once, and the new pairs
to tables of their own in `pairs/`. Nothing that is there is changed: ingesting a source twice, or
again after a kill, ends with the same files, byte for byte.
"""

from __future__ import annotations

import csv
import importlib
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from coembed.errors import DataError, UserError
from coembed.files import atomic_path, disk_errors, sha256_bytes
from coembed.pairs.media_store import MediaStore
from coembed.pairs.media_types import modality_of
from coembed.pairs.pool import PAIR_COLUMNS
from coembed.pairs.readers.base import Reader, ReadOptions, Refusal, Row, usual_split
from coembed.pairs.tables import TABLE_ENDINGS, column, table_batches, table_schema
from coembed.progress import tracker
from coembed.settings import component_names
from coembed.types import MODALITIES, Attribute

_READERS = "coembed.pairs.readers"
_PART_PAIRS = 50_000
_NUM_EXAMPLES = 5


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
) -> IngestSummary:
    """Add the pairs of `source` to the pool at `pool`, which is made if it is not there.

    `reader` is the name of a format (guessed when None); `columns` maps our names ("path",
    "caption", attributes) to the source's; relative paths start at `media_root` (the source's own
    folder when None). Media are copied, or hard-linked with `link` (copied where that cannot be).
    Every refused row goes to the CSV at `refused`.

    Raises UserError when the source is missing, of no known format, lacks a column, or has not one
    usable row.
    """
    chosen, name = _choose_reader(source, reader)
    if media_root is not None and not media_root.is_dir():
        raise UserError(f"the media root {media_root} is not a folder")
    options = ReadOptions(dict(columns or {}), media_root, max_media_bytes)
    incoming = pool / ".ingest"
    shutil.rmtree(incoming, ignore_errors=True)  # what a killed run left
    with ExitStack() as stack:
        found: Iterator[Row | Refusal] = chosen.read(source, options)
        # The first row is read before anything is made: a wrong source leaves no trace.
        first = next(found, None)
        stack.enter_context(disk_errors(pool))
        incoming.mkdir(parents=True, exist_ok=True)
        stack.callback(shutil.rmtree, incoming, ignore_errors=True)
        media = MediaStore(pool, incoming, link=link, max_bytes=max_media_bytes)
        intake = _Intake(pool, media)
        ledger = stack.enter_context(_Refusals(refused))
        progress = tracker(total=None, label=f"ingest {source.name}", unit="rows")
        stack.callback(progress.close)
        row = first
        while row is not None:
            problem = row if isinstance(row, Refusal) else intake.take(row)
            if problem is not None:
                ledger.add(problem)
            progress.advance()
            row = next(found, None)
        intake.flush()
        if not intake.num_added and not intake.num_known:
            raise DataError(_nothing(source, name, ledger), hint=_hint(ledger))
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


def _nothing(source: Path, reader: str, ledger: _Refusals) -> str:
    lines = [f"{source}, read as {reader}, has no row that can be taken"]
    lines += [f"{num:,} x {reason}" for reason, num in ledger.counts.most_common()]
    lines += [f"{r.where}: {r.detail}" for r in ledger.examples]
    return "\n  ".join(lines)


def _hint(ledger: _Refusals) -> str | None:
    most = ledger.counts.most_common(1)
    if most and most[0][0] == "missing_file":
        return "say where relative paths start with `--media-root FOLDER`"
    if most and most[0][0] == "is_url":
        return "fetch the media with img2dataset and ingest its output folder"
    return None


class _Refusals:
    """Counts refused rows, keeps a few and writes all to a CSV."""

    def __init__(self, path: Path | None) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: list[Refusal] = []
        self._path = path
        self._stack = ExitStack()
        self._writer: Any = None

    def add(self, refusal: Refusal) -> None:
        """Count and write one."""
        self.counts[refusal.reason] += 1
        # A few of each kind say more than many of one.
        if self.counts[refusal.reason] <= 2 and len(self.examples) < _NUM_EXAMPLES:
            self.examples.append(refusal)
        if self._writer:
            self._writer.writerow(
                [_printable(refusal.where), refusal.reason, _printable(refusal.detail)]
            )

    def __enter__(self) -> _Refusals:
        if self._path is not None:
            partial = self._stack.enter_context(atomic_path(self._path))
            file = self._stack.enter_context(partial.open("w", encoding="utf-8", newline=""))
            self._writer = csv.writer(file, lineterminator="\n")
            self._writer.writerow(["where", "reason", "detail"])
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        # Also after an error: the list of refused rows is what explains it.
        self._stack.close()


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


@dataclass
class _Intake:
    """Takes rows into the pool."""

    pool: Path
    media: MediaStore
    num_added: int = 0
    num_known: int = 0
    parts: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._known = _known_ids(self.pool / "pairs")
        self._new: list[tuple[dict[str, Any], Mapping[str, Attribute]]] = []

    def take(self, row: Row) -> Refusal | None:
        """Take one row in, or say why not."""
        if row.modality and row.modality not in MODALITIES:
            known = ", ".join(MODALITIES)
            detail = f"modality {row.modality!r}; expected {known}"
            return Refusal(row.where, "unknown_modality", detail)
        stored = self.media.put(row)
        if isinstance(stored, Refusal):
            return stored
        item_id, path = stored
        attributes = {n: _clean(v) for n, v in row.attributes.items() if n not in PAIR_COLUMNS}
        split = usual_split(row.split) if row.split else None
        if row.split and split is None:
            attributes["source_split"] = _clean(row.split)
        for caption in map(_printable, row.captions):
            pair_id = sha256_bytes(f"{item_id}\0{caption}".encode())[:32]
            if bytes.fromhex(pair_id) in self._known:
                self.num_known += 1
                continue
            self._known.add(bytes.fromhex(pair_id))
            pair = {
                "pair_id": pair_id,
                "path": path,
                "caption": caption,
                "modality": row.modality or modality_of(row.name or path),
                "split": split,
            }
            self._new.append((pair, attributes))
            self.num_added += 1
            if len(self._new) >= _PART_PAIRS:
                self.flush()
        return None

    def flush(self) -> None:
        """Write the pairs that wait as one part, named after their ids."""
        if not self._new:
            return
        table = {n: pa.array([pair[n] for pair, _ in self._new], pa.string()) for n in PAIR_COLUMNS}
        names = sorted({name for _, attributes in self._new for name in attributes})
        for name in names:
            cells = column([attributes.get(name) for _, attributes in self._new])
            table[name] = cells
        joined = "\n".join(pair["pair_id"] for pair, _ in self._new)
        part = self.pool / "pairs" / f"part-{sha256_bytes(joined.encode())[:16]}.parquet"
        with atomic_path(part) as partial:
            pq.write_table(pa.table(table), partial, compression="zstd")
        self.parts.append(part)
        self._new = []


def _clean(value: Attribute) -> Attribute:
    return _printable(value) if isinstance(value, str) else value


def _known_ids(pairs: Path) -> set[bytes]:
    """The pair ids in the pool that look like ours; other tables' ids cannot meet ours."""
    known: set[bytes] = set()
    if not pairs.is_dir():
        return known
    for path in sorted(pairs.iterdir()):
        if path.suffix not in TABLE_ENDINGS or path.name.startswith("."):
            continue
        if path.suffix == ".parquet" and "pair_id" not in table_schema(path, text=()).names:
            continue
        for pair_id in _ids(path):
            try:
                known.add(bytes.fromhex(pair_id))
            except ValueError:
                continue
    return known


def _ids(path: Path) -> Iterator[str]:
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["pair_id"]):
                yield from (str(i) for i in batch.column("pair_id").to_pylist() if i is not None)
        return
    for batch in table_batches(path, text=PAIR_COLUMNS, max_rows=8192):
        if "pair_id" in batch.schema.names:
            yield from (str(i) for i in batch.column("pair_id").to_pylist() if i is not None)
