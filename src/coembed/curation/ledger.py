"""The ledger: what became of each pool row, and why.

Tables, beside `rows` (see `rows_table`):

- `drops`: `row`, `reason`, `detail`, `filter` (null: the engine, or a judge in a worker),
  `duplicate_of`, `keep_caption`. One line a dropped row: the first reason stands.
- `links`: `row`, `other`: two rows that must be in one split.
- `overrides`: `row`, `decision`, `reason`: what a person decided; `spared`: `row`, `reason`,
  `detail`: what would have dropped a row that a person keeps.
- `found_<place>`: the columns that the filter at that place found for the whole pool.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import pyarrow as pa

from coembed.curation.database import Database, literal, quote
from coembed.curation.filters.base import ColumnType, Filter
from coembed.curation.overrides import OVERRIDE_REASON, Overrides

SQL_TYPES: Mapping[ColumnType, str] = {
    "int64": "BIGINT", "float64": "DOUBLE", "string": "VARCHAR", "binary": "BLOB",
}  # fmt: skip
ARROW_TYPES: Mapping[ColumnType, pa.DataType] = {
    "int64": pa.int64(), "float64": pa.float64(), "string": pa.string(), "binary": pa.binary(),
}  # fmt: skip
_FINDING: Mapping[str, pa.DataType] = {
    "row": pa.int64(),
    "reason": pa.string(),
    "detail": pa.string(),
    "duplicate_of": pa.int64(),
    "keep_caption": pa.bool_(),
    "same_split_as": pa.int64(),
}
_STAGE_ROWS = 100_000


class Ledger:
    """Takes in drops; see the module. `engine_reasons` are those that no person can overrule."""

    def __init__(self, database: Database, engine_reasons: Sequence[str]) -> None:
        self.database = database
        self._engine_reasons = ", ".join(map(literal, engine_reasons))
        database.execute(
            "CREATE TABLE drops (row BIGINT, reason VARCHAR, detail VARCHAR, filter VARCHAR,"
            " duplicate_of BIGINT, keep_caption BOOLEAN);"
            "CREATE TABLE links (row BIGINT, other BIGINT);"
            "CREATE TABLE overrides (row BIGINT, decision VARCHAR, reason VARCHAR);"
            "CREATE TABLE spared (row BIGINT, reason VARCHAR, detail VARCHAR)"
        )

    def take_overrides(self, overrides: Overrides) -> tuple[str, ...]:
        """Find the rows that people decided on. Returns the pair ids that no row has."""
        table = overrides.table()
        self.database.execute(
            "INSERT INTO overrides SELECT min(row), any_value(decision), any_value(given.reason)"
            " FROM given JOIN rows USING (pair_id) GROUP BY pair_id",
            given=table,
        )
        unknown = self.database.rows(
            "SELECT pair_id FROM given ANTI JOIN rows USING (pair_id) ORDER BY pair_id", given=table
        )
        return tuple(pair_id for (pair_id,) in unknown)

    def drop_examined(self) -> None:
        """Take in what the workers dropped, then pairs with another's id, then what people drop."""
        self.database.execute(
            "INSERT INTO spared SELECT row, rows.reason, rows.detail FROM rows"
            " JOIN overrides USING (row) WHERE decision = 'keep' AND rows.reason IS NOT NULL"
            f" AND rows.reason NOT IN ({self._engine_reasons})"
        )
        self.database.execute(
            "INSERT INTO drops (row, reason, detail)"
            " SELECT row, reason, detail || if(decision IS NULL, '', '; overrides.csv cannot keep"
            " it') FROM (FROM rows WHERE reason IS NOT NULL) ANTI JOIN spared USING (row)"
            " LEFT JOIN (SELECT row, decision FROM overrides WHERE decision = 'keep') USING (row)"
        )
        # Hashes first: ten million ids of 32 characters would not fit into memory.
        self.database.execute(
            "CREATE TEMP TABLE twice AS SELECT row, pair_id FROM rows SEMI JOIN"
            " (SELECT hash(pair_id) AS h FROM rows GROUP BY h HAVING count(*) > 1) AS shared"
            " ON hash(rows.pair_id) = shared.h;"
            "INSERT INTO drops (row, reason, detail) SELECT row, 'repeated_pair_id',"
            " 'pair_id ''' || pair_id || ''' is that of pool row ' || (earliest + 1)::VARCHAR"
            " FROM (SELECT *, min(row) OVER (PARTITION BY pair_id) AS earliest FROM twice)"
            " ANTI JOIN drops USING (row) WHERE row <> earliest"
        )
        self.database.execute(
            "INSERT INTO drops (row, reason, detail)"
            f" SELECT row, {literal(OVERRIDE_REASON)}, reason"
            " FROM overrides ANTI JOIN drops USING (row) WHERE decision = 'drop'"
        )

    def apply(self, place: int, name: str, judge: Filter, findings: Iterator[pa.Table]) -> None:
        """Take in all that the filter `name`, at `place` in the settings, finds of the pool."""
        columns = {column: ARROW_TYPES[kind] for column, kind in judge.columns.items()}
        self._stage(name, judge, columns, findings)
        own = "".join(
            f", arg_min({quote(c)}, number) FILTER ({quote(c)} IS NOT NULL) AS {quote(c)}"
            for c in columns
        )
        if columns:
            anything = " OR ".join(f"{quote(c)} IS NOT NULL" for c in columns)
            self.database.execute(
                f"CREATE TABLE found_{place} AS SELECT row{own} FROM staged WHERE {anything}"
                " GROUP BY row"
            )
        first = (
            "SELECT row, unnest(arg_min(struct_pack(reason, detail, duplicate_of, keep_caption),"
            " number)) FROM staged WHERE reason IS NOT NULL GROUP BY row"
        )
        self.database.execute(
            "INSERT INTO links SELECT row, same_split_as FROM staged WHERE same_split_as IS NOT"
            " NULL UNION ALL SELECT row, duplicate_of FROM staged WHERE duplicate_of IS NOT NULL;"
            f"CREATE TEMP TABLE news AS FROM ({first}) ANTI JOIN drops USING (row);"
            "INSERT INTO spared SELECT row, news.reason, news.detail FROM news"
            " SEMI JOIN (FROM overrides WHERE decision = 'keep') AS kept USING (row);"
            f"INSERT INTO drops SELECT row, reason, detail, {literal(name)},"
            " nullif(duplicate_of, row), coalesce(keep_caption, false) FROM news"
            " ANTI JOIN (FROM overrides WHERE decision = 'keep') AS kept USING (row)"
        )
        self.database.execute("DROP TABLE staged")

    def _stage(
        self,
        name: str,
        judge: Filter,
        columns: Mapping[str, pa.DataType],
        findings: Iterator[pa.Table],
    ) -> None:
        """Write all findings, numbered as they come, into the table `staged`."""
        fields = {**_FINDING, **columns}
        empty = pa.schema([("number", pa.int64()), *fields.items()]).empty_table()
        self.database.execute("CREATE TABLE staged AS FROM empty", empty=empty)
        held: list[pa.Table] = []
        number, num_held = 0, 0
        for found in findings:
            _check_finding(name, judge, found, fields)
            numbers = pa.array(range(number, number + found.num_rows), pa.int64())
            cells = {
                field: found.column(field).cast(kind)
                if field in found.column_names
                else pa.nulls(found.num_rows, kind)
                for field, kind in fields.items()
            }
            held.append(pa.table({"number": numbers, **cells}))
            number, num_held = number + found.num_rows, num_held + found.num_rows
            if num_held >= _STAGE_ROWS:
                self.database.execute("INSERT INTO staged FROM held", held=pa.concat_tables(held))
                held, num_held = [], 0
        if held:
            self.database.execute("INSERT INTO staged FROM held", held=pa.concat_tables(held))

    def count_drops(self) -> dict[str, int]:
        """Dropped rows by reason; only reasons that dropped something."""
        return dict(self.database.rows("SELECT reason, count(*) FROM drops GROUP BY reason"))


def _check_finding(
    name: str, judge: Filter, found: pa.Table, fields: Mapping[str, pa.DataType]
) -> None:
    """What a filter hands over must be what it declared: anything else is a bug in the filter."""
    unknown = set(found.column_names) - set(fields)
    if unknown or "row" not in found.column_names:
        raise AssertionError(f"filter {name} found columns {found.column_names}")
    if "reason" in found.column_names:
        with suppress(pa.ArrowNotImplementedError):  # a column of nulls
            given = set(found.column("reason").unique().to_pylist()) - {None}
            if not given <= set(judge.reasons):
                raise AssertionError(f"filter {name} gave undeclared reasons {given}")
