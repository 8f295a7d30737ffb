"""The moving average of the weights: its formula, what it covers, and that it goes on exactly."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_towers import tiny_architecture

from coembed.models.build import build_towers
from coembed.models.joint import JointModel
from coembed.models.lora import add_lora
from coembed.training.ema import Ema


def _model() -> JointModel:
    return build_towers(tiny_architecture("convnet"), seed=0)


def _ema(model: JointModel, decay: float = 0.9) -> Ema:
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    return Ema(model, decay, trained=trained)


def _move(model: JointModel, seed: int) -> None:
    """What an optimiser's step and a forward pass would change."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=generator))
            else:
                value.add_(1)


def test_the_formula() -> None:
    model = _model()
    ema = _ema(model, decay=0.4)
    name = "towers.image.trunk.bn1.running_mean"
    wanted = {n: model.state_dict()[n].clone() for n in ("logit_scale", name)}
    for step in range(6):
        _move(model, step)
        ema.update(model, step)
        decay = min(0.4, (1 + step) / (10 + step))
        for n, average in wanted.items():
            average.mul_(decay).add_(model.state_dict()[n], alpha=1 - decay)
    found = dict(ema.tensors())
    for n, average in wanted.items():
        torch.testing.assert_close(found[f"ema/{n}"], average)


def test_swapped_in_and_out_again() -> None:
    model = _model()
    ema = _ema(model)
    _move(model, 1)
    ema.update(model, 0)
    _move(model, 2)
    before, places = copy.deepcopy(model.state_dict()), [p.data_ptr() for p in model.parameters()]
    counted = "towers.image.trunk.bn1.num_batches_tracked"
    with pytest.raises(KeyError), ema.swapped_in(model):
        inside = copy.deepcopy(model.state_dict())
        assert torch.is_grad_enabled()
        raise KeyError
    averages = {name.removeprefix("ema/"): value for name, value in ema.tensors()}
    assert averages.keys() == {n for n, value in before.items() if value.is_floating_point()}
    assert all(torch.equal(inside[name], value) for name, value in averages.items())
    assert torch.equal(inside[counted], before[counted])
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert places == [p.data_ptr() for p in model.parameters()]


def test_copied_for_good() -> None:
    model = _model()
    ema = _ema(model)
    _move(model, 1)
    ema.update(model, 0)
    ema.copy_to(model)
    state = model.state_dict()
    assert all(torch.equal(state[name.removeprefix("ema/")], v) for name, v in ema.tensors())


def test_it_goes_on_exactly_from_its_tensors() -> None:
    model = _model()
    whole, first = _ema(model), _ema(model)
    saved: dict[str, torch.Tensor] = {}
    for step in range(6):
        _move(model, step)
        whole.update(model, step)
        if step < 3:
            first.update(model, step)
        if step == 2:
            saved = {name: value.clone() for name, value in first.tensors()}
            first = _ema(_model())
            for name, value in first.tensors():
                value.copy_(saved[name])
        if step >= 3:
            first.update(model, step)
    assert all(
        torch.equal(a, b) for (_, a), (_, b) in zip(whole.tensors(), first.tensors(), strict=True)
    )


def test_with_adapters_only_what_learns_has_an_average() -> None:
    model = build_towers(tiny_architecture(), seed=0)
    for modality in model.modalities:
        add_lora(model, modality, rank=2, alpha=4.0, where="both", seed=1)
    names = {name.removeprefix("ema/") for name, _ in _ema(model).tensors()}
    assert names == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.endswith("original") for name in names)
