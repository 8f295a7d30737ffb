"""A cheap look at the val split while training: does a caption find an item that it describes?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from coembed.models.joint import JointModel
from coembed.models.spec import ModelSpec
from coembed.training.data import Stream
from coembed.training.settings import Precision

_ROWS = 256
_BATCH_BYTES = 1 << 27  # of what goes through a tower at a time: a long sound has many windows
_QUERIES = 1024
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def validate(
    k: int,
    model: JointModel,
    spec: ModelSpec,
    streams: Sequence[Stream],
    *,
    device: torch.device,
    precision: Precision,
) -> dict[str, float]:
    """Recall@k of text → item over the val split, `val_recall_at_<k>`: of one modality's items, or
    the mean over the modalities, with each one's own beside it.
    """
    found = {
        s.items.modality: recall_at(k, model, spec, s, device=device, precision=precision)
        for s in streams
    }
    name = headline(k)
    whole = {name: sum(found.values()) / len(found)}
    if len(found) == 1:
        return whole
    return whole | {f"{name}_{modality}": value for modality, value in found.items()}


def headline(k: int) -> str:
    """The column that early stopping and the best weights go by."""
    return f"val_recall_at_{k}"


@torch.no_grad()
def recall_at(
    k: int, model: JointModel, spec: ModelSpec, stream: Stream, *,
    device: torch.device, precision: Precision,
) -> float:  # fmt: skip
    """Recall@k of text → item over `stream`, whose media are seen as queries are: the share of its
    different captions with an item that they describe among the k nearest items. Ties count against
    the model.

    The model's modules come back in the modes in which they were.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    items, modality = stream.items, stream.items.modality
    media_of, text_of = spec.loader(modality), spec.loader("text")
    keys = items.keys
    found, texts = [], []
    autocast = torch.autocast(
        device.type, dtype=_DTYPES.get(precision, torch.bfloat16), enabled=precision != "fp32"
    )
    with autocast:
        num_rows = max(1, min(_ROWS, _BATCH_BYTES // media_of.max_item_bytes()))
        for start in range(0, len(items), num_rows):
            rows = np.arange(start, min(start + num_rows, len(items)))
            seen = torch.from_numpy(stream.media.fetch(rows, keys[rows], seed=0, epoch=0))
            if stream.media.is_embedded:
                found.append(seen)
                continue
            found.append(model.embed(modality, media_of.to_inputs(seen.to(device))).float().cpu())
        if stream.texts is not None:
            texts.append(torch.from_numpy(np.array(stream.texts)))
        else:
            for start in range(0, len(items.tokens), _ROWS):
                part = items.tokens[start : start + _ROWS].astype(np.int64)
                tokens = model.trim("text", torch.from_numpy(part)).to(device)
                texts.append(model.embed("text", text_of.to_inputs(tokens)).float().cpu())
    for module in training:
        module.training = True
    described = torch.zeros(len(items.tokens), len(items), dtype=torch.bool)
    owner = torch.repeat_interleave(torch.from_numpy(np.diff(items.offsets)))
    described[torch.from_numpy(np.array(items.caption_ids)), owner] = True
    return _recall(torch.cat(texts), torch.cat(found), described, k)


def _recall(
    queries: Float[Tensor, "queries dim"],
    items: Float[Tensor, "items dim"],
    relevant: Tensor,
    k: int,
) -> float:
    """Share of queries with a relevant item among the k nearest; `relevant` [queries, items]."""
    num_found = 0
    for some, asked in zip(
        torch.split(queries, _QUERIES), torch.split(relevant, _QUERIES), strict=True
    ):
        scores = some.float() @ items.float().T
        best = scores.masked_fill(~asked, -torch.inf).amax(dim=1, keepdim=True)
        # Not below, rather than above: what is not a number must not count as found.
        before = (~(scores < best) & ~asked).sum(dim=1)
        num_found += int((before < k).sum())
    return num_found / len(queries)
