"""The training loop.

The weights are a pure function of the pairs, the settings, the seed and the code, on the same kind
of machine with the same number of threads; other processors sum in another order. A process that is
killed and started again ends with the same bits: a step depends only on the weights, the moments
and its own number, and a checkpoint holds these whole.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from coembed.errors import UserError
from coembed.losses.base import Loss
from coembed.models.joint import JointModel
from coembed.models.spec import ModelSpec
from coembed.progress import Tracker, tracker
from coembed.training.data import Batches
from coembed.training.device import prepare_model, repeatable
from coembed.training.distributed import World
from coembed.training.ema import Ema
from coembed.training.guards import Watch
from coembed.training.optim import (
    apply_locks,
    build_optimiser,
    learning_rate,
    towers_locked,
    trained_parameters,
    warmup_steps,
)
from coembed.training.resume import Best, Checkpoints, Row, State
from coembed.training.settings import CheckpointSettings, Precision, TrainSettings
from coembed.training.sharding import gather_into
from coembed.training.speed import Speed
from coembed.training.step import Outcome, Stepper

Validate = Callable[[JointModel], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run came to; the model was trained in place and holds the weights to save.

    `resumed_from` is the step at which this process took the run up (0: at its start), `best` the
    step whose weights these are where that is not the last. The rates are this process's own: pairs
    a second, and the share of the time spent waiting for data.
    """

    history: tuple[Row, ...]
    num_steps: int
    resumed_from: int
    best: Best | None
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
    headline: str | None = None,
    world: World | None = None,
) -> Trained:
    """Train `model` to the last step, going on from the newest checkpoint in `run_folder`.

    `run_folder` belongs to this run alone (same model, settings, seed, pairs and code); `validate`
    gives columns of the history at the end of an epoch, of which `headline` decides about early
    stopping and the best weights. Raises DataError where loss or gradient stop being finite.
    """
    world = world or World()
    num_steps, per_epoch = batches.num_steps, batches.steps_per_epoch
    with repeatable(device, settings.num_threads):
        given = model
        if settings.distributed.sharding == "fsdp":
            model = copy.deepcopy(model)  # divided; the one that was given stays whole
        compiled = prepare_model(model, settings, device, world)
        optimiser = build_optimiser(model, settings, num_steps=num_steps)
        average = None
        if settings.ema is not None:
            trained = trained_parameters(model, settings, num_steps=num_steps)
            average = Ema(model, settings.ema, trained=trained)
        checkpoints = Checkpoints(
            run_folder / "checkpoints", keep=settings.checkpoint.keep, world=world
        )
        do_step = Stepper(
            model, spec, optimiser, loss, batches, settings, device=device, precision=precision,
            seed=seed, run_folder=run_folder, world=world, compiled=compiled,
        )  # fmt: skip
        state = checkpoints.load(model, optimiser, average)
        if world.same(state.step) != state.step:
            raise UserError(
                f"training process {world.rank} finds another checkpoint under {run_folder} than "
                "the first process",
                hint="let all machines share the folder runs/",
            )
        do_step.loss_scale.restore(state.loss_scale)
        is_due = _CheckpointsDue(settings.checkpoint, world)
        watch = Watch(settings, warmup_steps(settings, num_steps), batches.largest_batch)
        resumed_from = state.step
        locked: set[str] | None = None
        left = 0 if state.stopped else num_steps - state.step

        with (
            closing(_progress(left, world)) as task,
            Speed(run_folder / "log.jsonl", main=world.is_main) as speed,
            closing(batches.ahead(state.step, rank=world.rank, size=world.size)) as ahead,
        ):
            feed = speed.waiting(ahead)
            while state.step < num_steps and not state.stopped:
                step = state.step
                logged = (step + 1) % settings.log_every == 0 or step + 1 == num_steps
                if locked != (now := towers_locked(settings, step, num_steps)):
                    apply_locks(model, now)
                    locked = now
                lr = learning_rate(step, num_steps, settings)
                plan = batches.plan(step)
                outcome = do_step(plan, feed, lr, logged=logged)
                if average is not None:
                    average.update(model, step)
                speed.step_done(len(plan))
                state.step = step + 1
                state.recent.append(outcome.loss)
                state.loss_scale = do_step.loss_scale.state()

                ended, part = divmod(state.step, per_epoch)
                looks = validate is not None and _validates(
                    settings, ended, part, last=state.step == num_steps
                )
                found_best = False
                if logged or looks:
                    row = _row(state, per_epoch, lr, outcome, model)
                    if validate is not None and looks:
                        with speed.aside(), _averaged(average, model):
                            # One process's numbers, so that all decide alike about stopping.
                            row |= world.same(validate(model))
                            if headline is not None:
                                found_best = _judge(state, row[headline], settings)
                            if found_best and settings.save_weights == "best":
                                state.best = checkpoints.save_best(state, model)
                    task.note(speed.log(state.step, row))
                    if world.is_main:
                        watch.look(state.step, row, batch_loss=outcome.loss)
                    state.history.append(row)
                    state.recent.clear()
                ends = state.step == num_steps or state.stopped
                if is_due(state.step, now=ends or found_best):
                    with speed.aside():
                        checkpoints.save(state, model, optimiser, average)
                task.advance()
            best = None
            if settings.save_weights == "best" and state.best is not None:
                best = state.best
                checkpoints.load_best(best, model)
            elif average is not None:
                average.copy_to(model)
            if model is not given:
                gather_into(given, model)
        return Trained(
            tuple(state.history), state.step, resumed_from, best, speed.pairs_per_s,
            speed.wait_share,
        )  # fmt: skip


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
        # With fp16 a step may overflow, and is left out.
        "grad_norm": outcome.grad_norm if math.isfinite(outcome.grad_norm) else None,
        **(outcome.seen or {}),
    }


def _validates(settings: TrainSettings, ended: int, part: int, *, last: bool) -> bool:
    """Whether to look at the val split after `ended` whole epochs and `part` steps of the next."""
    every = settings.validate_every_epochs
    return every is not None and (last or (part == 0 and ended % every == 0))


def _judge(state: State, value: float | int | None, settings: TrainSettings) -> bool:
    """Note a look at the val split in `state`; whether it is the best so far."""
    assert value is not None
    stopping = settings.early_stopping
    gain = stopping.min_gain if stopping is not None else 0.0
    best, last = state.best_value, state.gained_value
    # Small gains add up: what counts is the way from the last look that counted.
    if last is None or value > last + gain:
        state.looks_without_gain = 0
        state.gained_value = float(value)
    else:
        state.looks_without_gain += 1
        if stopping is not None and state.looks_without_gain >= stopping.patience:
            state.stopped = True
    if best is None or value > best:
        state.best_value = float(value)
        return True
    return False


def _progress(num_steps: int, world: World) -> Tracker:
    """The progress of `num_steps`, which one process shows."""
    if not world.is_main:
        return Tracker()
    return tracker(total=num_steps, label="train", unit="steps")


@contextmanager
def _averaged(average: Ema | None, model: JointModel) -> Iterator[None]:
    """Let `model` have its averaged weights inside, where there are such."""
    if average is None:
        yield
    else:
        with average.swapped_in(model):
            yield


class _CheckpointsDue:
    """Says when a checkpoint is due: every so many steps or minutes, and whenever it has to be."""

    def __init__(self, settings: CheckpointSettings, world: World) -> None:
        self._settings, self._world = settings, world
        self._last = time.monotonic()

    def __call__(self, step: int, *, now: bool) -> bool:
        steps, minutes = self._settings.every_steps, self._settings.every_minutes
        due = now or (steps is not None and step % steps == 0)
        if not due and minutes is not None:
            late = time.monotonic() - self._last >= 60 * minutes
            due = bool(self._world.same(late))  # clocks differ, and all have to take part
        if due:
            self._last = time.monotonic()
        return due
