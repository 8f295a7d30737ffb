"""Average precision with ties against hand-written cases, all orders of ties, a slow reference and
pytrec_eval."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import label_ranking_average_precision_score, top_k_accuracy_score

from coembed.evaluation.average_precision import chance_average_precision
from coembed.evaluation.retrieval import (
    TIE_TOLERANCE,
    Positives,
    Rankings,
    rank_outcomes,
    rankings,
    ranks,
    summarise,
)


def found(scores: np.ndarray, lists: list[list[int]], k: int, **blocks: int) -> Rankings:
    """Rankings of the rows of `scores` [num_queries, num_candidates]: products with unit axes."""
    candidates = np.eye(scores.shape[1], dtype=np.float32)
    return rankings(scores.astype(np.float32), candidates, Positives.from_lists(lists), k, **blocks)


def plain(order: list[int], positives: list[int], k: int) -> float:
    """AP@k of one order without ties, by its definition."""
    right, total = 0, 0.0
    for place, candidate in enumerate(order[:k], start=1):
        if candidate in positives:
            right += 1
            total += right / place
    return total / min(len(positives), k)


def over_all_orders(scores: list[float], positives: list[int], k: int) -> float:
    """Mean of AP@k over every order that equal scores can come in."""
    groups = [
        permutations([c for c, score in enumerate(scores) if score == level])
        for level in sorted(set(scores), reverse=True)
    ]
    orders = [[c for group in way for c in group] for way in product(*groups)]
    return float(np.mean([plain(order, positives, k) for order in orders]))


def dense(scores: np.ndarray, positives: list[int], k: int) -> float:
    """AP@k of one query by the module's words, one positive and one place at a time."""
    best = np.sort(scores)[::-1]
    threshold = best[min(k, len(best)) - 1]
    total = 0.0
    for own in positives:
        if scores[own] < threshold - TIE_TOLERANCE:
            continue
        anchor = scores[own] if scores[own] > threshold + TIE_TOLERANCE else threshold
        above = {c for c, score in enumerate(scores) if score > anchor + TIE_TOLERANCE}
        tied = {c for c, score in enumerate(scores) if abs(score - anchor) <= TIE_TOLERANCE}
        others = len(tied & set(positives)) - 1
        for before in range(len(tied)):  # of its tie, each number as likely as any other
            place = len(above) + before + 1
            if place <= k:
                share = before / (len(tied) - 1) if before else 0.0
                right = len(above & set(positives)) + 1 + others * share
                total += right / place / len(tied)
    return total / min(len(positives), k)


def test_hand_written_cases() -> None:
    scores = np.asarray(
        [
            [0.9, 0.8, 0.7, 0.6, 0.5],  # 0 and 2 at places 1 and 3: (1/1 + 2/3) / 2
            [0.9, 0.8, 0.7, 0.6, 0.5],  # 3 and 4 lie beyond place 3: 0
            [0.9, 0.8, 0.7, 0.6, 0.5],  # 1 at place 2: 1/2
            [0.9, 0.8, 0.7, 0.6, 0.5],  # 0, 1, 2, 3, of which three can be found: 1
            [0.9, 0.9, 0.7, 0.6, 0.5],  # 0 at place 1 or 2: (1 + 1/2) / 2
            [0.9, 0.7, 0.7, 0.7, 0.5],  # 1 at place 2 or 3, or, one time in three, at 4
            [0.9, 0.9, 0.7, 0.6, 0.5],  # 0 and 1 tie with each other only: 1
        ]
    )
    lists = [[0, 2], [3, 4], [1], [0, 1, 2, 3], [0], [1], [0, 1]]
    expected = [(1 + 2 / 3) / 2, 0, 1 / 2, 1, 3 / 4, (1 / 2 + 1 / 3) / 3, 1]
    assert found(scores, lists, 3).average_precision == pytest.approx(expected, abs=1e-12)


def test_the_best_candidates_come_with_it() -> None:
    scores = np.asarray([[0.1, 0.4, 0.4, 0.2, 0.3]])
    ranked = found(scores, [[0]], 3)
    assert ranked.top.tolist() == [[1, 2, 4]]
    assert ranked.top_scores == pytest.approx(np.asarray([[0.4, 0.4, 0.3]]))
    assert ranked.ranks.tolist() == [5]
    assert found(scores, [[0]], 9).top.tolist() == [[1, 2, 4, 3, 0]]


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_it_is_the_mean_over_all_orders_of_ties(data: st.DataObject) -> None:
    levels = st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=1, max_size=6)
    scores = data.draw(levels)
    numbers = st.integers(0, len(scores) - 1)
    positives = sorted(data.draw(st.sets(numbers, min_size=1)))
    k = data.draw(st.integers(1, 7))
    got = found(np.asarray([scores]), [positives], k).average_precision[0]
    assert got == pytest.approx(over_all_orders(scores, positives, k), abs=1e-12)


def drawn(
    rng: np.random.Generator, num_queries: int, num_candidates: int
) -> tuple[np.ndarray, list[list[int]]]:
    """Scores with ties: exact ones, and ones a third of the tolerance apart. Of each row some
    positives."""
    levels = rng.integers(0, max(2, num_candidates // 3), size=(num_queries, num_candidates))
    scores = 0.01 * levels + rng.integers(-1, 2, size=levels.shape) * TIE_TOLERANCE / 3
    lists = [
        sorted(rng.permutation(num_candidates)[: rng.integers(1, num_candidates + 1)].tolist())
        for _ in range(num_queries)
    ]
    return scores.astype(np.float32), lists


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_equal_to_the_dense_reference(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    scores, lists = drawn(rng, data.draw(st.integers(1, 12)), data.draw(st.integers(1, 70)))
    k = data.draw(st.integers(1, 12))
    blocks = {
        "query_block": data.draw(st.integers(1, 14)),
        "candidate_block": data.draw(st.integers(1, 75)),
    }
    ranked = found(scores, lists, k, **blocks)
    expected = [
        dense(row, right, k) for row, right in zip(scores.astype(float), lists, strict=True)
    ]
    assert ranked.average_precision == pytest.approx(expected, abs=1e-12)
    # The same pass gives the ranks that `ranks` gives alone.
    candidates = np.eye(scores.shape[1], dtype=np.float32)
    alone = ranks(scores, candidates, Positives.from_lists(lists), **blocks)
    assert ranked.ranks.tolist() == alone.tolist()


def test_a_collapsed_model_has_exactly_the_value_of_chance() -> None:
    rng = np.random.default_rng(0)
    same = rng.normal(size=(1, 64))
    same = np.repeat(same / np.linalg.norm(same), 300, axis=0)
    noisy = (same + rng.normal(scale=1e-8, size=same.shape)).astype(np.float32)
    lists = [[i, (i + 7) % 300] for i in range(300)]
    positives = Positives.from_lists(lists)
    ranked = rankings(same.astype(np.float32), noisy, positives, 10)
    chance = chance_average_precision(300, positives.counts, 10)
    assert ranked.average_precision == pytest.approx(chance, rel=1e-12)
    assert chance[0] < 0.02


def test_chance_is_what_random_order_gives() -> None:
    rng = np.random.default_rng(5)
    for count in (1, 3, 9):
        drawn_values = [plain(rng.permutation(12).tolist(), list(range(count)), 5)
                        for _ in range(20_000)]  # fmt: skip
        expected = np.mean(drawn_values)
        assert chance_average_precision(12, np.asarray([count]), 5) == pytest.approx(
            expected, abs=0.01
        )
    # One candidate in all, one positive in all, every candidate a positive.
    assert chance_average_precision(1, np.asarray([1]), 10).tolist() == [1]
    assert chance_average_precision(4, np.asarray([4]), 10) == pytest.approx([1])
    assert chance_average_precision(4, np.asarray([1]), 2) == pytest.approx([(1 + 1 / 2) / 4])


def test_long_ties_at_the_last_place_are_counted_in_full() -> None:
    # 198 candidates tie for places 2 to 199, far more than are kept of a query. Two are positives:
    # either stands at each of these places with chance 1/198, and the other before it, where
    # `place - 2` candidates of the tie are, with chance (place - 2) / 197.
    scores = np.full((1, 250), 0.1)
    scores[0, 7] = 0.9
    scores[0, 50:101] = 0.0
    expected = sum(2 * (1 / 198) * (1 + (place - 2) / 197) / place for place in range(2, 11))
    got = found(scores, [[40, 200]], 10).average_precision[0]
    assert got == pytest.approx(expected / 2, abs=1e-12)  # of min(2 positives, 10)
    assert got == pytest.approx(dense(scores[0], [40, 200], 10), abs=1e-12)


def test_equal_to_pytrec_eval() -> None:
    # Without ties, which trec_eval breaks by name. Its map_cut divides by all positives.
    rng = np.random.default_rng(2)
    num_queries, num_candidates = 60, 80
    scores = np.argsort(rng.random((num_queries, num_candidates)), axis=1) / num_candidates
    lists = [
        sorted(rng.permutation(num_candidates)[: rng.integers(1, 25)].tolist())
        for _ in range(num_queries)
    ]
    judged = {
        f"q{q}": {f"c{c}": int(c in right) for c in range(num_candidates)}
        for q, right in enumerate(lists)
    }
    run = {
        f"q{q}": {f"c{c}": float(score) for c, score in enumerate(row)}
        for q, row in enumerate(scores)
    }
    measures = {"map_cut.5,10", "success.1,5,10", "recip_rank"}
    theirs = pytrec_eval.RelevanceEvaluator(judged, measures).evaluate(run)
    positives = Positives.from_lists(lists)
    for k in (5, 10):
        ranked = found(scores, lists, k)
        outcomes = rank_outcomes("t", ranked, num_candidates, positives, (1, 5, 10))
        expected = {
            f"map_at_{k}": [
                theirs[f"q{q}"][f"map_cut_{k}"] * len(right) / min(len(right), k)
                for q, right in enumerate(lists)
            ],
            "mrr": [theirs[f"q{q}"]["recip_rank"] for q in range(num_queries)],
            **{
                f"recall_at_{at}": [theirs[f"q{q}"][f"success_{at}"] for q in range(num_queries)]
                for at in (1, 5, 10)
            },
        }
        for metric, values in expected.items():
            assert outcomes.values[metric] == pytest.approx(values, abs=1e-6), metric


def test_equal_to_scikit_learn() -> None:
    rng = np.random.default_rng(4)
    scores = np.argsort(rng.random((50, 40)), axis=1) / 40
    single = rng.integers(0, 40, size=50)
    alone = found(scores, [[number] for number in single.tolist()], 40)
    for k in (1, 5, 10):
        theirs = top_k_accuracy_score(single, scores, k=k, labels=np.arange(40))
        assert (alone.ranks <= k).mean() == pytest.approx(theirs)
    # With k = all candidates AP@k is average precision as label ranking has it.
    several = rng.random((50, 40)) < 0.2
    several[:, 0] = True
    ranked = found(scores, [np.flatnonzero(row).tolist() for row in several], 40)
    theirs = label_ranking_average_precision_score(several, scores)
    assert ranked.average_precision.mean() == pytest.approx(theirs)


def test_it_stands_among_the_metrics() -> None:
    scores = np.asarray([[0.9, 0.8, 0.7], [0.7, 0.8, 0.9]])
    positives = Positives.from_lists([[0], [0]])
    ranked = found(scores, [[0], [0]], 10)
    summary = summarise(rank_outcomes("t", ranked, 3, positives, (1,)))
    assert summary["map_at_10"] == pytest.approx((1 + 1 / 3) / 2)
    assert summary["chance_map_at_10"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert list(summary) == [
        "num_queries", "recall_at_1", "chance_recall_at_1", "map_at_10", "chance_map_at_10",
        "mrr", "chance_mrr", "median_rank",
    ]  # fmt: skip
