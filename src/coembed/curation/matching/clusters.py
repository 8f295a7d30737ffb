"""k-means on the sphere, the same on every run.

Lloyd's algorithm with cosine similarity (spherical k-means, Dhillon and Modha 2001), as SemDeDup
clusters embeddings (Abbas et al. 2023, arXiv 2303.09540, section 3).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

_BATCH = 8192


@torch.inference_mode()
def fit_centres(
    vectors: Float[Tensor, "items dim"], num_clusters: int, *, seed: int, num_rounds: int = 10
) -> Float[Tensor, "clusters dim"]:
    """Unit centres of at most `num_clusters` clusters of unit vectors.

    Starts from vectors drawn by `seed`. A cluster that loses all of its vectors takes the one that
    fits its own centre worst.
    """
    num = min(num_clusters, len(vectors))
    generator = torch.Generator().manual_seed(seed)
    centres = vectors[torch.randperm(len(vectors), generator=generator)[:num]].clone()
    for _ in range(num_rounds):
        nearest, similarity = assign(vectors, centres, num=1)
        sums = torch.zeros_like(centres).index_add_(0, nearest[:, 0], vectors)
        empty = torch.bincount(nearest[:, 0], minlength=num) == 0
        if empty.any():
            worst = torch.argsort(similarity[:, 0], stable=True)[: int(empty.sum())]
            sums[empty] = vectors[worst]
        moved = F.normalize(sums, dim=1)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


@torch.inference_mode()
def assign(
    vectors: Float[Tensor, "items dim"], centres: Float[Tensor, "clusters dim"], *, num: int
) -> tuple[Int64[Tensor, "items num"], Float[Tensor, "items num"]]:
    """The `num` nearest centres of each vector (at most as many as there are), nearest first, and
    their cosines."""
    num = min(num, len(centres))
    parts = [
        torch.topk(vectors[at : at + _BATCH] @ centres.T, num, dim=1)
        for at in range(0, len(vectors), _BATCH)
    ]
    if not parts:
        return torch.empty((0, num), dtype=torch.int64), torch.empty((0, num))
    return torch.cat([p.indices for p in parts]), torch.cat([p.values for p in parts])
