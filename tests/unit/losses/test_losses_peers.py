"""The losses against open_clip's, where both can do it (no further positives)."""

from __future__ import annotations

import math

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss

from coembed.losses.sigmoid import Settings as SigmoidSettings
from coembed.losses.softmax import Settings as SoftmaxSettings


@pytest.fixture
def embeddings() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [
        torch.nn.functional.normalize(torch.randn(32, 16), dim=-1).requires_grad_()
        for _ in range(2)
    ]


def test_softmax_is_open_clips(embeddings: list[torch.Tensor]) -> None:
    za, zb = embeddings
    scale = torch.tensor(math.log(14.3), requires_grad=True)
    mine = SoftmaxSettings().build()(za, zb, logit_scale=scale)
    theirs = ClipLoss()(za, zb, scale.exp())
    torch.testing.assert_close(mine, theirs)
    inputs = (za, zb, scale)
    for one, other in zip(
        torch.autograd.grad(mine, inputs), torch.autograd.grad(theirs, inputs), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_sigmoid_is_open_clips(embeddings: list[torch.Tensor]) -> None:
    za, zb = embeddings
    scale = torch.tensor(math.log(10.0), requires_grad=True)
    bias = torch.tensor(-10.0, requires_grad=True)
    mine = SigmoidSettings().build()(za, zb, logit_scale=scale, logit_bias=bias)
    theirs = SigLipLoss()(za, zb, scale.exp(), bias)
    torch.testing.assert_close(mine, theirs)
    inputs = (za, zb, scale, bias)
    for one, other in zip(
        torch.autograd.grad(mine, inputs), torch.autograd.grad(theirs, inputs), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
