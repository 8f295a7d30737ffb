"""The interface of a loss: two batches of unit embeddings whose rows match, in; one number, out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float, Int64
from torch import Tensor, nn

from coembed.errors import ConfigError

Share = tuple[int, int]
"""The rows [first, last) whose terms are asked for."""

FurtherPositives = Literal["ignore", "attract"]
"""What becomes of the matches beside a row's own: no negatives, or targets as well."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """A teacher's unit embeddings of the same items: za [rows, teacher_dim], zb [columns, the
    same]. Its space is its own: the dim may differ from the student's."""

    za: Tensor
    zb: Tensor


class Loss(nn.Module, ABC):
    """A contrastive loss over in-batch negatives. Knows nothing of modalities.

    Row i of `za` and row i of `zb` are a pair. `zb` may have more rows than `za`: the further ones
    are hard negatives, paired with nothing, that every row of `za` is told apart from. An entry
    (i, j) of `positives` says that `za[i]` and `zb[j]` match as well (a duplicate, another caption
    of the same image): no match is ever a negative. Entries are distinct and i is never j; j may be
    one of the hard negatives, which then is none for row i.

    A loss is a sum over rows. With a `share`, only the terms of the rows in it (of `za`, and of
    `zb` paired with them) are summed, still divided by the number of all rows: the losses and the
    gradients of shares that make up the whole add up to the whole's. So several processes that all
    hold all embeddings can divide the work.

    Losses hold no parameters: `logit_scale` and `logit_bias` belong to the model, and what a loss
    does not use gets no gradient (None, not zero). They are computed in float32 (float64 inputs
    stay so), also under autocast, a tile at a time: no loss makes a [rows, columns] matrix.
    """

    uses_logit_bias: ClassVar[bool]
    """Whether the loss needs the model to have a `logit_bias`."""

    uses_teacher: ClassVar[bool] = False
    """Whether the loss needs a teacher's embeddings."""

    @abstractmethod
    def forward(
        self,
        za: Float[Tensor, "rows dim"],
        zb: Float[Tensor, "columns dim"],
        *,
        logit_scale: Float[Tensor, ""],
        logit_bias: Float[Tensor, ""] | None = None,
        positives: Int64[Tensor, "entries 2"] | None = None,
        teacher: Teacher | None = None,
        share: Share | None = None,
    ) -> Float[Tensor, ""]:
        """The mean loss of the batch, or the share's part of it.

        Args:
            za: unit L2 embeddings.
            zb: unit L2 embeddings; row i is paired with row i of `za`, the rest are hard negatives.
            logit_scale: natural LOG of the scale, as the model holds it.
            logit_bias: added to every scaled similarity; None where the model has none.
            positives: further matches, see the class.
            teacher: a teacher's embeddings; read only where `uses_teacher`.
            share: the rows to sum over; None for all.

        Raises:
            ConfigError: the loss needs a `logit_bias` or a teacher and got None.
        """

    def check_logit_bias(self, logit_bias: Tensor | None) -> None:
        """Refuse a model without a logit bias where the loss needs one."""
        if self.uses_logit_bias and logit_bias is None:
            raise ConfigError(
                f"the {self._name} loss needs a logit bias, and the model has none",
                hint="set model.init_logit_bias (SigLIP starts at -10, with init_logit_scale "
                "log(10) = 2.3026)",
            )

    def check_teacher(self, teacher: Teacher | None) -> None:
        """Refuse to go on without a teacher where the loss needs one."""
        if self.uses_teacher and teacher is None:
            raise ConfigError(
                f"the {self._name} loss needs a teacher's embeddings, and got none",
                hint="name a model in train.loss.teacher (the folder of a model, or an open_clip "
                "ARCHITECTURE/TAG), or choose another train.loss",
            )

    @property
    def _name(self) -> str:
        return type(self).__name__.lower()
