"""Which split a pair is in: a pure function of content, stable while the pool grows.

The rule:

1. Pairs are grouped. Pairs of one item (same media bytes) are in one group, and so are pairs with
   an equal value in a `group_by` column. Groups that share a pair are one group.
2. A group in which the pool gives some pair a split takes that split whole. Where it gives several,
   the most held-out one wins: test before val before train. Otherwise a picture that the pool puts
   into both train and test would be learnt and then tested.
3. Any other group is put by a hash: u = SHA-256("<seed>:<key>") as a fraction; test where u < test,
   val where u < test + val, else train. The key is the item_id, or with `group_by` the smallest
   "<column>=<value>" of the group. It does not depend on the other pairs, so a pool that grows
   leaves every group where it is, unless a new pair joins two groups or brings a given split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coembed.types import SPLITS

NO_SPLIT = -1
SPLIT_REASONS = ("given", "group", "hashed")


@dataclass(frozen=True)
class Assignment:
    """Arrays [rows] of int8: `splits` are places in SPLITS, `reasons` in SPLIT_REASONS; -1 where a
    row is in no split."""

    splits: NDArray[np.int8]
    reasons: NDArray[np.int8]


def assign_splits(
    *,
    items: NDArray[np.int64],
    item_keys: Sequence[str],
    groups: Mapping[str, tuple[NDArray[np.int64], Sequence[str]]],
    given: NDArray[np.int8],
    used: NDArray[np.bool_],
    seed: int,
    val: float,
    test: float,
) -> Assignment:
    """Give every used row a split.

    `items` [rows]: a number an item, a place in `item_keys` (item ids); `groups`: for each group_by
    column the numbers of the values [rows] (-1: null) and the values as text; `given` [rows]: place
    in SPLITS or -1; `used` [rows]: rows that go into shards.
    """
    rows = np.flatnonzero(used)
    splits = np.full(len(used), NO_SPLIT, np.int8)
    reasons = np.full(len(used), NO_SPLIT, np.int8)
    if not len(rows):
        return Assignment(splits, reasons)
    item = items[rows]
    group = _join(item, [codes[rows] for codes, _ in groups.values()], len(item_keys))[item]

    # SPLITS runs from the least to the most held out, so the largest place wins; -1 is none given.
    most = np.full(len(item_keys), NO_SPLIT, np.int8)
    np.maximum.at(most, group, given[rows])
    hashed = _hash_groups(group, rows, item_keys, groups, seed=seed, val=val, test=test)
    splits[rows] = np.where(most[group] != NO_SPLIT, most[group], hashed[group])
    own = given[rows] == splits[rows]
    reasons[rows] = np.where(most[group] == NO_SPLIT, 2, np.where(own, 0, 1))
    return Assignment(splits, reasons)


def _join(
    item: NDArray[np.int64], columns: list[NDArray[np.int64]], num_items: int
) -> NDArray[np.int64]:
    """A group number for every item: the smallest item of its connected component.

    Labels flow from items to values and back until nothing changes; following the labels of the
    labels in between makes long chains short.
    """
    label = np.arange(num_items)
    while True:
        before = label.copy()
        for codes in columns:
            has = codes >= 0
            if not has.any():
                continue
            smallest = np.full(int(codes.max()) + 1, num_items)
            np.minimum.at(smallest, codes[has], label[item[has]])
            np.minimum.at(label, item[has], smallest[codes[has]])
        label = np.minimum(label, label[label])
        if np.array_equal(label, before):
            return label


def _hash_groups(
    group: NDArray[np.int64],
    rows: NDArray[np.int64],
    item_keys: Sequence[str],
    groups: Mapping[str, tuple[NDArray[np.int64], Sequence[str]]],
    *,
    seed: int,
    val: float,
    test: float,
) -> NDArray[np.int8]:
    """For every group number the split that its key hashes to."""
    keys: dict[int, str] = {}
    for name, (codes, values) in groups.items():
        has = codes[rows] >= 0
        pairs = np.unique(np.stack([group[has], codes[rows][has]]), axis=1)
        for number, code in zip(*pairs.tolist(), strict=True):
            key = f"{name}={values[code]}"
            keys[number] = min(key, keys.get(number, key))
    hashed = np.full(len(item_keys), NO_SPLIT, np.int8)
    for number in np.unique(group).tolist():
        # A group without any group_by value is one item, and its number is that item's.
        place = hash_fraction(seed, keys.get(number, item_keys[number]))
        split = "test" if place < test else "val" if place < test + val else "train"
        hashed[number] = SPLITS.index(split)
    return hashed


def hash_fraction(seed: int, key: str) -> float:
    """A number in [0, 1) made of (seed, key)."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    # 53 bits fill a float exactly; more could round up to 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
