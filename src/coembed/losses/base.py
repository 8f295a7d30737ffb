"""The interface of a loss: two batches of unit embeddings whose rows match, in; one number, out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from coembed.errors import ConfigError


class Loss(nn.Module, ABC):
    """A contrastive loss over in-batch negatives. Knows nothing of modalities.

    Row i of `za` and row i of `zb` are a pair. `positives[i, j]` says that `za[i]` and `zb[j]`
    match as well (a duplicate, another caption of the same image); such an entry is neither
    attracted nor repelled: it is left out, so that no match is ever a negative. The diagonal of
    `positives` is not read.

    Losses hold no parameters: `logit_scale` and `logit_bias` belong to the model. They are computed
    in float32 (float64 inputs stay so), also under autocast.
    """

    uses_logit_bias: ClassVar[bool]
    """Whether the loss needs the model to have a `logit_bias`."""

    @abstractmethod
    def forward(
        self,
        za: Float[Tensor, "batch dim"],
        zb: Float[Tensor, "batch dim"],
        *,
        logit_scale: Float[Tensor, ""],
        logit_bias: Float[Tensor, ""] | None = None,
        positives: Bool[Tensor, "batch batch"] | None = None,
    ) -> Float[Tensor, ""]:
        """The mean loss of the batch.

        Args:
            za: unit L2 embeddings.
            zb: unit L2 embeddings; row i is paired with row i of `za`.
            logit_scale: natural LOG of the scale, as the model holds it.
            logit_bias: added to every scaled similarity; None where the model has none.
            positives: further matches, see the class.

        Raises:
            ConfigError: the loss needs a `logit_bias` and got None.
        """

    def check_logit_bias(self, logit_bias: Tensor | None) -> None:
        """Refuse a model without a logit bias where the loss needs one."""
        if self.uses_logit_bias and logit_bias is None:
            name = type(self).__name__.lower()
            raise ConfigError(
                f"the {name} loss needs a logit bias, and the model has none",
                hint="set model.init_logit_bias (SigLIP starts at -10, with init_logit_scale "
                "log(10) = 2.3026)",
            )


def scaled_similarities(
    za: Float[Tensor, "rows dim"],
    zb: Float[Tensor, "columns dim"],
    logit_scale: Float[Tensor, ""],
) -> Float[Tensor, "rows columns"]:
    """exp(logit_scale) · za zbᵀ in float32 or better. Call it with autocast switched off.

    The scale goes onto `za` rather than onto the product: the same number, one matrix less.
    """
    dtype = torch.promote_types(torch.promote_types(za.dtype, zb.dtype), torch.float32)
    scale = logit_scale.to(dtype).exp()
    return (za.to(dtype) * scale) @ zb.to(dtype).T


def further_positives(
    positives: Bool[Tensor, "batch batch"],
) -> Bool[Tensor, "batch batch"]:
    """`positives` with a False diagonal: the entries to leave out."""
    diagonal = torch.eye(len(positives), dtype=torch.bool, device=positives.device)
    return positives & ~diagonal
