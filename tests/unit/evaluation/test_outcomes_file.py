"""outcomes.parquet and hits.parquet: what is written is read, and damage is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coembed.errors import DataError
from coembed.evaluation.answered import Answered
from coembed.evaluation.outcomes_file import (
    Hit,
    TaskHits,
    read_hits,
    read_outcomes,
    write_hits,
    write_outcomes,
)
from coembed.evaluation.retrieval import Outcomes

ITEM_IDS = ("aa", "bb", "cc")


def task(group: str, key: str, items: list[int], **metrics: list[float]) -> Answered:
    values = {name: np.asarray(found) for name, found in metrics.items() if name != "rank"}
    ranks = np.asarray(metrics["rank"]) if "rank" in metrics else None
    chance = {name: np.full(len(items), 0.1) for name in values}
    outcomes = Outcomes(key, values, chance, ranks)
    queries = [f"{key} {place} ‘é’" for place in range(len(items))]
    colours = [None if item < 0 else ("red", "blue", None)[item] for item in items]
    numbers = np.asarray(items, dtype=np.int64)
    return Answered(group, key, outcomes, queries, numbers, np.abs(numbers), {"colour": colours})


ANSWERED = [
    task("retrieval", "text_to_image", [0, 0, 1, 2], mrr=[1, 0.5, 1 / 3, 1], rank=[1, 2, 3, 1]),
    task("attribute_queries", "colour", [-1, -1], precision_at_1=[1.0, 0.0]),
]


def written(path: Path, answered: list[Answered] = ANSWERED) -> Path:
    write_outcomes(path, answered, item_ids=ITEM_IDS, evaluation_set="set")
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = read_outcomes(written(tmp_path / "o.parquet"))
    assert found.evaluation_set == "set"
    assert list(found.tasks) == ["retrieval/text_to_image", "attribute_queries/colour"]
    captions, searches = found.tasks.values()
    assert captions.path("mrr") == "retrieval/text_to_image/mrr"
    assert captions.queries == ANSWERED[0].queries
    assert captions.item_ids == ["aa", "aa", "bb", "cc"]
    assert captions.clusters.tolist() == [0, 0, 1, 2]
    assert captions.labels == {"colour": ["red", "red", "blue", None]}
    assert list(captions.values) == ["mrr"]
    np.testing.assert_array_equal(captions.values["mrr"], [1, 0.5, 1 / 3, 1])
    np.testing.assert_array_equal(captions.ranks, [1, 2, 3, 1])
    assert searches.item_ids == ["", ""]
    assert searches.labels == {}
    assert searches.ranks is None
    assert searches.values["precision_at_1"].tolist() == [1, 0]


def test_the_same_outcomes_give_the_same_bytes(tmp_path: Path) -> None:
    first = written(tmp_path / "1.parquet").read_bytes()
    assert written(tmp_path / "2.parquet").read_bytes() == first


def test_attributes_may_be_called_as_metrics_are(tmp_path: Path) -> None:
    one = task("g", "k", [0, 1], mrr=[1.0, 0.0])
    labels = {"mrr": ["x", "y"], "query": ["p", "q"]}
    named = Answered("g", "k", one.outcomes, one.queries, one.items, one.clusters, labels)
    found = read_outcomes(written(tmp_path / "o.parquet", [named])).tasks["g/k"]
    assert found.labels == labels and found.values["mrr"].tolist() == [1, 0]


def test_a_missing_and_a_damaged_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*o\.parquet") as caught:
        read_outcomes(tmp_path / "o.parquet")
    assert "coembed evaluate" in str(caught.value.hint)
    whole = written(tmp_path / "o.parquet").read_bytes()
    (tmp_path / "o.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"o\.parquet cannot be read"):
        read_outcomes(tmp_path / "o.parquet")


def rewrite(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path)
    return path


def test_tables_that_are_no_outcomes(tmp_path: Path) -> None:
    path = written(tmp_path / "o.parquet")
    table = pq.read_table(path)
    other = tmp_path / "other.parquet"
    with pytest.raises(DataError, match="does not name its evaluation set"):
        read_outcomes(rewrite(other, table.replace_schema_metadata(None)))
    with pytest.raises(DataError, match="has no column 'cluster'"):
        read_outcomes(rewrite(other, table.drop_columns(["cluster"])))
    numbers = pa.array(range(len(table)))
    place = table.column_names.index("query")
    with pytest.raises(DataError, match=r"'query' .* is int64, and string was expected"):
        read_outcomes(rewrite(other, table.set_column(place, "query", numbers)))
    with pytest.raises(DataError, match=r"has no metric of retrieval/text_to_image"):
        read_outcomes(rewrite(other, table.drop_columns(["metric:mrr"])))
    with pytest.raises(DataError, match="a query of retrieval/text_to_image twice"):
        read_outcomes(rewrite(other, pa.concat_tables([table, table.slice(0, 1)])))
    place = table.column_names.index("metric:mrr")
    holes = pa.array([1.0, None, 0.5, 1.0, None, None])
    with pytest.raises(DataError, match="lacks 'metric:mrr' of some queries of retrieval"):
        read_outcomes(rewrite(other, table.set_column(place, "metric:mrr", holes)))


def hits_of(num: int, num_hits: int) -> TaskHits:
    rng = np.random.default_rng(0)
    items = rng.integers(0, len(ITEM_IDS), size=(num, num_hits))
    scores = -np.sort(-rng.random((num, num_hits)).astype(np.float32), axis=1)
    return TaskHits("retrieval", "t", [f"q{row}" for row in range(num)], items, scores)


def test_hits_of_some_queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coembed.evaluation.outcomes_file._ROWS", 7)
    many, few = hits_of(20, 3), hits_of(2, 1)
    path = tmp_path / "h.parquet"
    other = TaskHits("attribute_queries", "t", few.queries, few.items, few.scores)
    write_hits(path, [many, other], item_ids=ITEM_IDS)
    found = read_hits(path, {"retrieval/t": ["q3", "q17", "nothing"], "attribute_queries/u": []})
    assert {name: list(queries) for name, queries in found.items()} == {
        "retrieval/t": ["q3", "q17"], "attribute_queries/u": [],
    }  # fmt: skip
    for query, row in (("q3", 3), ("q17", 17)):
        assert found["retrieval/t"][query] == tuple(
            Hit(ITEM_IDS[item], pytest.approx(score))
            for item, score in zip(many.items[row], many.scores[row], strict=True)
        )
    write_hits(tmp_path / "again.parquet", [many, other], item_ids=ITEM_IDS)
    assert (tmp_path / "again.parquet").read_bytes() == path.read_bytes()


def test_a_file_of_something_else_has_no_hits(tmp_path: Path) -> None:
    path = written(tmp_path / "o.parquet")
    with pytest.raises(DataError, match="has no column 'item_ids'"):
        read_hits(path, {})
