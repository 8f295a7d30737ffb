"""One optimiser step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from coembed.errors import DataError
from coembed.losses.base import Loss
from coembed.modalities.image import normalise
from coembed.models.joint import JointModel
from coembed.models.spec import ModelSpec
from coembed.training import draws
from coembed.training.data import Batch
from coembed.training.optim import set_learning_rate
from coembed.training.settings import Precision, TrainSettings

_NAMED = 8  # item ids that an error names; the rest are counted


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step saw. `mismatched_loss` is the loss of the same embeddings paired wrongly."""

    loss: float
    grad_norm: float
    mismatched_loss: float | None = None


class Stepper:
    """Forward, backward, update. Holds no state besides the model's and the optimiser's."""

    def __init__(
        self,
        model: JointModel,
        spec: ModelSpec,
        optimiser: torch.optim.Optimizer,
        loss: Loss,
        settings: TrainSettings,
        *,
        device: torch.device,
        precision: Precision,
        seed: int,
        item_ids: tuple[str, ...],
    ) -> None:
        loss.check_logit_bias(model.logit_bias)
        self._model, self._spec, self._optimiser, self._loss = model, spec, optimiser, loss
        self._settings, self._device, self._bf16 = settings, device, precision == "bf16"
        self._seed, self._item_ids = seed, item_ids

    def __call__(self, batch: Batch, lr: float, *, mismatch: bool = False) -> Outcome:
        """Do `batch.step` at rate `lr`; `mismatch` asks for the mismatched loss as well.

        Raises DataError where loss or gradient are not finite; the weights are then as before.
        """
        torch.manual_seed(
            draws.step_seed(self._seed, batch.step)
        )  # dropout's, and only this step's
        za, zb = self._embed(batch)
        positives = batch.positives
        loss = self._loss(
            za,
            zb,
            logit_scale=self._model.logit_scale,
            logit_bias=self._model.logit_bias,
            positives=None if positives is None else positives.to(self._device, non_blocking=True),
        )
        # Asked between forward and backward, where a GPU waits only for backward's first launch.
        value = float(loss.item())
        self._require_finite("loss", value, batch, lr)
        wrong = self._mismatched(za, zb) if mismatch else None
        loss.backward()
        grad_norm = self._clip(batch, lr)
        set_learning_rate(self._optimiser, lr)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        if self._settings.max_logit_scale is not None:
            with torch.no_grad():
                self._model.logit_scale.clamp_(max=math.log(self._settings.max_logit_scale))
        return Outcome(value, grad_norm, wrong)

    def _embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Unit embeddings of the batch's images and captions, each [batch, dim]."""
        images = batch.images.to(self._device, non_blocking=True)
        tokens = self._model.trim("text", batch.tokens).to(self._device, non_blocking=True)
        pixels = normalise(images, self._spec.image.mean, self._spec.image.std)
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
            embeddings = self._model({"image": pixels, "text": tokens})
        return embeddings["image"], embeddings["text"]

    @torch.no_grad()
    def _mismatched(self, za: Tensor, zb: Tensor) -> float:
        """The loss of the batch with every caption moved on by one item."""
        scale, bias = self._model.logit_scale, self._model.logit_bias
        return float(self._loss(za, zb.roll(1, 0), logit_scale=scale, logit_bias=bias).item())

    def _clip(self, batch: Batch, lr: float) -> float:
        """Clip the gradient in place; its norm before that."""
        parameters = [p for p in self._model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        value = float(norm.item())
        self._require_finite("gradient", value, batch, lr)
        limit = self._settings.grad_clip
        if limit is not None and value > limit:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return value

    def _require_finite(self, what: str, value: float, batch: Batch, lr: float) -> None:
        if math.isfinite(value):
            return
        ids = [self._item_ids[row] for row in batch.rows]
        more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
        scale = float(self._model.logit_scale.exp().item())
        raise DataError(
            f"the {what} of step {batch.step + 1} is {value}; the weights were left as they were. "
            f"lr {lr:g}, logit scale {scale:g}; items: {', '.join(ids[:_NAMED])}{more}",
            hint="lower train.lr, set train.grad_clip, or try train.precision fp32; if it comes "
            "back at the same step, look at these items",
        )
