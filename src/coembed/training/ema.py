"""An exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from coembed.training.sharding import lerp_


class Ema:
    """Averages of what training changes: the trained parameters and the floating buffers.

    After step t (from 0), average ← d · average + (1 − d) · weight. So that the start does not
    weigh on it for long, d = min(decay, (1 + t) / (10 + t)), as in TensorFlow's
    `tf.train.ExponentialMovingAverage`. Nothing here is random and all state is in `tensors`, so a
    resumed run averages as an uninterrupted one.

    trained: names of the parameters that some step trains (`optim.trained_parameters`). The others
        never change, and are their own average.
    """

    def __init__(self, model: nn.Module, decay: float, *, trained: Iterable[str]) -> None:
        state = model.state_dict()  # parameters and those buffers that are saved
        parameters = {name for name, _ in model.named_parameters()}
        chosen = set(trained) | (state.keys() - parameters)
        self._decay = decay
        self._averages: dict[str, Tensor] = {
            name: value.detach().clone()
            for name, value in state.items()
            if name in chosen and value.is_floating_point()
        }

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights as they are after `step` (from 0)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        lerp_(list(self._averages.values()), self._live(model), 1 - decay)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The state, for a checkpoint: names that begin with `ema/`, and the tensors themselves,
        to be copied from and into.
        """
        for name, average in self._averages.items():
            yield f"ema/{name}", average

    @contextmanager
    @torch.no_grad()
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """The model with its averages for weights, for a look at the val split or for saving.

        The tensors stay the same objects, so an optimiser or a compiled model does not notice.
        """
        live = self._live(model)
        kept = [value.clone() for value in live]
        _copy(self._averages.values(), live)
        try:
            yield
        finally:
            _copy(kept, live)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Give the model its averages for good."""
        _copy(self._averages.values(), self._live(model))

    def _live(self, model: nn.Module) -> list[Tensor]:
        state: dict[str, Any] = model.state_dict()
        return [state[name].detach() for name in self._averages]


def _copy(sources: Iterable[Tensor], targets: Iterable[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
