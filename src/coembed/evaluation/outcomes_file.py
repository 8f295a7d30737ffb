"""The files of one evaluation that another is compared with: every query's outcome, and its hits.

`outcomes.parquet` has one row a query of each task, in the order of the tasks: `group`, `key`,
`query` (its name), `item_id` ("" where a query is about no item), `cluster`, `rank` (null where
the task has none), a column `slice:COLUMN` for each slice column and `metric:METRIC` for each
metric, null where the task does not have it. Its metadata name the evaluation set.

`hits.parquet` has one row a query of the tasks that search items by text: `group`, `key`, `query`,
and the lists `item_ids` and `scores` of its hits, best first.

The same outcomes give the same bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from coembed.errors import DataError
from coembed.evaluation.answered import Answered
from coembed.evaluation.retrieval import Embeddings, Floats, Ints
from coembed.files import atomic_path

OUTCOMES = "outcomes.parquet"
HITS = "hits.parquet"
INTERVALS = "intervals.json"

NUM_HITS = 10
"""How many hits of each query are kept."""

_SLICE, _METRIC = "slice:", "metric:"
_SET = b"coembed.evaluation_set"
_WORDS = pa.dictionary(pa.int32(), pa.string())
_TASK = [("group", _WORDS), ("key", _WORDS), ("query", pa.string())]
_ABOUT = [*_TASK, ("item_id", _WORDS), ("cluster", pa.int64()), ("rank", pa.float64())]
_FOUND = [*_TASK, ("item_ids", pa.list_(_WORDS)), ("scores", pa.list_(pa.float32()))]
_ROWS = 20_000  # queries at hand at one time, of hits
# Ids have 64 letters: those of 50,000 items outgrow the usual megabyte, and would be written out.
_DICTIONARY_BYTES = 64 << 20
_HINT = "run `coembed evaluate` again: it was made by another version, or is damaged"


@dataclass(frozen=True, slots=True)
class TaskOutcomes:
    """One task of an outcomes file: `Answered` without its chances. All are [num_queries].

    `item_ids` are "" where a query is about no item; `values[metric]` and `labels[column]` hold one
    value a query.
    """

    group: str
    key: str
    queries: Sequence[str]
    item_ids: Sequence[str]
    clusters: Ints
    labels: Mapping[str, Sequence[str | None]]
    values: Mapping[str, Floats]
    ranks: Floats | None

    def path(self, metric: str) -> str:
        """Where metrics.json holds the mean of `metric`."""
        return f"{self.group}/{self.key}/{metric}"


@dataclass(frozen=True, slots=True)
class RecordedOutcomes:
    """An outcomes file: its evaluation set, and its tasks by "group/key"."""

    evaluation_set: str
    tasks: Mapping[str, TaskOutcomes]


@dataclass(frozen=True, slots=True)
class TaskHits:
    """The best hits of one task's queries: `items` and `scores` are [num_queries, num_hits], best
    first; `items` are numbers in the whole evaluation set."""

    group: str
    key: str
    queries: Sequence[str]
    items: Ints
    scores: Embeddings


@dataclass(frozen=True, slots=True)
class Hit:
    """One hit of a query; a higher score is better."""

    item_id: str
    score: float


RecordedHits = Mapping[str, Mapping[str, Sequence[Hit]]]
"""Hits by "group/key" and query, best first."""


def write_outcomes(
    path: Path, answered: Sequence[Answered], *, item_ids: Sequence[str], evaluation_set: str
) -> None:
    """Write outcomes.parquet. `item_ids` are those of the whole evaluation set, in its order."""
    columns = sorted({column for one in answered for column in one.labels})
    metrics = sorted({metric for one in answered for metric in one.outcomes.values})
    schema = pa.schema(
        [
            *_ABOUT,
            *((f"{_SLICE}{column}", _WORDS) for column in columns),
            *((f"{_METRIC}{metric}", pa.float64()) for metric in metrics),
        ],
        metadata={_SET: evaluation_set.encode()},
    )
    ids = pa.array([*item_ids, ""])  # -1, a query about no item, is the last one
    parts = []
    for one in answered:
        num = one.outcomes.num_queries
        cells = [
            *_task_cells(one.group, one.key, one.queries),
            pa.DictionaryArray.from_arrays(np.asarray(one.items % len(ids), np.int32), ids),
            pa.array(one.clusters),
            _numbers(one.outcomes.ranks, num),
            *(_labels(one.labels.get(column), num) for column in columns),
            *(_numbers(one.outcomes.values.get(metric), num) for metric in metrics),
        ]
        parts.append(pa.Table.from_arrays(cells, schema=schema))
    # In one piece, so that ids and names are written once and not once a task.
    table = pa.concat_tables(parts).unify_dictionaries()
    with atomic_path(path) as partial:
        pq.write_table(
            table, partial, compression="zstd", dictionary_pagesize_limit=_DICTIONARY_BYTES
        )


def read_outcomes(path: Path) -> RecordedOutcomes:
    """Read outcomes.parquet.

    Raises:
        DataError: no such file, a damaged one, or one that lacks what an outcomes file has.
    """
    with _readable(path):
        table = pq.read_table(path)
        evaluation_set = (table.schema.metadata or {}).get(_SET)
        if evaluation_set is None:
            raise DataError(f"{path} does not name its evaluation set", hint=_HINT)
        _check_columns(path, table.schema, _ABOUT)
        tasks: dict[str, TaskOutcomes] = {}
        for start, stop in _runs(table):
            one = _task(path, table.slice(start, stop - start))
            name = f"{one.group}/{one.key}"
            if name in tasks or len(set(one.queries)) < len(one.queries):
                raise DataError(f"{path} has a query of {name} twice", hint=_HINT)
            tasks[name] = one
    return RecordedOutcomes(evaluation_set.decode(), tasks)


def write_hits(path: Path, tasks: Iterable[TaskHits], *, item_ids: Sequence[str]) -> None:
    """Write hits.parquet. `item_ids` are those of the whole evaluation set, in its order."""
    schema = pa.schema(_FOUND)
    ids = pa.array(item_ids)
    with (
        atomic_path(path) as partial,
        pq.ParquetWriter(
            partial, schema, compression="zstd", dictionary_pagesize_limit=_DICTIONARY_BYTES
        ) as writer,
    ):
        for task in tasks:
            for start in range(0, len(task.queries), _ROWS):
                some = slice(start, start + _ROWS)
                items, scores = task.items[some], task.scores[some]
                offsets = pa.array(np.arange(len(items) + 1, dtype=np.int32) * items.shape[1])
                numbers = np.asarray(items.ravel(), dtype=np.int32)
                cells = [
                    *_task_cells(task.group, task.key, task.queries[some]),
                    pa.ListArray.from_arrays(offsets, pa.DictionaryArray.from_arrays(numbers, ids)),
                    pa.ListArray.from_arrays(
                        offsets, pa.array(np.asarray(scores.ravel(), dtype=np.float32))
                    ),
                ]
                writer.write_table(pa.Table.from_arrays(cells, schema=schema))


def read_hits(path: Path, wanted: Mapping[str, Collection[str]]) -> RecordedHits:
    """The hits of some queries.

    `wanted` names queries by "group/key"; those that the file does not have are left out. Holds no
    more than is asked for, and one part of the file.

    Raises:
        DataError: no such file, a damaged one, or one that lacks what a file of hits has.
    """
    found: dict[str, dict[str, tuple[Hit, ...]]] = {name: {} for name in wanted}
    asked = {name: frozenset(queries) for name, queries in wanted.items()}
    with _readable(path), pq.ParquetFile(path) as file:
        _check_columns(path, file.schema_arrow, _FOUND)
        # Lists of words cannot be read across row groups.
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            names = [f"{g}/{k}" for g, k in zip(*_strings(table, "group", "key"), strict=True)]
            queries = table["query"].to_pylist()
            for row, (name, query) in enumerate(zip(names, queries, strict=True)):
                if query in asked.get(name, ()):
                    ids = table["item_ids"][row].as_py()
                    scores = table["scores"][row].as_py()
                    found[name][query] = tuple(
                        Hit(item_id, score) for item_id, score in zip(ids, scores, strict=True)
                    )
    return found


def _task_cells(group: str, key: str, queries: Sequence[str]) -> list[pa.Array]:
    same = np.zeros(len(queries), dtype=np.int32)
    return [
        pa.DictionaryArray.from_arrays(same, pa.array([group])),
        pa.DictionaryArray.from_arrays(same, pa.array([key])),
        pa.array(queries, pa.string()),
    ]


def _labels(labels: Sequence[str | None] | None, num: int) -> pa.Array:
    if labels is None:
        return pa.nulls(num, _WORDS)
    return pa.array(labels, pa.string()).dictionary_encode().cast(_WORDS)


def _numbers(values: Floats | None, num: int) -> pa.Array:
    return pa.nulls(num, pa.float64()) if values is None else pa.array(values, pa.float64())


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"no file {path}", hint="run `coembed evaluate`: it writes it") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint=_HINT) from error


def _check_columns(
    path: Path, schema: pa.Schema, expected: Sequence[tuple[str, pa.DataType]]
) -> None:
    kinds = {field.name: field.type for field in schema}
    expected = [
        *expected,
        *((name, _WORDS) for name in schema.names if name.startswith(_SLICE)),
        *((name, pa.float64()) for name in schema.names if name.startswith(_METRIC)),
    ]
    for name, kind in expected:
        if name not in kinds:
            raise DataError(f"{path} has no column {name!r}", hint=_HINT)
        if kinds[name] != kind:
            raise DataError(
                f"the column {name!r} of {path} is {kinds[name]}, and {kind} was expected",
                hint=_HINT,
            )


def _runs(table: pa.Table) -> Iterator[tuple[int, int]]:
    """The rows of each task, start and stop."""
    groups, keys = _strings(table, "group", "key")
    start = 0
    for row in range(1, len(groups) + 1):
        if row == len(groups) or (groups[row], keys[row]) != (groups[start], keys[start]):
            yield start, row
            start = row


def _strings(table: pa.Table, *columns: str) -> list[list[str | None]]:
    """Cells of dictionary columns. Equal ones are one object, however many there are."""
    found = []
    for column in columns:
        cells: list[str | None] = []
        for chunk in table[column].chunks:
            words = [*chunk.dictionary.to_pylist(), None]
            places = pc.fill_null(chunk.indices, len(words) - 1).to_pylist()
            cells += [words[place] for place in places]
        found.append(cells)
    return found


def _task(path: Path, rows: pa.Table) -> TaskOutcomes:
    """One task from its rows."""
    groups, keys, item_ids = _strings(rows, "group", "key", "item_id")
    name = f"{groups[0]}/{keys[0]}"
    values = {
        column.removeprefix(_METRIC): _floats(path, rows, column, name)
        for column in rows.column_names
        if column.startswith(_METRIC) and rows[column].null_count < len(rows)
    }
    if not values:
        raise DataError(f"{path} has no metric of {name}", hint=_HINT)
    for column in ("query", "item_id", "cluster"):
        if rows[column].null_count:
            raise DataError(f"{path} lacks {column!r} of queries of {name}", hint=_HINT)
    ranked = rows["rank"].null_count < len(rows)
    return TaskOutcomes(
        group=str(groups[0]),
        key=str(keys[0]),
        queries=rows["query"].to_pylist(),
        item_ids=[str(item_id) for item_id in item_ids],
        clusters=rows["cluster"].to_numpy(),
        labels={
            column.removeprefix(_SLICE): _strings(rows, column)[0]
            for column in rows.column_names
            if column.startswith(_SLICE) and rows[column].null_count < len(rows)
        },
        values=values,
        ranks=_floats(path, rows, "rank", name) if ranked else None,
    )


def _floats(path: Path, rows: pa.Table, column: str, name: str) -> Floats:
    """Numbers of one task, all of them there and finite."""
    found: Floats = rows[column].to_numpy()
    if not np.isfinite(found).all():
        raise DataError(f"{path} lacks {column!r} of some queries of {name}", hint=_HINT)
    return found
