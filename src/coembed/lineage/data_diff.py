"""What changed between two versions of the data: items, pairs, captions, attributes, distributions.

Both versions are read from DVC's cache into a DuckDB database on disk, so that memory stays bounded
however many pairs there are. A pair is the same in both when its id is; else when its item and
caption are, or its item, or its path and caption. An item is known by the hash of its bytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from coembed.lineage import dvc
from coembed.lineage.data_measures import Numbers, Shift, measure
from coembed.lineage.data_versions import DataVersion, cache_folder, find_version, opened_version
from coembed.pairs.cells import cast, join_types
from coembed.pairs.pool import PAIR_COLUMNS, Pool
from coembed.pairs.tables import TABLE_ENDINGS

if TYPE_CHECKING:
    import duckdb

_MEMORY = "1GB"
_PAIR_CHANGES = ("caption", "item", "path", "split", "modality")
_BOTH = "same JOIN old AS o ON o.row = old_row JOIN new AS n ON n.row = new_row"
_SAME_PAIR = (("pair_id",), ("item", "caption"), ("item",), ("path", "caption"))


@dataclass(frozen=True, slots=True)
class Example:
    """One pair that changed: its path, and its caption before and after (None: not there)."""

    pair_id: str
    path: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class DataDiff:
    """What changed from `old` to `new`.

    Pairs: `added` and `removed` are in one version only; the others are in both, and may be
    recaptioned, have other media (`media_replaced`), another path (`moved`), or be given another
    split or modality. `attributes_changed` counts pairs by attribute; `attributes_added` and
    `attributes_removed` are columns. `examples` holds a few of each kind by its name.
    `note` says what the diff could not see.
    """

    old: DataVersion
    new: DataVersion
    num_pairs: tuple[int, int]
    num_items: tuple[int, int]
    items_added: int
    items_removed: int
    added: int
    removed: int
    recaptioned: int
    media_replaced: int
    moved: int
    resplit: int
    modality_changed: int
    attributes_added: tuple[str, ...]
    attributes_removed: tuple[str, ...]
    attributes_changed: dict[str, int]
    caption_lengths: Numbers
    shifts: tuple[Shift, ...]
    numbers: tuple[Numbers, ...]
    examples: dict[str, tuple[Example, ...]]
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        whole = asdict(self)
        for version in (whole["old"], whole["new"]):
            del version["listing"]  # a path of this machine
        return whole

    def as_markdown(self) -> str:
        """A page of headings and tables; foreign text in it is escaped."""
        from coembed.lineage.data_diff_text import markdown

        return markdown(self)

    def rows(self) -> tuple[tuple[str, str], ...]:
        """(label, value) as a person reads them on a terminal."""
        from coembed.lineage.data_diff_text import rows

        return rows(self)

    @property
    def is_empty(self) -> bool:
        """Whether the two versions are the same pairs of the same items."""
        counts = (
            self.items_added, self.items_removed, self.added, self.removed, self.recaptioned,
            self.media_replaced, self.moved, self.resplit, self.modality_changed,
            len(self.attributes_added), len(self.attributes_removed),
            *self.attributes_changed.values(),
        )  # fmt: skip
        return not any(counts)


def diff_data(
    project: Path, pool: Path, old: str, new: str | None = None, *, limit: int = 10
) -> DataDiff:
    """Compare the version of `pool` (relative to `project`) at git's revision `old` with that at
    `new`; where None, with what its .dvc file says now. Up to `limit` examples of each change.

    Raises UserError for a revision that git does not know, DataError when a version is not in DVC's
    cache or its tables cannot be read.
    """
    cache = cache_folder(project)
    versions = (
        find_version(project, pool, old, cache=cache),
        find_version(project, pool, new, cache=cache),
    )
    note = ""
    if new is None and dvc.changes(project, f"{pool.as_posix()}.dvc"):
        note = (
            f"{pool}/ has changed since {pool}.dvc was written; what it says is compared. "
            f"`dvc add {pool}` makes a version of the pool as it is."
        )
    with ExitStack() as stack:
        import duckdb

        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coembed-diff-")))
        database = stack.enter_context(
            duckdb.connect(
                str(scratch / "diff.duckdb"),
                config={"memory_limit": _MEMORY, "temp_directory": str(scratch / "spill")},
            )
        )
        database.execute("SET preserve_insertion_order = false")
        pools = []
        for side, version in zip(("old", "new"), versions, strict=True):
            tables = _read_listing(database, side, version)
            pools.append(
                stack.enter_context(
                    opened_version(version, tables, cache=cache, scratch=scratch / side)
                )
            )
        attributes = _join_attributes(*pools)
        for side, source in zip(("old", "new"), pools, strict=True):
            _load(database, side, source, attributes)
        _match(database)
        return _compare(database, versions, pools, attributes, limit, note)


def _read_listing(
    database: duckdb.DuckDBPyConnection, side: str, version: DataVersion
) -> dict[str, str]:
    """Read DVC's list of files into table `<side>_files`, and return the pool's tables from it."""
    database.execute(
        f"CREATE TABLE {side}_files AS SELECT relpath AS path, md5 FROM read_json(?, "
        "format = 'array', columns = {md5: 'VARCHAR', relpath: 'VARCHAR'})",
        [str(version.listing)],
    )
    found = database.execute(
        f"SELECT path, md5 FROM {side}_files WHERE path LIKE 'pairs/%' ORDER BY path"
    ).fetchall()
    tables = {path.removeprefix("pairs/"): md5 for path, md5 in found}
    return {
        name: md5
        for name, md5 in tables.items()
        if "/" not in name and not name.startswith(".") and name.lower().endswith(TABLE_ENDINGS)
    }


def _join_attributes(old: Pool, new: Pool) -> dict[str, pa.DataType]:
    """The attributes of both and the types that hold their values."""
    joined = dict(old.attributes)
    for name, kind in new.attributes.items():
        joined[name] = join_types(joined.get(name, pa.null()), kind)
    return joined


def _load(
    database: duckdb.DuckDBPyConnection, side: str, pool: Pool, attributes: dict[str, pa.DataType]
) -> None:
    """Make table `side`: row, the pair's columns, a0, a1, ... (the attributes), item."""
    # Numbers, not the attributes' names: DuckDB holds "Colour" and "colour" for one name.
    schema = pa.schema(
        [
            ("row", pa.int64()),
            *((name, pa.string()) for name in PAIR_COLUMNS),
            *((f"a{i}", kind) for i, kind in enumerate(attributes.values())),
        ]
    )
    rows = pa.RecordBatchReader.from_batches(schema, _rows(pool, schema, attributes))
    database.register("incoming", rows)
    database.execute(
        f"CREATE TABLE {side} AS SELECT incoming.*, coalesce(md5, 'path:' || incoming.path) AS item"
        f" FROM incoming LEFT JOIN {side}_files AS files ON files.path = incoming.path"
    )
    database.unregister("incoming")


def _rows(
    pool: Pool, schema: pa.Schema, attributes: dict[str, pa.DataType]
) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in pool.batches():
        num = batch.num_rows
        columns = [pa.array(range(start, start + num), pa.int64())]
        columns += [batch.column(name) for name in PAIR_COLUMNS]
        for name, kind in attributes.items():
            if name in pool.attributes:
                columns.append(cast(batch.column(name), kind))
            else:
                columns.append(pa.nulls(num, kind))
        yield pa.RecordBatch.from_arrays(columns, schema=schema)
        start += num


def _match(database: duckdb.DuckDBPyConnection) -> None:
    """Make table `same` of (old_row, new_row), the pairs that are in both versions, and the views
    `added` and `removed` of the others."""
    database.execute("CREATE TABLE same (old_row BIGINT, new_row BIGINT)")
    for keys in _SAME_PAIR:
        by = ", ".join(keys)
        left, right = (
            # The n-th of several with one key is the n-th of the other version.
            f"(SELECT row, {by}, row_number() OVER (PARTITION BY {by} ORDER BY row) AS nth "
            f"FROM {side} ANTI JOIN same ON {side}_row = row)"
            for side in ("old", "new")
        )
        database.execute(
            f"INSERT INTO same SELECT o.row, n.row FROM {left} AS o JOIN {right} AS n "
            f"USING ({by}, nth)"
        )
    for name, side in (("added", "new"), ("removed", "old")):
        database.execute(
            f"CREATE VIEW {name} AS SELECT * FROM {side} ANTI JOIN same ON {side}_row = row"
        )


def _compare(
    database: duckdb.DuckDBPyConnection,
    versions: tuple[DataVersion, DataVersion],
    pools: list[Pool],
    attributes: dict[str, pa.DataType],
    limit: int,
    note: str,
) -> DataDiff:
    def count(query: str) -> int:
        found = database.execute(f"SELECT count(*) FROM {query}").fetchone()
        assert found is not None
        return int(found[0])

    def num_items(side: str, other: str) -> tuple[int, int]:
        """How many items a version has, and how many of them the other has not."""
        items = f"(SELECT DISTINCT item FROM {side}) AS own"
        return count(items), count(f"{items} ANTI JOIN {other} USING (item)")

    old_items, removed_items = num_items("old", "new")
    new_items, added_items = num_items("new", "old")
    old_names, new_names = (set(pool.attributes) for pool in pools)
    shared = {f"a{i}": name for i, name in enumerate(attributes) if name in old_names & new_names}
    changed = _count_changes(database, [*_PAIR_CHANGES, *shared])
    lengths, shifts, numbers = measure(database, attributes)
    return DataDiff(
        old=versions[0],
        new=versions[1],
        num_pairs=(count("old"), count("new")),
        num_items=(old_items, new_items),
        items_added=added_items,
        items_removed=removed_items,
        added=count("added"),
        removed=count("removed"),
        recaptioned=changed["caption"],
        media_replaced=changed["item"],
        moved=changed["path"],
        resplit=changed["split"],
        modality_changed=changed["modality"],
        attributes_added=tuple(name for name in attributes if name not in old_names),
        attributes_removed=tuple(name for name in attributes if name not in new_names),
        attributes_changed={name: changed[a] for a, name in shared.items() if changed[a]},
        caption_lengths=lengths,
        shifts=shifts,
        numbers=numbers,
        examples=_examples(database, limit),
        note=note,
    )


def _count_changes(database: duckdb.DuckDBPyConnection, columns: list[str]) -> dict[str, int]:
    """In how many of the pairs that are in both versions each of the `columns` differs."""
    counts = ", ".join(
        f"count(*) FILTER (WHERE o.{name} IS DISTINCT FROM n.{name})" for name in columns
    )
    found = database.execute(f"SELECT {counts} FROM {_BOTH}").fetchone()
    assert found is not None
    return dict(zip(columns, map(int, found), strict=True))


def _examples(database: duckdb.DuckDBPyConnection, limit: int) -> dict[str, tuple[Example, ...]]:
    changed = f"n.pair_id, n.path, o.caption, n.caption FROM {_BOTH} WHERE o.{{0}} <> n.{{0}}"
    queries = {
        "added": "pair_id, path, NULL, caption FROM added ORDER BY row",
        "removed": "pair_id, path, caption, NULL FROM removed ORDER BY row",
        "recaptioned": changed.format("caption") + " ORDER BY n.row",
        "media_replaced": changed.format("item") + " ORDER BY n.row",
    }
    return {
        kind: tuple(
            Example(*row)
            for row in database.execute(f"SELECT {query} LIMIT {int(limit)}").fetchall()
        )
        for kind, query in queries.items()
    }
