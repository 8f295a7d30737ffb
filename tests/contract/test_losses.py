"""What every loss keeps. A new module of coembed.losses is picked up unasked; it adds its slow,
obvious self to REFERENCES and its value at chance to AT_CHANCE.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped
from torch import Tensor

from coembed.errors import ConfigError
from coembed.losses.base import Loss
from coembed.settings import component_names, component_settings

NAMES = component_names("coembed.losses")
Rows = list[list[float]]


def _softmax_by_hand(logits: Rows, matches: list[list[bool]]) -> float:
    """Every direction, row and candidate in turn."""
    num = len(logits)
    total = 0.0
    for flipped in (False, True):
        for i in range(num):
            row = [logits[j][i] if flipped else logits[i][j] for j in range(num)]
            also = [matches[j][i] if flipped else matches[i][j] for j in range(num)]
            candidates = [row[j] for j in range(num) if j == i or not also[j]]
            denominator = sum(math.exp(value) for value in candidates)
            total -= math.log(math.exp(row[i]) / denominator)
    return total / (2 * num)


def _sigmoid_by_hand(logits: Rows, matches: list[list[bool]]) -> float:
    total = 0.0
    for i in range(len(logits)):
        for j in range(len(logits)):
            if i != j and matches[i][j]:
                continue
            sign = 1.0 if i == j else -1.0
            total -= math.log(1 / (1 + math.exp(-sign * logits[i][j])))
    return total / len(logits)


REFERENCES: dict[str, Callable[[Rows, list[list[bool]]], float]] = {
    "softmax": _softmax_by_hand,
    "sigmoid": _sigmoid_by_hand,
}
# All similarities alike (scale e^0, every embedding the same), no bias, batch of 8.
AT_CHANCE = {
    "softmax": math.log(8),
    "sigmoid": -(math.log(1 / (1 + math.exp(-1))) + 7 * math.log(1 / (1 + math.exp(1)))),
}


def _build(name: str) -> Loss:
    loss: Loss = component_settings("coembed.losses", name)().build()  # type: ignore[attr-defined]
    return loss


def _unit(num: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    values = torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return torch.nn.functional.normalize(values, dim=-1)


def _batch(num: int = 7, dim: int = 5, *, scale: float = 1.3, bias: float = -2.0) -> dict[str, Any]:
    return {
        "za": _unit(num, dim, 1),
        "zb": _unit(num, dim, 2),
        "logit_scale": torch.tensor(scale, dtype=torch.float64),
        "logit_bias": torch.tensor(bias, dtype=torch.float64),
    }


def _call(loss: Loss, batch: dict[str, Any], positives: Tensor | None = None) -> Tensor:
    rest = {key: value for key, value in batch.items() if key not in ("za", "zb")}
    value: Tensor = loss(batch["za"], batch["zb"], **rest, positives=positives)
    return value


def _some_positives(num: int) -> Tensor:
    positives = torch.eye(num, dtype=torch.bool)
    positives[0, 2] = positives[2, 0] = positives[3, 4] = positives[num - 1, 1] = True
    return positives


def _by_hand(name: str, batch: dict[str, Any], positives: Tensor | None) -> float:
    loss = _build(name)
    za, zb = batch["za"].tolist(), batch["zb"].tolist()
    scale = math.exp(float(batch["logit_scale"]))
    bias = float(batch["logit_bias"]) if loss.uses_logit_bias else 0.0
    logits = [
        [scale * sum(a * b for a, b in zip(x, y, strict=True)) + bias for y in zb] for x in za
    ]
    nothing = [[False] * len(zb) for _ in za]
    matches = nothing if positives is None else positives.tolist()
    return REFERENCES[name](logits, matches)


def test_every_loss_has_a_reference() -> None:
    assert set(NAMES) == set(REFERENCES) == set(AT_CHANCE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("with_positives", [False, True])
@pytest.mark.parametrize("num", [1, 2, 7])
def test_value_is_the_reference_by_hand(name: str, with_positives: bool, num: int) -> None:
    batch = _batch(num)
    positives = _some_positives(num) if with_positives and num == 7 else None
    expected = _by_hand(name, batch, positives)
    assert float(_call(_build(name), batch, positives)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("with_positives", [False, True])
def test_gradients_are_those_of_finite_differences(name: str, with_positives: bool) -> None:
    loss, batch = _build(name), _batch(5, 3)
    leaves = {key: value.clone().requires_grad_() for key, value in batch.items()}
    positives = _some_positives(5) if with_positives else None

    def value(*tensors: Tensor) -> Tensor:
        return _call(loss, dict(zip(leaves, tensors, strict=True)), positives)

    if not loss.uses_logit_bias:
        leaves["logit_bias"].requires_grad_(False)
    assert torch.autograd.gradcheck(value, tuple(leaves.values()), atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_the_pairs_does_not_matter(name: str) -> None:
    loss, batch, positives = _build(name), _batch(), _some_positives(7)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    shuffled = {**batch, "za": batch["za"][order], "zb": batch["zb"][order]}
    torch.testing.assert_close(
        _call(loss, shuffled, positives[order][:, order]), _call(loss, batch, positives)
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_two_sides_are_treated_alike(name: str) -> None:
    loss, batch, positives = _build(name), _batch(), _some_positives(7)
    swapped = {**batch, "za": batch["zb"], "zb": batch["za"]}
    torch.testing.assert_close(_call(loss, swapped, positives.T), _call(loss, batch, positives))


@pytest.mark.parametrize("name", NAMES)
def test_value_at_chance(name: str) -> None:
    same = torch.nn.functional.normalize(torch.ones(8, 4, dtype=torch.float64), dim=-1)
    zero = torch.zeros((), dtype=torch.float64)
    batch = {"za": same, "zb": same, "logit_scale": zero, "logit_bias": zero}
    assert float(_call(_build(name), batch)) == pytest.approx(AT_CHANCE[name], abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_model_has_almost_no_loss(name: str) -> None:
    perfect = torch.eye(6, dtype=torch.float64)
    batch = {**_batch(), "za": perfect, "zb": perfect}
    batch["logit_scale"] = torch.tensor(math.log(100.0), dtype=torch.float64)
    batch["logit_bias"] = torch.tensor(-50.0, dtype=torch.float64)
    assert 0 <= float(_call(_build(name), batch)) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_a_further_positive_is_never_a_negative(name: str) -> None:
    """Rows 0 and 1 are duplicates: with the mask, bringing them together is not punished, and the
    entries get no gradient at all.
    """
    loss, batch = _build(name), _batch(4, 6)
    batch["za"][1], batch["zb"][1] = batch["za"][0], batch["zb"][0]
    positives = torch.zeros(4, 4, dtype=torch.bool)
    positives[0, 1] = positives[1, 0] = True
    assert float(_call(loss, batch, positives)) < float(_call(loss, batch))
    za = batch["za"].clone().requires_grad_()
    _call(loss, {**batch, "za": za}, positives).backward()  # type: ignore[no-untyped-call]
    assert za.grad is not None and torch.isfinite(za.grad).all()
    torch.testing.assert_close(za.grad[0], za.grad[1])


@pytest.mark.parametrize("name", NAMES)
def test_the_diagonal_of_the_mask_is_not_read(name: str) -> None:
    loss, batch = _build(name), _batch()
    for mask in (torch.eye(7, dtype=torch.bool), torch.zeros(7, 7, dtype=torch.bool)):
        torch.testing.assert_close(_call(loss, batch, mask), _call(loss, batch))


@pytest.mark.parametrize("name", NAMES)
def test_where_everything_matches_the_value_is_finite(name: str) -> None:
    value = _call(_build(name), _batch(), torch.ones(7, 7, dtype=torch.bool))
    assert torch.isfinite(value) and float(value) >= 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_computed_in_float32_whatever_surrounds_it(name: str, dtype: torch.dtype) -> None:
    batch = {key: value.to(dtype) for key, value in _batch(scale=4.0).items()}
    exact = _by_hand(name, {key: value.double() for key, value in batch.items()}, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = _call(_build(name), batch)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_largest_scale_neither_overflows_nor_loses_its_gradient(name: str) -> None:
    batch = {key: value.float() for key, value in _batch(scale=math.log(100.0)).items()}
    leaf = batch["za"].requires_grad_()
    value = _call(_build(name), batch)
    value.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(value)
    assert leaf.grad is not None and torch.isfinite(leaf.grad).all() and leaf.grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_it_holds_no_parameters_and_no_state(name: str) -> None:
    loss = _build(name)
    assert not list(loss.parameters()) and not loss.state_dict()


@pytest.mark.parametrize("name", NAMES)
def test_a_logit_bias_is_used_exactly_where_it_says(name: str) -> None:
    loss, batch = _build(name), _batch()
    shifted = {**batch, "logit_bias": batch["logit_bias"] + 1.0}
    changes = not torch.allclose(_call(loss, shifted), _call(loss, batch))
    assert changes == loss.uses_logit_bias
    without = {**batch, "logit_bias": None}
    if loss.uses_logit_bias:
        with pytest.raises(ConfigError, match="needs a logit bias") as caught:
            _call(loss, without)
        assert "model.init_logit_bias" in str(caught.value)
        with pytest.raises(ConfigError):
            loss.check_logit_bias(None)
    else:
        torch.testing.assert_close(_call(loss, without), _call(loss, batch))
        loss.check_logit_bias(None)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_checked(name: str) -> None:
    """With the type checker on, rows that do not match are refused; without it they broadcast."""
    loss, batch = _build(name), _batch()
    checked = jaxtyped(typechecker=beartype)(type(loss).forward)
    rest = {key: value for key, value in batch.items() if key not in ("za", "zb")}
    assert checked(loss, batch["za"], batch["zb"], **rest).shape == ()
    with pytest.raises(TypeCheckError):
        checked(loss, batch["za"], batch["zb"][:-1], **rest)
    with pytest.raises(TypeCheckError):
        checked(loss, batch["za"], batch["zb"], **rest, positives=torch.ones(7, 6).bool())


@pytest.mark.parametrize("name", NAMES)
def test_training_with_it_brings_pairs_together(name: str) -> None:
    """Free embeddings under plain gradient descent end as perfect retrieval, both ways."""
    loss = _build(name)
    torch.manual_seed(0)
    raw = [torch.randn(16, 8, requires_grad=True) for _ in range(2)]
    scale, bias = torch.tensor(math.log(10.0)), torch.tensor(-5.0)
    optimiser = torch.optim.Adam(raw, lr=0.1)
    for _ in range(60):
        za, zb = (torch.nn.functional.normalize(values, dim=-1) for values in raw)
        optimiser.zero_grad()
        loss(za, zb, logit_scale=scale, logit_bias=bias).backward()
        optimiser.step()
    za, zb = (torch.nn.functional.normalize(values.detach(), dim=-1) for values in raw)
    similarities = za @ zb.T
    assert (similarities.argmax(dim=0) == torch.arange(16)).all()
    assert (similarities.argmax(dim=1) == torch.arange(16)).all()
