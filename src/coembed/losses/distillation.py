"""Distillation: the student's similarities within a batch are to be spread as a teacher's are.

    L = (1 − w) · softmax loss  +  w · ½ · mean_i [ KL(p_i ‖ q_i)  +  KL(p'_i ‖ q'_i) ]

p_i and q_i are the teacher's and the student's softmax over all candidates of row i, p'_i and q'_i
those of column i (contrastive relational distillation of CLIP-KD, Yang et al. 2023, arXiv
2307.12732; TinyCLIP's affinity mimicking, Wu et al. 2023, arXiv 2309.12314, is the same up to the
teacher's entropy). Only similarities meet, so the two may embed into different dims. Further
positives stay in p and q, where the teacher itself says how near they are; what the softmax loss
makes of them is its setting.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from coembed.losses._tiles import (
    Block,
    Terms,
    Tile,
    both_directions,
    logits_of,
    promoted,
    tiled_sum,
)
from coembed.losses.base import FurtherPositives, Loss, Share, Teacher
from coembed.losses.softmax import Softmax
from coembed.settings import ComponentSettings


class Distillation(Loss):
    """The softmax loss and the divergence from a teacher, weighted."""

    uses_logit_bias: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = True

    def __init__(
        self,
        weight: float,
        teacher_scale: float | None,
        further_positives: FurtherPositives = "ignore",
    ) -> None:
        super().__init__()
        self._weight, self._teacher_scale = weight, teacher_scale
        self._softmax = Softmax(further_positives)

    def forward(
        self,
        za: Float[Tensor, "rows dim"],
        zb: Float[Tensor, "columns dim"],
        *,
        logit_scale: Float[Tensor, ""],
        logit_bias: Float[Tensor, ""] | None = None,  # noqa: ARG002
        positives: Int64[Tensor, "entries 2"] | None = None,
        teacher: Teacher | None = None,
        share: Share | None = None,
    ) -> Float[Tensor, ""]:
        """See Loss.forward."""
        self.check_teacher(teacher)
        assert teacher is not None
        # Here rather than in each part, whose gradients would be added up in 16 bits.
        za, zb = promoted(za, zb)
        logit_scale = logit_scale.to(za.dtype)
        divergence = self._divergence(za, zb, logit_scale, teacher, share)
        if self._weight == 1:
            return divergence
        softmax = self._softmax(za, zb, logit_scale=logit_scale, positives=positives, share=share)
        return (1 - self._weight) * softmax + self._weight * divergence

    def _divergence(
        self,
        za: Float[Tensor, "rows dim"],
        zb: Float[Tensor, "columns dim"],
        logit_scale: Float[Tensor, ""],
        teacher: Teacher,
        share: Share | None,
    ) -> Float[Tensor, ""]:
        blocks = both_directions(za, zb, positives=None, share=share)
        taught = both_directions(teacher.za, teacher.zb, positives=None, share=share)
        scale = logit_scale.detach()
        if self._teacher_scale is not None:
            scale = torch.full_like(scale, self._teacher_scale, dtype=taught[0].za.dtype)
        sums = [
            tiled_sum(_Terms(block, theirs, scale.to(theirs.za.dtype)), logit_scale)
            for block, theirs in zip(blocks, taught, strict=True)
        ]
        return torch.stack(sums).sum() / (2 * len(za))


class _Terms(Terms):
    """Σ KL(p ‖ q) over the rows, and over the columns with terms of their own.

    With x and t the student's and the teacher's logits,
    KL(p ‖ q) = Σ p·(t − x) − log Σ exp t + log Σ exp x. The first sum is called the gap.
    """

    def __init__(self, block: Block, taught: Block, teacher_scale: Float[Tensor, ""]) -> None:
        super().__init__(block)
        self._taught, self._teacher_scale = taught, teacher_scale
        new_empty, new_full, num = block.za.new_empty, block.za.new_full, block.num_paired
        self._row_x, self._row_t, self._row_gap = (new_empty(block.num_rows) for _ in range(3))
        self._column_x, self._column_t = (new_full((num,), -torch.inf) for _ in range(2))
        self._column_gap = new_full((num,), 0.0)

    def see(self, logits: Tensor, tile: Tile) -> None:
        x, t, rows, num = logits, self._teachers(tile), tile.rows, self.block.num_paired
        gaps = t - x
        self._row_x[rows], self._row_t[rows] = x.logsumexp(dim=1), t.logsumexp(dim=1)
        self._row_gap[rows] = ((t - self._row_t[rows, None]).exp_() * gaps).sum(dim=1)
        if self.block.two_sided:
            x, t, gaps = x[:, :num], t[:, :num], gaps[:, :num]
            in_tile = t.logsumexp(dim=0)
            gap = ((t - in_tile).exp_() * gaps).sum(dim=0)
            so_far = torch.logaddexp(self._column_t, in_tile)
            # The gap is a mean under p: what was seen before loses the weight that the tile gains.
            self._column_gap *= (self._column_t - so_far).exp_()
            self._column_gap += gap * (in_tile - so_far).exp_()
            self._column_t = so_far
            self._column_x = torch.logaddexp(self._column_x, x.logsumexp(dim=0))

    def value(self) -> Tensor:
        rows = self._row_gap - self._row_t + self._row_x
        columns = self._column_gap - self._column_t + self._column_x
        return rows.sum() + columns.sum()

    def slopes(self, logits: Tensor, tile: Tile) -> Tensor:
        x, t, rows, num = logits, self._teachers(tile), tile.rows, self.block.num_paired
        columns = (x[:, :num] - self._column_x).exp_()
        columns -= (t[:, :num] - self._column_t).exp_()
        x.sub_(self._row_x[rows, None]).exp_()
        x -= t.sub_(self._row_t[rows, None]).exp_()
        x[:, :num] += columns
        return x

    def _teachers(self, tile: Tile) -> Float[Tensor, "tile columns"]:
        """The teacher's logits of a tile."""
        za, zb = self._taught.za.detach(), self._taught.zb.detach()
        return logits_of(za[tile.rows], zb, self._teacher_scale).to(self.block.za.dtype)


class Settings(ComponentSettings):
    """Settings of the distillation loss.

    teacher: the model to learn from: the folder of a coembed model, the folder of an open_clip
        export, or an open_clip "ARCHITECTURE/TAG" (which is downloaded).
    teacher_scale: natural log of the scale of the teacher's logits (CLIP's own is log 100 =
        4.6052); null: the student's of the moment.
    weight: share of the divergence in the loss, the rest is the softmax loss. The default is a
        guess.
    further_positives: see the softmax loss.
    """

    name: Literal["distillation"] = "distillation"
    teacher: str = Field(min_length=1)
    teacher_scale: float | None = Field(default=None, ge=0, le=7)
    weight: float = Field(default=0.5, gt=0, le=1)
    further_positives: FurtherPositives = "ignore"

    def build(self) -> Distillation:
        """The loss."""
        return Distillation(self.weight, self.teacher_scale, self.further_positives)
