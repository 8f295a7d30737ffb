"""Which negatives the triplet loss takes, on similarities laid out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from loss_cases import call, make_batch, unit
from pydantic import ValidationError
from torch import Tensor

from coembed.losses.triplet import Negatives, Settings, Triplet


def at(*degrees: float) -> Tensor:
    """Unit vectors of the plane."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def cos(degrees: float) -> float:
    return math.cos(math.radians(degrees))


def a_to_b(loss: Triplet, za: Tensor, zb: Tensor) -> float:
    """The term of the only pair: zb's further rows are negatives of za alone."""
    scale = torch.zeros((), dtype=torch.float64)
    return float(loss(za, zb, logit_scale=scale))


@pytest.mark.parametrize(
    ("negatives", "chosen"), [("hardest", [10]), ("semi_hard", [60]), ("all", [10, 60, 90])]
)
def test_each_takes_its_own_negatives(negatives: Negatives, chosen: list[float]) -> None:
    # The pair is 40 degrees apart; one negative is nearer, two are farther.
    found = a_to_b(Triplet(1.5, negatives), at(0), at(40, 10, 60, 90))
    assert found == pytest.approx(sum(1.5 - cos(40) + cos(angle) for angle in chosen))


def test_without_a_semi_hard_negative_the_least_similar_is_taken() -> None:
    found = a_to_b(Triplet(0.2, "semi_hard"), at(0), at(40, 10, 30, 20))
    assert found == pytest.approx(0.2 - cos(40) + cos(30))


@pytest.mark.parametrize("negatives", ["hardest", "semi_hard", "all"])
def test_a_negative_beyond_the_margin_costs_nothing(negatives: Negatives) -> None:
    assert a_to_b(Triplet(0.2, negatives), at(0), at(10, 90, 120)) == 0


@pytest.mark.parametrize("negatives", ["hardest", "semi_hard", "all"])
def test_without_negatives_there_is_no_loss(negatives: Negatives) -> None:
    za = at(0).requires_grad_()
    loss = Triplet(0.2, negatives)
    value = loss(za, at(40), logit_scale=torch.zeros(()))
    value.backward()
    assert float(value.detach()) == 0 and za.grad is not None and not za.grad.any()


@pytest.mark.parametrize("negatives", ["hardest", "semi_hard", "all"])
def test_the_logit_scale_gets_no_gradient(negatives: Negatives) -> None:
    batch = make_batch()
    batch["za"].requires_grad_()
    batch["logit_scale"].requires_grad_()
    call(Triplet(0.2, negatives), batch).backward()  # type: ignore[no-untyped-call]
    assert batch["logit_scale"].grad is None


@pytest.mark.parametrize("negatives", ["hardest", "semi_hard", "all"])
def test_only_the_hardest_negatives_draw_strangers_to_one_point(negatives: Negatives) -> None:
    """Embeddings that mean nothing yet, and one weight: how far from a common point they stand."""
    common, strangers = unit(1, 8, 0), (unit(64, 8, 1), unit(64, 8, 2))
    loss, spread = Triplet(0.2, negatives), torch.ones((), dtype=torch.float64)
    for _ in range(200):
        spread = spread.detach().requires_grad_()
        za, zb = (torch.nn.functional.normalize(common + spread * z, dim=1) for z in strangers)
        value = loss(za, zb, logit_scale=torch.zeros(()))
        spread = spread - 0.02 * torch.autograd.grad(value, spread)[0]
    if negatives == "hardest":
        assert float(spread.detach()) == pytest.approx(0, abs=0.01)
        assert float(value.detach()) == pytest.approx(2 * 0.2, abs=0.01)
    else:
        assert float(spread.detach()) > 0.4


@pytest.mark.parametrize("values", [{"margin": 0}, {"margin": 2.1}, {"negatives": "easy"}])
def test_settings_that_cannot_be_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate(values)
