"""No loss makes a matrix of all similarities, forward or backward, whatever it is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loss_cases import CASES, build, make_batch, some_positives, with_gradients
from open_clip.loss import ClipLoss
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROWS, DIM = 4096, 64


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns, those of autograd included."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return made


def largest(run: Callable[[], Any]) -> int:
    with LargestTensor() as seen:
        run()
    return seen.elements


@pytest.mark.parametrize("share", [None, (512, 2048)])
@pytest.mark.parametrize("case", CASES)
def test_no_tensor_is_near_the_size_of_the_matrix(case: str, share: tuple[int, int] | None) -> None:
    loss = build(case)
    batch = make_batch(ROWS, DIM, hard=64, dtype=torch.float32)
    positives = some_positives(ROWS, ROWS + 64)
    assert largest(lambda: with_gradients(loss, batch, positives, share=share)) < ROWS * ROWS / 4


def test_a_dense_loss_is_seen() -> None:
    """The counter can tell: forward alone, backward alone."""
    za, zb = (
        make_batch(512, DIM, dtype=torch.float32)[name].requires_grad_() for name in ["za", "zb"]
    )
    made: list[Tensor] = []
    assert largest(lambda: made.append(ClipLoss()(za, zb, torch.tensor(10.0)))) >= 512 * 512
    assert largest(lambda: made[0].backward()) >= 512 * 512  # type: ignore[no-untyped-call]
