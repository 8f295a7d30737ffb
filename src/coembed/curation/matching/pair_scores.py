"""How well a picture and a caption fit: their similarity, less what either has with all others.

    score(i, t) = s(i, t) − ½ · log mean_t' e^s(i, t') − ½ · log mean_i' e^s(i', t)

over reference pictures i' and captions t', where s is the logit of a two-tower model. That is the
mean of the two log-ratios that CLIP's loss is made of: by how much the pair is likelier than chance
(0), seen from the picture and from the caption. A plain cosine, as in CLIP-score filtering (Hessel
et al. 2021, arXiv 2104.08718; DFN, Fang et al. 2023, arXiv 2309.17425), ranks vague captions low
and pictures that resemble everything high; the two means take that away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

_ROUNDS = 32
"""Wrong captions that each reference picture is tried with."""
_BATCH = 1024
_SCALES = tuple(2.0 ** (step / 2) for step in range(21))  # 1 to 1,000


@dataclass(frozen=True)
class References:
    """Pairs that others are compared with. `items` are numbers of their items: a picture is not
    compared with further captions of its own."""

    pictures: Float[Tensor, "pairs dim"]
    captions: Float[Tensor, "pairs dim"]
    items: Int64[Tensor, " pairs"]


@torch.inference_mode()
def score_pairs(
    pictures: Float[Tensor, "pairs dim"],
    captions: Float[Tensor, "pairs dim"],
    items: Int64[Tensor, " pairs"],
    references: References,
) -> NDArray[np.float64]:
    """Scores [pairs]. The captions' vectors carry the logit scale."""
    found = []
    for start in range(0, len(pictures), _BATCH):
        part = slice(start, start + _BATCH)
        own = (pictures[part] * captions[part]).sum(1, keepdim=True)
        same = items[part][:, None] == references.items[None]
        by_picture = _log_mean_with(pictures[part] @ references.captions.T, same, own)
        by_caption = _log_mean_with(captions[part] @ references.pictures.T, same, own)
        found.append(own[:, 0] - (by_picture + by_caption) / 2)
    if not found:
        return np.empty(0)
    return torch.cat(found).double().numpy()


@torch.inference_mode()
def fit_scale(references: References) -> float:
    """The scale of cosines at which the references' own captions are likeliest among all of them.

    A model's own scale was fitted to its own training data and batch, and not every loss means the
    same by it.
    """
    similar = references.pictures @ references.captions.T
    further = references.items[:, None] == references.items[None]
    further.fill_diagonal_(False)
    similar = similar.masked_fill(further, -torch.inf)
    own = similar.diagonal()
    costs = {
        scale: float(
            (torch.logsumexp(similar * scale, 1) + torch.logsumexp(similar * scale, 0)).mean()
            - 2 * scale * own.mean()
        )
        for scale in _SCALES
    }
    return min(costs, key=lambda scale: costs[scale])


@torch.inference_mode()
def score_mispaired(
    references: References, *, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores of the reference pictures with wrong captions, drawn at random: what a mismatched pair
    looks like to this model; and the place of each caption among the references."""
    pictures, captions, items = references.pictures, references.captions, references.items
    num = len(items)
    similar = pictures @ captions.T
    same = items[:, None] == items[None]
    filled = similar.masked_fill(same, -torch.inf)
    of_picture = torch.logsumexp(filled, 1) - (~same).sum(1).log()
    of_caption = torch.logsumexp(filled, 0) - (~same).sum(0).log()
    generator = torch.Generator().manual_seed(seed)
    found, places = [], []
    for _ in range(_ROUNDS):
        other = torch.randperm(num, generator=generator)
        wrong = ~same[torch.arange(num), other]
        scores = similar[torch.arange(num), other] - (of_picture + of_caption[other]) / 2
        found.append(scores[wrong])
        places.append(other[wrong])
    return torch.cat(found).double().numpy(), torch.cat(places).numpy()


def _log_mean_with(
    logits: Float[Tensor, "pairs others"], left_out: Tensor, own: Float[Tensor, "pairs 1"]
) -> Float[Tensor, " pairs"]:
    """log of the mean of e^logits over the others and the pair itself."""
    both = torch.cat([logits.masked_fill(left_out, -torch.inf), own], 1)
    num = both.shape[1] - left_out.sum(1)
    return torch.logsumexp(both, 1) - num.log()
