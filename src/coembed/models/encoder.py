"""Encoder: raw images, texts and sounds in, embeddings out. The one that evaluation, bulk embedding
and search all use.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coembed.errors import ConfigError, ModelError
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
        batch = batch.to(self.device, non_blocking=True)
        with (
            torch.inference_mode(),
            torch.autocast(
                self.device.type, dtype=torch.bfloat16, enabled=self._precision == "bf16"
            ),
        ):
            inputs = self._loaders[modality].to_inputs(batch)
            embeddings = self._model.embed(modality, inputs).float().cpu()
        result: Embeddings = embeddings.numpy()
        return result


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
