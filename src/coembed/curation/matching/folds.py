"""Folds for cross-fitting, such that what looks or reads alike is in one fold.

A wrong caption that stands beside two copies of one picture would otherwise be learnt from one of
them and found right for the other.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


def assign_folds(
    pictures: Sequence[Hashable],
    items: Numbers,
    captions: Sequence[Hashable],
    *,
    num_folds: int,
) -> Numbers:
    """The fold of each item.

    `pictures` is a key an item; equal keys are kept together. `items` and `captions` are an item
    number and a caption key a pair: items with an equal caption are kept together too, unless that
    would chain more than half a fold together. Groups go, the largest first, to the smallest fold.
    """
    groups = _Groups(len(pictures))
    groups.join(pictures, np.arange(len(pictures)))
    by_picture = groups.roots()
    groups.join(captions, items)
    both = groups.roots()
    largest = int(np.bincount(both).max(initial=0))
    roots = both if largest * 2 * num_folds <= len(pictures) else by_picture
    sizes = np.bincount(roots, minlength=len(pictures))
    folds_of = np.zeros(len(pictures), np.int64)
    filled = [0] * num_folds
    for root in sorted(np.flatnonzero(sizes).tolist(), key=lambda root: (-sizes[root], root)):
        fold = filled.index(min(filled))
        folds_of[root] = fold
        filled[fold] += int(sizes[root])
    folds: Numbers = folds_of[roots]
    return folds


class _Groups:
    """Disjoint sets of numbers; a set is known by its least member."""

    def __init__(self, num: int) -> None:
        self._parent = list(range(num))

    def join(self, keys: Sequence[Hashable], members: Numbers) -> None:
        """Join the members that share a key."""
        first: dict[Hashable, int] = {}
        for key, member in zip(keys, members.tolist(), strict=True):
            one, other = self._root(first.setdefault(key, member)), self._root(member)
            self._parent[max(one, other)] = min(one, other)

    def roots(self) -> Numbers:
        return np.array([self._root(member) for member in range(len(self._parent))], np.int64)

    def _root(self, member: int) -> int:
        parent = self._parent
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member
