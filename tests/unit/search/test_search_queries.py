"""Mixing, explaining, spreading and fusing hits, each against its slow, obvious form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coembed.errors import UserError
from coembed.search.diversity import diverse_order
from coembed.search.explain import explain
from coembed.search.fusion import fuse
from coembed.search.mix import mix


def unit(num: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


seeds = st.integers(0, 10_000)
weights_of = st.lists(
    st.floats(-100, 100).filter(lambda w: w == 0 or abs(w) > 1e-3), min_size=1, max_size=8
)


@settings(deadline=None)
@given(seeds, weights_of)
def test_a_mix_is_the_unit_vector_of_the_weighted_sum(seed: int, weights: list[float]) -> None:
    terms = unit(len(weights), 16, seed)
    summed = sum(w * t.astype(np.float64) for w, t in zip(weights, terms, strict=True))
    length = np.linalg.norm(summed)
    if length <= 2e-3 * sum(map(abs, weights)):
        return
    made = mix(terms, np.asarray(weights))
    assert np.allclose(made.vector, summed / length, atol=1e-5)
    assert np.linalg.norm(made.vector) == pytest.approx(1, abs=1e-6)


def test_one_term_is_itself_whatever_its_weight() -> None:
    (term,) = unit(1, 8, 0)
    assert np.allclose(mix(term[None], np.asarray([37.5])).vector, term, atol=1e-7)
    assert np.allclose(mix(term[None], np.asarray([-2.0])).vector, -term, atol=1e-7)


@pytest.mark.parametrize("weights", [[1.0, -1.0], [1e-3, -1e-3], [100.0, -100.0]])
def test_terms_that_cancel_out_are_refused(weights: list[float]) -> None:
    (term,) = unit(1, 8, 0)
    with pytest.raises(UserError, match="cancel out"):
        mix(np.stack([term, term]), np.asarray(weights))


@pytest.mark.parametrize("weights", [[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_weights_that_mean_nothing_are_refused(weights: list[float]) -> None:
    with pytest.raises(UserError, match="must be numbers, and not all of them 0"):
        mix(unit(2, 8, 0), np.asarray(weights))


@settings(deadline=None)
@given(seeds, st.lists(st.floats(0.1, 5), min_size=2, max_size=6))
def test_the_parts_of_a_score_sum_to_it_exactly(seed: int, weights: list[float]) -> None:
    query = mix(
        unit(len(weights), 32, seed), np.asarray(weights) * [1, -0.5, 1, -0.5, 1, 1][: len(weights)]
    )
    items = unit(20, 32, seed + 1)
    parts = explain(query, items)
    assert np.allclose(parts.scores.sum(axis=1), items @ query.vector, atol=1e-5)
    assert np.allclose(parts.cosines, items @ query.terms.T, atol=1e-6)
    assert np.allclose(np.abs(parts.shares).sum(axis=1), 1)
    assert (np.sign(parts.shares) == np.sign(parts.scores)).all()


def test_what_a_query_leads_away_from_takes_from_a_score() -> None:
    shoe, leather = np.eye(2, 4, dtype=np.float32)
    query = mix(np.stack([shoe, leather]), np.asarray([1.0, -0.5]))
    both = ((shoe + leather) / np.sqrt(2)).astype(np.float32)
    (scores,) = explain(query, both[None]).scores
    assert scores[0] > 0 > scores[1]


def slow_mmr(relevance: np.ndarray, items: np.ndarray, diversity: float, num: int) -> list[int]:
    """Carbonell and Goldstein's loop, with both measures brought to 0 to 1."""
    pairs = [
        float(items[i].astype(np.float64) @ items[j].astype(np.float64))
        for i in range(len(items)) for j in range(len(items)) if i != j
    ]  # fmt: skip
    low, span = min(pairs), max(pairs) - min(pairs)
    best, worst = max(relevance), min(relevance)
    chosen: list[int] = []
    while len(chosen) < min(num, len(items)):

        def value(i: int) -> float:
            near = max(
                ((float(items[i].astype(np.float64) @ items[j].astype(np.float64)) - low) / span
                 for j in chosen),
                default=0.0,
            )  # fmt: skip
            return (1 - diversity) * (relevance[i] - worst) / (best - worst) - diversity * max(
                near, 0
            )

        chosen.append(max((i for i in range(len(items)) if i not in chosen), key=value))
    return chosen


@settings(deadline=None)
@given(seeds, st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]))
def test_diversity_is_maximal_marginal_relevance(seed: int, diversity: float) -> None:
    items = unit(15, 8, seed)
    relevance = np.sort(items @ unit(1, 8, seed + 1)[0])[::-1]
    found = diverse_order(relevance, items, diversity=diversity, num=9)
    assert found == slow_mmr(relevance, items, diversity, 9)


def test_no_diversity_is_the_order_of_relevance_and_pages_are_prefixes() -> None:
    items = unit(30, 8, 0)
    relevance = np.sort(items @ unit(1, 8, 1)[0])[::-1]
    assert diverse_order(relevance, items, diversity=0.0, num=30) == list(range(30))
    whole = diverse_order(relevance, items, diversity=0.6, num=30)
    assert sorted(whole) == list(range(30))
    assert diverse_order(relevance, items, diversity=0.6, num=7) == whole[:7]


def test_diversity_leaves_twins_for_later() -> None:
    rng = np.random.default_rng(0)
    red = np.asarray([1, 0, 0, 0.2])
    groups = [red, red, red, np.asarray([0.8, 0.6, 0, 0]), np.asarray([0.8, 0, 0.6, 0])]
    items = np.stack([g + rng.normal(0, 1e-3, 4) for g in groups]).astype(np.float32)
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    relevance = np.asarray([0.9, 0.89, 0.88, 0.7, 0.69])
    assert set(diverse_order(relevance, items, diversity=0.7, num=3)) == {0, 3, 4}


@pytest.mark.parametrize("num", [0, 1, 2])
def test_few_or_equal_candidates(num: int) -> None:
    items = np.repeat(unit(1, 4, 0), num, axis=0)
    assert diverse_order(np.ones(num), items, diversity=0.5, num=5) == list(range(num))


@settings(deadline=None)
@given(seeds, st.floats(0, 1))
def test_fusion_is_a_convex_combination(seed: int, weight: float) -> None:
    rng = np.random.default_rng(seed)
    cosines, bm25 = rng.uniform(-0.2, 0.4, 12), rng.uniform(0, 9, 12) * (rng.random(12) < 0.5)
    fused, near, worded = fuse(cosines, bm25, keywords=weight)
    expected = [
        (1 - weight) * (c - min(cosines)) / (max(cosines) - min(cosines))
        + weight * (b / max(bm25) if max(bm25) else 0)
        for c, b in zip(cosines, bm25, strict=True)
    ]
    assert np.allclose(fused, expected) and np.allclose(near + worded, fused)
    assert ((fused >= 0) & (fused <= 1 + 1e-12)).all()
    if weight == 0:
        assert list(np.argsort(-fused)) == list(np.argsort(-cosines))


def test_fusion_of_equal_cosines_and_of_nothing() -> None:
    fused, _, _ = fuse(np.asarray([0.3, 0.3]), np.asarray([0.0, 2.0]), keywords=0.5)
    assert fused.tolist() == [0.5, 1.0]
    assert fuse(np.empty(0), np.empty(0), keywords=0.5)[0].shape == (0,)
