"""Random choices as pure functions of (seed, purpose, epoch, sample).

There is no generator and no state: a choice is the hash of what it is for. So it does not matter in
which order, by how many workers or after how many resumptions the choices are made. The mixer is
splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coembed.files import sha256_bytes

Keys = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(words: Keys) -> Keys:
    """splitmix64's output function: a bijection of 64 bits; wraps around by design."""
    words = words + _GOLDEN
    words = (words ^ (words >> np.uint64(30))) * _MIX_1
    words = (words ^ (words >> np.uint64(27))) * _MIX_2
    return words ^ (words >> np.uint64(31))


def sample_keys(item_ids: Sequence[str]) -> Keys:
    """The first 64 bits of each item_id (hexadecimal SHA-256), [num_items]."""
    return np.array([int(item_id[:16], 16) for item_id in item_ids], dtype=np.uint64)


def bits(seed: int, purpose: str, epoch: int, keys: Keys) -> Keys:
    """64 independent bits for each key, [len(keys)]."""
    stream = np.array([int(sha256_bytes(f"{seed}/{purpose}/{epoch}".encode())[:16], 16)])
    return _mix(_mix(keys) ^ stream.astype(np.uint64))


def uniform(seed: int, purpose: str, epoch: int, keys: Keys) -> NDArray[np.float64]:
    """A number in [0, 1) for each key, [len(keys)]."""
    return (bits(seed, purpose, epoch, keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(
    seed: int, purpose: str, epoch: int, keys: Keys, bound: NDArray[np.int64]
) -> NDArray[np.int64]:
    """A whole number in [0, bound) for each key; `bound` is [len(keys)] or a scalar array."""
    return np.floor(uniform(seed, purpose, epoch, keys) * bound).astype(np.int64)


def order(seed: int, epoch: int, keys: Keys) -> NDArray[np.int64]:
    """The order of an epoch: a permutation of range(len(keys)).

    Samples are sorted by their own hash, so one sample more or less does not reshuffle the rest.
    """
    return np.argsort(bits(seed, "order", epoch, keys), kind="stable").astype(np.int64)


def step_seed(seed: int, step: int) -> int:
    """Seed of torch's generator (dropout) at a step."""
    return int(sha256_bytes(f"{seed}/step/{step}".encode())[:15], 16)
