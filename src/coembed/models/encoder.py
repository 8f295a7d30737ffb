"""Encoder: raw images, texts and sounds in, embeddings out. The one that evaluation, bulk embedding
and search all use.
"""

from __future__ import annotations

import math
import os
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coembed.errors import ConfigError, DataError, ModelError
from coembed.files import sha256_json
from coembed.models.checkpoint import load_model, read_card
from coembed.models.joint import JointModel
from coembed.models.spec import ModelSpec

Precision = Literal["fp32", "bf16"]
Embeddings = NDArray[np.float32]

# Batches that are decoded while one goes through the tower.
_AHEAD = 2
# Of a batch as it was loaded: up to four of them are at hand, and one in floats.
_MAX_BATCH_BYTES = 128 << 20
# Texts are cut to the longest of their batch, rounded up to this, for fewer distinct shapes.
_LENGTH_MULTIPLE = 8
# In bulk a thread loads so many items at a time: little enough to spread, enough not to wait.
_LOAD_TOGETHER = 8
# On a processor so many are brought to floats at a time, in its cache.
_CONVERT_TOGETHER = 4
_PLACE = re.compile(r"^\w+ \d+: ")

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Embedded(Generic[K]):
    """What bulk encoding gives at a time: vectors [len(keys), embed_dim] of the items with those
    keys, and what could not be decoded since, with the reason."""

    keys: tuple[K, ...]
    vectors: Embeddings
    unreadable: tuple[tuple[K, str], ...]


@dataclass(frozen=True, slots=True)
class _Batch(Generic[K]):
    """Loaded items of one shape. Rows behind those of `keys` are padding."""

    keys: tuple[K, ...]
    loaded: Tensor | None
    unreadable: tuple[tuple[K, str], ...]


class _Room:
    """Memory for the inputs of one batch after another: a processor's allocator would map it anew
    each time, which takes as long as filling it."""

    def __init__(self) -> None:
        self._inputs: Tensor | None = None
        self._shape: tuple[int, ...] = ()

    def fill(self, batch: Tensor, to_inputs: Callable[[Tensor], Tensor]) -> Tensor:
        """What `to_inputs`, which treats items one by one, makes of `batch`."""
        if self._inputs is None or self._shape != tuple(batch.shape):
            self._inputs, self._shape = to_inputs(batch), tuple(batch.shape)
            return self._inputs
        for start in range(0, len(batch), _CONVERT_TOGETHER):
            few = slice(start, start + _CONVERT_TOGETHER)
            self._inputs[few] = to_inputs(batch[few])
        return self._inputs


class Encoder:
    """A model and everything that turns raw items into its inputs.

    What an item's embedding is does not depend on what is encoded beside it (to 1e-5 in fp32).

    spec: the model's description. embed_dim: length of an embedding. fingerprint: 64 hex digits
    over the weights, the architecture, the preprocessing, the vocabulary and the precision: two
    encoders with one fingerprint share one embedding space. logit_scale: what the loss multiplied
    cosines by, not its log. logit_bias: what it added to that, None where the model has none.
    """

    def __init__(
        self,
        model: JointModel,
        spec: ModelSpec,
        *,
        weights_sha256: str,
        device: str = "cpu",
        precision: Precision = "fp32",
        batch_size: int = 256,
        num_threads: int | None = None,
    ) -> None:
        if precision not in get_args(Precision):
            raise ConfigError(
                f"precision is {precision!r}; expected one of {', '.join(get_args(Precision))}"
            )
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; expected 1 or more")
        self.spec = spec
        self.embed_dim = spec.embed_dim
        self.logit_scale = math.exp(float(model.logit_scale.detach()))
        bias = model.logit_bias
        self.logit_bias = None if bias is None else float(bias.detach())
        self.device = torch.device(device)
        self._model = model.eval().to(self.device)
        self._precision, self._batch_size = precision, batch_size
        self._num_threads = num_threads or _num_cores()
        self._loaders = {modality: spec.loader(modality) for modality in spec.inputs}
        self.fingerprint = sha256_json(
            {
                "weights": weights_sha256,
                "model": spec.to_json(),
                "loaders": {name: dict(one.identity()) for name, one in self._loaders.items()},
                "precision": precision,
            }
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """What can be encoded."""
        return tuple(self._loaders)

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """Unit embeddings [len(texts), embed_dim]."""
        return self.encode("text", texts)

    def encode_images(self, images: Sequence[bytes]) -> Embeddings:
        """Unit embeddings [len(images), embed_dim] of encoded images (JPEG, PNG, WebP, ...).

        Raises DataError naming the place of the first one that cannot be decoded.
        """
        return self.encode("image", images)

    def encode_sounds(self, sounds: Sequence[bytes]) -> Embeddings:
        """Unit embeddings [len(sounds), embed_dim] of encoded sounds (WAV, FLAC, Ogg, MP3, ...) of
        any length.

        Raises DataError naming the place of the first one that cannot be decoded.
        """
        return self.encode("audio", sounds)

    def encode(self, modality: str, items: Sequence[Any]) -> Embeddings:
        """Unit embeddings [len(items), embed_dim]. Raises DataError, and ModelError where the
        model has no such tower.
        """
        parts = list(self.stream(modality, items))
        if not parts:
            return np.empty((0, self.embed_dim), dtype=np.float32)
        return np.concatenate(parts)

    def stream(self, modality: str, items: Iterable[Any]) -> Iterator[Embeddings]:
        """Embeddings of a long run of items, a batch at a time and in order: [batch, embed_dim].

        Threads decode the next batches while one goes through the tower; `items` is read no
        further ahead than that.
        """
        if modality not in self._loaders:
            raise ModelError(f"the model encodes {' and '.join(self.modalities)}, not {modality}")
        batch_size = self._num_at_once(modality)
        source = iter(items)
        pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix=f"load-{modality}")
        waiting: deque[list[Future[Tensor]]] = deque()
        first = 0
        try:
            while True:
                while len(waiting) <= _AHEAD:
                    batch = list(islice(source, batch_size))
                    if not batch:
                        break
                    waiting.append(self._submit(pool, modality, batch, first))
                    first += len(batch)
                if not waiting:
                    return
                loaded = [part.result() for part in waiting.popleft()]
                yield self._forward(modality, self._loaders[modality].join(loaded))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def bulk(
        self,
        modality: str,
        keys: Iterable[K],
        fetch: Callable[[K], Any],
        *,
        batch_size: int | None = None,
    ) -> Generator[Embedded[K], None, None]:
        """Embeddings of very many items, a batch at a time, each item once and in any order.

        An item is loaded as `fetch(key)` in one of the threads that also decode it; one that cannot
        be decoded is named and stops nothing. Items that cost alike (sounds of as many windows,
        texts of about one length) make up a batch, and every batch of a kind has one and the same
        shape: the last is padded. So the bits of an embedding do not depend on what is encoded
        beside it, as far as the kernels of the device go; who relies on that has to check it.
        """
        if modality not in self._loaders:
            raise ModelError(f"the model encodes {' and '.join(self.modalities)}, not {modality}")
        wanted = batch_size or self._batch_size
        pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix=f"load-{modality}")
        packer = ThreadPoolExecutor(1, thread_name_prefix=f"pack-{modality}")
        batches = self._pack(pool, modality, iter(keys), fetch, wanted)
        try:
            coming = packer.submit(next, batches, None)
            running: tuple[_Batch[K], Tensor | None] | None = None
            room = _Room()
            while (batch := coming.result()) is not None:
                coming = packer.submit(next, batches, None)
                # A GPU works on while the results before these are fetched.
                started = self._start(modality, batch.loaded, room)
                if running is not None:
                    yield self._fetched(*running)
                running = batch, started
            if running is not None:
                yield self._fetched(*running)
        finally:
            packer.shutdown(wait=True, cancel_futures=True)
            batches.close()
            pool.shutdown(wait=True, cancel_futures=True)

    def _pack(
        self,
        pool: ThreadPoolExecutor,
        modality: str,
        keys: Iterator[K],
        fetch: Callable[[K], Any],
        batch_size: int,
    ) -> Generator[_Batch[K], None, None]:
        """Loaded items, put together by shape into batches of one size a shape."""
        loader = self._loaders[modality]
        usual = loader.example().numel()
        # Of the largest items no more are decoded ahead than fill the memory set aside for a batch.
        ahead = _AHEAD * min(batch_size, self._num_at_once(modality))

        def load(few: list[K]) -> list[tuple[K, Tensor | str]]:
            return [(key, self._load_one(modality, fetch(key))) for key in few]

        def size(item: Tensor) -> int:
            by_cost = batch_size * usual // max(usual, item.numel())
            return max(1, min(by_cost, _MAX_BATCH_BYTES // max(1, item.nbytes)))

        def packed(group: list[tuple[K, Tensor]], rows: int) -> _Batch[K]:
            parts = [item for _, item in group]
            parts += [parts[place % len(parts)] for place in range(rows - len(parts))]
            loaded = loader.join(parts)
            if self.device.type == "cuda":
                loaded = loaded.pin_memory()
            lost, unreadable[:] = tuple(unreadable), []
            return _Batch(tuple(key for key, _ in group), loaded, lost)

        waiting: deque[Future[list[tuple[K, Tensor | str]]]] = deque()
        groups: dict[tuple[int, ...], list[tuple[K, Tensor]]] = {}
        unreadable: list[tuple[K, str]] = []
        while True:
            while len(waiting) * _LOAD_TOGETHER < max(ahead, self._num_threads):
                few = list(islice(keys, _LOAD_TOGETHER))
                if not few:
                    break
                waiting.append(pool.submit(load, few))
            if not waiting:
                break
            for key, item in waiting.popleft().result():
                if isinstance(item, str):
                    unreadable.append((key, item))
                    continue
                group = groups.setdefault(tuple(item.shape[1:]), [])
                group.append((key, item))
                if len(group) == size(item):
                    yield packed(group, len(group))
                    group.clear()
        for shape in sorted(groups):
            if group := groups[shape]:
                yield packed(group, size(group[0][1]))
        if unreadable:
            yield _Batch((), None, tuple(unreadable))

    def _load_one(self, modality: str, item: Any) -> Tensor | str:
        """An item as the tower takes it up to `to_inputs`, or why it cannot be decoded."""
        try:
            loaded = self._loaders[modality].load([item])
        except DataError as error:
            return _PLACE.sub("", error.message)  # it was alone: "image 0: " says nothing
        return self._model.trim(modality, loaded, multiple=_LENGTH_MULTIPLE)

    def _fetched(self, batch: _Batch[K], embeddings: Tensor | None) -> Embedded[K]:
        if embeddings is None:
            vectors: Embeddings = np.empty((0, self.embed_dim), dtype=np.float32)
        else:
            vectors = embeddings.cpu().numpy()[: len(batch.keys)]
        return Embedded(batch.keys, vectors, batch.unreadable)

    def warm(self, modality: str) -> None:
        """Go through a tower once: the first time sets up threads and memory."""
        self._forward(modality, self._loaders[modality].example())

    def _num_at_once(self, modality: str) -> int:
        """Items in a batch: fewer than asked for where they would fill the memory (long sounds)."""
        most = _MAX_BATCH_BYTES // self._loaders[modality].max_item_bytes()
        return max(1, min(self._batch_size, most))

    def _submit(
        self, pool: ThreadPoolExecutor, modality: str, batch: list[Any], first: int
    ) -> list[Future[Tensor]]:
        """Load a batch in as many parts as there are threads."""
        load = self._loaders[modality].load
        size = -(-len(batch) // self._num_threads)
        return [
            pool.submit(load, batch[start : start + size], first=first + start)
            for start in range(0, len(batch), size)
        ]

    def _forward(self, modality: str, batch: Tensor) -> Embeddings:
        batch = self._model.trim(modality, batch, multiple=_LENGTH_MULTIPLE)
        embeddings = self._start(modality, batch)
        assert embeddings is not None
        result: Embeddings = embeddings.cpu().numpy()
        return result

    def _start(
        self, modality: str, batch: Tensor | None, room: _Room | None = None
    ) -> Tensor | None:
        """The embeddings of a batch, on the device; a GPU may still be at work on them."""
        if batch is None:
            return None
        batch = batch.to(self.device, non_blocking=True)
        to_inputs = self._loaders[modality].to_inputs
        with (
            torch.inference_mode(),
            torch.autocast(
                self.device.type, dtype=torch.bfloat16, enabled=self._precision == "bf16"
            ),
        ):
            if room is None or self.device.type != "cpu":
                inputs = to_inputs(batch)
            else:
                inputs = room.fill(batch, to_inputs)
            return self._model.embed(modality, inputs).float()


def load_encoder(
    folder: Path,
    *,
    device: str = "auto",
    precision: Precision = "fp32",
    batch_size: int = 256,
    num_threads: int | None = None,
) -> Encoder:
    """The encoder of a model directory.

    `device` auto takes CUDA where there is one. `num_threads` decode; None takes one a core.
    Raises ModelError (a missing or damaged model) and ConfigError (a device that is not there).
    """
    chosen = choose_device(device)
    card = read_card(folder)
    model, spec = load_model(folder)
    return Encoder(
        model,
        spec,
        weights_sha256=card.weights_sha256,
        device=chosen,
        precision=precision,
        batch_size=batch_size,
        num_threads=num_threads,
    )


def choose_device(device: str) -> str:
    """A device's name: auto is cuda where there is one, else cpu. Raises ConfigError."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device is {device!r}; expected auto, cpu, cuda or mps")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but this machine has no CUDA device", hint="use auto")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device is mps, but this machine has none", hint="use auto")
    return device


def _num_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
