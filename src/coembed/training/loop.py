"""The training loop.

The weights are a pure function of the pairs, the settings, the seed and the code, on the same kind
of machine with the same number of threads; other processors sum in another order. A process that is
killed and started again ends with the same bits: a step depends only on the weights, the moments
and its own number, and a checkpoint holds these whole.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from coembed.losses.base import Loss
from coembed.models.joint import JointModel
from coembed.models.spec import ModelSpec
from coembed.progress import tracker
from coembed.training.data import Batches
from coembed.training.device import repeatable
from coembed.training.optim import build_optimiser, learning_rate, warmup_steps
from coembed.training.resume import Checkpoints, Row, State
from coembed.training.settings import CheckpointSettings, Precision, TrainSettings
from coembed.training.speed import Speed
from coembed.training.step import Outcome, Stepper

Validate = Callable[[JointModel], dict[str, float]]

# A guess: at chance the two losses agree to the noise of a batch, and a model that learns has left
# this far behind by the end of its warm-up.
_TELLS_APART = 0.98


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run came to; the model was trained in place.

    `resumed_from` is the step at which this process took the run up (0: at its start). The rates
    are this process's own: pairs a second, and the share of the time spent waiting for data.
    """

    history: tuple[Row, ...]
    resumed_from: int
    pairs_per_s: float
    wait_share: float


def train(
    model: JointModel,
    spec: ModelSpec,
    batches: Batches,
    settings: TrainSettings,
    *,
    loss: Loss,
    seed: int,
    device: torch.device,
    precision: Precision,
    run_folder: Path,
    validate: Validate | None = None,
) -> Trained:
    """Train `model` to the last step, going on from the newest checkpoint in `run_folder`.

    `run_folder` belongs to this run alone (same model, settings, seed, pairs and code); `validate`
    gives columns of the history at the end of an epoch. Raises DataError where loss or gradient
    stop being finite.
    """
    num_steps, per_epoch = batches.num_steps, batches.steps_per_epoch
    with repeatable(device, settings.num_threads):
        model.to(device).to(memory_format=torch.channels_last).train()
        optimiser = build_optimiser(model, settings)
        checkpoints = Checkpoints(run_folder / "checkpoints", keep=settings.checkpoint.keep)
        state = checkpoints.load(model, optimiser)
        do_step = Stepper(
            model, spec, optimiser, loss, settings,
            device=device, precision=precision, seed=seed, item_ids=batches.item_ids,
        )  # fmt: skip
        is_due = _CheckpointsDue(settings.checkpoint)
        learns = _Learns(settings, warmup_steps(settings, num_steps))
        resumed_from = state.step

        with (
            closing(tracker(total=num_steps - state.step, label="train", unit="steps")) as task,
            Speed(run_folder / "log.jsonl", settings.batch_size) as speed,
            closing(batches.ahead(state.step)) as ahead,
        ):
            for batch in speed.waiting(ahead):
                logged = (batch.step + 1) % settings.log_every == 0 or batch.step + 1 == num_steps
                lr = learning_rate(batch.step, num_steps, settings)
                outcome = do_step(batch, lr, mismatch=logged)
                state.step = batch.step + 1
                state.recent.append(outcome.loss)

                ended, part = divmod(state.step, per_epoch)
                validated = validate is not None and _validates(
                    settings, ended, part, last=state.step == num_steps
                )
                if logged or validated:
                    row = _row(state, per_epoch, lr, outcome, model)
                    if validate is not None and validated:
                        with speed.aside():
                            row |= validate(model)
                    task.note(speed.log(state.step, row["loss"] or 0.0))
                    learns.look(state.step, outcome)
                    state.history.append(row)
                    state.recent.clear()
                if is_due(state.step, last=state.step == num_steps):
                    with speed.aside():
                        checkpoints.save(state, model, optimiser)
                task.advance()
        return Trained(tuple(state.history), resumed_from, speed.pairs_per_s, speed.wait_share)


HISTORY_COLUMNS = ("step", "epoch", "loss", "mismatched_loss", "lr", "logit_scale", "grad_norm")


def _row(state: State, per_epoch: int, lr: float, outcome: Outcome, model: JointModel) -> Row:
    """A row of the history: the mean loss since the last one, the rest as of this step."""
    return {
        "step": state.step,
        "epoch": round(state.step / per_epoch, 4),
        "loss": math.fsum(state.recent) / len(state.recent),
        "mismatched_loss": outcome.mismatched_loss,
        "lr": lr,
        "logit_scale": float(model.logit_scale.exp().item()),
        "grad_norm": outcome.grad_norm,
    }


def _validates(settings: TrainSettings, ended: int, part: int, *, last: bool) -> bool:
    """Whether to look at the val split after `ended` whole epochs and `part` steps of the next."""
    every = settings.validate_every_epochs
    return every is not None and (last or (part == 0 and ended % every == 0))


class _CheckpointsDue:
    """Says when a checkpoint is due: every so many steps or minutes, and after the last step."""

    def __init__(self, settings: CheckpointSettings) -> None:
        self._settings = settings
        self._last = time.monotonic()

    def __call__(self, step: int, *, last: bool) -> bool:
        steps, minutes = self._settings.every_steps, self._settings.every_minutes
        due = (
            last
            or (steps is not None and step % steps == 0)
            or (minutes is not None and time.monotonic() - self._last >= 60 * minutes)
        )
        if due:
            self._last = time.monotonic()
        return due


class _Learns:
    """Warns once where a model past its warm-up prices wrong pairs no higher than right ones.

    With the softmax loss this is the loss that stays flat at ln(batch); asking for the difference
    rather than for that number suits every loss.
    """

    def __init__(self, settings: TrainSettings, warmup: int) -> None:
        self._settings, self._warmup, self._warned = settings, warmup, False

    def look(self, step: int, outcome: Outcome) -> None:
        wrong = outcome.mismatched_loss
        if self._warned or wrong is None or step < self._warmup + self._settings.log_every:
            return
        if outcome.loss > _TELLS_APART * wrong:
            self._warned = True
            print(
                f"warning: after {step} steps the model does not tell pairs apart: the loss is "
                f"{outcome.loss:.3f}, and {wrong:.3f} for the same batch paired wrongly (chance is "
                f"ln({self._settings.batch_size}) = {math.log(self._settings.batch_size):.3f} with "
                "the softmax loss). Try a lower train.lr or a longer train.warmup, and see whether "
                "the captions fit the images",
                file=sys.stderr,
                flush=True,
            )
