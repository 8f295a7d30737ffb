"""A manifest, looked at by SQL: for the report, `coembed pairs` and the review page.

The file is scanned where it lies; only answers come into memory. Results do not depend on the
number of threads: whatever has an order is ordered by content.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from coembed.curation.filters.base import Filter
from coembed.errors import DataError

PAIR_COLUMNS = ("pair_id", "path", "caption", "modality", "item_id")
OUTCOME_COLUMNS = (
    "kept", "drop_reason", "drop_detail", "duplicate_of", "decided_by", "split", "split_reason",
    "doubt", "doubt_by",
)  # fmt: skip
FACT_COLUMNS = (
    "num_bytes", "format", "width_px", "height_px", "colour_mode", "num_frames", "duration_s",
    "sample_rate_hz", "num_channels",
)  # fmt: skip
_OWN = (*PAIR_COLUMNS, *OUTCOME_COLUMNS, *FACT_COLUMNS)
_MEMORY_MB = 768
_ROW_COLUMN = "file_row_number"
# Content, not place: the same pair is picked whatever was added before it. \x1f parts the cells.
PICK_KEY = "md5(concat_ws(chr(31), pair_id, path, caption))"


@dataclass(frozen=True, slots=True)
class PairRow:
    """One row of the manifest. `number` is its place in the pool, from 0."""

    number: int
    cells: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.cells[name]

    def text(self, name: str) -> str:
        """The cell as text, "" where it is null."""
        cell = self.cells.get(name)
        return "" if cell is None else str(cell)

    @property
    def kept(self) -> bool:
        """Whether the pair is in the curated pairs."""
        return bool(self.cells["kept"])


@dataclass(frozen=True, slots=True)
class Measured:
    """A filter, its public columns in the manifest, and what it says of itself in a sentence."""

    name: str
    reasons: tuple[str, ...]
    columns: tuple[str, ...]
    about: str


class Manifest:
    """The manifest at `path`. `filters` (by name) tell the columns that they measured from the
    pool's own. Use as a context manager, or `close` it.

    Raises DataError when there is none, or when it is not one that this version writes.
    """

    def __init__(self, path: Path, filters: Mapping[str, Filter] | None = None) -> None:
        names = _column_names(path)
        self.path = path
        self.names = tuple(names)
        self.filters = tuple(_measured(filters or {}, frozenset(names)))
        scores = [column for chosen in self.filters for column in chosen.columns]
        self.scores = tuple(dict.fromkeys(scores))
        taken = {*_OWN, *self.scores}
        self.attributes = tuple(name for name in names if name not in taken)
        self._sql = {
            name: name if name in _OWN else f"x{place}" for place, name in enumerate(names)
        }
        self._spill = tempfile.TemporaryDirectory(prefix="coembed-look-")
        self._connection = duckdb.connect(
            ":memory:",
            config={
                "memory_limit": f"{_MEMORY_MB}MB",
                "temp_directory": self._spill.name,
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
            },
        )
        self._connection.execute("SET enable_progress_bar = false")
        self._make_view(names)

    def __enter__(self) -> Manifest:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()
        self._spill.cleanup()

    def _make_view(self, names: Sequence[str]) -> None:
        """View `pairs`: the manifest's own columns under their names, all others as x17 (names of
        a pool's columns may differ in case only, which SQL does not see), and `row`."""
        source = str(self.path).replace("'", "''")
        aliases = ", ".join(f'"{self._sql[name]}"' for name in names)
        if any(name.casefold() == _ROW_COLUMN for name in names):
            self._connection.execute(
                f"CREATE VIEW pairs AS SELECT *, row_number() OVER () - 1 AS row "
                f"FROM read_parquet('{source}') AS t({aliases})"
            )
            return
        self._connection.execute(
            f"CREATE VIEW pairs AS SELECT * FROM "
            f"read_parquet('{source}', {_ROW_COLUMN} = true) AS t({aliases}, row)"
        )

    def sql(self, name: str) -> str:
        """How SQL names the manifest's column `name` in the view `pairs`."""
        return self._sql[name]

    def ask(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The answer of a SELECT on the view `pairs`."""
        found: list[tuple[Any, ...]] = self._connection.execute(sql, parameters).fetchall()
        return found

    def rows(
        self,
        where: str = "true",
        parameters: Sequence[object] = (),
        *,
        order: str = "row",
        limit: int | None = None,
    ) -> list[PairRow]:
        """The rows WHERE, in `order`; whole rows are read of the found ones only."""
        most = "" if limit is None else f" LIMIT {limit:d}"
        found = self.ask(f"SELECT row FROM pairs WHERE {where} ORDER BY {order}{most}", parameters)
        by_number = self.numbered(number for (number,) in found)
        return [by_number[number] for (number,) in found]

    def numbered(self, numbers: Iterable[int]) -> dict[int, PairRow]:
        """Rows by number."""
        wanted = sorted(set(numbers))
        found = {}
        for some in _chunks(wanted, 1000):
            listed = ", ".join(str(int(number)) for number in some)
            for cells in self.ask(f"SELECT * FROM pairs WHERE row IN ({listed})"):
                *values, number = cells
                found[number] = PairRow(number, dict(zip(self.names, values, strict=True)))
        return found

    def with_ids(self, pair_ids: Iterable[str], *, only_kept: bool = False) -> dict[str, PairRow]:
        """Rows by pair_id, the first of several with one id."""
        wanted = sorted(set(pair_ids))
        found: dict[str, PairRow] = {}
        kept = " AND kept" if only_kept else ""
        for some in _chunks(wanted, 1000):
            marks = ", ".join("?" * len(some))
            for row in self.rows(f"pair_id IN ({marks}){kept}", some):
                found.setdefault(row["pair_id"], row)
        return found

    def nearest_ids(self, pair_id: str, limit: int = 5) -> list[str]:
        """The ids in the manifest that look most like `pair_id`."""
        likeness = "jaro_winkler_similarity(pair_id, ?)"
        # Ids may come several times; a DISTINCT over all of them would outgrow the memory.
        found = self.ask(
            f"SELECT pair_id FROM pairs WHERE {likeness} > 0.75 "
            f"ORDER BY {likeness} DESC, pair_id LIMIT {10 * limit:d}",
            (pair_id, pair_id),
        )
        return list(dict.fromkeys(found_id for (found_id,) in found))[:limit]

    def reasons(self) -> dict[str, int]:
        """Dropped pairs by reason, most first."""
        found = self.ask(
            "SELECT drop_reason, count(*) AS num FROM pairs WHERE NOT kept "
            "GROUP BY drop_reason ORDER BY num DESC, drop_reason"
        )
        return dict(found)


def _column_names(path: Path) -> list[str]:
    again = "run `coembed curate` first"
    try:
        schema: pa.Schema = pq.read_schema(path)
    except FileNotFoundError:
        raise DataError(f"no manifest of curated pairs at {path}", hint=again) from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"the manifest {path} cannot be read: {error}", hint=again) from error
    lost = [name for name in _OWN if name not in schema.names]
    if lost:
        raise DataError(
            f"the manifest {path} has no column {', '.join(lost)}: an earlier coembed wrote it",
            hint="run `coembed curate` again",
        )
    return list(schema.names)


def _measured(filters: Mapping[str, Filter], names: frozenset[str]) -> Iterator[Measured]:
    for name, chosen in filters.items():
        public = (column for column in chosen.columns if not column.startswith("_"))
        columns = tuple(column for column in public if column in names and column not in _OWN)
        yield Measured(name, tuple(chosen.reasons), columns, _about(chosen))


def _about(chosen: Filter) -> str:
    """The first paragraph of the docstring of the filter's module."""
    text = sys.modules[type(chosen).__module__].__doc__ or ""
    return " ".join(text.partition("\n\n")[0].split())


def _chunks(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
