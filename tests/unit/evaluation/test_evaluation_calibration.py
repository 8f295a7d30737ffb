"""Confidence, calibration error, Brier score and log loss, beside scikit-learn's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from coembed.evaluation import calibration as module
from coembed.evaluation.calibration import Calibration, Logits, calibrate, equal_mass_bins
from coembed.evaluation.retrieval import Positives
from coembed.evaluation.statistics import Resamples

RESAMPLE = partial(Resamples, num=300, seed=1)
NUM_QUERIES, NUM_CLASSES, SCALE = 400, 7, 20.0


def unit(*shape: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


class World:
    """Queries around the classes that they belong to, some of them far out."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        self.classes = unit(NUM_CLASSES, 16, seed=0)
        self.actual = rng.integers(NUM_CLASSES, size=NUM_QUERIES)
        noise = rng.normal(size=(NUM_QUERIES, 16)) * rng.uniform(0.1, 0.6, size=(NUM_QUERIES, 1))
        queries = self.classes[self.actual] + noise
        self.queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
        self.cosines = self.queries.astype(np.float64) @ self.classes.T.astype(np.float64)
        self.right = (self.cosines.argmax(axis=1) == self.actual).astype(np.float64)
        self.positives = Positives(np.arange(NUM_QUERIES + 1), self.actual)

    def calibrated(self, logits: Logits, positives: Positives | None = None) -> Calibration:
        return calibrate(
            self.queries,
            self.classes,
            positives or self.positives,
            self.right,
            np.arange(NUM_QUERIES),
            logits,
            num_bins=15,
        )


def figures(found: Calibration) -> dict[str, float]:
    return {figure.path.removeprefix("c/"): figure.value for figure in found.figures("c", RESAMPLE)}


def error_by_loop(found: Calibration) -> float:
    total = 0.0
    for number in set(found.bins.tolist()):
        inside = found.bins == number
        gap = abs(found.confidence[inside].mean() - found.right[inside].mean())
        total += inside.sum() / len(found.bins) * gap
    return total


def test_softmax_is_that_of_scikit_learn() -> None:
    world = World()
    found = world.calibrated(Logits(SCALE))
    shares = softmax(SCALE * world.cosines, axis=1)
    assert found.kind == "softmax"
    assert found.confidence == pytest.approx(shares.max(axis=1), abs=1e-5)
    measured = figures(found)
    assert 0.3 < world.right.mean() < 0.98  # neither trivial nor hopeless
    assert measured["nll"] == pytest.approx(log_loss(world.actual, shares), abs=1e-4)
    assert measured["brier"] == pytest.approx(
        brier_score_loss(world.right, shares.max(axis=1)), abs=1e-5
    )
    assert measured["ece"] == pytest.approx(error_by_loop(found), abs=1e-9)


def test_sigmoid_speaks_of_each_pair_alone() -> None:
    world = World()
    found = world.calibrated(Logits(SCALE, bias=-15.0))
    sure = expit(SCALE * world.cosines.max(axis=1) - 15)
    assert found.kind == "sigmoid"
    assert found.confidence == pytest.approx(sure, abs=1e-5)
    measured = figures(found)
    assert measured["nll"] == pytest.approx(log_loss(world.right, sure), abs=1e-4)
    assert measured["brier"] == pytest.approx(brier_score_loss(world.right, sure), abs=1e-5)


def test_bins_are_those_of_scikit_learn() -> None:
    world = World()
    found = world.calibrated(Logits(SCALE))
    share, confidence = calibration_curve(
        world.right, found.confidence, n_bins=15, strategy="quantile"
    )
    bins = found.reliability
    assert [one.share_right for one in bins] == pytest.approx(share, abs=1e-9)
    assert [one.confidence for one in bins] == pytest.approx(confidence, abs=1e-9)
    assert sum(one.num_queries for one in bins) == NUM_QUERIES
    assert {one.num_queries for one in bins} <= {26, 27}


def test_queries_of_equal_confidence_share_a_bin() -> None:
    confidence = np.asarray([0.5] * 30 + [0.9] * 2)
    bins = equal_mass_bins(confidence, 15)
    assert len(set(bins[:30].tolist())) == 1
    assert set(bins[:30].tolist()).isdisjoint(bins[30:].tolist())
    order = np.random.default_rng(0).permutation(32)
    assert equal_mass_bins(confidence[order], 15).tolist() == bins[order].tolist()


def test_a_model_that_knows_how_sure_it_is_has_no_error_and_one_that_does_not_has() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.1, 0.9, size=60_000)
    right = (rng.uniform(size=60_000) < confidence).astype(np.float64)

    def measured(confidence: np.ndarray) -> dict[str, float]:
        bins = equal_mass_bins(confidence, 15)
        nothing = np.zeros(len(right))
        return figures(
            Calibration("softmax", confidence, right, nothing, np.arange(len(right)), bins)
        )

    assert measured(confidence)["ece"] < 0.01
    assert measured(np.full(60_000, 0.9))["ece"] == pytest.approx(0.4, abs=0.01)


def test_several_right_candidates_share_the_probability() -> None:
    world = World()
    second = (world.actual + 1) % NUM_CLASSES
    positives = Positives.from_lists(np.stack([world.actual, second], axis=1).tolist())
    found = world.calibrated(Logits(SCALE), positives)
    shares = softmax(SCALE * world.cosines, axis=1)
    rows = np.arange(NUM_QUERIES)
    together = shares[rows, world.actual] + shares[rows, second]
    assert found.nll == pytest.approx(-np.log(together), abs=1e-4)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    whole = world.calibrated(Logits(100.0))
    monkeypatch.setattr(module, "QUERY_BLOCK", 33)
    monkeypatch.setattr(module, "CANDIDATE_BLOCK", 2)
    parts = world.calibrated(Logits(100.0))
    assert parts.confidence == pytest.approx(whole.confidence, abs=1e-5)
    assert parts.nll == pytest.approx(whole.nll, abs=1e-4)


def test_extremes_stay_finite() -> None:
    queries = np.asarray([[1.0, 0.0]] * 4, dtype=np.float32)
    classes = np.asarray([[1.0, 0.0], [-1.0, 0.0]], dtype=np.float32)
    wrong = Positives(np.arange(5), np.ones(4, dtype=np.int64))
    for logits in (Logits(10_000.0), Logits(10_000.0, bias=-5.0)):
        found = calibrate(queries, classes, wrong, np.zeros(4), np.arange(4), logits, num_bins=15)
        assert np.isfinite(found.nll).all()
        assert found.nll.min() > 10
        assert found.confidence.tolist() == [1.0] * 4
    assert figures(found)["ece"] == 1.0


def test_a_collapsed_model_is_as_sure_as_chance() -> None:
    queries = np.asarray([[1.0, 0.0]] * 4, dtype=np.float32)
    candidates = np.repeat(queries[:1], 5, axis=0)
    positives = Positives(np.arange(5), np.arange(4))
    found = calibrate(
        queries, candidates, positives, np.zeros(4), np.arange(4), Logits(50.0), num_bins=15
    )
    assert found.confidence == pytest.approx([0.2] * 4)
    assert found.nll == pytest.approx([np.log(5)] * 4)


def test_intervals_draw_whole_clusters() -> None:
    found = World().calibrated(Logits(SCALE))
    few = replace(found, clusters=np.arange(NUM_QUERIES) // 20 * 3)
    for one, other in zip(found.figures("c", RESAMPLE), few.figures("c", RESAMPLE), strict=True):
        assert one.value == pytest.approx(other.value)
        assert one.low < one.value < one.high or one.path == "c/ece"
        assert (one.low, one.high) != (other.low, other.high)
