"""SigLIP's loss: every entry of the similarity matrix is a yes-or-no question of its own.

    L = −(1/batch) · Σ_ij log σ( y_ij · (s·za_i·zb_j + b) ),   y_ii = 1, else −1

Zhai et al. 2023 (arXiv 2303.15343, alg. 1), with log s = log 10 and b = −10 at the start, so that
the many negatives do not dominate the first steps. Further positives are left out of the sum.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from coembed.losses.base import Loss, further_positives, scaled_similarities
from coembed.settings import ComponentSettings


class Sigmoid(Loss):
    """Pairwise sigmoid loss over the whole batch, with the matrix of logits in memory."""

    uses_logit_bias: ClassVar[bool] = True

    def forward(
        self,
        za: Float[Tensor, "batch dim"],
        zb: Float[Tensor, "batch dim"],
        *,
        logit_scale: Float[Tensor, ""],
        logit_bias: Float[Tensor, ""] | None = None,
        positives: Bool[Tensor, "batch batch"] | None = None,
    ) -> Float[Tensor, ""]:
        """See Loss.forward."""
        self.check_logit_bias(logit_bias)
        assert logit_bias is not None
        with torch.autocast(za.device.type, enabled=False):
            logits = scaled_similarities(za, zb, logit_scale)
            logits = logits + logit_bias.to(logits.dtype)
            signs = 2 * torch.eye(len(za), dtype=logits.dtype, device=za.device) - 1
            losses = -F.logsigmoid(signs * logits)
            if positives is not None:
                losses = losses.masked_fill(further_positives(positives), 0.0)
            return losses.sum() / len(za)


class Settings(ComponentSettings):
    """Settings of the sigmoid loss; it has none."""

    name: Literal["sigmoid"] = "sigmoid"

    def build(self) -> Sigmoid:
        """The loss."""
        return Sigmoid()
