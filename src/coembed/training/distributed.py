"""The processes of a run, and what they tell one another.

With R processes a step is still one step over the whole batch. Its rows are a pure function of the
step, whatever R is; process r takes its contiguous share of them, embeds these, gathers everyone's
embeddings, computes the loss of its own rows against all (so no process ever holds the full matrix
of similarities), and the gradients of shares add up to the whole's:

    za, zb   = world.gather(mine)                       [B, dim] each, without gradients
    loss     = Loss(za, zb, share=world.share(B))       its own rows' part of the mean
    dza, dzb = d loss / d za, d loss / d zb             [B, dim]: a share moves everyone's rows
    world.sum_([dza, dzb])                              now d (whole loss) / d za, d zb
    backward of the own rows of dza, dzb through the towers
    world.sum_(gradients of the parameters)

so the update is one process's, up to the order of sums. It is not torch's DistributedDataParallel,
whose hooks expect one backward pass in which every parameter takes part, and average: gradient
caching makes two passes in micro-batches, a step of one modality leaves the others' towers out, and
these gradients are shares, to be summed. What that costs is the overlap of the reduction with the
backward pass: it happens once a step, in buckets, after the last micro-batch.

Decisions are either functions of numbers that all processes hold alike (the summed loss, the norm
of summed gradients: a NaN is everyone's), or rank 0's (`World.same`), because a process that goes
another way than the rest leaves them waiting.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from coembed.errors import ConfigError, ServiceError

LAUNCH_ID: Final = "coembed-train"
"""TORCHELASTIC_RUN_ID of the processes that `coembed train` started itself (launch.py)."""

_BUCKET_BYTES = 25_000_000  # as DistributedDataParallel's bucket_cap_mb
# How long the others wait for one that is busy alone, decoding into its machine's cache (a guess).
# It is not what notices a dead process: its connections close, and torchrun ends the others.
_PATIENCE = timedelta(hours=6)
_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


class LostTouchError(ServiceError):
    """Another process of the run is gone."""


@dataclass(frozen=True, slots=True)
class Place:
    """This process's place among those that torchrun started.

    rank, size: among all processes. local_rank, local_size: among those of this machine.
    divide_threads: torch's choice of threads is for one process on this machine, so each takes its
        part of it; not where OMP_NUM_THREADS says how many.
    launched: `coembed train` itself started torchrun, and shows the errors of its processes.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    divide_threads: bool
    launched: bool


def torchrun_place(environ: Mapping[str, str]) -> Place | None:
    """The place that torchrun's variables in `environ` give this process; None without them.

    Raises ConfigError where some are missing or not numbers.
    """
    if "RANK" not in environ or "WORLD_SIZE" not in environ:
        return None
    found = {name: environ.get(name, "") for name in _NAMES}
    if not all(value.isdecimal() for value in found.values()):
        said = ", ".join(f"{name}={value!r}" for name, value in found.items())
        raise ConfigError(
            f"{said}: torchrun sets all four to numbers",
            hint="start the processes with torchrun, or unset RANK and WORLD_SIZE",
        )
    rank, size, local_rank, local_size = (int(value) for value in found.values())
    return Place(
        rank, size, local_rank, local_size,
        divide_threads="OMP_NUM_THREADS" not in environ,
        launched=environ.get("TORCHELASTIC_RUN_ID") == LAUNCH_ID,
    )  # fmt: skip


def own_device(place: Place | None, device: torch.device) -> torch.device:
    """The device of this process: on CUDA the one of its local rank. Raises ConfigError."""
    if place is None or device.type != "cuda":
        return device
    num = torch.cuda.device_count()
    if place.local_rank >= num:
        raise ConfigError(
            f"{place.local_size} training processes were started on this machine, which has {num} "
            "CUDA devices",
            hint=f"set train.distributed.num_processes to {num} or less, or train.device to cpu",
        )
    return torch.device("cuda", place.local_rank)


class World:
    """All processes of a run. This one is the world of a single process.

    is_group: whether they are torch's process group, which torchrun makes of a single one too.
    """

    rank: int = 0
    size: int = 1
    is_group: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def share(self, num: int) -> tuple[int, int]:
        """This process's part [first, last) of a batch's `num` rows.

        Raises ConfigError where `num` is no multiple of `size`.
        """
        each, over = divmod(num, self.size)
        if over:
            raise ConfigError(
                f"a batch of {num} does not divide among {self.size} processes",
                hint=f"set train.batch_size to {num - over or self.size} or another multiple of "
                f"{self.size}",
            )
        return self.rank * each, (self.rank + 1) * each

    def gather(self, values: Tensor) -> Tensor:
        """The values [rows, ...] of all processes in order of rank, [size * rows, ...], without
        gradients. Every process gives equally many rows of one dtype, on the world's device.
        """
        return values.detach()

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, the same bits in each of them.

        All processes give tensors of the same shapes, dtypes and devices in the same order.
        """

    def max_over_ranks(self, value: float) -> float:
        """The largest of all processes' values."""
        return value

    def same(self, value: Any) -> Any:
        """Rank 0's value, in every process: for decisions that a clock or a file takes part in.

        `value` is plain JSON, because nothing is unpickled; floats keep every digit.
        """
        return value

    def barrier(self) -> None:
        """Wait for all processes."""


class _Processes(World):
    """The world of processes that torchrun started, over torch's default process group."""

    is_group = True

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._device = device

    def gather(self, values: Tensor) -> Tensor:
        mine = values.detach().contiguous()
        whole = mine.new_empty((self.size, *mine.shape))
        with _touch():
            dist.all_gather(list(whole.unbind()), mine)
        return whole.flatten(0, 1)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        for bucket in _buckets([tensor.detach() for tensor in tensors]):
            if len(bucket) == 1 and bucket[0].is_contiguous():
                self._all_reduce(bucket[0])
                continue
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            self._all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))

    def max_over_ranks(self, value: float) -> float:
        # On the CPU, as is everything below: gloo carries it, and no GPU has to come to rest first.
        largest = torch.tensor(value, dtype=torch.float64)
        self._all_reduce(largest, dist.ReduceOp.MAX)
        return float(largest)

    def same(self, value: Any) -> Any:
        said = json.dumps(value).encode() if self.is_main else b""
        length = torch.tensor(len(said))
        with _touch():
            dist.broadcast(length, src=0)
            if self.is_main:
                text = torch.frombuffer(bytearray(said), dtype=torch.uint8)
            else:
                text = torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(text, src=0)
        return json.loads(text.numpy().tobytes())

    def barrier(self) -> None:
        self._all_reduce(torch.zeros(()))

    @staticmethod
    def _all_reduce(tensor: Tensor, how: Any = dist.ReduceOp.SUM) -> None:
        with _touch():
            dist.all_reduce(tensor, how)


@contextmanager
def open_world(place: Place | None, device: torch.device) -> Iterator[World]:
    """The world of this process until the block ends; `device` is `own_device`'s.

    torch itself reads the address of the others from the environment that torchrun made. Between
    processes of one machine everything stays on its loopback interface. Tensors on a CPU travel by
    gloo, those on a GPU by NCCL.
    """
    if place is None:
        yield World()
        return
    if place.local_size == place.size:
        _stay_on_loopback()
    if place.divide_threads:
        torch.set_num_threads(max(1, torch.get_num_threads() // place.local_size))
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=_PATIENCE)
    else:
        dist.init_process_group("gloo", timeout=_PATIENCE)
    # Not in a `finally`: after an error NCCL would wait here for processes that may not come, and
    # this process is about to end, which the others notice.
    yield _Processes(device)
    dist.destroy_process_group()


def average_statistics(model: nn.Module, world: World) -> None:
    """Bring the running statistics of batch norms to their mean over all processes.

    Each process has normalised its own rows by their own statistics, as every micro-batch is, and
    so keeps running means of its own; a checkpoint holds one. The mean of equally large shares'
    means is the batch's. Other buffers are constants.
    """
    if world.size == 1:
        return
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    running = [
        statistic
        for module in model.modules()
        if isinstance(module, norms) and module.training
        for statistic in (module.running_mean, module.running_var)
        if statistic is not None
    ]
    world.sum_(running)
    for statistic in running:
        statistic /= world.size


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of neighbours of one device and dtype, of about 25 MB; the order is kept."""
    for _, alike in groupby(tensors, key=lambda tensor: (tensor.device, tensor.dtype)):
        bucket: list[Tensor] = []
        size = 0
        for tensor in alike:
            if bucket and size + tensor.nbytes > _BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
            bucket.append(tensor)
            size += tensor.nbytes
        yield bucket


@contextmanager
def _touch() -> Iterator[None]:
    """Say what it means when another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise LostTouchError(
            f"this process lost touch with the others of its run: {str(error).splitlines()[0]}",
            hint="another one has ended; its own message says why",
        ) from error


def _stay_on_loopback() -> None:
    """Have gloo and NCCL open their sockets on the loopback interface, unless told otherwise."""
    loopback = {"lo", "lo0"} & {name for _, name in socket.if_nameindex()}
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        for name in loopback:
            os.environ.setdefault(variable, name)
