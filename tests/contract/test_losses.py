"""What every loss keeps. A new module of coembed.losses is picked up unasked: it adds its settings
to CASES of loss_cases.py, its slow, obvious self to REFERENCES, its value at chance to AT_CHANCE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped
from loss_cases import CASES, LOG_100, build, call, make_batch, same, some_positives, with_gradients
from torch import Tensor

from coembed.errors import ConfigError
from coembed.losses import _tiles
from coembed.losses.base import Teacher
from coembed.settings import component_names, component_settings

every_loss = pytest.mark.parametrize("case", CASES)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of this file fill several tiles, and the last of them in part."""
    monkeypatch.setattr(_tiles, "TILE_ELEMENTS", {"cpu": 21})


@dataclass(frozen=True)
class Anchor:
    """A row of one side before its candidates: their cosines, the teacher's, which one is its
    own, and which others match."""

    cosines: list[float]
    taught: list[float]
    own: int
    also: set[int]


@dataclass(frozen=True)
class Asked:
    """A call, in plain numbers."""

    cosines: list[list[float]]
    taught: list[list[float]]
    matches: set[tuple[int, int]]
    share: tuple[int, int]
    scale: float
    bias: float
    settings: dict[str, Any]

    @property
    def num(self) -> int:
        return len(self.cosines)

    def anchors(self) -> Iterator[Anchor]:
        """The share's rows of za before all of zb, and of zb before all of za."""
        for i in range(*self.share):
            also = {j for j in range(len(self.cosines[0])) if (i, j) in self.matches}
            yield Anchor(self.cosines[i], self.taught[i], i, also)
        for j in range(*self.share):
            also = {i for i in range(self.num) if (i, j) in self.matches}
            cosines, taught = ([row[j] for row in m] for m in (self.cosines, self.taught))
            yield Anchor(cosines, taught, j, also)


def _log_softmax_by_hand(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [value - math.log(total) for value in values]


def _softmax_by_hand(asked: Asked) -> float:
    total = 0.0
    for anchor in asked.anchors():
        attract = asked.settings.get("further_positives") == "attract"
        candidates = [
            j
            for j in range(len(anchor.cosines))
            if attract or j == anchor.own or j not in anchor.also
        ]
        logs = _log_softmax_by_hand([asked.scale * anchor.cosines[j] for j in candidates])
        targets = [j for j in candidates if j == anchor.own or j in anchor.also]
        total -= sum(logs[candidates.index(j)] for j in targets) / len(targets)
    return total / (2 * asked.num)


def _sigmoid_by_hand(asked: Asked) -> float:
    total = 0.0
    for i in range(*asked.share):
        for j, cosine in enumerate(asked.cosines[i]):
            sign = 1.0 if i == j else -1.0
            if (i, j) in asked.matches:
                if asked.settings.get("further_positives") != "attract":
                    continue
                sign = 1.0
            total -= math.log(1 / (1 + math.exp(-sign * (asked.scale * cosine + asked.bias))))
    return total / asked.num


def _triplet_by_hand(asked: Asked) -> float:
    margin, which = asked.settings.get("margin", 0.2), asked.settings.get("negatives", "hardest")
    total = 0.0
    for anchor in asked.anchors():
        own = anchor.cosines[anchor.own]
        negatives = [
            c for j, c in enumerate(anchor.cosines) if j != anchor.own and j not in anchor.also
        ]
        if which == "semi_hard":
            easier = [c for c in negatives if c < own]
            negatives = [max(easier)] if easier else [min(negatives)] if negatives else []
        elif which == "hardest":
            negatives = [max(negatives)] if negatives else []
        total += sum(max(0.0, margin - own + c) for c in negatives)
    return total / asked.num


def _distillation_by_hand(asked: Asked) -> float:
    weight, teacher_scale = asked.settings.get("weight", 0.5), asked.settings.get("teacher_scale")
    scale = asked.scale if teacher_scale is None else math.exp(teacher_scale)
    total = 0.0
    for anchor in asked.anchors():
        p = _log_softmax_by_hand([scale * c for c in anchor.taught])
        q = _log_softmax_by_hand([asked.scale * c for c in anchor.cosines])
        total += sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
    return (1 - weight) * _softmax_by_hand(asked) + weight * total / (2 * asked.num)


REFERENCES: dict[str, Callable[[Asked], float]] = {
    "softmax": _softmax_by_hand,
    "sigmoid": _sigmoid_by_hand,
    "triplet": _triplet_by_hand,
    "distillation": _distillation_by_hand,
}
# All similarities alike (scale e^0, every embedding the same), no bias, batch of 8.
_SIGMOID_AT_CHANCE = -(math.log(1 / (1 + math.exp(-1))) + 7 * math.log(1 / (1 + math.exp(1))))
AT_CHANCE = {
    "softmax": math.log(8),
    "softmax-attract": math.log(8),
    "sigmoid": _SIGMOID_AT_CHANCE,
    "sigmoid-attract": _SIGMOID_AT_CHANCE,
    "triplet-hardest": 2 * 0.2,
    "triplet-semi_hard": 2 * 0.5,
    "triplet-all": 2 * 7 * 0.3,
    "distillation": 0.5 * math.log(8),
    "distillation-alone": 0.0,
    "distillation-attract": 0.7 * math.log(8),
}


def _by_hand(
    case: str,
    batch: dict[str, Any],
    positives: Tensor | None,
    share: tuple[int, int] | None = None,
) -> float:
    def cosines(za: Tensor, zb: Tensor) -> list[list[float]]:
        return [[sum(map(float.__mul__, x, y)) for y in zb.tolist()] for x in za.tolist()]

    asked = Asked(
        cosines=cosines(batch["za"], batch["zb"]),
        taught=cosines(batch["teacher"].za, batch["teacher"].zb),
        matches=set() if positives is None else {(i, j) for i, j in positives.tolist()},
        share=share or (0, len(batch["za"])),
        scale=math.exp(float(batch["logit_scale"])),
        bias=float(batch["logit_bias"]),
        settings=CASES[case],
    )
    return REFERENCES[CASES[case]["name"]](asked)


def _swapped(batch: dict[str, Any]) -> dict[str, Any]:
    teacher = Teacher(batch["teacher"].zb, batch["teacher"].za)
    return {**batch, "za": batch["zb"], "zb": batch["za"], "teacher": teacher}


def test_every_loss_has_a_reference() -> None:
    names = set(component_names("coembed.losses"))
    assert names == set(REFERENCES) == {values["name"] for values in CASES.values()}
    assert set(AT_CHANCE) == set(CASES)


@every_loss
@pytest.mark.parametrize("hard", [0, 3])
@pytest.mark.parametrize("with_positives", [False, True])
@pytest.mark.parametrize("num", [1, 2, 7])
def test_value_is_the_reference_by_hand(
    case: str, with_positives: bool, num: int, hard: int
) -> None:
    batch = make_batch(num, hard=hard)
    positives = some_positives(num, num + hard) if with_positives and num == 7 else None
    expected = _by_hand(case, batch, positives)
    assert float(call(build(case), batch, positives)) == pytest.approx(expected, abs=1e-12)


@every_loss
@pytest.mark.parametrize("hard", [0, 3])
@pytest.mark.parametrize("with_positives", [False, True])
def test_gradients_are_those_of_finite_differences(
    case: str, with_positives: bool, hard: int
) -> None:
    loss, batch = build(case), make_batch(5, 3, hard=hard)
    names = ["za", "zb", "logit_scale"] + (["logit_bias"] if loss.uses_logit_bias else [])
    # The student's scale also sets the teacher's, without gradient: a difference would see it.
    if "distillation" in case and "teacher_scale" not in CASES[case]:
        names.remove("logit_scale")
    leaves = [batch[name].clone().requires_grad_() for name in names]
    positives = some_positives(5, 5 + hard) if with_positives else None

    def value(*tensors: Tensor) -> Tensor:
        return call(loss, {**batch, **dict(zip(names, tensors, strict=True))}, positives)

    assert torch.autograd.gradcheck(value, tuple(leaves), atol=1e-7)


@every_loss
@pytest.mark.parametrize("hard", [0, 3])
@pytest.mark.parametrize("with_positives", [False, True])
def test_shares_add_up_to_the_whole(case: str, with_positives: bool, hard: int) -> None:
    loss, batch = build(case), make_batch(7, hard=hard)
    positives = some_positives(7, 7 + hard) if with_positives else None
    shares = [(0, 3), (3, 3), (3, 4), (4, 7)]
    parts = [with_gradients(loss, batch, positives, share=share) for share in shares]
    for share, part in zip(shares, parts, strict=True):
        expected = _by_hand(case, batch, positives, share)
        assert float(part["value"]) == pytest.approx(expected, abs=1e-12)
    whole = with_gradients(loss, batch, positives)
    same({name: sum(part[name] for part in parts) for name in whole}, whole)  # type: ignore[misc]
    same(with_gradients(loss, batch, positives, share=(0, 7)), whole)


@every_loss
@pytest.mark.parametrize("elements", [1, 30, 2**20])
def test_tiles_of_any_size_give_the_same(
    case: str, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, batch, positives = build(case), make_batch(11, hard=2), some_positives(11, 13)
    expected = with_gradients(loss, batch, positives)
    monkeypatch.setattr(_tiles, "TILE_ELEMENTS", {"cpu": elements})
    same(with_gradients(loss, batch, positives), expected)


@every_loss
def test_order_of_the_pairs_does_not_matter(case: str) -> None:
    loss, batch, positives = build(case), make_batch(), some_positives(7)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    teacher = Teacher(batch["teacher"].za[order], batch["teacher"].zb[order])
    moved = {**batch, "za": batch["za"][order], "zb": batch["zb"][order], "teacher": teacher}
    torch.testing.assert_close(
        call(loss, moved, order.argsort()[positives]), call(loss, batch, positives)
    )


@every_loss
def test_the_two_sides_are_treated_alike(case: str) -> None:
    loss, batch, positives = build(case), make_batch(), some_positives(7)
    torch.testing.assert_close(
        call(loss, _swapped(batch), positives.flip(1)), call(loss, batch, positives)
    )


@every_loss
def test_value_at_chance(case: str) -> None:
    same_z = torch.nn.functional.normalize(torch.ones(8, 4, dtype=torch.float64), dim=-1)
    zero = torch.zeros((), dtype=torch.float64)
    batch = {
        "za": same_z, "zb": same_z, "logit_scale": zero, "logit_bias": zero,
        "teacher": Teacher(same_z, same_z),
    }  # fmt: skip
    assert float(call(build(case), batch)) == pytest.approx(AT_CHANCE[case], abs=1e-12)


@every_loss
def test_a_perfect_model_has_almost_no_loss(case: str) -> None:
    perfect = torch.eye(6, dtype=torch.float64)
    batch = {**make_batch(), "za": perfect, "zb": perfect, "teacher": Teacher(perfect, perfect)}
    scale = CASES[case].get("teacher_scale", LOG_100)
    batch["logit_scale"] = torch.tensor(scale, dtype=torch.float64)
    batch["logit_bias"] = torch.tensor(-50.0, dtype=torch.float64)
    # A divergence of 0 may come out as -1e-16.
    assert -1e-14 <= float(call(build(case), batch)) < 1e-12


@every_loss
def test_a_further_positive_is_never_a_negative(case: str) -> None:
    """Rows 0 and 1 are duplicates. Told so, the loss has no reason to part them."""
    loss, batch = build(case), make_batch(4, 6)
    teacher = batch["teacher"]
    for z in (batch["za"], batch["zb"], teacher.za, teacher.zb):
        z[1] = z[0]
    positives = torch.tensor([[0, 1], [1, 0]])
    told, untold = with_gradients(loss, batch, positives), with_gradients(loss, batch)
    if "attract" not in case:  # where it is a target, it may cost as much as the own pair does
        assert float(told["value"]) <= float(untold["value"])
    for name in ("za", "zb"):
        assert torch.isfinite(told[name]).all()
        if not case.startswith("triplet"):  # which takes one of two equal negatives
            torch.testing.assert_close(told[name][0], told[name][1])


@every_loss
def test_a_hard_negative_that_matches_a_row_is_none_for_it(case: str) -> None:
    loss, batch = build(case), make_batch(4, 6, hard=1)
    batch["zb"][4] = batch["za"][2]
    entry = torch.tensor([[2, 4]])
    assert float(call(loss, batch, entry)) == pytest.approx(_by_hand(case, batch, entry))
    if "attract" not in case:
        assert float(call(loss, batch, entry)) <= float(call(loss, batch))


@every_loss
def test_no_entries_are_the_same_as_none(case: str) -> None:
    loss, batch = build(case), make_batch()
    nothing = torch.empty(0, 2, dtype=torch.int64)
    same(with_gradients(loss, batch, nothing), with_gradients(loss, batch))


@every_loss
def test_where_everything_matches_the_value_is_finite(case: str) -> None:
    entries = (~torch.eye(7, dtype=torch.bool)).nonzero()
    found = with_gradients(build(case), make_batch(), entries)
    assert all(torch.isfinite(tensor).all() for tensor in found.values())
    assert float(found["value"]) == pytest.approx(_by_hand(case, make_batch(), entries), abs=1e-12)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_computed_in_float32_whatever_surrounds_it(case: str, dtype: torch.dtype) -> None:
    batch = make_batch(scale=4.0, dtype=dtype)
    teacher = Teacher(batch["teacher"].za.double(), batch["teacher"].zb.double())
    doubled = {key: z.double() for key, z in batch.items() if key != "teacher"}
    exact = with_gradients(build(case), {**doubled, "teacher": teacher})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = with_gradients(build(case), batch)
    assert found["value"].dtype == torch.float32
    assert float(found["value"]) == pytest.approx(float(exact["value"]), rel=1e-5)
    # Gradients come back in the type of what they belong to.
    tolerances = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4e-2 * torch.finfo(dtype).eps}
    for name, gradient in found.items():
        assert gradient.dtype == (torch.float32 if name == "value" else dtype)
        floor = 1e-5 * float(exact[name].abs().max())
        tolerances["atol"] = max(floor, tolerances["atol"])
        torch.testing.assert_close(gradient.double(), exact[name], **tolerances)


@every_loss
def test_the_largest_scale_neither_overflows_nor_loses_its_gradient(case: str) -> None:
    batch = make_batch(scale=LOG_100, dtype=torch.float32)
    found = with_gradients(build(case), batch)
    assert all(torch.isfinite(tensor).all() for tensor in found.values())
    assert found["za"].any()


@every_loss
def test_it_holds_no_parameters_and_no_state(case: str) -> None:
    loss = build(case)
    assert not list(loss.parameters()) and not loss.state_dict()


@every_loss
def test_it_repeats_itself_under_torchs_deterministic_algorithms(case: str) -> None:
    loss, batch = build(case), make_batch(64, 16, hard=9, dtype=torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        one, other = (with_gradients(loss, batch, some_positives(64, 73)) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    same(one, other, rtol=0, atol=0)


@every_loss
def test_only_what_asks_for_a_gradient_gets_one(case: str) -> None:
    """A frozen tower costs nothing backward; the other gets what it would have got."""
    loss, batch = build(case), make_batch()
    whole = with_gradients(loss, batch)
    for name in ("za", "zb"):
        leaf = batch[name].clone().requires_grad_()
        call(loss, {**batch, name: leaf}).backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(leaf.grad, whole[name])
    assert not call(loss, batch).requires_grad


@every_loss
def test_a_gradient_from_above_multiplies_all(case: str) -> None:
    loss, batch = build(case), make_batch()
    names = ("za", "zb", "logit_scale", "logit_bias")
    leaves = {name: batch[name].clone().requires_grad_() for name in names}
    (3 * call(loss, {**batch, **leaves})).backward()  # type: ignore[no-untyped-call]
    for name, expected in with_gradients(loss, batch).items():
        if name != "value" and leaves[name].grad is not None:
            torch.testing.assert_close(leaves[name].grad, 3 * expected)


@every_loss
def test_a_logit_bias_is_used_exactly_where_it_says(case: str) -> None:
    loss, batch = build(case), make_batch()
    shifted = {**batch, "logit_bias": batch["logit_bias"] + 1.0}
    changes = not torch.allclose(call(loss, shifted), call(loss, batch))
    assert changes == loss.uses_logit_bias
    without = {**batch, "logit_bias": None}
    if loss.uses_logit_bias:
        with pytest.raises(ConfigError, match="needs a logit bias") as caught:
            call(loss, without)
        assert "model.init_logit_bias" in str(caught.value)
        with pytest.raises(ConfigError):
            loss.check_logit_bias(None)
    else:
        torch.testing.assert_close(call(loss, without), call(loss, batch))
        loss.check_logit_bias(None)


@every_loss
def test_a_teacher_is_used_exactly_where_it_says(case: str) -> None:
    loss, batch = build(case), make_batch()
    without = {**batch, "teacher": None}
    if loss.uses_teacher:
        with pytest.raises(ConfigError, match="needs a teacher's embeddings") as caught:
            call(loss, without)
        assert "train.loss.teacher" in str(caught.value)
        rolled = replace(batch["teacher"], za=batch["teacher"].za.roll(1, 0))
        assert not torch.allclose(call(loss, batch, teacher=rolled), call(loss, batch))
    else:
        torch.testing.assert_close(call(loss, without), call(loss, batch))
        loss.check_teacher(None)


@every_loss
def test_shapes_are_checked(case: str) -> None:
    """With the type checker on, dims and entries that do not fit are refused; a row without its
    pair is refused always."""
    loss, batch = build(case), make_batch()
    checked = jaxtyped(typechecker=beartype)(type(loss).forward)
    rest = {key: value for key, value in batch.items() if key not in ("za", "zb")}
    assert checked(loss, batch["za"], batch["zb"], **rest).shape == ()
    with pytest.raises(TypeCheckError):
        checked(loss, batch["za"], batch["zb"][:, :-1], **rest)
    with pytest.raises(TypeCheckError):
        checked(loss, batch["za"], batch["zb"], **rest, positives=torch.eye(7, dtype=torch.bool))
    with pytest.raises(ValueError, match="za has 7 rows and zb 6: every row of za needs its pair"):
        call(loss, {**batch, "zb": batch["zb"][:-1]})


@every_loss
def test_training_with_it_brings_pairs_together(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free embeddings under gradient descent end as perfect retrieval, both ways."""
    monkeypatch.undo()  # whole tiles: 60 steps of small ones take long
    loss = build(case)
    torch.manual_seed(0)
    raw = [torch.randn(16, 8, requires_grad=True) for _ in range(2)]
    scale, bias = torch.tensor(math.log(10.0)), torch.tensor(-5.0)
    basis = torch.eye(16)
    optimiser = torch.optim.Adam(raw, lr=0.1)
    for _ in range(60):
        za, zb = (torch.nn.functional.normalize(values, dim=-1) for values in raw)
        optimiser.zero_grad()
        value = loss(
            za, zb, logit_scale=scale, logit_bias=bias, teacher=Teacher(basis, basis)
        )  # fmt: skip
        value.backward()
        optimiser.step()
    za, zb = (torch.nn.functional.normalize(values.detach(), dim=-1) for values in raw)
    similarities = za @ zb.T
    assert (similarities.argmax(dim=0) == torch.arange(16)).all()
    assert (similarities.argmax(dim=1) == torch.arange(16)).all()


@every_loss
def test_settings_come_back_as_they_were(case: str) -> None:
    settings = component_settings("coembed.losses", CASES[case]["name"])
    made = settings.model_validate(CASES[case])
    assert settings.model_validate(made.model_dump(mode="json")) == made
