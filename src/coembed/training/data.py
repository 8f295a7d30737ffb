"""Batches: which pairs a step sees, in which caption and crop, made ahead of time by one thread."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from queue import Full, Queue

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from coembed.errors import ConfigError
from coembed.training import draws
from coembed.training.cache import CachedSplit
from coembed.training.settings import AugmentSettings, TrainSettings

_DEPTH = 2  # batches made ahead; more only costs memory, the maker is faster than the model


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step sees.

    images: uint8 [batch, px, px, 3]; tokens: int64 [batch, context_length]; positives: bool
    [batch, batch], True at (i, j) where caption j also describes item i, None where none does;
    rows: the items' places in the split, [batch].
    """

    step: int
    epoch: int
    images: Tensor
    tokens: Tensor
    positives: Tensor | None
    rows: NDArray[np.int64]


class Batches:
    """Batches of a split by step: `make(step)` is a pure function of (seed, step)."""

    def __init__(
        self, split: CachedSplit, settings: TrainSettings, *, px: int, seed: int, pin: bool = False
    ) -> None:
        if settings.batch_size > len(split):
            raise ConfigError(
                f"train.batch_size is {settings.batch_size}, but the train split holds only "
                f"{len(split)} items",
                hint=f"set train.batch_size to {len(split)} or less, or bring more pairs",
            )
        self.item_ids = split.item_ids
        self.steps_per_epoch = len(split) // settings.batch_size
        self.num_steps = settings.steps or (settings.epochs or 0) * self.steps_per_epoch
        self._split, self._settings, self._px, self._seed, self._pin = (
            split, settings, px, seed, pin,
        )  # fmt: skip
        self._keys = draws.sample_keys(split.item_ids)
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def make(self, step: int) -> Batch:
        """The batch of `step` (from 0)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        size = self._settings.batch_size
        rows = self._epoch_order(epoch)[place * size : (place + 1) * size]
        keys = self._keys[rows]
        captions = choose_captions(self._split, rows, keys, seed=self._seed, epoch=epoch)
        images = crop_images(
            self._split.images, rows, keys, self._settings.augment,
            px=self._px, seed=self._seed, epoch=epoch,
        )  # fmt: skip
        return Batch(
            step=step,
            epoch=epoch,
            images=self._to_tensor(images),
            tokens=self._to_tensor(self._split.tokens[captions]),
            positives=find_positives(self._split, rows, captions),
            rows=rows,
        )

    def ahead(self, start: int) -> Generator[Batch, None, None]:
        """The batches from step `start` to the last, made ahead by one thread."""
        return prefetch(self.make, range(start, self.num_steps))

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, draws.order(self._seed, epoch, self._keys))
        return self._order[1]

    def _to_tensor(self, array: NDArray[np.uint8] | NDArray[np.int64]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self._pin else tensor


def cache_side(px: int, augment: AugmentSettings) -> int:
    """Side in which images are kept, so that crops of average area are seen at about `px`."""
    return math.ceil(px * (1 + (1 - augment.crop_area) / 2))


def choose_captions(
    split: CachedSplit,
    rows: NDArray[np.int64],
    keys: draws.Keys,
    *,
    seed: int,
    epoch: int,
) -> NDArray[np.int64]:
    """The caption of each item in this epoch, as a row of `split.tokens`, [len(rows)]."""
    first = split.offsets[rows]
    count = split.offsets[rows + 1] - first
    return split.caption_ids[first + draws.below(seed, "caption", epoch, keys, count)]


def crop_images(
    images: NDArray[np.uint8],
    rows: NDArray[np.int64],
    keys: draws.Keys,
    augment: AugmentSettings,
    *,
    px: int,
    seed: int,
    epoch: int,
) -> NDArray[np.uint8]:
    """Cut a random square out of each image and bring it to `px`; perhaps mirror and dim it.

    `images` is uint8 [num_items, side, side, 3]; returns uint8 [len(rows), px, px, 3]. The square's
    area is uniform between `augment.crop_area` and 1 of the image's, its place uniform.
    """
    side = images.shape[1]
    area = 1 - (1 - augment.crop_area) * draws.uniform(seed, "area", epoch, keys)
    window = np.rint(side * np.sqrt(area)).astype(np.int64)
    top = draws.below(seed, "top", epoch, keys, side - window + 1)
    left = draws.below(seed, "left", epoch, keys, side - window + 1)
    flip = draws.uniform(seed, "flip", epoch, keys) < (0.5 if augment.flip else 0.0)
    spread = 2 * draws.uniform(seed, "brightness", epoch, keys) - 1
    out = np.empty((len(rows), px, px, 3), dtype=np.uint8)
    for i, row in enumerate(rows):
        square = images[row, top[i] : top[i] + window[i], left[i] : left[i] + window[i]]
        out[i] = square if window[i] == px else _resize(square, px)
        if flip[i]:
            out[i] = out[i, :, ::-1].copy()
    if augment.brightness:
        factor = (1 + augment.brightness * spread).astype(np.float32)[:, None, None, None]
        np.clip(np.rint(out * factor), 0, 255, out=out, casting="unsafe")
    return out


def _resize(square: NDArray[np.uint8], px: int) -> NDArray[np.uint8]:
    """Antialiased bilinear resize of uint8 [side, side, 3] to [px, px, 3]."""
    tensor = torch.from_numpy(square.copy()).permute(2, 0, 1)[None]
    resized = F.interpolate(tensor, size=(px, px), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def find_positives(
    split: CachedSplit, rows: NDArray[np.int64], captions: NDArray[np.int64]
) -> Tensor | None:
    """bool [batch, batch], True at (i, j) where caption j is one of item i's captions.

    None where that holds on the diagonal only. Such pairs are no negatives of one another.
    """
    first, last = split.offsets[rows], split.offsets[rows + 1]
    owner = np.repeat(np.arange(len(rows)), last - first)
    steps = np.arange(len(owner)) - np.repeat(
        np.cumsum(last - first) - (last - first), last - first
    )
    owned = split.caption_ids[first[owner] + steps]
    # Look up every owned caption among the batch's chosen ones, which are sorted for it.
    by_caption = np.argsort(captions, kind="stable")
    low = np.searchsorted(captions, owned, side="left", sorter=by_caption)
    high = np.searchsorted(captions, owned, side="right", sorter=by_caption)
    if int((high - low).sum()) == len(rows):
        return None
    mask = np.zeros((len(rows), len(rows)), dtype=bool)
    for entry in np.flatnonzero(high > low):
        mask[owner[entry], by_caption[low[entry] : high[entry]]] = True
    return torch.from_numpy(mask)


def prefetch(make: Callable[[int], Batch], steps: Iterable[int]) -> Generator[Batch, None, None]:
    """Yield `make(step)` for every step, made ahead of time in order by one thread.

    An error of `make` is raised here. Closing the iterator ends the thread.
    """
    ready: Queue[Batch | BaseException | None] = Queue(maxsize=_DEPTH)
    stop = threading.Event()

    def put(value: Batch | BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put(value, timeout=0.1)
            except Full:
                continue
            return

    def work() -> None:
        try:
            for step in steps:
                put(make(step))
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:  # whatever it is, the loop has to hear of it
            put(error)

    thread = threading.Thread(target=work, name="coembed-batches", daemon=True)
    thread.start()
    try:
        while (value := ready.get()) is not None:
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        stop.set()
        thread.join()
