"""Every loss, with every setting that changes its arithmetic, and batches to try it on."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from coembed.losses.base import Loss, Teacher
from coembed.settings import component_settings

TEACHER = "artifacts/champion"  # only kept by the settings, never opened

CASES: dict[str, dict[str, Any]] = {
    "softmax": {"name": "softmax"},
    "softmax-attract": {"name": "softmax", "further_positives": "attract"},
    "sigmoid": {"name": "sigmoid"},
    "sigmoid-attract": {"name": "sigmoid", "further_positives": "attract"},
    "triplet-hardest": {"name": "triplet"},
    "triplet-semi_hard": {"name": "triplet", "negatives": "semi_hard", "margin": 0.5},
    "triplet-all": {"name": "triplet", "negatives": "all", "margin": 0.3},
    "distillation": {"name": "distillation", "teacher": TEACHER},
    "distillation-alone": {
        "name": "distillation", "teacher": TEACHER, "weight": 1.0, "teacher_scale": 2.0,
    },
    "distillation-attract": {
        "name": "distillation", "teacher": TEACHER, "weight": 0.3, "further_positives": "attract",
    },
}  # fmt: skip


def build(case: str) -> Loss:
    """The loss of a case."""
    values = CASES[case]
    settings = component_settings("coembed.losses", values["name"]).model_validate(values)
    loss: Loss = settings.build()  # type: ignore[attr-defined]
    return loss


def unit(num: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Unit vectors of random direction, [num, dim]."""
    values = torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return torch.nn.functional.normalize(values, dim=-1)


def make_batch(
    num: int = 7,
    dim: int = 5,
    *,
    hard: int = 0,
    scale: float = 1.3,
    bias: float = -2.0,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Any]:
    """Arguments of a loss: `num` pairs, `hard` hard negatives, a teacher of another dim."""
    teacher_dim = dim + 2
    teacher = Teacher(unit(num, teacher_dim, 4, dtype), unit(num + hard, teacher_dim, 5, dtype))
    return {
        "za": unit(num, dim, 1, dtype),
        "zb": unit(num + hard, dim, 2, dtype),
        "logit_scale": torch.tensor(scale, dtype=dtype),
        "logit_bias": torch.tensor(bias, dtype=dtype),
        "teacher": teacher,
    }


def some_positives(num: int, num_columns: int | None = None) -> Tensor:
    """Entries of all kinds, out of order; some of them of hard negatives, where there are any."""
    num_columns = num_columns or num
    entries = [
        (3, 4),
        (0, 2),
        (num - 1, 1),
        (2, 0),
        (0, 5),
        *((1, j) for j in range(num, num_columns)),
    ]
    return torch.tensor([(i, j) for i, j in entries if i != j and i < num and j < num_columns])


def call(loss: Loss, batch: dict[str, Any], positives: Tensor | None = None, **more: Any) -> Tensor:
    """The loss of a batch."""
    arguments = {**batch, **more}
    za, zb = arguments.pop("za"), arguments.pop("zb")
    value: Tensor = loss(za, zb, **arguments, positives=positives)
    return value


def with_gradients(
    loss: Loss, batch: dict[str, Any], positives: Tensor | None = None, **more: Any
) -> dict[str, Tensor]:
    """The value of the loss and its gradients by argument; zeros where it gives none."""
    names = ("za", "zb", "logit_scale", "logit_bias")
    leaves = {name: batch[name].detach().clone().requires_grad_() for name in names}
    value = call(loss, {**batch, **leaves}, positives, **more)
    found = torch.autograd.grad(
        value, tuple(leaves.values()), allow_unused=True, materialize_grads=True
    )
    return {"value": value.detach(), **dict(zip(names, found, strict=True))}


def same(one: dict[str, Tensor], other: dict[str, Tensor], **tolerances: float) -> None:
    """Require that two answers of `with_gradients` agree."""
    for name, tensor in one.items():
        torch.testing.assert_close(
            tensor, other[name], msg=lambda text, name=name: f"{name}: {text}", **tolerances
        )


LOG_100 = math.log(100.0)
