"""SigLIP's loss: every entry of the similarity matrix is a yes-or-no question of its own.

    L = −(1/batch) · Σ_ij log σ( y_ij · (s·za_i·zb_j + b) ),   y_ii = 1, else −1

Zhai et al. 2023 (arXiv 2303.15343, alg. 1), with log s = log 10 and b = −10 at the start, so that
the many negatives do not dominate the first steps. Further positives are left out of the sum
(`ignore`), or have y = 1 as well (`attract`).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from coembed.losses._tiles import Block, Terms, Tile, rows_of, tiled_sum
from coembed.losses.base import FurtherPositives, Loss, Share, Teacher
from coembed.settings import ComponentSettings


class Sigmoid(Loss):
    """Pairwise sigmoid loss over the whole batch."""

    uses_logit_bias: ClassVar[bool] = True

    def __init__(self, further_positives: FurtherPositives = "ignore") -> None:
        super().__init__()
        self._further_positives = further_positives

    def forward(
        self,
        za: Float[Tensor, "rows dim"],
        zb: Float[Tensor, "columns dim"],
        *,
        logit_scale: Float[Tensor, ""],
        logit_bias: Float[Tensor, ""] | None = None,
        positives: Int64[Tensor, "entries 2"] | None = None,
        teacher: Teacher | None = None,  # noqa: ARG002
        share: Share | None = None,
    ) -> Float[Tensor, ""]:
        """See Loss.forward."""
        self.check_logit_bias(logit_bias)
        # An entry is one term, whichever side it is looked at from: rows alone cover all.
        block = rows_of(
            za, zb,
            positives=positives, share=share, further_positives=self._further_positives,
        )  # fmt: skip
        return tiled_sum(_Terms(block), logit_scale, logit_bias) / len(za)


class _Terms(Terms):
    """Σ −log σ(x) over the targets, and Σ −log σ(−x) over the negatives."""

    def __init__(self, block: Block) -> None:
        super().__init__(block)
        self._sum = block.za.new_zeros(())

    def see(self, logits: Tensor, tile: Tile) -> None:
        self._sum -= F.logsigmoid(logits[tile.targets]).sum()
        self._leave_negatives(logits, tile)
        self._sum -= F.logsigmoid(logits.neg_()).sum()

    def value(self) -> Tensor:
        return self._sum

    def slopes(self, logits: Tensor, tile: Tile) -> Tensor:
        of_targets = -torch.sigmoid(-logits[tile.targets])
        self._leave_negatives(logits, tile)
        logits.sigmoid_()
        logits[tile.targets] = of_targets
        return logits

    @staticmethod
    def _leave_negatives(logits: Tensor, tile: Tile) -> None:
        """Everything else becomes an answer that is right and certain: no loss, no slope."""
        logits[tile.targets] = -torch.inf
        logits[tile.ignored] = -torch.inf


class Settings(ComponentSettings):
    """Settings of the sigmoid loss.

    further_positives: duplicates and other captions of the same item; `ignore` leaves them out,
        `attract` makes them matches like the pairs.
    """

    name: Literal["sigmoid"] = "sigmoid"
    further_positives: FurtherPositives = "ignore"

    def build(self) -> Sigmoid:
        """The loss."""
        return Sigmoid(self.further_positives)
