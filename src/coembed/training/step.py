"""One optimiser step, over micro-batches of whatever size fits the memory.

The gradient is that of the whole batch (gradient caching, Gao et al. 2021, arXiv 2101.06983): all
micro-batches are embedded without a graph, the loss gives the gradient of every embedding, and each
micro-batch is embedded once more, with the same dropout, to carry that gradient on into its tower.
Several processes divide the rows; each computes its rows' terms of the loss against all embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coembed import draws
from coembed.losses.base import Loss, Teacher
from coembed.models.joint import JointModel
from coembed.models.spec import ModelSpec
from coembed.training.data import Batches, MicroBatch, Plan
from coembed.training.diagnostics import embedding_row, grad_norms
from coembed.training.distributed import World, average_statistics
from coembed.training.guards import non_finite
from coembed.training.loss_scale import LossScale
from coembed.training.optim import set_learning_rate
from coembed.training.settings import Precision, TrainSettings
from coembed.training.sharding import clip_, total_norm, undivided

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Token batches are cut to the longest text; a compiled tower has few lengths to be compiled for.
_COMPILED_MULTIPLE = 16
_NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step saw. `mismatched_loss` is the loss of the same embeddings paired wrongly; `seen`
    are the measures of `training.diagnostics`. Both only where they were asked for."""

    loss: float
    grad_norm: float
    mismatched_loss: float | None = None
    seen: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class _Embedded:
    """Unit embeddings of a micro-batch: items, their captions, their hard negatives."""

    za: Tensor
    zb: Tensor
    zn: Tensor

    def detached(self) -> _Embedded:
        return _Embedded(self.za.detach(), self.zb.detach(), self.zn.detach())


class Stepper:
    """Forward, backward, update. Holds no state besides the model's and the optimiser's, and with
    fp16 the loss scale's.
    """

    def __init__(
        self,
        model: JointModel,
        spec: ModelSpec,
        optimiser: torch.optim.Optimizer,
        loss: Loss,
        batches: Batches,
        settings: TrainSettings,
        *,
        device: torch.device,
        precision: Precision,
        seed: int,
        run_folder: Path,
        world: World,
        compiled: bool = False,
    ) -> None:
        loss.check_logit_bias(model.logit_bias)
        self._model, self._optimiser, self._loss = model, optimiser, loss
        self._loaders = {modality: spec.loader(modality) for modality in spec.inputs}
        self._batches, self._settings = batches, settings
        self._device, self._precision, self._seed = device, precision, seed
        self._run_folder, self._world = run_folder, world
        self._multiple = _COMPILED_MULTIPLE if compiled else 1
        self.loss_scale = LossScale(enabled=precision == "fp16")

    def __call__(
        self, plan: Plan, feed: Iterator[MicroBatch], lr: float, *, logged: bool = False
    ) -> Outcome:
        """Do the step of `plan` at rate `lr` with the micro-batches that `feed` gives next.

        `logged` asks for the mismatched loss and the measures. Raises DataError where loss or
        gradient are not finite; the weights are then as before.
        """
        parts = self._batches.parts(len(plan), rank=self._world.rank, size=self._world.size)
        first_pass = [self._embed_plain(next(feed)) for _ in parts[:-1]]
        last = next(feed)
        with_graph = self._embed(last)
        mine = _join([*first_pass, with_graph.detached()])
        whole, wrong = self._loss_of_all(plan, mine, lr, mismatched=logged)
        gradients = self._own_gradients(plan, mine, whole)
        seen = embedding_row(whole.za, whole.zb[: len(plan)]) if logged else None

        self._backward(with_graph, last, parts[-1][0] - parts[0][0], plan, gradients)
        del with_graph
        for first, _ in parts[:-1]:
            again = next(feed)
            self._backward(self._embed(again), again, first - parts[0][0], plan, gradients)
        grad_norm, norms = self._update(plan, lr, whole.loss, norms=logged)
        if seen is not None:
            seen |= norms
        return Outcome(whole.loss, grad_norm, wrong, seen)

    # --- forward

    def _embed_plain(self, batch: MicroBatch) -> _Embedded:
        """Embed without a graph, and without moving the running statistics of norms: the second
        pass does that."""
        with torch.no_grad(), _still_statistics(self._model):
            return self._embed(batch)

    def _embed(self, batch: MicroBatch) -> _Embedded:
        """Unit embeddings of a micro-batch, the dropout being that of (seed, step, first row)."""
        torch.manual_seed(draws.step_seed(self._seed, batch.plan.step) + batch.first)
        stream = self._batches.streams[batch.plan.modality]
        num = batch.last - batch.first
        autocast = torch.autocast(
            self._device.type,
            dtype=_DTYPES.get(self._precision, torch.bfloat16),
            enabled=self._precision != "fp32",
        )
        with autocast:
            if stream.media.is_embedded:
                za = batch.media.to(self._device, non_blocking=True)
            else:
                za = self._tower(batch.plan.modality, batch.media)
            if stream.texts is not None:
                texts = batch.texts.to(self._device, non_blocking=True)
            else:
                texts = self._tower("text", batch.texts)
        return _Embedded(za, texts[:num], texts[num:])

    def _tower(self, modality: str, compact: Tensor) -> Tensor:
        compact = self._model.trim(modality, compact, multiple=self._multiple)
        compact = compact.to(self._device, non_blocking=True)
        embedded: Tensor = self._model({modality: self._loaders[modality].to_inputs(compact)})[
            modality
        ]
        return embedded

    # --- the loss, between the passes

    def _loss_of_all(
        self, plan: Plan, mine: _Embedded, lr: float, *, mismatched: bool
    ) -> tuple[_Whole, float | None]:
        """The loss of this process's rows, and its gradient of all embeddings of the batch."""
        world, num = self._world, len(plan)
        za = world.gather(mine.za).requires_grad_()
        zb = torch.cat([world.gather(mine.zb), self._gather_negatives(plan, mine.zn)])
        zb.requires_grad_()
        positives = plan.positives
        if positives is not None:
            positives = positives.to(self._device, non_blocking=True)
        known: dict[str, Any] = {
            "logit_scale": self._model.logit_scale,
            "logit_bias": self._model.logit_bias,
            "positives": positives,
            "teacher": self._teacher(plan),
            "share": world.share(num) if world.size > 1 else None,
        }
        loss = self._loss(za, zb, **known)
        value = self._total(loss)
        self._require_finite("loss", value, plan, lr)
        wrong = None
        if mismatched:
            with torch.no_grad():
                rolled = torch.cat([zb[:num].roll(1, 0), zb[num:]])
                # Which of the captions match is another matter once they are rolled on.
                wrong = self._total(self._loss(za, rolled, **{**known, "positives": None}))
        # A triplet loss has no use for the scale; a loss without any active term has no graph.
        if loss.requires_grad:
            loss.backward()
        grads = [torch.zeros_like(z) if z.grad is None else z.grad for z in (za, zb)]
        world.sum_(grads)
        return _Whole(value, za.detach(), zb.detach(), grads[0], grads[1]), wrong

    def _total(self, loss: Tensor) -> float:
        """The sum of all processes' losses."""
        total = loss.detach().clone()
        self._world.sum_([total])
        return float(total.item())

    def _gather_negatives(self, plan: Plan, zn: Tensor) -> Tensor:
        """All processes' hard negatives in the order of the plan's."""
        if self._world.size == 1 or not len(plan.negatives):
            return zn
        each = len(plan) // self._world.size
        counts = [
            int(((plan.owners >= rank * each) & (plan.owners < (rank + 1) * each)).sum())
            for rank in range(self._world.size)
        ]
        most = max(counts)
        padded = torch.cat([zn, zn.new_zeros(most - len(zn), zn.shape[1])])
        gathered = self._world.gather(padded)
        return torch.cat([gathered[i * most : i * most + n] for i, n in enumerate(counts)])

    def _teacher(self, plan: Plan) -> Teacher | None:
        found = self._batches.streams[plan.modality].teacher
        if found is None:
            return None
        items, captions = found
        texts = [plan.captions, plan.negatives]
        za = torch.from_numpy(items[plan.rows])
        zb = torch.cat([torch.from_numpy(captions[wanted]) for wanted in texts])
        return Teacher(za.to(self._device), zb.to(self._device))

    def _own_gradients(self, plan: Plan, mine: _Embedded, whole: _Whole) -> _Embedded:
        """The gradients of this process's embeddings."""
        first, last = self._world.share(len(plan))
        before = int((plan.owners < first).sum())
        start = len(plan) + before
        return _Embedded(
            whole.grad_a[first:last],
            whole.grad_b[first:last],
            whole.grad_b[start : start + len(mine.zn)],
        )

    # --- backward and update

    def _backward(
        self, embedded: _Embedded, batch: MicroBatch, at: int, plan: Plan, gradients: _Embedded
    ) -> None:
        """Carry the gradients of a micro-batch, whose rows begin at `at` of this process's, on."""
        num = batch.last - batch.first
        mine, _ = self._world.share(len(plan))
        before = int(((plan.owners >= mine) & (plan.owners < batch.first)).sum())
        pairs = [
            (embedded.za, gradients.za[at : at + num]),
            (embedded.zb, gradients.zb[at : at + num]),
            (embedded.zn, gradients.zn[before : before + len(embedded.zn)]),
        ]
        scale = self.loss_scale.value
        known = [(z, grad * scale if scale != 1 else grad) for z, grad in pairs if z.requires_grad]
        if known:
            torch.autograd.backward([z for z, _ in known], [grad for _, grad in known])

    def _update(
        self, plan: Plan, lr: float, loss: float, *, norms: bool
    ) -> tuple[float, dict[str, float]]:
        """Sum, unscale and clip the gradient, and take the step; the gradient's norm before that,
        and the towers' norms where asked for."""
        model = self._model
        named = [(n, p) for n, p in model.named_parameters() if p.grad is not None]
        gradients = [p.grad for _, p in named if p.grad is not None]
        self._world.sum_(undivided(gradients))
        # Scale and bias have their gradient from the loss itself, which was not scaled.
        self.loss_scale.unscale_(
            [p.grad for n, p in named if p.grad is not None and not n.startswith("logit_")]
        )
        value = float(total_norm(gradients).item())
        if self.loss_scale.overflowed(value):
            self._optimiser.zero_grad(set_to_none=True)
            return value, {}
        self._require_finite("gradient", value, plan, lr, loss)
        by_tower = grad_norms(model) if norms else {}
        limit = self._settings.grad_clip
        if limit is not None:
            clip_(gradients, limit, value)
        set_learning_rate(self._optimiser, lr)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        model.clamp_logit_scale(self._settings.max_logit_scale)
        average_statistics(model, self._world)
        return value, by_tower

    def _require_finite(
        self, what: str, value: float, plan: Plan, lr: float, loss: float | None = None
    ) -> None:
        if math.isfinite(value):
            return
        items = self._batches.streams[plan.modality].items
        raise non_finite(
            what, value, step=plan.step + 1, lr=lr,
            scale=float(self._model.logit_scale.exp().item()),
            item_ids=items.item_ids(plan.rows.tolist()),
            report=self._run_folder / f"non-finite-step-{plan.step + 1}.json",
            precision=self._precision, loss=loss,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Whole:
    """The whole batch: loss, embeddings [rows or columns, dim] and their gradients."""

    loss: float
    za: Tensor
    zb: Tensor
    grad_a: Tensor
    grad_b: Tensor


def _join(parts: Sequence[_Embedded]) -> _Embedded:
    if len(parts) == 1:
        return parts[0]
    return _Embedded(
        torch.cat([part.za for part in parts]),
        torch.cat([part.zb for part in parts]),
        torch.cat([part.zn for part in parts]),
    )


@contextmanager
def _still_statistics(model: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norms as they are; the batch's own are used as ever."""
    norms = [module for module in model.modules() if isinstance(module, _NORMS)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    saved = [None if n is None else n.clone() for _, n in before]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, counted), number in zip(norms, before, saved, strict=True):
            norm.momentum = momentum
            if counted is not None and number is not None:
                counted.copy_(number)
