"""The loss scale of fp16, whose smallest numbers would lose small gradients.

Dynamic, as in Micikevicius et al. 2018 (arXiv 1710.03740, section 3.2) with the numbers of torch's
GradScaler: doubled after 2,000 steps without overflow, halved at each, the step being left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_FIRST = 2.0**16
_GROWTH_STEPS = 2000
_LEAST = 1.0


@dataclass
class LossScale:
    """`value` multiplies the gradients that go back through the towers; 1 where not `enabled`.

    `value` and `num_good` are its whole state.
    """

    enabled: bool
    value: float = 1.0
    num_good: int = 0

    def __post_init__(self) -> None:
        if self.enabled:
            self.value = _FIRST

    def state(self) -> tuple[float, int] | None:
        """For a checkpoint; None where it is not in use."""
        return (self.value, self.num_good) if self.enabled else None

    def restore(self, state: tuple[float, int] | None) -> None:
        """Go on from `state()` of a checkpoint."""
        if state is not None and self.enabled:
            self.value, self.num_good = state

    def unscale_(self, gradients: Sequence[Tensor]) -> None:
        """Take the scale out of `gradients` again, in place."""
        if self.enabled and gradients:
            torch._foreach_mul_(list(gradients), 1.0 / self.value)

    def overflowed(self, grad_norm: float) -> bool:
        """Whether this step has to be left out; counts it."""
        if not self.enabled:
            return False
        if math.isfinite(grad_norm):
            self.num_good += 1
            if self.num_good == _GROWTH_STEPS:
                self.value, self.num_good = 2 * self.value, 0
            return False
        self.num_good = 0
        # At the least scale it is not the scale: the step is judged as with any other precision.
        if self.value <= _LEAST:
            return False
        self.value /= 2
        return True
