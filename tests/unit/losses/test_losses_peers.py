"""The losses against open_clip's, where both can do it (no further positives), to six digits."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from loss_cases import unit
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor

from coembed.losses import _tiles
from coembed.losses.sigmoid import Sigmoid
from coembed.losses.softmax import Softmax


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tiles, "TILE_ELEMENTS", {"cpu": 100 * 1000})


def agree(mine: Callable[..., Tensor], theirs: Callable[..., Tensor], *scalars: Tensor) -> None:
    """Same value and same gradients, each to a millionth of its largest element."""
    # Pairs that have begun to find each other: gradients of all sizes.
    za = unit(1000, 32, 1, torch.float32)
    zb = torch.nn.functional.normalize(za + 2 * unit(1000, 32, 2, torch.float32), dim=1)
    inputs = (za.requires_grad_(), zb.requires_grad_(), *(s.requires_grad_() for s in scalars))
    values = [loss(*inputs) for loss in (mine, theirs)]
    torch.testing.assert_close(*values, rtol=1e-6, atol=0)
    for one, other in zip(*(torch.autograd.grad(v, inputs) for v in values), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6 * float(other.abs().max()))


def test_softmax_is_open_clips() -> None:
    agree(
        lambda za, zb, scale: Softmax()(za, zb, logit_scale=scale),
        lambda za, zb, scale: ClipLoss()(za, zb, scale.exp()),
        torch.tensor(math.log(14.3)),
    )


def test_sigmoid_is_open_clips() -> None:
    agree(
        lambda za, zb, scale, bias: Sigmoid()(za, zb, logit_scale=scale, logit_bias=bias),
        lambda za, zb, scale, bias: SigLipLoss()(za, zb, scale.exp(), bias),
        torch.tensor(math.log(10.0)),
        torch.tensor(-10.0),
    )
