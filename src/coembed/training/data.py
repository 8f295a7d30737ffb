"""Batches: which pairs a step sees, in which caption and crop, made ahead of time by one thread.

A step's plan says which pairs, and is the same in every process. Its micro-batches hold the media
and captions themselves, of this process's rows only, and are made when they are needed: with
gradient caching twice.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from queue import Full, Queue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coembed import draws
from coembed.errors import ConfigError
from coembed.training.items import Items, Rows
from coembed.training.media import Media
from coembed.training.mix import schedule, shares_of_steps, steps_per_epoch
from coembed.training.settings import TrainSettings
from coembed.types import Modality

_DEPTH = 2  # micro-batches made ahead; more only costs memory, the maker is faster than the model


@dataclass(frozen=True, slots=True)
class Stream:
    """One modality's pairs.

    `texts` are the embeddings of the captions, float32 [num_captions, dim], where the text tower
    never learns. `teacher` holds a teacher's embeddings of items and captions.
    """

    items: Items
    media: Media
    texts: NDArray[np.float32] | None = None
    teacher: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The pairs of one step.

    modality: of the items. rows: the items' places in the stream, [batch]; captions: each one's
    caption as a row of the stream's tokens, [batch]; negatives: hard negative captions, likewise,
    [num_negatives], owned by the batch's items number `owners`, ascending. positives: int64
    [entries, 2] as `losses.base.Loss` takes them, None where there are none.
    """

    step: int
    epoch: int
    modality: Modality
    rows: Rows
    captions: Rows
    negatives: Rows
    owners: Rows
    positives: Tensor | None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The pairs [first, last) of a plan.

    media: as the modality's Loader gives them, or embeddings. texts: tokens int64, or embeddings,
    [last - first + its hard negatives, ...].
    """

    plan: Plan
    first: int
    last: int
    media: Tensor
    texts: Tensor


class Batches:
    """Plans and micro-batches by step: pure functions of (seed, step)."""

    def __init__(
        self,
        streams: Sequence[Stream],
        settings: TrainSettings,
        *,
        seed: int,
        num_processes: int = 1,
        pin: bool = False,
    ) -> None:
        self.streams = {stream.items.modality: stream for stream in streams}
        self._seed, self._pin = seed, pin
        self._sizes = {
            modality: _batch_size(stream.items, settings, num_processes, alone=len(streams) == 1)
            for modality, stream in self.streams.items()
        }
        passes = {m: len(s.items) // self._sizes[m] for m, s in self.streams.items()}
        shares = shares_of_steps(passes, settings.mix)
        self.steps_per_epoch = steps_per_epoch(passes, shares)
        self.num_steps = settings.steps or (settings.epochs or 0) * self.steps_per_epoch
        self._passes = passes
        self._names = tuple(self.streams)
        self._schedule = schedule(tuple(shares.values()), self.num_steps)
        self._keys = {m: s.items.keys for m, s in self.streams.items()}
        self._orders: dict[Modality, tuple[int, Rows]] = {}
        # A step's number among those of its own stream.
        self._turns = np.empty(self.num_steps, np.int64)
        for number in range(len(self._names)):
            mine = self._schedule == number
            self._turns[mine] = np.arange(int(mine.sum()))
        self._each = settings.micro_batch_size

    @property
    def num_items(self) -> dict[Modality, int]:
        """Items by modality."""
        return {modality: len(stream.items) for modality, stream in self.streams.items()}

    @property
    def largest_batch(self) -> int:
        """Pairs of the largest step."""
        return max(self._sizes.values())

    def num_pairs(self, first: int, last: int) -> int:
        """Pairs that the steps [first, last) see."""
        counts = np.bincount(self._schedule[first:last], minlength=len(self._names))
        return sum(int(n) * self._sizes[m] for n, m in zip(counts, self._names, strict=True))

    def plan(self, step: int) -> Plan:
        """The pairs of `step` (from 0)."""
        modality = self._names[self._schedule[step]]
        items, size = self.streams[modality].items, self._sizes[modality]
        epoch, place = divmod(int(self._turns[step]), self._passes[modality])
        rows = self._order(modality, epoch)[place * size : (place + 1) * size]
        keys = self._keys[modality][rows]
        captions = choose_captions(items, rows, keys, seed=self._seed, epoch=epoch)
        found = np.asarray(items.negatives[rows])
        owners = np.flatnonzero(found >= 0)
        negatives = found[owners]
        return Plan(
            step=step,
            epoch=epoch,
            modality=items.modality,
            rows=rows,
            captions=captions,
            negatives=negatives,
            owners=owners,
            positives=find_positives(items, rows, np.concatenate([captions, negatives])),
        )

    def micro_batch(self, plan: Plan, first: int, last: int) -> MicroBatch:
        """The pairs [first, last) of `plan`, decoded and tokenised."""
        stream = self.streams[plan.modality]
        rows = plan.rows[first:last]
        keys = self._keys[plan.modality][rows]
        media = stream.media.fetch(rows, keys, seed=self._seed, epoch=plan.epoch)
        mine = (plan.owners >= first) & (plan.owners < last)
        wanted = np.concatenate([plan.captions[first:last], plan.negatives[mine]])
        texts: NDArray[Any]
        if stream.texts is not None:
            texts = stream.texts[wanted]
        else:
            texts = stream.items.tokens[wanted].astype(np.int64)
        return MicroBatch(plan, first, last, self._to_tensor(media), self._to_tensor(texts))

    def ahead(
        self, start: int, *, rank: int = 0, size: int = 1
    ) -> Generator[MicroBatch, None, None]:
        """The micro-batches of the steps from `start` to the last, made ahead by one thread.

        Those of process `rank` of `size`, in the order in which `Stepper` takes them: all of a
        step's, then all but the last a second time.
        """

        def wanted() -> Iterator[MicroBatch]:
            for step in range(start, self.num_steps):
                plan = self.plan(step)
                parts = self.parts(len(plan), rank=rank, size=size)
                for first, last in (*parts, *parts[:-1]):
                    yield self.micro_batch(plan, first, last)

        return prefetch(wanted())

    def parts(self, num: int, *, rank: int, size: int) -> list[tuple[int, int]]:
        """The micro-batches [first, last) of process `rank` in a step of `num` pairs."""
        mine = num // size
        start, each = rank * mine, self._each or mine
        return [(at, min(at + each, start + mine)) for at in range(start, start + mine, each)]

    def _order(self, modality: Modality, epoch: int) -> Rows:
        known = self._orders.get(modality)  # two threads come here: the loop's and the maker's
        if known is None or known[0] != epoch:
            known = epoch, draws.order(self._seed, epoch, self._keys[modality])
            self._orders[modality] = known
        return known[1]

    def _to_tensor(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.pin_memory() if self._pin else tensor


def _batch_size(items: Items, settings: TrainSettings, num_processes: int, *, alone: bool) -> int:
    """Pairs a step of this stream: of several, a small one has smaller batches."""
    size = settings.batch_size
    if size % num_processes:
        raise ConfigError(
            f"train.batch_size is {size}, which {num_processes} processes cannot share equally",
            hint=f"set it to a multiple of {num_processes}",
        )
    if len(items) >= size:
        return size
    # A divisor of the whole batch, so that it is the same for nearly any number of processes that
    # can share that one.
    largest = next(n for n in range(min(len(items), size), 0, -1) if size % n == 0)
    if alone or largest < 2 or largest % num_processes:
        raise ConfigError(
            f"train.batch_size is {size}, but the train split holds only {len(items)} "
            f"{items.modality} items",
            hint=f"set train.batch_size to {len(items) - len(items) % num_processes} or less, or "
            "bring more pairs",
        )
    return largest


def choose_captions(items: Items, rows: Rows, keys: draws.Keys, *, seed: int, epoch: int) -> Rows:
    """The caption of each item in this epoch, as a row of the tokens, [len(rows)]."""
    first = items.offsets[rows]
    count = items.offsets[rows + 1] - first
    chosen: Rows = items.caption_ids[first + draws.below(seed, "caption", epoch, keys, count)]
    return chosen


def find_positives(items: Items, rows: Rows, captions: Rows) -> Tensor | None:
    """The entries (i, j), i ≠ j, where caption j is one of item i's captions: int64 [entries, 2].

    `captions` are the items' own, [len(rows)], and hard negatives after them. None where there is
    no such entry.
    """
    first, last = items.offsets[rows], items.offsets[rows + 1]
    owner = np.repeat(np.arange(len(rows)), last - first)
    steps = np.arange(len(owner)) - np.repeat(
        np.cumsum(last - first) - (last - first), last - first
    )
    owned = items.caption_ids[first[owner] + steps]
    # Look up every owned caption among the batch's chosen ones, which are sorted for it.
    by_caption = np.argsort(captions, kind="stable")
    low = np.searchsorted(captions, owned, side="left", sorter=by_caption)
    high = np.searchsorted(captions, owned, side="right", sorter=by_caption)
    counts = high - low
    i = np.repeat(owner, counts)
    within = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)
    j = by_caption[np.repeat(low, counts) + within]
    entries = np.unique(np.stack([i, j], axis=1)[i != j], axis=0)
    return torch.from_numpy(entries) if len(entries) else None


def prefetch(batches: Iterable[MicroBatch]) -> Generator[MicroBatch, None, None]:
    """Yield `batches`, made ahead of time in order by one thread.

    An error in making them is raised here. Closing the iterator ends the thread.
    """
    ready: Queue[MicroBatch | BaseException | None] = Queue(maxsize=_DEPTH)
    stop = threading.Event()

    def put(value: MicroBatch | BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put(value, timeout=0.1)
            except Full:
                continue
            return

    def work() -> None:
        try:
            for batch in batches:
                put(batch)
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
