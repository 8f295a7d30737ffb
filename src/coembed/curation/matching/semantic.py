"""Semantic duplicates: vectors that point the same way, found without comparing all with all.

After SemDeDup (Abbas et al. 2023, arXiv 2303.09540): k-means clusters, cosines within a cluster.
Here each vector is compared with the members of its three nearest clusters instead of its own only:
two near vectors on either side of a border are then found as well. Memory holds one cluster and the
duplicates that were found, not the vectors.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from coembed.curation.matching.clusters import assign, fit_centres
from coembed.progress import Tracker

Numbers = NDArray[np.int64]
Vectors = NDArray[np.float16]

_NEIGHBOUR_CLUSTERS = 3
_MAX_FITTED = 50_000
_MAX_CLUSTERS = 20_000
_BLOCK = 2048
# Better neighbours remembered of a vector: enough to find one that is kept, and a bound on memory
# where thousands of vectors are all alike.
_MAX_BETTER = 16


def find_semantic_duplicates(
    vectors: Vectors,
    ranks: Numbers,
    *,
    min_cosine: float,
    cluster_items: int,
    seed: int,
    progress: Tracker,
) -> tuple[Numbers, Numbers, NDArray[np.float64]]:
    """Places of duplicates, ascending; of what each duplicates; and their cosines.

    `vectors` [items, dim] are of unit length (NaN: left out) and may be memory-mapped. `ranks` are
    different numbers, the least the best. Going from the best to the worst, an item is kept unless
    one that is kept is at least `min_cosine` near it; so no chain of near items drops one that is
    unlike all that stay. Clusters have `cluster_items` items on average.
    """
    nearest, usable = _cluster(vectors, cluster_items, seed)
    worse, better, cosines = [], [], []
    for found in _near_pairs(vectors, nearest, usable, ranks, min_cosine, progress):
        worse.append(found[0])
        better.append(found[1])
        cosines.append(found[2])
    if not worse:
        none = np.empty(0, np.int64)
        return none, none, np.empty(0)
    return _settle(np.concatenate(worse), np.concatenate(better), np.concatenate(cosines), ranks)


def _cluster(
    vectors: Vectors, cluster_items: int, seed: int
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """The nearest clusters of each vector [items, 3 or fewer], and which vectors are numbers."""
    num = len(vectors)
    step = max(1, num // _MAX_FITTED)
    sample = _tensor(vectors[::step][:_MAX_FITTED])
    sample = sample[torch.isfinite(sample).all(1)]
    num_clusters = min(max(num // cluster_items, 1), _MAX_CLUSTERS)
    centres = fit_centres(sample, num_clusters, seed=seed, num_rounds=6)
    width = min(_NEIGHBOUR_CLUSTERS, len(centres))
    nearest = np.zeros((num, width), np.int32)
    usable = np.zeros(num, np.bool_)
    for at in range(0, num, 8192):
        part = slice(at, at + 8192)
        some = _tensor(vectors[part])
        usable[part] = torch.isfinite(some).all(1).numpy()
        if len(centres):
            places, _ = assign(torch.nan_to_num(some), centres, num=width)
            nearest[part] = places.numpy().astype(np.int32)
    return nearest, usable


@torch.inference_mode()
def _near_pairs(
    vectors: Vectors,
    nearest: NDArray[np.int32],
    usable: NDArray[np.bool_],
    ranks: Numbers,
    min_cosine: float,
    progress: Tracker,
) -> Iterator[tuple[Numbers, Numbers, NDArray[np.float64]]]:
    """Places (worse, better) of near pairs, and their cosines, a cluster at a time."""
    good = np.flatnonzero(usable)
    if not len(good) or not nearest.shape[1]:
        return
    members = good[np.argsort(nearest[good, 0], kind="stable")]
    asking = np.repeat(good, nearest.shape[1])
    clusters = nearest[good].ravel()
    order = np.argsort(clusters, kind="stable")
    asking, clusters = asking[order], clusters[order]
    num_clusters = int(clusters.max()) + 1
    ends = np.searchsorted(nearest[members, 0], np.arange(num_clusters), side="right")
    asking_ends = np.searchsorted(clusters, np.arange(num_clusters), side="right")
    start = asking_start = 0
    for end, asking_end in zip(ends.tolist(), asking_ends.tolist(), strict=True):
        own, others = members[start:end], asking[asking_start:asking_end]
        start, asking_start = end, asking_end
        # The best come first, so that the first neighbours of a row are the best ones.
        own = own[np.argsort(ranks[own])]
        for at in range(0, len(own), _BLOCK * 8):
            block = own[at : at + _BLOCK * 8]
            kept = _unit(vectors, block)
            for row in range(0, len(others), _BLOCK):
                queries = others[row : row + _BLOCK]
                yield _compare(_unit(vectors, queries), kept, queries, block, ranks, min_cosine)
        progress.advance(len(own))


def _compare(
    queries: Float[Tensor, "queries dim"],
    kept: Float[Tensor, "kept dim"],
    query_places: Numbers,
    kept_places: Numbers,
    ranks: Numbers,
    min_cosine: float,
) -> tuple[Numbers, Numbers, NDArray[np.float64]]:
    """Pairs in which the query is the worse one; at most the 16 best of each query."""
    similar = queries @ kept.T
    rows, columns = (t.numpy() for t in torch.nonzero(similar >= min_cosine, as_tuple=True))
    worse, better = query_places[rows], kept_places[columns]
    ordered = ranks[worse] > ranks[better]
    rows, columns = rows[ordered], columns[ordered]
    first = np.searchsorted(rows, rows, side="left")
    few = np.arange(len(rows)) - first < _MAX_BETTER
    rows, columns = rows[few], columns[few]
    cosines = similar[torch.from_numpy(rows), torch.from_numpy(columns)].double().numpy()
    return query_places[rows], kept_places[columns], cosines


def _settle(
    worse: Numbers, better: Numbers, cosines: NDArray[np.float64], ranks: Numbers
) -> tuple[Numbers, Numbers, NDArray[np.float64]]:
    """From the best to the worst: what is near something kept is a duplicate of the best such."""
    order = np.lexsort((ranks[better], ranks[worse]))
    duplicate_of: dict[int, tuple[int, float]] = {}
    for one, other, cosine in zip(
        worse[order].tolist(), better[order].tolist(), cosines[order].tolist(), strict=True
    ):
        if one not in duplicate_of and other not in duplicate_of:
            duplicate_of[one] = (other, cosine)
    places = sorted(duplicate_of)
    return (
        np.array(places, np.int64),
        np.array([duplicate_of[place][0] for place in places], np.int64),
        np.array([duplicate_of[place][1] for place in places], np.float64),
    )


def _unit(vectors: Vectors, places: Numbers) -> Float[Tensor, "items dim"]:
    return F.normalize(_tensor(vectors[places]), dim=1)


def _tensor(vectors: Vectors) -> Tensor:
    return torch.from_numpy(np.asarray(vectors, np.float32))
