"""Slices and attribute queries against hand-written cases."""

from __future__ import annotations

import numpy as np
import pytest

from coembed.evaluation.attribute_queries import (
    attribute_outcomes,
    best_precision,
    make_queries,
    right_in_top,
    shared_value,
)
from coembed.evaluation.retrieval import Outcomes, summarise
from coembed.evaluation.slices import slice_scores


def test_slice_means_and_counts() -> None:
    outcomes = Outcomes(
        "t",
        values={"top_1": np.asarray([1.0, 0.0, 1.0, 1.0, 0.0])},
        chance={"top_1": np.asarray([0.1, 0.1, 0.3, 0.3, 0.3])},
    )
    columns = {"colour": ["red", "red", "blue", "blue", None], "kind": ["a", "a", "a", "a", "a"]}
    scores = slice_scores(outcomes, columns, min_slice=3)
    found = [(s.column, s.value, s.num_queries, s.small, s.score, s.chance) for s in scores]
    assert found == [
        ("colour", "blue", 2, True, 1.0, pytest.approx(0.3)),
        ("colour", "red", 2, True, 0.5, pytest.approx(0.1)),
        ("kind", "a", 5, False, 0.6, pytest.approx(0.22)),
    ]
    assert {s.overall for s in scores} == {0.6}


def test_slices_of_a_column_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    values = {"recall_at_1": rng.integers(0, 2, size=200).astype(float)}
    outcomes = Outcomes("t", values, {"recall_at_1": np.full(200, 0.01)})
    column = rng.choice(["x", "y", "z"], size=200).tolist()
    scores = slice_scores(outcomes, {"c": column}, min_slice=1)
    assert sum(s.num_queries for s in scores) == 200
    whole = sum(s.score * s.num_queries for s in scores) / 200
    assert whole == pytest.approx(values["recall_at_1"].mean())


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
