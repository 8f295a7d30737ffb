"""AdamW, its parameter groups, the learning rate of a step, and which towers are locked in it."""

from __future__ import annotations

import math
from collections.abc import Set

import torch
from torch import Tensor, nn

from coembed.errors import ConfigError
from coembed.models.depth import parameter_depths
from coembed.models.joint import JointModel
from coembed.models.lora import add_lora
from coembed.training.settings import TowerSettings, TrainSettings

# Where a locked tower remembers which of its parameters are trained once it is unlocked: some never
# are (fixed position embeddings), so that "all of them" would be wrong.
_WAITING = "parameters_waiting_for_unlock"


def add_adapters(model: JointModel, settings: TrainSettings, *, seed: int) -> None:
    """Give the towers that have `lora` their adapters: before the optimiser is built, and before
    a checkpoint is loaded. Raises ConfigError.
    """
    _check_towers(model, settings)
    for modality, tower in settings.towers.items():
        if tower.lora is not None:
            add_lora(model, modality, seed=seed, **tower.lora.model_dump())


def build_optimiser(
    model: JointModel, settings: TrainSettings, *, num_steps: int
) -> torch.optim.AdamW:
    """AdamW with decoupled weight decay (Loshchilov, Hutter 2019) over `trained_parameters`.

    Its groups are of one tower, one depth and one weight decay; each carries `lr_scale`, by which
    `set_learning_rate` multiplies, and `tower` (None for logit_scale and logit_bias). What unlocks
    later is in it from the start: without gradients AdamW leaves it alone, state and all. Adapters
    decay as the matrices do that they are added to, so towards the start.

    Raises:
        ConfigError: `train.towers` names a tower that the model lacks, asks layer_decay of one
            whose layers nobody knows, or leaves nothing to train.
    """
    spared = model.no_weight_decay()
    scales = {modality: _lr_scales(model, modality, settings) for modality in model.modalities}
    groups: dict[tuple[str | None, float, float], list[Tensor]] = {}
    for name, parameter in trained_parameters(model, settings, num_steps=num_steps).items():
        modality, inner = _place(name)
        lr_scale = 1.0 if modality is None else scales[modality][inner]
        decay = 0.0 if name in spared else _weight_decay(settings, modality)
        groups.setdefault((modality, lr_scale, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "weight_decay": decay, "lr_scale": lr_scale, "tower": modality}
            for (modality, lr_scale, decay), members in groups.items()
        ],
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )


def trained_parameters(
    model: JointModel, settings: TrainSettings, *, num_steps: int
) -> dict[str, nn.Parameter]:
    """The parameters that some step trains, by name: not those of towers locked to the end.

    Which ones they are does not depend on the locks of the moment (`apply_locks`).
    Raises ConfigError.
    """
    _check_towers(model, settings)
    locked = locked_to_the_end(settings, num_steps)
    waiting = {id(p) for tower in model.towers.values() for p in getattr(tower, _WAITING, ())}
    found = {
        name: parameter
        for name, parameter in model.named_parameters()
        if (parameter.requires_grad or id(parameter) in waiting) and _place(name)[0] not in locked
    }
    if not any(_place(name)[0] for name in found):
        raise ConfigError(
            f"nothing is left to train: {', '.join(model.modalities)} are locked to the end",
            hint="unlock a tower: train.towers.<modality>.locked or unlock_at",
        )
    return found


def towers_locked(settings: TrainSettings, step: int, num_steps: int) -> set[str]:
    """The modalities whose tower is locked in `step` (from 0) of `num_steps`."""
    return {
        modality
        for modality, tower in settings.towers.items()
        if tower.locked and step < _unlock_step(tower, num_steps)
    }


def locked_to_the_end(settings: TrainSettings, num_steps: int) -> set[str]:
    """The modalities whose tower no step trains."""
    return towers_locked(settings, num_steps - 1, num_steps)


def apply_locks(model: JointModel, locked: Set[str]) -> None:
    """Put the model into training mode with the towers of `locked` left out, and only those.

    A locked tower's parameters want no gradient and it runs in evaluation mode: the statistics of
    its norms and its dropout stay still. Call it at every change, and again after whatever switched
    modes (a look at the val split). Old gradients of a tower that locks are dropped.
    """
    model.train()
    for modality, tower in model.towers.items():
        waiting: tuple[nn.Parameter, ...] = getattr(tower, _WAITING, ())
        if modality in locked:
            found = tuple(p for p in tower.parameters() if p.requires_grad)
            setattr(tower, _WAITING, waiting + found)
            for parameter in found:
                parameter.requires_grad_(False)
                parameter.grad = None
            tower.eval()
        else:
            for parameter in waiting:
                parameter.requires_grad_(True)
            setattr(tower, _WAITING, ())


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
    """Give every group its share of `lr`."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["lr_scale"]


def _lr_scales(model: JointModel, modality: str, settings: TrainSettings) -> dict[str, float]:
    """lr_scale of each of a tower's parameters, by its name within the tower.

    lr_scale · layer_decay ^ (layers above), as in BEiT (Bao et al. 2021, arXiv 2106.08254) and
    timm: the projection has the whole rate, the last block the first power, the stem the least.
    """
    tower, own = model.towers[modality], _of(settings, modality)
    names = [name for name, _ in tower.named_parameters()]
    if own.layer_decay == 1:
        return dict.fromkeys(names, own.lr_scale)
    depths = parameter_depths(tower)
    if depths is None:
        raise ConfigError(
            f"train.towers.{modality}.layer_decay is {own.layer_decay}, but this kind of tower "
            "does not say what its layers are",
            hint=f"leave layer_decay at 1 and set train.towers.{modality}.lr_scale instead",
        )
    above = {name: depths.top - depths.of[name] for name in names}
    return {name: own.lr_scale * own.layer_decay ** above[name] for name in names}


def _weight_decay(settings: TrainSettings, modality: str | None) -> float:
    own = None if modality is None else _of(settings, modality).weight_decay
    return settings.weight_decay if own is None else own


def _of(settings: TrainSettings, modality: str) -> TowerSettings:
    return settings.towers.get(modality) or TowerSettings()  # type: ignore[call-overload]


def _unlock_step(tower: TowerSettings, num_steps: int) -> float:
    if tower.unlock_at is None:
        return math.inf
    return math.ceil(tower.unlock_at * num_steps) if tower.unlock_at < 1 else tower.unlock_at


def _place(name: str) -> tuple[str | None, str]:
    """Modality of a model's parameter and its name within the tower; None for what is in none."""
    room, _, rest = name.partition(".")
    if room != "towers":
        return None, name
    modality, _, inner = rest.partition(".")
    return modality, inner


def _check_towers(model: JointModel, settings: TrainSettings) -> None:
    for modality in settings.towers:
        if modality not in model.modalities:
            raise ConfigError(
                f"train.towers names {modality}, but the model has {', '.join(model.modalities)}",
                hint=f"remove train.towers.{modality}, or give model.architecture that tower",
            )
