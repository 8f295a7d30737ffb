"""Examined parts on disk: Parquet files that a later run takes over where nothing has changed."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from coembed.curation.filters.base import ColumnType
from coembed.curation.reading import PASSING_REASONS, MediaReader
from coembed.curation.spool import Spool
from coembed.errors import ConfigError
from coembed.files import atomic_path, disk_errors

# Rows of a part. What a killed run loses is less than one part a worker; fewer rows would make the
# files many (10 million rows are 9,766 files), more would leave cores idle in a pool of thousands.
PART_ROWS = 1024

_TYPES: dict[ColumnType, pa.DataType] = {
    "int64": pa.int64(),
    "float64": pa.float64(),
    "string": pa.string(),
    "binary": pa.binary(),
}
FACT_FIELDS: dict[str, pa.DataType] = {
    "num_bytes": pa.int64(),
    "fault": pa.string(),
    "fault_detail": pa.string(),
    "format": pa.string(),
    "width_px": pa.int64(),
    "height_px": pa.int64(),
    "colour_mode": pa.string(),
    "num_frames": pa.int64(),
    "duration_s": pa.float64(),
    "sample_rate_hz": pa.int64(),
    "num_channels": pa.int64(),
}
OWN_FIELDS: dict[str, pa.DataType] = {
    "row": pa.int64(),
    "item_id": pa.binary(32),
    "path_key": pa.binary(16),
    "caption_key": pa.binary(16),
    "caption": pa.string(),
    "file_size": pa.int64(),
    "file_mtime_ns": pa.int64(),
    **FACT_FIELDS,
    "reason": pa.string(),
    "detail": pa.string(),
}
# Columns whose values come up again and again.
_WORDS = ("fault", "fault_detail", "format", "colour_mode", "reason")
_KEEP = 2
_ROWS_HASH, _MAY_PASS = b"coembed.rows", b"coembed.may_pass"


def part_schema(columns: Mapping[str, ColumnType]) -> pa.Schema:
    """The columns of a part: OWN_FIELDS, then the filters' declared `columns`."""
    for name in columns:
        if name in OWN_FIELDS:
            raise ConfigError(f"a filter declares a column {name!r}, which every part has already")
    return pa.schema(
        [*OWN_FIELDS.items(), *((name, _TYPES[kind]) for name, kind in columns.items())]
    )


def rows_hash(batches: Sequence[pa.RecordBatch]) -> str:
    """SHA-256 of rows of the spool: all of their cells, and the columns' names and types.

    Arrow's own serialisation would not do: what it writes of nulls depends on the rows around.
    """
    digest = hashlib.sha256()
    for batch in batches:
        for part, column in zip(batch.schema, batch.columns, strict=True):
            digest.update(f"{part.name!r} {part.type} {len(column)} {column.null_count}\0".encode())
            if column.null_count:
                digest.update(column.is_null().cast(pa.uint8()).to_numpy().tobytes())
            if pa.types.is_string(part.type):
                column = column.fill_null("")
                digest.update(pc.binary_length(column).to_numpy().tobytes())
                digest.update(_text_bytes(column))
            else:
                column = column.cast(pa.uint8()) if pa.types.is_boolean(part.type) else column
                digest.update(column.fill_null(0).to_numpy().tobytes())
    return digest.hexdigest()


def _text_bytes(column: pa.Array) -> memoryview:
    """The text of all cells, one after the other, not copied."""
    _, places, data = column.buffers()
    ends = memoryview(places).cast("B").cast("i")
    first, last = ends[column.offset], ends[column.offset + len(column)]
    return memoryview(data)[first:last] if data is not None else memoryview(b"")


class PartStore:
    """The parts of one job identity, in a folder of its own below `folder`."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder / identity[:32]

    def prepare(self, num_parts: int) -> None:
        """Make the folder, clear what killed runs and longer pools left, and remove the parts of
        all but the job identities used last."""
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "used").write_text("")
        wanted = {self.path(number).name for number in range(num_parts)} | {"used"}
        for path in self.folder.iterdir():
            if path.name not in wanted:
                path.unlink(missing_ok=True)
        with suppress(OSError):
            others = [path for path in self.folder.parent.iterdir() if path != self.folder]
            for path in sorted(others, key=_last_use)[: -(_KEEP - 1)]:
                shutil.rmtree(path, ignore_errors=True)

    def path(self, number: int) -> Path:
        """Where part `number` lies."""
        return self.folder / f"part-{number:06d}.parquet"

    def write(self, number: int, table: pa.Table, hash_of_rows: str) -> None:
        """Write a part, whole or not at all."""
        may_pass = any(reason in PASSING_REASONS for reason in table["reason"].unique().to_pylist())
        metadata = {_ROWS_HASH: hash_of_rows.encode(), _MAY_PASS: b"1" if may_pass else b"0"}
        with atomic_path(self.path(number)) as partial:
            pq.write_table(
                table.replace_schema_metadata(metadata),
                partial,
                # What filters keep in bytes (hashes, small pictures) does not get any smaller.
                compression={
                    part.name: "none" if pa.types.is_binary(part.type) else "zstd"
                    for part in table.schema
                },
                use_dictionary=list(_WORDS),
                write_statistics=False,
            )

    def is_current(self, number: int, spool: Spool, start: int, stop: int, hash_of_rows: str,
                   reader: MediaReader) -> bool:  # fmt: skip
        """Whether part `number` is there and still says what examining its rows would say: the
        rows are the same, and every file has the same size and time of change."""
        path = self.path(number)
        if not path.exists():
            return False
        try:
            with pq.ParquetFile(path) as file:
                metadata = file.schema_arrow.metadata or {}
                if metadata.get(_ROWS_HASH) != hash_of_rows.encode():
                    return False
                if metadata.get(_MAY_PASS) != b"0" or file.metadata.num_rows != stop - start:
                    return False
                table = file.read(["file_size", "file_mtime_ns", "reason"])
        except (OSError, ValueError, KeyError, pa.ArrowException):
            return False  # cut short, damaged, or no part at all
        media = [path for batch in spool.rows(start, stop) for path in batch["path"].to_pylist()]
        rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
        checked: dict[str, tuple[int, int] | None] = {}
        for name, (size, mtime_ns, reason) in zip(media, rows, strict=True):
            if size is None and reason != "missing_file":
                continue  # there is no file to look at: the row names none that could be read
            if name not in checked:
                checked[name] = reader.status(name)
            if checked[name] != (None if size is None else (size, mtime_ns)):
                return False
        return True


def _last_use(folder: Path) -> int:
    try:
        return (folder / "used").stat().st_mtime_ns
    except OSError:
        return 0
