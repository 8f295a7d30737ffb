"""AdamW, which parameters decay, and the learning rate of a step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from coembed.models.joint import JointModel
from coembed.training.settings import TrainSettings


def build_optimiser(model: JointModel, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW with decoupled weight decay (Loshchilov, Hutter 2019) over the trainable parameters."""
    decay, keep = split_parameters(model)
    groups = [
        {"params": list(decay.values()), "weight_decay": settings.weight_decay},
        {"params": list(keep.values()), "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )


def split_parameters(model: JointModel) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The trainable parameters by name: those that weight decay shrinks, and those it leaves.

    The model names what to leave: norms, biases, logit_scale, position embeddings and their like.
    """
    spared = model.no_weight_decay()
    named: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    decay = {name: p for name, p in named.items() if name not in spared}
    return decay, {name: p for name, p in named.items() if name not in decay}


def warmup_steps(settings: TrainSettings, num_steps: int) -> int:
    """Number of warm-up steps: `settings.warmup` itself, or that share of `num_steps`."""
    if settings.warmup < 1:
        return math.ceil(settings.warmup * num_steps)
    return int(settings.warmup)


def learning_rate(step: int, num_steps: int, settings: TrainSettings) -> float:
    """Learning rate of `step` (from 0): linear warm-up, then half a cosine down to the floor."""
    warmup = warmup_steps(settings, num_steps)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, num_steps - warmup)
    floor = settings.lr_floor
    return settings.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every group."""
    for group in optimiser.param_groups:
        group["lr"] = lr
