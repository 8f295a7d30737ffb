"""What a score means."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coembed.errors import DataError
from coembed.search.calibration import read_calibration


def of(scores: list[float]) -> dict[str, Any]:
    quantiles = np.percentile(scores, np.arange(101)).tolist()
    return {"version": 1, "text": {"image": {"quantiles": quantiles, "num": len(scores)}}}


@settings(deadline=None)
@given(st.integers(0, 10_000), st.floats(-1.5, 1.5))
def test_match_is_the_share_of_true_matches_at_or_below(seed: int, score: float) -> None:
    rng = np.random.default_rng(seed)
    scores = list(rng.normal(rng.uniform(-0.5, 0.5), rng.uniform(0.01, 0.5), 300).round(2))
    share = read_calibration(of(scores)).match(score, query="text", item="image")
    below, at_or_below = (np.asarray(scores) < score).mean(), (np.asarray(scores) <= score).mean()
    assert share is not None
    assert below - 0.011 <= share <= at_or_below + 0.011


def test_match_rises_with_the_score_from_0_to_1() -> None:
    calibration = read_calibration(of(list(np.linspace(0.1, 0.5, 500))))
    shares = [calibration.match(s, query="text", item="image") for s in np.linspace(0, 0.6, 200)]
    assert shares[0] == 0.0 and shares[-1] == 1.0
    assert all(a <= b for a, b in itertools.pairwise(shares))  # type: ignore[operator]


def test_a_score_that_most_matches_share_is_at_or_above_all_of_them() -> None:
    calibration = read_calibration(of([0.2] * 400 + [0.4] * 100))
    assert calibration.match(0.2, query="text", item="image") == pytest.approx(0.8, abs=0.011)
    assert calibration.match(0.199, query="text", item="image") == 0.0
    assert read_calibration(of([0.2] * 200)).match(0.2, query="text", item="image") == 1.0


def test_the_floor_is_the_score_that_so_few_true_matches_fall_below() -> None:
    scores = list(np.random.default_rng(0).normal(0.3, 0.05, 2000))
    calibration = read_calibration(of(scores))
    floor = calibration.floor(0.05, query="text", item="image")
    assert floor is not None
    assert (np.asarray(scores) < floor).mean() == pytest.approx(0.05, abs=0.003)


def test_what_was_not_measured_has_no_meaning() -> None:
    for calibration in (
        read_calibration(of([0.1, 0.2])),
        read_calibration({}),
        read_calibration(None),
    ):
        assert calibration.match(0.3, query="audio", item="image") is None
        assert calibration.floor(0.05, query="audio", item="image") is None


@pytest.mark.parametrize(
    "quantiles", [[0.1] * 100, [0.2] + [0.1] * 100, [float("nan")] * 101, "0.1", None]
)
def test_a_damaged_calibration_is_one_clear_error(quantiles: Any) -> None:
    with pytest.raises(DataError, match=r"calibration cannot be read(.|\n)*coembed embed"):
        read_calibration({"text": {"image": {"quantiles": quantiles, "num": 3}}})
