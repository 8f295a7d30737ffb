from __future__ import annotations

import pytest
import torch
from training_runs import Run, settings_of

from coembed.training.optim import build_optimiser, split_parameters


def test_decay_spares_norms_biases_and_scales(run: Run) -> None:
    model, _ = run.model()
    decay, spared = split_parameters(model)
    assert not decay.keys() & spared.keys()
    assert decay.keys() | spared.keys() == dict(model.named_parameters()).keys()
    assert "logit_scale" in spared
    assert all(p.ndim >= 2 for p in decay.values())
    assert any(name.endswith("conv1.weight") for name in decay)
    assert any("positional_embedding" in name for name in spared)


def test_optimiser_shrinks_only_what_decays(run: Run) -> None:
    """With zero gradients a step of AdamW is the decay and nothing else."""
    model, _ = run.model()
    settings = settings_of(weight_decay=0.5)
    optimiser = build_optimiser(model, settings)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    decay, spared = split_parameters(model)
    for name, p in decay.items():
        assert torch.allclose(p, before[name] * (1 - settings.lr * 0.5))
    for name, p in spared.items():
        assert torch.equal(p, before[name])


def test_frozen_parameters_stay_out(run: Run) -> None:
    model, _ = run.model()
    for p in model.towers["image"].parameters():
        p.requires_grad_(False)
    decay, spared = split_parameters(model)
    assert not any(name.startswith("towers.image") for name in decay | spared)


def test_optimiser_takes_its_settings(run: Run) -> None:
    model, _ = run.model()
    optimiser = build_optimiser(model, settings_of(betas=[0.8, 0.95], eps=1e-7))
    for group in optimiser.param_groups:
        assert group["betas"] == (0.8, 0.95) and group["eps"] == pytest.approx(1e-7)
        assert group["fused"]
