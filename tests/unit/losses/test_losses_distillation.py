"""What the student takes from the teacher."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from loss_cases import call, make_batch, unit, with_gradients
from pydantic import ValidationError

from coembed.losses.base import Teacher
from coembed.losses.distillation import Distillation, Settings
from coembed.losses.softmax import Softmax


def test_a_teacher_like_the_student_teaches_nothing() -> None:
    batch = make_batch(hard=2)
    batch["teacher"] = Teacher(batch["za"], batch["zb"])
    found = with_gradients(Distillation(1.0, None), batch)
    for tensor in found.values():
        torch.testing.assert_close(tensor, torch.zeros_like(tensor), atol=1e-14, rtol=0)


def test_the_weight_mixes_the_two() -> None:
    batch = make_batch(hard=2)
    alone, softmax = call(Distillation(1.0, None), batch), call(Softmax(), batch)
    torch.testing.assert_close(call(Distillation(0.3, None), batch), 0.3 * alone + 0.7 * softmax)


def test_a_sharp_teacher_that_is_right_is_the_softmax_loss() -> None:
    """All of p on the pair: the divergence is then the cross-entropy of the pair."""
    batch = make_batch(7)
    basis = torch.eye(7, dtype=torch.float64)
    batch["teacher"] = Teacher(basis, basis)
    torch.testing.assert_close(call(Distillation(1.0, 5.0), batch), call(Softmax(), batch))


def test_a_null_scale_is_the_students_of_the_moment() -> None:
    batch = make_batch(scale=1.7)
    torch.testing.assert_close(
        call(Distillation(1.0, None), batch), call(Distillation(1.0, 1.7), batch)
    )


def test_nothing_flows_into_the_teacher() -> None:
    batch: dict[str, Any] = make_batch()
    z = batch["teacher"].za.requires_grad_()
    batch["za"].requires_grad_()
    call(Distillation(0.5, None), batch).backward()  # type: ignore[no-untyped-call]
    assert z.grad is None


def test_the_student_ends_with_the_teachers_similarities() -> None:
    """Free embeddings of 6 dims learn the similarities of a teacher of 4, right or wrong."""
    teacher = Teacher(unit(12, 4, 1, torch.float32), unit(12, 4, 2, torch.float32))
    torch.manual_seed(0)
    raw = [torch.randn(12, 6, requires_grad=True) for _ in range(2)]
    loss, scale = Distillation(1.0, None), torch.tensor(math.log(5.0))
    optimiser = torch.optim.Adam(raw, lr=0.05)
    for _ in range(300):
        za, zb = (torch.nn.functional.normalize(values, dim=-1) for values in raw)
        optimiser.zero_grad()
        loss(za, zb, logit_scale=scale, teacher=teacher).backward()
        optimiser.step()
    mine, theirs = (za @ zb.T).detach(), teacher.za @ teacher.zb.T
    mine, theirs = mine - mine.mean(1, keepdim=True), theirs - theirs.mean(1, keepdim=True)
    assert torch.nn.functional.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0) > 0.98


@pytest.mark.parametrize(
    "values",
    [{}, {"teacher": ""}, {"teacher": "a", "weight": 0}, {"teacher": "a", "weight": 1.1}],
)
def test_settings_that_cannot_be_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate(values)
