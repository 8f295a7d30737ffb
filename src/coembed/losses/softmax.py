"""CLIP's loss: symmetric InfoNCE, a softmax over the batch in each direction.

    L = ½ · mean_i [ −log softmax_j(s·za_i·zb_j)[i]  −  log softmax_j(s·za_j·zb_i)[i] ]

van den Oord et al. 2018 (arXiv 1807.03748, eq. 4) in the symmetric form of Radford et al. 2021
(arXiv 2103.00020, fig. 3). At chance it is ln(batch). A logit bias shifts all logits of a softmax
alike and changes nothing, so it is not used.

Further positives are left out of the denominators (`ignore`), or are targets as well (`attract`): a
row's term is then the mean of −log softmax over all its positives, each of which stays in the
denominator (Khosla et al. 2020, arXiv 2004.11362, L_out, eq. 2).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from coembed.losses._tiles import Block, Terms, Tile, both_directions, tiled_sum
from coembed.losses.base import FurtherPositives, Loss, Share, Teacher
from coembed.settings import ComponentSettings


class Softmax(Loss):
    """Symmetric InfoNCE over the whole batch."""

    uses_logit_bias: ClassVar[bool] = False

    def __init__(self, further_positives: FurtherPositives = "ignore") -> None:
        super().__init__()
        self._further_positives = further_positives

    def forward(
        self,
        za: Float[Tensor, "rows dim"],
        zb: Float[Tensor, "columns dim"],
        *,
        logit_scale: Float[Tensor, ""],
        logit_bias: Float[Tensor, ""] | None = None,  # noqa: ARG002
        positives: Int64[Tensor, "entries 2"] | None = None,
        teacher: Teacher | None = None,  # noqa: ARG002
        share: Share | None = None,
    ) -> Float[Tensor, ""]:
        """See Loss.forward."""
        blocks = both_directions(
            za, zb,
            positives=positives, share=share, further_positives=self._further_positives,
        )  # fmt: skip
        sums = [tiled_sum(_Terms(block), logit_scale) for block in blocks]
        return torch.stack(sums).sum() / (2 * len(za))


class _Terms(Terms):
    """Σ over rows, and over the columns with terms of their own, of log Σ exp x − mean target x."""

    def __init__(self, block: Block) -> None:
        super().__init__(block)
        self._row_logsums = block.za.new_empty(block.num_rows)
        self._column_logsums = block.za.new_full((block.num_paired,), -torch.inf)
        # What is left of sums that nearly cancel: in float64.
        self._targets = block.za.new_zeros((), dtype=torch.float64)
        # Of one target in its row's mean, and in its column's where that has a term.
        dtype = block.za.dtype
        self._row_weights = block.row_targets.to(dtype).reciprocal()
        self._column_weights = block.column_targets.to(dtype).reciprocal()
        self._column_weights[block.column_targets == 0] = 0.0

    def see(self, logits: Tensor, tile: Tile) -> None:
        logits[tile.ignored] = -torch.inf
        self._targets += (logits[tile.targets] * self._weights(tile)).sum(dtype=torch.float64)
        self._row_logsums[tile.rows] = logits.logsumexp(dim=1)
        if self.block.two_sided:
            columns = logits[:, : self.block.num_paired].logsumexp(dim=0)
            self._column_logsums = torch.logaddexp(self._column_logsums, columns)

    def value(self) -> Tensor:
        logsums = torch.cat([self._row_logsums, self._column_logsums])
        return (logsums.sum(dtype=torch.float64) - self._targets).to(logsums.dtype)

    def slopes(self, logits: Tensor, tile: Tile) -> Tensor:
        logits[tile.ignored] = -torch.inf
        num = self.block.num_paired
        columns = (logits[:, :num] - self._column_logsums).exp_()
        logits.sub_(self._row_logsums[tile.rows, None]).exp_()
        logits[:, :num] += columns
        logits[tile.targets] -= self._weights(tile)
        return logits

    def _weights(self, tile: Tile) -> Tensor:
        i, j = tile.targets
        return self._row_weights[tile.rows][i] + self._column_weights[j]


class Settings(ComponentSettings):
    """Settings of the softmax loss.

    further_positives: duplicates and other captions of the same item; `ignore` leaves them out of
        the denominators, `attract` makes them targets as well.
    """

    name: Literal["softmax"] = "softmax"
    further_positives: FurtherPositives = "ignore"

    def build(self) -> Softmax:
        """The loss."""
        return Softmax(self.further_positives)
