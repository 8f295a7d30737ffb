"""The best candidates of each query against a stable sort of all scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coembed.evaluation.scores import BestScores
from coembed.evaluation.top import top_candidates


def sorted_all(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and scores of the k best of each row, ties by number."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_equal_to_a_stable_sort(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    num_queries, num_candidates = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 60))
    # Whole numbers: many ties, exact in whatever order products are summed.
    queries = rng.integers(-2, 3, size=(num_queries, 4)).astype(np.float32)
    candidates = rng.integers(-1, 2, size=(num_candidates, 4)).astype(np.float32)
    k = data.draw(st.integers(1, 15))
    numbers, scores = top_candidates(
        queries,
        candidates,
        k,
        query_block=data.draw(st.integers(1, 35)),
        candidate_block=data.draw(st.integers(1, 65)),
    )
    expected_numbers, expected_scores = sorted_all(queries @ candidates.T, k)
    assert numbers.tolist() == expected_numbers.tolist()
    assert scores.tolist() == expected_scores.tolist()
    assert (numbers.dtype, scores.dtype) == (np.int64, np.float32)


def test_fewer_candidates_than_asked_for() -> None:
    numbers, scores = top_candidates(
        np.ones((2, 3), np.float32), np.eye(3, dtype=np.float32)[:2], 10
    )
    assert numbers.tolist() == [[0, 1], [0, 1]]
    assert scores.tolist() == [[1, 1], [1, 1]]
    numbers, scores = top_candidates(np.ones((2, 3), np.float32), np.empty((0, 3), np.float32), 10)
    assert numbers.shape == scores.shape == (2, 0)


@pytest.mark.parametrize("order", ["rising", "falling", "shuffled"])
def test_blocks_that_get_better_and_better(order: str) -> None:
    # "rising" has every block full of candidates that are better than all before it.
    rng = np.random.default_rng(1)
    values = np.linspace(-1, 1, 500, dtype=np.float32)
    row = {"rising": values, "falling": values[::-1], "shuffled": rng.permutation(values)}[order]
    scores = np.stack([row, row[::-1], rng.permutation(row)])
    best = BestScores(3, 7, torch.device("cpu"))
    for start in range(0, 500, 40):
        best.see(torch.from_numpy(scores[:, start : start + 40].copy()), start)
    numbers, expected = sorted_all(scores, 7)
    assert best.numbers.tolist() == numbers.tolist()
    assert best.scores.tolist() == expected.tolist()


@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_the_way_of_a_gpu_finds_the_same(levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # There every block is searched for its k best; here, most times, for what beats those known.
    rng = np.random.default_rng(levels)
    queries = rng.integers(0, 2, size=(150, 3)).astype(np.float32)
    candidates = rng.integers(0, levels, size=(900, 3)).astype(np.float32)
    blocks = {"query_block": 100, "candidate_block": 400}
    numbers, scores = top_candidates(queries, candidates, 6, **blocks)
    expected_numbers, expected_scores = sorted_all(queries @ candidates.T, 6)
    assert numbers.tolist() == expected_numbers.tolist()
    assert scores.tolist() == expected_scores.tolist()
    monkeypatch.setattr(BestScores, "_better", lambda *_: None)
    searched, found = top_candidates(queries, candidates, 6, **blocks)
    assert searched.tolist() == numbers.tolist()
    assert found.tolist() == scores.tolist()
