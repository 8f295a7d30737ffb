from __future__ import annotations

import hashlib

import numpy as np

from coembed import draws

IDS = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(4000)]
KEYS = draws.sample_keys(IDS)


def test_a_choice_depends_on_seed_purpose_epoch_and_sample() -> None:
    base = draws.bits(1, "flip", 0, KEYS)
    assert np.array_equal(base, draws.bits(1, "flip", 0, KEYS))
    for other in (
        draws.bits(2, "flip", 0, KEYS),
        draws.bits(1, "crop", 0, KEYS),
        draws.bits(1, "flip", 1, KEYS),
    ):
        assert not np.any(base == other)
    assert len(set(base.tolist())) == len(IDS)


def test_a_choice_does_not_depend_on_the_samples_beside_it() -> None:
    some = np.array([5, 3, 999])
    assert np.array_equal(
        draws.uniform(1, "x", 2, KEYS)[some], draws.uniform(1, "x", 2, KEYS[some])
    )


def test_mixer_agrees_with_plain_arithmetic() -> None:
    """splitmix64 again, one number at a time in Python's integers."""

    def mix(word: int) -> int:
        mask = 2**64 - 1
        word = (word + 0x9E3779B97F4A7C15) & mask
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & mask
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & mask
        return word ^ (word >> 31)

    stream = int(hashlib.sha256(b"3/flip/9").hexdigest()[:16], 16)
    expected = [mix(mix(int(key)) ^ stream) for key in KEYS[:100]]
    assert draws.bits(3, "flip", 9, KEYS[:100]).tolist() == expected
    assert mix(0) == 0xE220A8397B1DCDAF  # first output of the reference implementation, seed 0


def test_uniform_is_uniform_and_epochs_are_uncorrelated() -> None:
    a, b = draws.uniform(1, "x", 0, KEYS), draws.uniform(1, "x", 1, KEYS)
    assert a.min() >= 0 and a.max() < 1
    counts = np.histogram(a, bins=10, range=(0, 1))[0]
    assert ((counts - 400) ** 2 / 400).sum() < 27.9  # chi-square of 9 degrees, p = 0.001
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.06


def test_below_stays_below_and_reaches_every_value() -> None:
    bound = np.full(len(KEYS), 5)
    values = draws.below(1, "caption", 0, KEYS, bound)
    assert sorted(set(values.tolist())) == [0, 1, 2, 3, 4]


def test_order_is_a_permutation_that_an_extra_sample_does_not_reshuffle() -> None:
    order = draws.order(1, 3, KEYS)
    assert sorted(order.tolist()) == list(range(len(KEYS)))
    assert not np.array_equal(order, draws.order(1, 4, KEYS))
    fewer = draws.order(1, 3, KEYS[:-1])
    assert np.array_equal(order[order != len(KEYS) - 1], fewer)


def test_step_seeds_differ() -> None:
    seeds = {draws.step_seed(s, step) for s in (1, 2) for step in range(500)}
    assert len(seeds) == 1000 and max(seeds) < 2**63
