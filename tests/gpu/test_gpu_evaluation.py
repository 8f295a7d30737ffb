"""Ranks, average precision and best candidates on a CUDA device: those of the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from coembed.evaluation.retrieval import Positives, rankings
from coembed.evaluation.top import top_candidates

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BLOCKS = {"query_block": 64, "candidate_block": 300}


@pytest.mark.parametrize("levels", [2, 40, 1000])
def test_equal_to_the_cpu(levels: int) -> None:
    # Small whole numbers: both sum them exactly, so ties are ties on both. With few levels most
    # scores tie around the last place, and are counted in a second pass.
    rng = np.random.default_rng(levels)
    queries = np.eye(8, dtype=np.float32)[rng.integers(0, 8, size=200)]
    candidates = rng.integers(0, levels, size=(1000, 8)).astype(np.float32)
    positives = Positives.from_lists([rng.integers(0, 1000, size=3).tolist() for _ in range(200)])
    here = rankings(queries, candidates, positives, 10, **BLOCKS)
    there = rankings(queries, candidates, positives, 10, device="cuda", **BLOCKS)
    assert there.ranks.tolist() == here.ranks.tolist()
    assert there.average_precision.tolist() == here.average_precision.tolist()
    assert there.top.tolist() == here.top.tolist()
    assert there.top_scores.tolist() == here.top_scores.tolist()
    numbers, scores = top_candidates(queries, candidates, 10, device="cuda", **BLOCKS)
    assert numbers.tolist() == here.top.tolist()
    assert scores.tolist() == here.top_scores.tolist()
