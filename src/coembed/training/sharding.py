"""Weights, gradients and optimiser state divided among the processes (FSDP2), for towers that do
not fit whole beside their activations.

`shard` divides a model; every process then holds, of each parameter of a tower, a piece (a DTensor,
cut along its first dimension). A block's weights are put together when it runs and dropped after,
in the first pass of gradient caching as well as in the second and in its backward pass, where its
gradient is summed over the processes and cut again. logit_scale and logit_bias stay whole.

All other functions here take whole tensors too, and then do the plain thing, so that the rest of
training need not ask which it has. Those that put tensors together are collective: every process
has to call them, with the same tensors in the same order.

Checkpoints hold whole tensors: a run goes on with another number of processes, or unsharded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import get_total_norm

from coembed.models.joint import JointModel
from coembed.training.distributed import World

_CLIP_EPS = 1e-6  # as torch's clip_grad_norm_


def shard(model: JointModel, world: World, device: torch.device) -> None:
    """Divide the towers of `model`, which is on the CPU or on `device`, among the processes, and
    bring the pieces and the rest to `device`.

    Every process has the same weights. The parameters become other objects of the same names, so
    the optimiser is built afterwards; memory formats other than the default are not kept. Between
    equal processes the gradients are summed, not averaged: they are shares (distributed.py).
    """
    mesh = init_device_mesh(device.type, (world.size,))
    for tower in model.towers.values():
        for module in (*_blocks(tower), tower):
            module.to(memory_format=torch.contiguous_format)
            # The tower itself as well, where torch would keep its own weights whole until a
            # backward pass comes: after a look at the val split none does.
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # Else a factor of 1 is made of NCCL's PREMUL_SUM, which gloo does not have.
            module.set_force_sum_reduction_for_comms(True)
    model.to(device)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor, detached; collective where it is divided."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def fill_(into: Tensor, values: Tensor) -> None:
    """Copy a whole tensor, which every process has, into `into` or into this process's piece."""
    if isinstance(into, DTensor):
        values = distribute_tensor(
            values.to(into.device), into.device_mesh, into.placements, src_data_rank=None
        )
    into.copy_(values)


@torch.no_grad()
def gather_into(target: nn.Module, model: nn.Module) -> None:
    """Copy the weights and buffers of a divided model into a whole one of the same names."""
    into = target.state_dict()
    for name, tensor in model.state_dict().items():
        into[name].copy_(whole(tensor))


def undivided(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Those gradients that nobody has summed over the processes yet: `World.sum_` does it."""
    return [gradient for gradient in gradients if not isinstance(gradient, DTensor)]


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The L2 norm of all gradients together, shape []; collective where some are divided."""
    norms = [whole(get_total_norm(alike)) for alike in _by_kind(gradients)]
    return norms[0] if len(norms) == 1 else get_total_norm(norms)


def clip_(gradients: Sequence[Tensor], limit: float, norm: float) -> None:
    """Scale gradients of the total norm `norm` down to `limit`, in place."""
    factor = limit / (norm + _CLIP_EPS)
    if factor < 1:
        for alike in _by_kind(gradients):
            torch._foreach_mul_(alike, factor)


def lerp_(into: Sequence[Tensor], towards: Sequence[Tensor], weight: float) -> None:
    """into ← into + weight · (towards − into), tensor by tensor."""
    for mine, theirs in zip(_by_kind(into), _by_kind(towards), strict=True):
        torch._foreach_lerp_(mine, theirs, weight)


def _by_kind(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The divided and the whole ones, each together where there are any: torch's functions of
    lists take no mixture."""
    for divided in (True, False):
        alike = [tensor for tensor in tensors if isinstance(tensor, DTensor) is divided]
        if alike:
            yield alike


def _blocks(tower: nn.Module) -> list[nn.Module]:
    """The modules that a tower repeats, the innermost where repetitions nest: the parts that are
    put together one at a time."""
    found = [block for child in tower.children() for block in _blocks(child)]
    if found or not isinstance(tower, nn.ModuleList | nn.Sequential):
        return found
    children = list(tower)
    repeats = len(children) > 1 and len({type(child) for child in children}) == 1
    return children if repeats and any(children[0].children()) else []
