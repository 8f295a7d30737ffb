"""Measures of a training under way: how the embeddings lie in their space, and which tower learns.

They cost a multiplication of at most 512 × 512 rows and one wait for the device each, and are meant
for the logged steps only. None of them takes part in training.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

EMBEDDING_COLUMNS: Final = (
    "modality_gap", "alignment", "uniformity_item", "uniformity_text", "mean_cosine_item",
    "mean_cosine_text",
)  # fmt: skip
"""Columns of `embedding_row`."""

_MOST_ROWS = 512


@torch.no_grad()
def embedding_row(za: Float[Tensor, "rows dim"], zb: Float[Tensor, "rows dim"]) -> dict[str, float]:
    """How a batch's unit embeddings lie: row i of `za` (items) and of `zb` (captions) are a pair.

    modality_gap: distance of the two sides' mean embeddings (Liang et al. 2022, arXiv 2203.02053,
        section 4.1); 0 where the sides lie in one place, at most 2.
    alignment: mean squared distance of a pair (Wang & Isola 2020, arXiv 2005.10242, with α = 2);
        0 where a pair's embeddings are equal.
    uniformity_item, uniformity_text: log of the mean of exp(-2 d²) over the pairs of different rows
        of one side, d their distance (the same paper, with t = 2): 0 where all are the same, near
        -4 where they are spread over the sphere.
    mean_cosine_item, mean_cosine_text: the mean cosine of different rows of one side; 1 where they
        have collapsed into one.

    Of more than 512 rows, 512 evenly spaced ones are looked at. Needs two rows at least.
    """
    rows = len(za)
    if rows > _MOST_ROWS:
        chosen = torch.arange(_MOST_ROWS, device=za.device) * rows // _MOST_ROWS
        za, zb = za[chosen], zb[chosen]
    za, zb = za.float(), zb.float()
    values = [
        torch.linalg.vector_norm(za.mean(0) - zb.mean(0)),
        (za - zb).square().sum(1).mean(),
    ]
    cosines = [_cosines(z) for z in (za, zb)]
    # d² of unit vectors is 2 - 2 cos, so exp(-2 d²) = exp(4 cos - 4).
    values += [(4 * c - 4).exp().mean().log() for c in cosines]
    values += [c.mean() for c in cosines]
    return dict(zip(EMBEDDING_COLUMNS, torch.stack(values).tolist(), strict=True))


def _cosines(z: Float[Tensor, "rows dim"]) -> Float[Tensor, " pairs"]:
    """Cosines of each two different rows, each once."""
    first, second = torch.triu_indices(len(z), len(z), offset=1, device=z.device)
    return (z @ z.T).clamp(-1, 1)[first, second]


@torch.no_grad()
def grad_norms(model: nn.Module) -> dict[str, float]:
    """L2 norms of the gradients by tower: `grad_norm_image`, `grad_norm_text`, ..., and
    `grad_norm_logit` of logit scale and bias together.

    What has no gradient (a locked tower, one that the step did not use) has no entry. Gradients
    that are divided among processes (DTensor) are summed over them, so all have to call this.
    """
    groups: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            groups.setdefault(_part(name), []).append(parameter.grad)
    if not groups:
        return {}
    norms = [_norm(gradients) for gradients in groups.values()]
    values = torch.stack([norm.to(norms[0].device) for norm in norms]).tolist()
    return {f"grad_norm_{part}": value for part, value in zip(groups, values, strict=True)}


def _part(name: str) -> str:
    """The tower of a parameter, whatever wraps the model; "logit" outside of the towers."""
    _, within, rest = name.partition("towers.")
    return rest.partition(".")[0] if within else "logit"


def _norm(gradients: Iterable[Tensor]) -> Float[Tensor, ""]:
    """Norm of the gradients as float32; whole ones and divided ones cannot be stacked together."""
    by_kind: dict[bool, list[Tensor]] = {}
    for gradient in gradients:
        by_kind.setdefault(hasattr(gradient, "full_tensor"), []).append(gradient)
    norms = []
    for is_divided, alike in by_kind.items():
        norm: Any = torch.nn.utils.get_total_norm(alike)
        norms.append((norm.full_tensor() if is_divided else norm).float())
    return torch.linalg.vector_norm(torch.stack(norms))
