"""Device, precision and the switches that make arithmetic repeatable."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from coembed.errors import ConfigError
from coembed.models.joint import JointModel
from coembed.training.distributed import World
from coembed.training.settings import Precision, TrainSettings
from coembed.training.sharding import shard


def choose_device(settings: TrainSettings) -> torch.device:
    """The device to train on; `auto` is CUDA where there is one."""
    cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not cuda:
        raise ConfigError(
            "train.device is cuda, but torch finds no CUDA device",
            hint="set train.device to auto or cpu, or look at `nvidia-smi`",
        )
    return torch.device("cuda" if cuda and settings.device != "cpu" else "cpu")


def choose_precision(settings: TrainSettings, device: torch.device) -> Precision:
    """What `precision: auto` means here: bf16 where the hardware multiplies it, else fp32."""
    if settings.precision == "fp16" and device.type != "cuda":
        raise ConfigError(
            f"train.precision is fp16, which needs CUDA; this run is on {device.type}",
            hint="set train.precision to auto, bf16 or fp32",
        )
    if settings.precision != "auto":
        return settings.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # Emulated bf16 is slower than fp32, so a processor has to name one of these.
    able = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if able else "fp32"


def prepare_model(
    model: JointModel, settings: TrainSettings, device: torch.device, world: World | None = None
) -> bool:
    """Bring `model` to the device, layout and mode in which it is trained; whether its towers are
    compiled."""
    if world is not None and world.is_group and settings.distributed.sharding == "fsdp":
        shard(model, world, device)
    else:
        model.to(device)
        for tower in model.towers.values():
            if _wants_channels_last(tower, settings):
                tower.to(memory_format=torch.channels_last)
    if settings.activation_checkpointing:
        _check_recomputable(model)
    model.set_grad_checkpointing(settings.activation_checkpointing)
    model.train()
    if settings.compile:
        for tower in model.towers.values():
            tower.compile()  # in place: the names of its parameters stay
    return settings.compile


def _check_recomputable(model: JointModel) -> None:
    for modality, tower in model.towers.items():
        norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        if any(isinstance(module, norms) for module in tower.modules()):
            raise ConfigError(
                f"train.activation_checkpointing is on, but the {modality} tower has batch norms: "
                "recomputing would move their running statistics twice a step",
                hint="use micro_batch_size to save memory, or towers with layer norms",
            )


def _wants_channels_last(tower: nn.Module, settings: TrainSettings) -> bool:
    if settings.channels_last is not None:
        return settings.channels_last
    # A ViT has one convolution, which cuts the image into patches.
    return sum(isinstance(module, nn.Conv2d) for module in tower.modules()) > 1


@contextmanager
def repeatable(device: torch.device, num_threads: int | None) -> Iterator[None]:
    """Deterministic arithmetic and a fixed number of threads inside; what was set before, after.

    On CUDA this asks cuBLAS and cuDNN for deterministic kernels, and an operation that has none
    warns. The generators of torch are put back too.
    """
    if device.type == "cuda":
        # cuBLAS reads it when the first handle is made, and is not deterministic without.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # A module with a property: mypy cannot see it.
    fill: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        fill.fill_uninitialized_memory,
        torch.backends.cudnn.benchmark,
        torch.get_num_threads(),
    )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
            fill.fill_uninitialized_memory = False
            torch.backends.cudnn.benchmark = False
            if num_threads is not None:
                torch.set_num_threads(num_threads)
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            fill.fill_uninitialized_memory = before[2]
            torch.backends.cudnn.benchmark = before[3]
            torch.set_num_threads(before[4])
