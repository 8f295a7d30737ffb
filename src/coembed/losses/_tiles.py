"""Losses over a matrix of similarities that never exists: a tile of rows at a time, twice.

The matrix of a batch of 16,384 is 1 GB, and plain autograd keeps several of its kind. Here the
forward pass goes over tiles of rows and keeps sums; the backward pass makes each tile again, turns
it into the gradient of the loss with respect to its logits, and adds that, multiplied out, to the
gradients of the embeddings. One more product of matrices for memory that grows with rows + columns.
The idea is that of Inf-CL (Cheng et al. 2024, arXiv 2410.17243), in plain torch.

With logits x_ij = s·za_i·zb_j + b and slopes g_ij = ∂L/∂x_ij:

    ∂L/∂za = s·g zb,   ∂L/∂zb = s·gᵀ za,   ∂L/∂log s = Σ_i za_i·∂L/∂za_i,   ∂L/∂b = Σ_ij g_ij
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from coembed.losses.base import FurtherPositives, Share

# A loss holds two or three tiles at a time: 8 MiB each in float32 on a CPU, where products of
# matrices gained nothing from larger ones (batch 8,192, dim 512), and 32 MiB on a GPU, where 512
# rows of 16,384 columns are enough to keep all of its processors busy (a guess).
TILE_ELEMENTS = {"cpu": 2**21, "cuda": 2**23}

Places = tuple[Int64[Tensor, " _"], Int64[Tensor, " _"]]
"""Rows (counted within a tile) and columns of some of its elements."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Consecutive rows of a block.

    targets: the elements that are matches to be brought together, each once. The first ones, one a
        row and in the order of the rows, are the rows' own pairs.
    ignored: the elements that count neither as matches nor as negatives.
    """

    rows: slice
    targets: Places
    ignored: Places


class Block:
    """Some rows of the matrix of similarities, against all of its columns.

    Row k is paired with column `first + k`. With `two_sided`, rows and pairs are the whole batch,
    and the terms of the columns that are paired are asked for beside those of the rows: one pass
    over the tiles then serves both directions.
    """

    def __init__(
        self,
        za: Float[Tensor, "rows dim"],
        zb: Float[Tensor, "columns dim"],
        *,
        first: int,
        two_sided: bool,
        further: Int64[Tensor, "entries 2"] | None,
        attract: bool,
    ) -> None:
        self.za, self.zb = za, zb
        self.num_rows, self.num_columns = len(za), len(zb)
        self.first, self.two_sided = first, two_sided
        self._size = max(1, TILE_ELEMENTS.get(za.device.type, 2**21) // max(1, self.num_columns))
        self._attract = attract
        self._further = None if further is None else self._by_tile(further)
        # The number of targets of each row, and of each column that has terms of its own.
        self.row_targets = torch.ones(self.num_rows, dtype=torch.int64, device=za.device)
        self.column_targets = torch.zeros(self.num_columns, dtype=torch.int64, device=za.device)
        if two_sided:
            self.column_targets[: self.num_rows] = 1
        if further is not None and attract:
            self.row_targets += further[:, 0].bincount(minlength=self.num_rows)
            if two_sided:
                also = further[:, 1].bincount(minlength=self.num_columns)
                self.column_targets[: self.num_rows] += also[: self.num_rows]

    @property
    def num_paired(self) -> int:
        """The number of leading columns that have terms of their own."""
        return self.num_rows if self.two_sided else 0

    def own_similarities(self) -> Float[Tensor, " rows"]:
        """The cosine of every row with its own pair."""
        return (self.za * self.zb[self.first : self.first + self.num_rows]).sum(dim=1)

    def tiles(self) -> Iterator[Tile]:
        """All rows, in order."""
        none = torch.empty(0, dtype=torch.int64, device=self.za.device)
        for number, start in enumerate(range(0, self.num_rows, self._size)):
            stop = min(start + self._size, self.num_rows)
            i = torch.arange(stop - start, device=self.za.device)
            j = i + (self.first + start)
            targets, ignored = (i, j), (none, none)
            if self._further is not None:
                more = self._further[number][:, 0] - start, self._further[number][:, 1]
                if self._attract:
                    targets = torch.cat([i, more[0]]), torch.cat([j, more[1]])
                else:
                    ignored = more
            yield Tile(slice(start, stop), targets, ignored)

    def _by_tile(self, entries: Tensor) -> tuple[Tensor, ...]:
        """The entries of each tile. Asks a GPU for its counts once, not once a tile."""
        numbers = entries[:, 0] // self._size
        order = numbers.argsort(stable=True)
        num_tiles = -(-self.num_rows // self._size)
        sizes: list[int] = numbers.bincount(minlength=num_tiles).tolist()
        return torch.split_with_sizes(entries[order], sizes)


def rows_of(
    za: Float[Tensor, "rows dim"],
    zb: Float[Tensor, "columns dim"],
    *,
    positives: Int64[Tensor, "entries 2"] | None,
    share: Share | None,
    further_positives: FurtherPositives = "ignore",
) -> Block:
    """The block of the share's rows of `za` against all of `zb`."""
    za, zb = promoted(za, zb)
    first, last = share or (0, len(za))
    return Block(
        za[first:last],
        zb,
        first=first,
        two_sided=False,
        further=None if positives is None else _within(positives, first, last),
        attract=further_positives == "attract",
    )


def both_directions(
    za: Float[Tensor, "rows dim"],
    zb: Float[Tensor, "columns dim"],
    *,
    positives: Int64[Tensor, "entries 2"] | None,
    share: Share | None,
    further_positives: FurtherPositives = "ignore",
) -> list[Block]:
    """The blocks whose terms are those of the rows of `za` among all of `zb`, and of the rows of
    `zb` paired with them among all of `za`: one for the whole batch, one a direction for a share.
    Hard negatives are candidates of the first direction only.
    """
    za, zb = promoted(za, zb)
    num = len(za)
    attract = further_positives == "attract"
    if share is None or share == (0, num):
        return [Block(za, zb, first=0, two_sided=True, further=positives, attract=attract)]
    flipped = None if positives is None else positives[positives[:, 1] < num].flip(1)
    return [
        rows_of(za, zb, positives=positives, share=share, further_positives=further_positives),
        rows_of(zb[:num], za, positives=flipped, share=share, further_positives=further_positives),
    ]


class Terms(ABC):
    """What a loss makes of a block's logits. Written for one pass forward and any number back.

    Logits of a tile are [tile rows, columns], and the loss's to overwrite.
    """

    def __init__(self, block: Block) -> None:
        self.block = block

    @abstractmethod
    def see(self, logits: Tensor, tile: Tile) -> None:
        """Take in a tile; every tile comes once and in order."""

    @abstractmethod
    def value(self) -> Tensor:
        """The sum of the block's terms, shape (), when all tiles have been seen."""

    @abstractmethod
    def slopes(self, logits: Tensor, tile: Tile) -> Tensor:
        """The derivatives of `value` with respect to a tile's logits."""


def tiled_sum(
    terms: Terms,
    logit_scale: Float[Tensor, ""] | None = None,
    logit_bias: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """The value of `terms` over its block, with gradients for the block's embeddings, the LOG of
    the scale (None: logits are cosines) and the bias. Not twice differentiable.
    """
    za, zb = terms.block.za, terms.block.zb
    scale = None if logit_scale is None else logit_scale.to(za.dtype)
    bias = None if logit_bias is None else logit_bias.to(za.dtype)
    value: Tensor = _Tiled.apply(terms, za, zb, scale, bias)
    return value


class _Tiled(torch.autograd.Function):
    """See the module."""

    @staticmethod
    def forward(
        ctx: Any,
        terms: Terms,
        za: Tensor,
        zb: Tensor,
        log_scale: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        with torch.autocast(za.device.type, enabled=False):
            for tile in terms.block.tiles():
                terms.see(logits_of(za[tile.rows], zb, log_scale, bias), tile)
            ctx.terms = terms
            ctx.save_for_backward(za, zb, log_scale, bias)
            return terms.value()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        za, zb, log_scale, bias = ctx.saved_tensors
        _, needs_za, needs_zb, needs_scale, needs_bias = ctx.needs_input_grad
        dza = torch.empty_like(za) if needs_za or needs_scale else None
        dzb = torch.zeros_like(zb) if needs_zb else None
        dscale, dbias = torch.zeros_like(outer), torch.zeros_like(outer)
        scale = torch.ones_like(outer) if log_scale is None else log_scale.exp()
        with torch.autocast(za.device.type, enabled=False):
            for tile in ctx.terms.block.tiles():
                rows = za[tile.rows]
                slopes = ctx.terms.slopes(logits_of(rows, zb, log_scale, bias), tile)
                if dza is not None:
                    torch.mm(slopes, zb, out=dza[tile.rows])
                    dscale += (dza[tile.rows].mul_(scale * outer) * rows).sum()
                if dzb is not None:
                    dzb.addmm_(slopes.T, rows * (scale * outer))
                if needs_bias:
                    dbias += slopes.sum() * outer
        return (
            None,
            dza if needs_za else None,
            dzb,
            dscale if needs_scale else None,
            dbias if needs_bias else None,
        )


def logits_of(
    rows: Float[Tensor, "tile dim"],
    zb: Float[Tensor, "columns dim"],
    log_scale: Float[Tensor, ""] | None = None,
    bias: Float[Tensor, ""] | None = None,
) -> Float[Tensor, "tile columns"]:
    """exp(log_scale) · rows zbᵀ + bias. Call it with autocast switched off.

    The scale goes onto the rows rather than onto the product: the same number, one pass less.
    """
    logits = (rows if log_scale is None else rows * log_scale.exp()) @ zb.T
    return logits if bias is None else logits.add_(bias)


def promoted(za: Tensor, zb: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one type, float32 or better. Refuses rows of `za` that have no pair."""
    if len(zb) < len(za):
        raise ValueError(f"za has {len(za)} rows and zb {len(zb)}: every row of za needs its pair")
    dtype = torch.promote_types(torch.promote_types(za.dtype, zb.dtype), torch.float32)
    return za.to(dtype), zb.to(dtype)


def _within(
    positives: Int64[Tensor, "entries 2"], first: int, last: int
) -> Int64[Tensor, "inside 2"]:
    """The entries of the rows [first, last), rows counted from `first`."""
    inside = positives[(positives[:, 0] >= first) & (positives[:, 0] < last)]
    return inside - inside.new_tensor([first, 0])
