"""A cheap look at the val split while training: does a caption find an item that it describes?"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from coembed.modalities.image import normalise
from coembed.models.joint import JointModel
from coembed.models.spec import ModelSpec
from coembed.training.cache import CachedSplit
from coembed.training.settings import Precision

_ROWS = 512


@torch.no_grad()
def recall_at(
    k: int, model: JointModel, spec: ModelSpec, split: CachedSplit, *,
    device: torch.device, precision: Precision,
) -> float:  # fmt: skip
    """Recall@k of text → image over `split`: the share of its different captions with an item that
    they describe among the k nearest items. Ties count against the model.

    The model comes back in the mode in which it was.
    """
    was_training = model.training
    model.eval()
    bf16 = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
    images, texts = [], []
    with bf16:
        for start in range(0, len(split), _ROWS):
            pixels = torch.from_numpy(split.images[start : start + _ROWS].copy()).to(device)
            images.append(model.embed("image", normalise(pixels, spec.image.mean, spec.image.std)))
        for start in range(0, len(split.tokens), _ROWS):
            tokens = model.trim("text", torch.from_numpy(split.tokens[start : start + _ROWS]))
            texts.append(model.embed("text", tokens.to(device)))
    model.train(was_training)
    described = torch.zeros(len(split.tokens), len(split), dtype=torch.bool)
    owner = torch.repeat_interleave(torch.from_numpy(split.offsets).diff())
    described[torch.from_numpy(split.caption_ids), owner] = True
    return _recall(torch.cat(texts).cpu(), torch.cat(images).cpu(), described, k)


def _recall(
    queries: Float[Tensor, "queries dim"],
    items: Float[Tensor, "items dim"],
    relevant: Tensor,
    k: int,
) -> float:
    """Share of queries with a relevant item among the k nearest; `relevant` [queries, items]."""
    scores = queries.float() @ items.float().T
    best = scores.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
    before = ((scores >= best) & ~relevant).sum(dim=1)
    return (before < k).double().mean().item()
