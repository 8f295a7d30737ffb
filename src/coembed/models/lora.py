"""Low-rank adapters on the matrices of a tower's blocks (LoRA: Hu et al. 2021, arXiv 2106.09685).

A matrix W [out, in] becomes W + (alpha / rank) · B A with B [out, rank] and A [rank, in]; W itself
is locked. They are parametrisations of torch, so packed matrices (the three projections of an
attention in one) and modules that read a weight without calling it (nn.MultiheadAttention) are
adapted like any other. The product is added to the weight rather than to the output: what is
trained is, to rounding, what `merge_lora` leaves.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from coembed.errors import ConfigError
from coembed.models.depth import parameter_depths
from coembed.models.joint import JointModel

# The names that open_clip and timm give the two halves of a block.
_HALVES = {"attn": "attention", "mlp": "mlp"}


class Adapter(nn.Module):
    """W [out, in] → W + scale · B A. B starts at zero: at first nothing changes."""

    def __init__(self, a: Float[Tensor, "rank in"], num_out: int, *, scale: float) -> None:
        super().__init__()
        self.a = nn.Parameter(a)
        self.b = nn.Parameter(a.new_zeros((num_out, len(a))))
        self._scale = scale

    def forward(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """The adapted weight, in its own precision under autocast too."""
        with torch.autocast(weight.device.type, enabled=False):
            return torch.addmm(weight, self.b, self.a, alpha=self._scale)


def add_lora(
    model: JointModel,
    modality: str,
    *,
    rank: int,
    alpha: float,
    where: Literal["attention", "mlp", "both"],
    seed: int,
) -> None:
    """Adapt the blocks of a tower, and lock everything else of it but what stands above them.

    What is trained of the tower then: its adapters, and its projection (with a pooling head, where
    there is one), which has no matrix of a block to stay close to. Stem, embeddings, norms, biases
    and the matrices themselves are locked.

    A is uniform in ± 1 / √in, as in the authors' code; what is drawn for a matrix depends on
    `seed`, the modality and the matrix's name alone.

    Raises:
        ConfigError: the tower has no such matrices (a network of convolutions).
    """
    tower = model.tower(modality)
    depths = parameter_depths(tower)
    chosen = [] if depths is None else [
        name
        for name, _ in tower.named_parameters()
        if depths.in_blocks(name) and _half(tower, name) in _wanted(where)
    ]  # fmt: skip
    if depths is None or not chosen:
        raise ConfigError(
            f"train.towers.{modality}.lora: the {modality} tower has no "
            f"{' or '.join(sorted(_wanted(where)))} matrices in its blocks to adapt",
            hint=f"remove train.towers.{modality}.lora (lr_scale and layer_decay keep a tower "
            "close to its start as well), or take a transformer for the tower",
        )
    for name, parameter in tower.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and depths.of[name] == depths.top)
    for name in chosen:
        path, _, last = name.rpartition(".")
        weight = tower.get_parameter(name)
        a = _draw(weight, rank, f"coembed lora {modality} {name} {seed}")
        adapter = Adapter(a, len(weight), scale=alpha / rank)
        parametrize.register_parametrization(tower.get_submodule(path), last, adapter)


def has_lora(module: nn.Module) -> bool:
    """Whether anything in `module` has an adapter."""
    return any(isinstance(child, Adapter) for child in module.modules())


def merge_lora(module: nn.Module) -> None:
    """Write every adapter into its matrix, in place, and take the adapters away.

    The names of `state_dict` are then those of a model that never had any. The matrices stay
    locked. To go on training, merge a copy (`copy.deepcopy`).
    """
    for child in list(module.modules()):
        held = getattr(child, "parametrizations", None)
        if isinstance(held, nn.ModuleDict) and has_lora(held):
            _restore(child, list(held))


def _restore(module: nn.Module, names: list[str]) -> None:
    """Turn an adapted module into one of its first class again, with the merged matrices.

    `remove_parametrizations` of torch would also take the property off the class that a deep copy
    shares with its model, and so break the model of which a copy is merged.
    """
    merged = {name: getattr(module, name).detach().clone() for name in names}
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for name, weight in merged.items():
        module.register_parameter(name, nn.Parameter(weight, requires_grad=False))


def _wanted(where: str) -> set[str]:
    return set(_HALVES.values()) if where == "both" else {where}


def _half(tower: nn.Module, name: str) -> str | None:
    """Which half of a block the matrix `name` belongs to; None for what is no such matrix."""
    path, _, last = name.rpartition(".")
    module = tower.get_submodule(path)
    if last != "in_proj_weight" and not (last == "weight" and isinstance(module, nn.Linear)):
        return None
    return next((_HALVES[part] for part in path.split(".") if part in _HALVES), None)


def _draw(weight: Tensor, rank: int, purpose: str) -> Tensor:
    """A [rank, in] for a matrix, drawn on the CPU so that every device has the same."""
    digest = hashlib.sha256(purpose.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    bound = weight.shape[1] ** -0.5
    drawn = torch.empty((rank, weight.shape[1])).uniform_(-bound, bound, generator=generator)
    return drawn.to(weight)
