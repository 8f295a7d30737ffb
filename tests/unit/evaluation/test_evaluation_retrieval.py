"""Ranks and recall against hand-written cases and a slow dense reference."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coembed.errors import ModelError
from coembed.evaluation.retrieval import (
    TIE_TOLERANCE,
    Positives,
    Rankings,
    chance_recall,
    chance_reciprocal_rank,
    check_embeddings,
    rank_outcomes,
    rankings,
    ranks,
    summarise,
)


def unit(rng: np.random.Generator, num: int, dim: int) -> np.ndarray:
    vectors = rng.normal(size=(num, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def dense_ranks(queries: np.ndarray, candidates: np.ndarray, lists: list[list[int]]) -> np.ndarray:
    """One query at a time, one candidate at a time, on the full matrix of scores."""
    scores = queries.astype(np.float64) @ candidates.astype(np.float64).T
    found = []
    for row, positives in zip(scores, lists, strict=True):
        best = max(row[p] for p in positives)
        rank = 1.0
        for candidate, score in enumerate(row):
            if candidate in positives:
                continue
            if abs(score - best) <= TIE_TOLERANCE:
                rank += 0.5
            elif score > best:
                rank += 1
        found.append(rank)
    return np.asarray(found)


def test_hand_written_ranks() -> None:
    candidates = np.eye(4, dtype=np.float32)
    queries = np.asarray(
        [
            [0.9, 0.1, 0.0, 0.0],  # positive is best
            [0.1, 0.2, 0.3, 0.4],  # positive 0 is worst of four
            [0.1, 0.2, 0.3, 0.4],  # positives 0 and 2: best is 2, only 3 above it
            [0.5, 0.5, 0.5, 0.5],  # all tie: three negatives share, 1 + 3 / 2
            [0.5, 0.5, 0.5, 0.5],  # all tie, three positives: 1 + 1 / 2
            [0.7, 0.5, 0.5, 0.1],  # one above, one tied
        ],
        dtype=np.float32,
    )
    positives = Positives.from_lists([[0], [0], [0, 2], [1], [0, 1, 2], [1]])
    assert ranks(queries, candidates, positives).tolist() == [1, 4, 2, 2.5, 1.5, 2.5]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_equal_to_the_dense_reference(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    num_queries, num_candidates = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 50))
    candidates = unit(rng, num_candidates, 8)
    # Repeats make exact ties, positives among them included.
    repeats = rng.integers(0, num_candidates, size=num_candidates // 2)
    candidates[: len(repeats)] = candidates[repeats]
    queries = unit(rng, num_queries, 8)
    lists = [
        sorted(set(rng.integers(0, num_candidates, size=rng.integers(1, 5)).tolist()))
        for _ in range(num_queries)
    ]
    found = ranks(
        queries,
        candidates,
        Positives.from_lists(lists),
        query_block=data.draw(st.integers(1, 45)),
        candidate_block=data.draw(st.integers(1, 55)),
    )
    assert found.tolist() == dense_ranks(queries, candidates, lists).tolist()


def test_block_sizes_do_not_matter() -> None:
    rng = np.random.default_rng(3)
    queries, candidates = unit(rng, 500, 32), unit(rng, 700, 32)
    lists = [rng.integers(0, 700, size=3).tolist() for _ in range(500)]
    positives = Positives.from_lists(lists)
    whole = ranks(queries, candidates, positives)
    for query_block, candidate_block in ((1, 1000), (7, 13), (500, 1), (499, 699)):
        blocks = {"query_block": query_block, "candidate_block": candidate_block}
        assert np.array_equal(ranks(queries, candidates, positives, **blocks), whole)
    assert np.array_equal(whole, dense_ranks(queries, candidates, [sorted(set(x)) for x in lists]))


def test_a_collapsed_model_does_no_better_than_chance() -> None:
    rng = np.random.default_rng(0)
    same = np.repeat(unit(rng, 1, 64), 200, axis=0)
    # The encoder's rounding must not pass for knowledge.
    noisy = (same + rng.normal(scale=1e-8, size=same.shape)).astype(np.float32)
    positives = Positives.from_lists([[i] for i in range(200)])
    outcomes = rank_outcomes("task", rankings(same, noisy, positives, 10), 200, positives, (1, 10))
    assert np.all(outcomes.ranks == 100.5)
    assert outcomes.values["recall_at_10"].mean() == 0


def test_more_positives_never_lower_the_rank() -> None:
    rng = np.random.default_rng(1)
    queries, candidates = unit(rng, 50, 16), unit(rng, 80, 16)
    fewer = ranks(queries, candidates, Positives.from_lists([[i] for i in range(50)]))
    more = ranks(queries, candidates, Positives.from_lists([[i, i + 1] for i in range(50)]))
    assert np.all(more <= fewer)


def test_chance_is_what_random_order_gives() -> None:
    rng = np.random.default_rng(5)
    num_candidates, counts = 12, np.asarray([1, 3, 7, 12])
    rounds = 20_000
    for place, count in enumerate(counts):
        first = np.empty(rounds)
        for turn in range(rounds):
            first[turn] = np.sort(rng.permutation(num_candidates)[:count])[0] + 1
        for k in (1, 3, 5, 20):
            expected = (first <= k).mean()
            assert chance_recall(num_candidates, counts, k)[place] == pytest.approx(
                expected, abs=0.015
            )
        assert chance_reciprocal_rank(num_candidates, counts)[place] == pytest.approx(
            (1 / first).mean(), abs=0.015
        )


def test_chance_recall_is_the_hypergeometric_formula() -> None:
    for count in (1, 4, 60):
        exact = 1 - math.comb(100 - count, 10) / math.comb(100, 10)
        assert chance_recall(100, np.asarray([count]), 10)[0] == pytest.approx(exact, rel=1e-12)


def test_summary_of_known_ranks() -> None:
    positives = Positives.from_lists([[0], [1], [2], [3]])
    found = Rankings(
        10,
        ranks=np.asarray([1.0, 2.0, 4.0, 10.5]),
        average_precision=np.asarray([1.0, 0.5, 0.25, 0.0]),
        top=np.empty((4, 0), dtype=np.int64),
        top_scores=np.empty((4, 0), dtype=np.float32),
    )
    outcomes = rank_outcomes("t", found, 100, positives, (1, 10))
    summary = summarise(outcomes)
    assert summary["num_queries"] == 4
    assert summary["recall_at_1"] == 0.25
    assert summary["recall_at_10"] == 0.75
    assert summary["median_rank"] == 3
    assert summary["map_at_10"] == 1.75 / 4
    assert summary["mrr"] == pytest.approx((1 + 0.5 + 0.25 + 1 / 10.5) / 4)
    assert summary["chance_recall_at_10"] == pytest.approx(0.1)


def test_a_query_without_positives_is_refused() -> None:
    with pytest.raises(ValueError, match="query 1 has no positive"):
        Positives.from_lists([[0], []])


def test_nan_embeddings_are_refused() -> None:
    embeddings = np.ones((3, 4), dtype=np.float32)
    check_embeddings(embeddings, "images")
    embeddings[1, 2] = np.nan
    with pytest.raises(ModelError, match="1 of 3 images are not finite"):
        check_embeddings(embeddings, "images")


# In a process of its own: the peak of the tests' may be higher already.
MEASURED = """
import sys
import numpy as np
from pathlib import Path
from coembed.evaluation.retrieval import Positives, rankings
from coembed.evaluation.top import top_candidates

def mib(field):
    # Not ru_maxrss: that one begins with what the parent process held.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

def extra(run):
    Path("/proc/self/clear_refs").write_text("5")  # let the peak begin at what is held now
    before = mib("VmRSS")
    run()
    return mib("VmHWM") - before

num_queries, num_candidates, query_block, candidate_block = map(int, sys.argv[1:])
blocks = {"query_block": query_block, "candidate_block": candidate_block}
rng = np.random.default_rng(2)
queries = rng.normal(size=(num_queries, 16)).astype(np.float32)
candidates = rng.normal(size=(num_candidates, 16)).astype(np.float32)
same = np.ones_like(candidates)  # all ties: counted in a second pass
some = Positives.from_lists([[i, i + 1] for i in range(64)])
small = {"query_block": 64, "candidate_block": 512}
rankings(queries[:64], candidates, some, 10, **small)  # threads, code and workspaces come up
every = Positives.from_lists([[i, i + 1] for i in range(num_queries - 1)] + [[0]])
print(extra(lambda: rankings(queries, candidates, every, 10, **blocks)))
first = every.block(0, 2000)
print(extra(lambda: rankings(queries[:2000], same, first, 10, **blocks)))
print(extra(lambda: top_candidates(queries[:4000], candidates, 10, **blocks)))
"""


def extra_mib(num_queries: int, num_candidates: int, *blocks: int) -> list[float]:
    """Memory taken on top by rankings, by rankings of all ties, and by top_candidates."""
    numbers = map(str, (num_queries, num_candidates, *blocks))
    command = [sys.executable, "-c", MEASURED, *numbers]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded_by_a_chunk() -> None:
    # Of 20,000 x 20,000 scores, 1,526 MiB, one chunk of 1,024 x 8,192 exists: 32 MiB, and what
    # compares it.
    assert max(extra_mib(20_000, 20_000, 1024, 8192)) < 110
    # And one chunk over everything holds all scores of 2,000 x 40,000, 305 MiB.
    assert min(extra_mib(2000, 40_000, 2000, 40_000)) > 300
