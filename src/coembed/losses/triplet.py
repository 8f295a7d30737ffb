"""VSE++'s loss: every pair is to be more similar than its negatives, by a margin.

    L = (1/rows) · Σ_i ( [m − c_ii + c_ij]₊  +  [m − c_ii + c_ki]₊ ),   c cosines

with j, k negatives of row i and of column i: the most similar ones (`hardest`, the max of hinges of
Faghri et al. 2018, arXiv 1707.05612), or every one, summed (`all`, its sum of hinges), or the most
similar of those that are less similar than the pair (`semi_hard`, Schroff et al. 2015, arXiv
1503.03832, section 3.2). A row whose negatives are all at least as similar as its pair has no
semi-hard one; it gets the least similar of them, which is the nearest to being one (so does
TensorFlow Addons' TripletSemiHardLoss). A row without negatives has no term. At chance every hinge
stands at the margin.

With the hardest negatives, training from random weights may begin by drawing all embeddings to one
point, where no negative is harder than another and L = 2m (FaceNet's section 3.2 warns of it). It
often gets away from there, late; `semi_hard` does not go there, and needs no other warm-up.

Cosines are not scaled: the model's logit scale and bias are not used and get no gradient.
Further positives are never negatives, and never targets.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from coembed.losses._tiles import Block, Terms, Tile, both_directions, logits_of, tiled_sum
from coembed.losses.base import Loss, Share, Teacher
from coembed.settings import ComponentSettings

Negatives = Literal["hardest", "semi_hard", "all"]


class Triplet(Loss):
    """Hinge losses on cosines, in both directions."""

    uses_logit_bias: ClassVar[bool] = False

    def __init__(self, margin: float, negatives: Negatives) -> None:
        super().__init__()
        self._margin, self._negatives = margin, negatives

    def forward(
        self,
        za: Float[Tensor, "rows dim"],
        zb: Float[Tensor, "columns dim"],
        *,
        logit_scale: Float[Tensor, ""],  # noqa: ARG002
        logit_bias: Float[Tensor, ""] | None = None,  # noqa: ARG002
        positives: Int64[Tensor, "entries 2"] | None = None,
        teacher: Teacher | None = None,  # noqa: ARG002
        share: Share | None = None,
    ) -> Float[Tensor, ""]:
        """See Loss.forward."""
        blocks = both_directions(za, zb, positives=positives, share=share)
        if self._negatives == "all":
            sums = [tiled_sum(_AllTerms(block, self._margin)) for block in blocks]
        else:
            sums = [self._chosen_sum(block) for block in blocks]
        return torch.stack(sums).sum() / len(za)

    def _chosen_sum(self, block: Block) -> Float[Tensor, ""]:
        """The block's hinges with one negative each, which is chosen without gradient."""
        own = block.own_similarities()
        rows, columns = _choose(block, own.detach(), semi_hard=self._negatives == "semi_hard")
        num = block.num_paired
        found = rows >= 0
        chosen = (block.za[found] * block.zb[rows[found]]).sum(dim=1)
        total = (self._margin - own[found] + chosen).clamp_min(0).sum()
        if block.two_sided:
            found = columns >= 0
            chosen = (block.za[columns[found]] * block.zb[:num][found]).sum(dim=1)
            total = total + (self._margin - own[found] + chosen).clamp_min(0).sum()
        return total


@torch.no_grad()
def _choose(
    block: Block, own: Float[Tensor, " rows"], *, semi_hard: bool
) -> tuple[Int64[Tensor, " rows"], Int64[Tensor, " paired"]]:
    """The negative column of every row, and the negative row of every column that has terms of its
    own; −1 where there is none.
    """
    num = block.num_paired
    rows = torch.empty(block.num_rows, dtype=torch.int64, device=own.device)
    columns = torch.full((num,), -1, dtype=torch.int64, device=own.device)
    best = own.new_full((num,), -torch.inf)
    with torch.autocast(own.device.type, enabled=False):
        for tile in block.tiles():
            cosines = logits_of(block.za[tile.rows], block.zb)
            cosines[tile.targets] = -torch.inf
            cosines[tile.ignored] = -torch.inf
            if block.two_sided:
                value, row = _ranks(cosines[:, :num], own if semi_hard else None).max(dim=0)
                better = value > best
                columns[better] = row[better] + tile.rows.start
                best = torch.maximum(best, value)
            value, column = _ranks(cosines, own[tile.rows, None] if semi_hard else None).max(dim=1)
            rows[tile.rows] = column.masked_fill(value == -torch.inf, -1)
    return rows, columns


def _ranks(cosines: Tensor, own: Tensor | None) -> Tensor:
    """Numbers whose largest is the negative to choose: the cosines themselves, or with `own`
    semi-hard ones (in [−1, 1]) before the others (in [−5, −3], the least similar first).
    """
    return cosines if own is None else torch.where(cosines < own, cosines, -4 - cosines)


class _AllTerms(Terms):
    """Σ of the hinges of all negatives."""

    def __init__(self, block: Block, margin: float) -> None:
        super().__init__(block)
        # A negative at this cosine costs nothing yet.
        self._free = block.own_similarities().detach() - margin
        self._sum = block.za.new_zeros(())
        self._violations = block.za.new_zeros(block.num_rows)

    def see(self, logits: Tensor, tile: Tile) -> None:
        num = self.block.num_paired
        self._leave_negatives(logits, tile)
        hinges = (logits - self._free[tile.rows, None]).clamp_min_(0)
        self._sum += hinges.sum()
        self._violations[tile.rows] += hinges.count_nonzero(dim=1)
        if self.block.two_sided:
            hinges = (logits[:, :num] - self._free).clamp_min_(0)
            self._sum += hinges.sum()
            self._violations += hinges.count_nonzero(dim=0)

    def value(self) -> Tensor:
        return self._sum

    def slopes(self, logits: Tensor, tile: Tile) -> Tensor:
        num = self.block.num_paired
        self._leave_negatives(logits, tile)
        slopes = (logits > self._free[tile.rows, None]).to(logits.dtype)
        if self.block.two_sided:
            slopes[:, :num] += logits[:, :num] > self._free
        slopes[tile.targets] = -self._violations[tile.rows]
        return slopes

    @staticmethod
    def _leave_negatives(logits: Tensor, tile: Tile) -> None:
        logits[tile.targets] = -torch.inf
        logits[tile.ignored] = -torch.inf


class Settings(ComponentSettings):
    """Settings of the triplet loss.

    margin: by how much a pair's cosine is to be above its negatives' (VSE++'s 0.2).
    negatives: hardest is VSE++'s, made for pretrained towers; semi_hard is the safer start from
        random weights, see the module; all sums the hinges of every negative.
    """

    name: Literal["triplet"] = "triplet"
    margin: float = Field(default=0.2, gt=0, le=2)
    negatives: Negatives = "hardest"

    def build(self) -> Triplet:
        """The loss."""
        return Triplet(self.margin, self.negatives)
