"""The banded Hamming search finds what comparing all with all finds, each pair once."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from coembed.curation.lookalikes import hamming
from coembed.curation.lookalikes.hamming import plan_search, search_table

Pairs = set[tuple[int, int]]


def _found(
    queries: NDArray[np.uint64], hashes: NDArray[np.uint64], radius: int, *, planned_for: int
) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for table in plan_search(planned_for, planned_for, radius):
        for asked, places in search_table(queries, hashes, table, radius):
            found += zip(asked.tolist(), places.tolist(), strict=True)
    return found


def _near(rng: np.random.Generator, num: int) -> NDArray[np.uint64]:
    """Hashes of 63 bits, a third of them a few bits from another one."""
    hashes = rng.integers(0, 2**63, num, dtype=np.uint64)
    for i in range(0, num - 1, 3):
        flipped = rng.choice(63, int(rng.integers(0, 12)), replace=False)
        hashes[i + 1] = hashes[i] ^ np.bitwise_or.reduce(
            np.uint64(1) << flipped.astype(np.uint64), initial=np.uint64(0)
        )
    return hashes


@pytest.mark.parametrize("radius", [1, 4, 6, 8])
@pytest.mark.parametrize("planned_for", [100, 20_000])
def test_finds_every_pair_within_the_radius_once(radius: int, planned_for: int) -> None:
    rng = np.random.default_rng(radius)
    hashes = _near(rng, 120)
    queries = np.concatenate([hashes[:60], _near(rng, 60)])
    distance = np.bitwise_count(queries[:, None] ^ hashes[None])
    expected = sorted(zip(*map(np.ndarray.tolist, np.nonzero(distance <= radius)), strict=True))
    assert len(expected) >= 60
    assert sorted(_found(queries, hashes, radius, planned_for=planned_for)) == expected


def test_longer_keys_for_more_hashes() -> None:
    few, many = plan_search(16_000, 1_000, 6), plan_search(16_000_000, 1_000_000, 6)
    assert many[0].key_bits > few[0].key_bits
    for tables in (few, many):
        assert all(sum(width for _, width in table.blocks) == 63 for table in tables)


def test_pieces_do_not_change_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    hashes = rng.integers(0, 64, 300, dtype=np.uint64)  # crowded buckets
    whole = sorted(_found(hashes, hashes, 2, planned_for=300))
    monkeypatch.setattr(hamming, "_QUERIES_AT_ONCE", 7)
    monkeypatch.setattr(hamming, "_COMPARISONS_AT_ONCE", 11)
    assert sorted(_found(hashes, hashes, 2, planned_for=300)) == whole
    assert len(whole) > 300


def test_an_overfull_bucket_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = np.arange(40, dtype=np.uint64)  # equal in all blocks but the lowest
    assert _found(hashes, hashes, 1, planned_for=40)
    monkeypatch.setattr(hamming, "MOST_IN_BUCKET", 2)
    assert len(_found(hashes, hashes, 1, planned_for=40)) < 40 * 2


def test_nothing_to_search() -> None:
    empty = np.zeros(0, np.uint64)
    assert _found(empty, empty, 6, planned_for=1) == []
