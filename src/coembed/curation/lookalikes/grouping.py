"""Groups of copies: every member was compared with the picture that stands for the group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from coembed.curation.lookalikes.hamming import Places


def stars(one: Places, other: Places, rank: Places) -> Places:
    """The representative of each place, itself where it has none or is one.

    `one`, `other` [pair]: places that are copies of each other; `rank` [place]: the better, the
    lower, all different. The best place that is free takes all its free neighbours, then the next
    best: so each member is a copy of its representative, and of none that is worse. Two crops of
    one picture that are no copies of each other make no chain.
    """
    neighbours: defaultdict[int, list[int]] = defaultdict(list)
    for a, b in zip(one.tolist(), other.tolist(), strict=True):
        neighbours[a].append(b)
        neighbours[b].append(a)
    taken_by = np.arange(len(rank))
    taken: set[int] = set()
    for place in sorted(neighbours, key=rank.__getitem__):
        if place in taken:
            continue
        for neighbour in neighbours[place]:
            if neighbour not in taken and rank[neighbour] > rank[place]:
                taken.add(neighbour)
                taken_by[neighbour] = place
    return taken_by


def components(one: Places, other: Places) -> Iterator[NDArray[np.int64]]:
    """The places that pairs connect, directly or through others; each component ascending."""
    parent: dict[int, int] = {}

    def root(place: int) -> int:
        parent.setdefault(place, place)
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for a, b in zip(one.tolist(), other.tolist(), strict=True):
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    members: defaultdict[int, list[int]] = defaultdict(list)
    for place in sorted(parent):
        members[root(place)].append(place)
    for place in sorted(members):
        yield np.array(members[place])
