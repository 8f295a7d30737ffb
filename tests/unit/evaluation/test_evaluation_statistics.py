"""The bootstrap against closed forms, scipy, slow references, and simulated truths."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from coembed.evaluation.retrieval import Outcomes
from coembed.evaluation.statistics import (
    ClusterSums,
    Median,
    Resamples,
    draw,
    estimate,
    p_values,
    percentiles,
)
from coembed.evaluation.zero_shot import ZeroShot


def weights_of(resamples: Resamples) -> NDArray[np.float64]:
    return np.concatenate(list(resamples.blocks()))


def mean_interval(values: np.ndarray, clusters: np.ndarray, num: int = 2000) -> tuple[float, float]:
    _, numbers = np.unique(clusters, return_inverse=True)
    sums = ClusterSums.of(np.asarray(values, dtype=float)[:, None], numbers)
    [draws] = draw([sums.weigh], Resamples(sums.num_clusters, num=num))
    low, high = sums.interval(draws)
    return float(low[0]), float(high[0])


def test_the_same_numbers_give_the_same_draws() -> None:
    first = weights_of(Resamples(37, num=450, seed=3))
    assert first.shape == (450, 37)
    np.testing.assert_array_equal(weights_of(Resamples(37, num=450, seed=3)), first)
    np.testing.assert_array_equal(weights_of(Resamples(37, num=200, seed=3)), first[:200])
    assert len({row.tobytes() for row in first}) == 450
    assert not np.array_equal(weights_of(Resamples(37, num=450, seed=4)), first)


def test_weights_come_in_blocks_of_bounded_size() -> None:
    block = next(Resamples(1_000_000).blocks())
    assert block.shape == (2, 1_000_000) and (block.sum(axis=1) == 1_000_000).all()


def test_weights_are_those_of_draws_with_replacement() -> None:
    weights = weights_of(Resamples(200, num=2000))
    assert (weights.sum(axis=1) == 200).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(200), abs=0.12)
    assert weights.var() == pytest.approx(1 - 1 / 200, abs=0.02)  # of a multinomial


def test_draws_of_other_numbers_of_clusters_are_independent() -> None:
    one, other = weights_of(Resamples(100)), weights_of(Resamples(200))
    halves = other[:, :100] + other[:, 100:], other[:, ::2] + other[:, 1::2]
    for half in halves:
        assert abs(np.corrcoef(one.ravel(), half.ravel())[0, 1]) < 0.01


def test_a_share_is_resampled_as_a_binomial() -> None:
    values = np.r_[np.ones(60), np.zeros(140)]
    low, high = mean_interval(values, np.arange(200), num=20_000)
    # Every resampled share is a draw of Binomial(200, 0.3) / 200: its percentiles are known.
    assert low == pytest.approx(stats.binom.ppf(0.025, 200, 0.3) / 200, abs=0.0051)
    assert high == pytest.approx(stats.binom.ppf(0.975, 200, 0.3) / 200, abs=0.0051)


def test_intervals_are_scipys() -> None:
    values = np.random.default_rng(1).exponential(size=150)
    found = mean_interval(values, np.arange(150), num=9999)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(2)
    ).confidence_interval
    assert found == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_means_and_medians_are_those_of_the_drawn_queries() -> None:
    """Weights against the obvious way: put the queries of the drawn clusters together."""
    rng = np.random.default_rng(0)
    clusters = np.sort(rng.integers(0, 40, size=160))
    _, clusters = np.unique(clusters, return_inverse=True)
    ranks = np.floor(rng.exponential(20, size=160)) / 2
    resamples = Resamples(int(clusters.max()) + 1, num=300)
    sums = ClusterSums.of(ranks[:, None], clusters)
    median = Median.of(ranks, clusters, resamples.num_clusters)
    means, medians = draw([sums.weigh, median.weigh], resamples)
    for row, weights in enumerate(weights_of(resamples)):
        drawn = np.repeat(ranks, weights[clusters].astype(int))
        assert means[row, 0] == pytest.approx(drawn.mean())
        assert medians[row] == np.median(drawn)
    assert len(set(medians.tolist())) > 5


def test_medians_of_many_look_at_the_middle_only() -> None:
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(4000), 5)
    ranks = np.floor(rng.exponential(30, size=20_000)) + (clusters % 50)
    median = Median.of(ranks, clusters, 4000)
    assert len(median.values) < 5000
    resamples = Resamples(4000, num=60)
    [medians] = draw([median.weigh], resamples)
    for row, weights in enumerate(weights_of(resamples)):
        assert medians[row] == np.median(np.repeat(ranks, weights[clusters].astype(int)))


def test_one_cluster_that_outweighs_all_others() -> None:
    clusters = np.r_[np.zeros(500, dtype=int), np.arange(1, 300)]
    ranks = np.r_[np.full(500, 7.0), np.arange(1, 300)]
    resamples = Resamples(300, num=200)
    [medians] = draw([Median.of(ranks, clusters, 300).weigh], resamples)
    for row, weights in enumerate(weights_of(resamples)):
        assert medians[row] == np.median(np.repeat(ranks, weights[clusters].astype(int)))


@pytest.mark.parametrize("num", [1, 12, 400])
def test_shares_of_all_and_of_none_have_the_exact_interval(num: int) -> None:
    for right in (0, num):
        values = np.full(num, float(right > 0))
        exact = stats.binomtest(right, num).proportion_ci(0.95, method="exact")
        assert mean_interval(values, np.arange(num), num=200) == pytest.approx(
            (exact.low, exact.high)
        )


def test_equal_values_count_by_clusters_and_not_by_queries() -> None:
    # Five captions of one item that are all found say no more than one of them.
    once = mean_interval(np.ones(30), np.arange(30), num=200)
    assert mean_interval(np.ones(150), np.repeat(np.arange(30), 5), num=200) == once
    low, high = mean_interval(np.full(1, 0.4), np.zeros(1, dtype=int), num=200)
    assert (low, high) == pytest.approx((0.4 * 0.025, 0.4 * 0.025 + 0.975))


def test_figures_that_are_no_shares_get_no_such_bound() -> None:
    assert mean_interval(np.full(10, 3.0), np.arange(10), num=200) == (3.0, 3.0)


def coverage(clustered: bool, num_sets: int = 400) -> float:
    """How often the interval of the mean holds the true one, of simulated sets of 80 items x 5
    captions whose outcomes depend on the item."""
    rng = np.random.default_rng(11)
    items = np.repeat(np.arange(80), 5)
    clusters = items if clustered else np.arange(400)
    weights = weights_of(Resamples(int(clusters.max()) + 1, num=1000))
    found = 0
    for _ in range(num_sets):
        hardness = rng.beta(0.7, 0.7, size=80)  # mean 0.5
        values = (rng.random(400) < hardness[items]).astype(float)
        sums = ClusterSums.of(values[:, None], clusters)
        low, high = sums.interval(sums.weigh(weights))
        found += low[0] <= 0.5 <= high[0]
    return found / num_sets


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    assert 0.92 <= coverage(clustered=True) <= 0.98
    # Captions drawn one by one, as if they were independent, promise far too much.
    assert coverage(clustered=False) < 0.85


def test_p_values_are_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(3)
    weights = weights_of(Resamples(120, num=1000))
    found = []
    for _ in range(400):
        difference = rng.choice([-1.0, 0.0, 1.0], p=[0.15, 0.7, 0.15], size=120)
        sums = ClusterSums.of(difference[:, None], np.arange(120))
        found.append(p_values(sums, sums.weigh(weights))[0])
    assert 0.02 <= np.mean(np.asarray(found) < 0.05) <= 0.09
    assert 0.42 <= np.mean(np.asarray(found) < 0.5) <= 0.58


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.05])
def test_p_values_are_near_those_of_scipys_paired_tests(shift: float) -> None:
    rng = np.random.default_rng(8)
    before = rng.random(300)  # as reciprocal ranks are
    after = before + rng.normal(shift, 0.3, size=300)
    sums = ClusterSums.of((after - before)[:, None], np.arange(300))
    [draws] = draw([sums.weigh], Resamples(300, num=20_000))
    flipped = stats.permutation_test(
        (after, before), lambda a, b, axis: np.mean(a - b, axis=axis), permutation_type="samples",
        n_resamples=20_000, vectorized=True, rng=np.random.default_rng(0),
    ).pvalue  # fmt: skip
    p = p_values(sums, draws)[0]
    assert p == pytest.approx(stats.ttest_rel(after, before).pvalue, abs=0.02)
    assert p == pytest.approx(flipped, abs=0.02)


def test_p_values_have_floors() -> None:
    broken = np.r_[np.full(30, -1.0), np.zeros(70)]
    few = np.r_[np.full(4, -1.0), np.zeros(96)]
    none = np.zeros(100)
    sums = ClusterSums.of(np.stack([broken, few, none], axis=1), np.arange(100))
    [draws] = draw([sums.weigh], Resamples(100, num=1999))
    # One of num + 1; the sign test's least for four changes of one kind; nothing changed.
    assert p_values(sums, draws).tolist() == [1 / 2000, 0.125, 1.0]


def test_changes_of_one_kind_do_not_rule_out_the_other() -> None:
    few = np.r_[np.full(4, -1.0), np.zeros(996)]
    many = np.r_[np.full(40, -1.0), np.zeros(960)]
    none = np.zeros(1000)
    sums = ClusterSums.of(np.stack([few, many, none], axis=1), np.arange(1000))
    [draws] = draw([sums.weigh], Resamples(1000, num=2000))
    low, high = sums.difference_interval(draws)
    assert low[0] < -0.004 < 0 < high[0]
    assert high[1] < -0.02
    assert (low[2], high[2]) == pytest.approx((-0.003682, 0.003682), abs=1e-6)


def test_slices_that_a_resample_does_not_hold_have_no_value_there() -> None:
    sums = ClusterSums.of(np.asarray([[0.2], [0.8]]), np.asarray([3, 7]))
    [draws] = draw([sums.weigh], Resamples(10, num=500))
    missing = np.isnan(draws[:, 0])
    assert missing.mean() == pytest.approx(0.8**10, abs=0.05)
    low, high = percentiles(draws)
    assert (low[0], high[0]) == pytest.approx((0.2, 0.8))


def test_estimates_of_any_function() -> None:
    rng = np.random.default_rng(4)
    points = rng.normal((1, 0, 0), size=(90, 3))

    def gap(weights: np.ndarray) -> np.ndarray:
        return np.linalg.norm(weights @ points / weights.sum(axis=1, keepdims=True), axis=1)

    figure, again = estimate({"g/gap": gap, "g/again": gap}, Resamples(90, num=400))
    assert (figure.path, again.path) == ("g/gap", "g/again")
    assert figure.value == pytest.approx(np.linalg.norm(points.mean(axis=0)))
    drawn = [np.linalg.norm(np.repeat(points, w.astype(int), axis=0).mean(axis=0))
             for w in weights_of(Resamples(90, num=400))]  # fmt: skip
    assert (figure.low, figure.high) == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))))


def test_macro_accuracy_of_drawn_items() -> None:
    rng = np.random.default_rng(2)
    actual = rng.choice(3, p=[0.85, 0.1, 0.05], size=60)
    top_1 = (rng.random(60) < 0.5).astype(float)
    outcomes = Outcomes("t", {"top_1": top_1}, {"top_1": np.full(60, 1 / 3)})
    result = ZeroShot(("a", "b", "c"), np.arange(60), actual, actual, outcomes)
    assert result.weigh_macro_top_1(np.ones((1, 60)))[0] == pytest.approx(result.macro_top_1())
    weights = weights_of(Resamples(60, num=100))
    for found, row in zip(result.weigh_macro_top_1(weights), weights, strict=True):
        drawn, right = (np.repeat(values, row.astype(int)) for values in (actual, top_1))
        classes = [right[drawn == number].mean() for number in range(3) if (drawn == number).any()]
        assert found == pytest.approx(np.mean(classes))
