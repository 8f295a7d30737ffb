"""Slices and attribute queries against hand-written cases."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

from coembed.evaluation.answered import Answered
from coembed.evaluation.attribute_queries import (
    attribute_outcomes,
    best_precision,
    make_queries,
    right_in_top,
    shared_value,
)
from coembed.evaluation.retrieval import Outcomes, summarise
from coembed.evaluation.scoring import score
from coembed.evaluation.settings import BootstrapSettings
from coembed.evaluation.slices import SliceScore, label_slices, makes_slices


def answered(
    values: np.ndarray, labels: dict[str, list[str | None]], clusters: np.ndarray | None = None
) -> Answered:
    """Outcomes of one metric, top_1, with chances 0.1, 0.2, ... over and over."""
    num = len(values)
    numbers = np.arange(num) if clusters is None else clusters
    chance = np.resize([0.1, 0.2, 0.3], num)
    outcomes = Outcomes("t", {"top_1": values}, {"top_1": chance})
    return Answered("g", "k", outcomes, [str(n) for n in range(num)], numbers, numbers, labels)


def slices_of(one: Answered, *, min_slice: int = 1) -> list[SliceScore]:
    return score([one], bootstrap=BootstrapSettings(num_resamples=500), min_slice=min_slice)[1]


def test_slice_means_and_counts() -> None:
    columns: dict[str, list[str | None]] = {
        "kind": ["a", "a", "a", "a", "a"], "colour": ["red", "red", "blue", "blue", None],
    }  # fmt: skip
    scores = slices_of(answered(np.asarray([1.0, 0.0, 1.0, 1.0, 0.0]), columns), min_slice=3)
    found = [(s.column, s.value, s.num_queries, s.small, s.score, s.chance) for s in scores]
    assert found == [
        ("colour", "blue", 2, True, 1.0, pytest.approx(0.2)),
        ("colour", "red", 2, True, 0.5, pytest.approx(0.15)),
        ("kind", "a", 5, False, 0.6, pytest.approx(0.18)),
    ]
    assert {s.overall for s in scores} == {0.6}


def test_slices_of_a_column_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, size=200).astype(float)
    column = rng.choice(["x", "y", "z"], size=200).tolist()
    scores = slices_of(answered(values, {"c": column}))
    assert sum(s.num_queries for s in scores) == 200
    assert sum(s.score * s.num_queries for s in scores) / 200 == pytest.approx(values.mean())


def test_intervals_of_slices_are_those_of_their_queries_alone() -> None:
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(150), 3)
    values = rng.integers(0, 2, size=450).astype(float)
    column = [("x", "y", None)[item % 3] for item in clusters]
    one = answered(values, {"c": column}, clusters)
    [figure], slices = score([one], bootstrap=BootstrapSettings(), min_slice=1)
    assert (figure.path, figure.value) == ("g/k/top_1", values.mean())
    for row in slices:
        inside = np.asarray(column) == row.value
        means = [chunk.mean() for chunk in np.split(values[inside], 50)]  # of each item's queries
        error = np.std(means) / 50**0.5
        assert (row.low, row.high) == pytest.approx(
            (row.score - 1.96 * error, row.score + 1.96 * error), abs=0.015
        )
        assert row.high - row.low > 1.5 * (figure.high - figure.low)


def test_a_slice_of_one_item_tells_next_to_nothing() -> None:
    column: list[str | None] = ["x", *["y"] * 99]
    one, many = slices_of(answered(np.ones(100), {"c": column}))
    assert (one.low, one.high) == (pytest.approx(0.025), 1)
    assert many.low == pytest.approx(0.025 ** (1 / 99))


@pytest.mark.slow
def test_many_queries_metrics_and_slices_fit_into_memory() -> None:
    rng = np.random.default_rng(3)
    items = np.repeat(np.arange(50_000), 5)
    ranks = rng.geometric(0.02, size=len(items)).astype(float)
    values = {f"recall_at_{k}": (ranks <= k).astype(float) for k in (1, 5, 10, 20, 50)}
    outcomes = Outcomes("t", values | {"mrr": 1 / ranks}, {**values, "mrr": ranks}, ranks)
    labels = {
        f"column {number}": rng.choice(list("abcdefghij"), size=50_000)[items].tolist()
        for number in range(6)
    }
    one = Answered("g", "k", outcomes, [str(n) for n in range(len(items))], items, items, labels)
    tracemalloc.start()
    started = time.process_time()
    figures, slices = score([one], bootstrap=BootstrapSettings(), min_slice=30)
    took, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(figures), len(slices)) == (7, 60 * 6)
    assert peak < 500 << 20
    assert took < 60


def test_words_and_booleans_are_slices_by_themselves() -> None:
    assert label_slices(["red", None, True, 3]) == ("red", None, "true", "3")
    assert label_slices([3, 3, 1, None]) == ("3", "3", "1", None)  # a rating, say


def test_of_many_words_the_most_frequent_ones_count() -> None:
    values = [f"w{number:02}" for number in range(60) for _ in range(3 if number % 2 else 2)]
    labels = label_slices(values)
    kept = set(labels) - {None}
    assert len(kept) == 50
    assert {f"w{number:02}" for number in range(1, 60, 2)} < kept
    # Of those that are equally frequent the first by name.
    assert {value for value in kept if int(value[1:]) % 2 == 0} == {
        f"w{number:02}" for number in range(0, 40, 2)
    }
    assert label_slices(values[::-1]) == labels[::-1]


def test_numbers_are_cut_at_their_quartiles() -> None:
    prices = [1.5 * place for place in range(20)]
    labels = label_slices([None, *prices])
    assert labels[0] is None
    names = list(dict.fromkeys(labels[1:]))
    assert names == ["0 to 6", "7.5 to 13.5", "15 to 21", "22.5 to 28.5"]
    assert [labels.count(name) for name in names] == [5, 5, 5, 5]


def test_numbers_that_tie_stay_together() -> None:
    numbers = [0.0] * 60 + [float(place) for place in range(1, 41)]
    labels = label_slices(numbers)
    assert labels.count("0") == 60
    assert len(set(labels)) == 3
    close = [1_000_000.0 + place / 100 for place in range(40)]
    assert sorted(set(label_slices(close)))[0] == "1000000 to 1000000.09"


def test_columns_that_name_single_items_make_no_slices() -> None:
    num = range(100)
    assert makes_slices([f"k{place % 7}" for place in num])
    assert makes_slices([1.5 * place for place in num])  # a price may differ everywhere
    assert makes_slices([place % 60 for place in num])
    assert makes_slices([place > 40 for place in num])
    assert not makes_slices([f"file{place}" for place in num])
    assert not makes_slices([7_000 + place for place in num])  # item numbers
    assert not makes_slices(["the same" for _ in num])
    assert not makes_slices([None, None, "once"])
    assert makes_slices(["few", "items", None])


LABELS = {
    "colour": ["red", "red", "blue", "red", None],
    "kind": ["rain_coat", "rain_coat", "hat", "hat", "hat"],
}


def test_queries_are_the_combinations_that_exist() -> None:
    queries = make_queries("{colour} {kind}", LABELS)
    assert [(q.text, q.right.tolist()) for q in queries] == [
        ("blue hat", [2]),
        ("red hat", [3]),
        ("red rain coat", [0, 1]),
    ]


def test_precision_and_capped_recall_by_hand() -> None:
    queries = make_queries("{colour} {kind}", LABELS)
    items = np.eye(5, dtype=np.float32)
    embedded = np.asarray(
        [
            [0, 0.1, 0.9, 0.2, 0],  # blue hat: found first
            [0.9, 0.8, 0.2, 0.1, 0],  # red hat: fourth
            [0.9, 0, 0.8, 0.1, 0],  # red rain coat: first and (tied with item 4) last
        ],
        dtype=np.float32,
    )
    outcomes = attribute_outcomes("t", queries, embedded, items, (1, 2))
    assert outcomes.values["precision_at_1"].tolist() == [1, 0, 1]
    assert outcomes.values["precision_at_2"].tolist() == [0.5, 0, 0.5]
    assert outcomes.values["capped_recall_at_2"].tolist() == [1, 0, 0.5]
    summary = summarise(outcomes)
    assert summary["chance_precision_at_1"] == pytest.approx((1 + 1 + 2) / 3 / 5)
    # Two draws from five: 0.4 hits expected of the 1 that is possible, 0.8 of the 2.
    assert summary["chance_capped_recall_at_2"] == pytest.approx((0.4 + 0.4 + 0.4) / 3)
    assert best_precision(queries, 2) == pytest.approx((0.5 + 0.5 + 1) / 3)


def test_a_perfect_search_has_capped_recall_of_one() -> None:
    queries = make_queries("{colour} {kind}", LABELS)
    items = np.eye(3, dtype=np.float32)[[2, 2, 0, 1, 1]]
    items[4] = 0
    outcomes = attribute_outcomes("t", queries, np.eye(3, dtype=np.float32), items, (1, 10))
    assert outcomes.values["capped_recall_at_10"].tolist() == [1, 1, 1]
    assert outcomes.values["precision_at_10"].tolist() == [0.1, 0.1, 0.2]


def test_ties_at_the_edge_are_shared_as_random_order_would() -> None:
    rng = np.random.default_rng(4)
    scores = rng.integers(0, 4, size=30).astype(np.float64)
    right = np.sort(rng.permutation(30)[:9])
    for k in (1, 5, 12, 30, 50):
        drawn = []
        for _ in range(4000):
            order = rng.permutation(30)
            top = order[np.argsort(-scores[order], kind="stable")][:k]
            drawn.append(np.isin(top, right).sum())
        assert right_in_top(scores, right, k) == pytest.approx(np.mean(drawn), abs=0.08)


def test_queries_whose_items_agree_form_slices() -> None:
    query = make_queries("{colour} {kind}", LABELS)[2]
    assert shared_value(query, ["unseen", "unseen", "seen", "seen", "seen"]) == "unseen"
    assert shared_value(query, ["unseen", "seen", "seen", "seen", "seen"]) is None
    assert shared_value(query, [None, None, "seen", "seen", "seen"]) is None
