"""What stops a training that cannot go on, and what warns of one that gets nowhere."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from coembed.errors import CoembedError, DataError
from coembed.files import write_json
from coembed.training.settings import TrainSettings

_NAMED = 8  # item ids that an error names; the report holds all

# A guess: at chance the two losses agree to the noise of a batch, and a model that learns has left
# this far behind by the end of its warm-up.
_TELLS_APART = 0.98
# Embeddings lie in a cone long before anything is wrong: Liang et al. 2022 (arXiv 2203.02053,
# section 2) measure mean cosines of about 0.5 in trained CLIP models, and more in deep networks
# that have learned nothing. At 0.99, embeddings differ by a mean squared distance of 0.02 out of 2;
# that this is the place to draw the line is a guess.
_COLLAPSED = 0.99
_COLLAPSED_ROWS = 2  # rows in succession: one may catch a batch of near duplicates
# The clamp leaves the scale at its maximum up to rounding. How many rows are "long" is a guess.
_AT_MAXIMUM = 0.999
_PINNED_ROWS = 10

_SIDES = {"mean_cosine_item": "items", "mean_cosine_text": "captions"}


def non_finite(
    what: str,
    value: float,
    *,
    step: int,
    lr: float,
    scale: float,
    item_ids: Sequence[str],
    report: Path,
    precision: str | None = None,
    loss: float | None = None,
) -> DataError:
    """The error of a step whose loss or gradient is not finite, to be raised before the update.

    Writes all that is known of the step to `report` as JSON, where a number that is not finite
    stands as a string ("nan", "inf").

    Args:
        what: "loss" or "gradient"; `value` is what it came to.
        step: the step's number, from 1.
        scale: the exponentiated logit scale.
        item_ids: all items of the batch, over all processes.
        report: the file to write.
        loss: the step's loss, where it is the gradient that is not finite.
    """
    facts: dict[str, float | str | None] = {
        "what": what, "value": value, "step": step, "lr": lr, "logit_scale": scale,
        "precision": precision, "loss": value if what == "loss" else loss,
    }  # fmt: skip
    written = {name: _json(fact) for name, fact in facts.items()} | {"item_ids": list(item_ids)}
    try:
        write_json(report, written)
        where = f"all {len(item_ids)} items are in {report}"
    except (OSError, CoembedError) as error:  # the first fault must not hide behind this one
        where = f"{report} could not be written ({error})"
    named = ", ".join(item_ids[:_NAMED])
    more = f" and {len(item_ids) - _NAMED} more" if len(item_ids) > _NAMED else ""
    return DataError(
        f"the {what} of step {step} is {value}; the weights were left as they were. lr {lr:g}, "
        f"logit scale {scale:g}, precision {precision or 'unknown'}; items: {named}{more} "
        f"({where})",
        hint="lower train.lr, set train.grad_clip, or try train.precision fp32; if it comes "
        "back at the same step, look at these items",
    )


def _json(value: float | str | None) -> float | str | None:
    finite = not isinstance(value, float) or math.isfinite(value)
    return value if finite else str(value)


class Watch:
    """Looks at the rows of the history and warns, once of each thing, of what bodes ill.

    It only speaks; training goes on. A run that was taken up again is watched anew.
    """

    def __init__(self, settings: TrainSettings, warmup: int, batch_size: int) -> None:
        """`warmup`: steps of warm-up; `batch_size`: pairs of the largest step."""
        self._settings, self._batch_size = settings, batch_size
        # A row's numbers reach back to the row before it: the first whole one after the warm-up.
        self._from = warmup + settings.log_every
        self._warned: set[str] = set()
        self._num_collapsed = 0
        self._seen_below = False
        self._pinned_since: int | None = None
        self._num_pinned = 0

    def look(
        self, step: int, row: Mapping[str, float | int | None], *, batch_loss: float | None = None
    ) -> None:
        """Look at the row of `step`. Columns that it lacks are not judged.

        `batch_loss` is the loss of the very batch that the row's `mismatched_loss` was taken on;
        without it the row's mean loss stands for it.
        """
        if step >= self._from:
            loss = row.get("loss") if batch_loss is None else batch_loss
            self._look_at_loss(step, loss, row.get("mismatched_loss"))
            self._look_at_cosines(step, row)
        self._look_at_scale(step, row.get("logit_scale"))

    def _look_at_loss(self, step: int, loss: float | None, wrong: float | None) -> None:
        """With the softmax loss a model that learns nothing stays at ln(batch); asking for the
        difference to wrong pairs rather than for that number suits every loss."""
        if loss is None or wrong is None or loss <= _TELLS_APART * wrong:
            return
        self._warn(
            "loss",
            f"after {step} steps the model does not tell pairs apart: the loss is {loss:.3f}, and "
            f"{wrong:.3f} for the same batch paired wrongly (chance is ln({self._batch_size}) = "
            f"{math.log(self._batch_size):.3f} with the softmax loss). Try a lower train.lr or a "
            "longer train.warmup, and see whether the captions fit the items",
        )

    def _look_at_cosines(self, step: int, row: Mapping[str, float | int | None]) -> None:
        found = {name: value for name in _SIDES if (value := row.get(name)) is not None}
        if not found:
            return
        name, value = max(found.items(), key=lambda entry: entry[1])
        self._num_collapsed = self._num_collapsed + 1 if value >= _COLLAPSED else 0
        if self._num_collapsed < _COLLAPSED_ROWS:
            return
        side = _SIDES[name]
        self._warn(
            "collapse",
            f"at step {step} the embeddings of different {side} are all but the same: their mean "
            f"cosine is {value:.4f} (1: identical; trained models have about 0.5). No search "
            "survives such a collapse. Try a lower train.lr, a longer train.warmup or larger "
            "batches; with a triplet loss, which the hardest negatives can drive into it at the "
            f"start, semi-hard ones; and see whether the {side} really differ",
        )

    def _look_at_scale(self, step: int, scale: float | None) -> None:
        most = self._settings.max_logit_scale
        if most is None or scale is None:
            return
        if scale < _AT_MAXIMUM * most:
            self._seen_below, self._pinned_since, self._num_pinned = True, None, 0
            return
        # A model that started at its maximum, as fine-tuned ones do, is not pinned by this run.
        if not self._seen_below:
            return
        self._pinned_since = self._pinned_since or step
        self._num_pinned += 1
        if self._num_pinned >= _PINNED_ROWS and 2 * self._pinned_since <= step:
            self._warn(
                "scale",
                f"the logit scale has been at its maximum, {most:g}, since step "
                f"{self._pinned_since}, half of the run so far (step {step}). The loss asks for "
                "sharper similarities than it may have. CLIP's own models end there; while "
                "validation still gains, nothing is wrong. Where it does not, the model learns its "
                "pairs by heart or repeated captions count as negatives: curate, augment, stop "
                "earlier, or raise train.max_logit_scale",
            )

    def _warn(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            print(f"warning: {message}", file=sys.stderr, flush=True)
