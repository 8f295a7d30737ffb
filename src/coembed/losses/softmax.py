"""CLIP's loss: symmetric InfoNCE, a softmax over the batch in each direction.

    L = ½ · mean_i [ −log softmax_j(s·za_i·zb_j)[i]  −  log softmax_j(s·za_j·zb_i)[i] ]

van den Oord et al. 2018 (arXiv 1807.03748, eq. 4) in the symmetric form of Radford et al. 2021
(arXiv 2103.00020, fig. 3). At chance it is ln(batch). Further positives are left out of both
denominators. A logit bias shifts all logits of a softmax alike and changes nothing, so it is not
used.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from coembed.losses.base import Loss, further_positives, scaled_similarities
from coembed.settings import ComponentSettings


class Softmax(Loss):
    """Symmetric InfoNCE over the whole batch, with the matrix of logits in memory."""

    uses_logit_bias: ClassVar[bool] = False

    def forward(
        self,
        za: Float[Tensor, "batch dim"],
        zb: Float[Tensor, "batch dim"],
        *,
        logit_scale: Float[Tensor, ""],
        logit_bias: Float[Tensor, ""] | None = None,  # noqa: ARG002
        positives: Bool[Tensor, "batch batch"] | None = None,
    ) -> Float[Tensor, ""]:
        """See Loss.forward."""
        with torch.autocast(za.device.type, enabled=False):
            logits = scaled_similarities(za, zb, logit_scale)
            if positives is not None:
                logits = logits.masked_fill(further_positives(positives), -torch.inf)
            targets = torch.arange(len(za), device=za.device)
            return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


class Settings(ComponentSettings):
    """Settings of the softmax loss; it has none."""

    name: Literal["softmax"] = "softmax"

    def build(self) -> Softmax:
        """The loss."""
        return Softmax()
