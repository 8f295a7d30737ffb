from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from training_runs import Run, settings_of

from coembed import draws
from coembed.errors import ConfigError
from coembed.training.data import (
    Batches,
    MicroBatch,
    Plan,
    Stream,
    choose_captions,
    find_positives,
    prefetch,
)
from coembed.training.items import Items
from coembed.training.media import Media
from coembed.types import Modality


class Numbers(Media):
    """Every item's media are its own row number and the epoch."""

    def fetch(self, rows: NDArray[np.int64], keys: draws.Keys, *, seed: int, epoch: int):
        del keys, seed
        return np.stack([rows, np.full(len(rows), epoch)], axis=1)


def items_of(
    captions: list[list[int]],
    *,
    negatives: list[int] | None = None,
    modality: Modality = "image",
) -> Items:
    """Items with these caption ids, and hard negatives where given (-1: none)."""
    num = max([c for own in captions for c in own] + (negatives or [])) + 1
    digests = np.zeros((len(captions), 32), np.uint8)
    digests[:, 4:8] = np.arange(len(captions), dtype=">u4").reshape(-1, 1).view(np.uint8)
    return Items(
        modality=modality,
        digests=digests,
        places=np.zeros((len(captions), 3), np.int64),
        tokens=np.arange(num * 4, dtype=np.int32).reshape(num, 4),
        offsets=np.cumsum([0, *map(len, captions)]),
        caption_ids=np.array([c for own in captions for c in own]),
        negatives=np.array(negatives or [-1] * len(captions)),
    )


def batches_of(*items: Items, num_processes: int = 1, **changes: object) -> Batches:
    streams = [Stream(each, Numbers()) for each in items]
    return Batches(streams, settings_of(**changes), seed=3, num_processes=num_processes)


def test_an_epoch_sees_every_item_once_in_an_order_of_its_own() -> None:
    batches = batches_of(items_of([[i] for i in range(22)]), batch_size=5, steps=8)
    assert batches.steps_per_epoch == 4 and batches.num_steps == 8
    epochs = [
        np.concatenate([batches.plan(step).rows for step in range(start, start + 4)])
        for start in (0, 4)
    ]
    for rows in epochs:
        assert len(set(rows.tolist())) == 20
    assert not np.array_equal(*epochs)


def test_a_batch_is_a_function_of_its_step_alone() -> None:
    items = items_of([[i, 30 + i] for i in range(22)])
    forwards, once = batches_of(items, steps=12), batches_of(items, steps=12)
    made = [forwards.plan(step) for step in range(12)]
    again = once.plan(7)
    assert np.array_equal(made[7].rows, again.rows)
    assert np.array_equal(made[7].captions, again.captions)


def test_epochs_count_steps() -> None:
    items = items_of([[i] for i in range(22)])
    assert batches_of(items, batch_size=5, steps=None, epochs=3).num_steps == 12


def test_refuses_a_batch_larger_than_the_split() -> None:
    with pytest.raises(ConfigError, match=r"batch_size is 23.*only 22 image items") as caught:
        batches_of(items_of([[i] for i in range(22)]), batch_size=23)
    assert "22 or less" in str(caught.value)


def test_refuses_a_batch_that_processes_cannot_share() -> None:
    with pytest.raises(ConfigError, match="8, which 3 processes cannot share"):
        batches_of(items_of([[i] for i in range(22)]), num_processes=3)


def test_processes_take_the_whole_batch_between_them() -> None:
    batches = batches_of(items_of([[i] for i in range(22)]), batch_size=8, micro_batch_size=3)
    parts = [batches.parts(8, rank=rank, size=2) for rank in (0, 1)]
    assert parts == [[(0, 3), (3, 4)], [(4, 7), (7, 8)]]
    assert batches.parts(8, rank=0, size=1) == [(0, 3), (3, 6), (6, 8)]


def test_micro_batches_come_twice_but_for_the_last() -> None:
    batches = batches_of(items_of([[i] for i in range(22)]), steps=2, micro_batch_size=3)
    seen = [(batch.plan.step, batch.first) for batch in batches.ahead(0)]
    assert seen == [(step, first) for step in (0, 1) for first in (0, 3, 6, 0, 3)]
    first, _, _, again, _ = list(batches.ahead(1))
    assert torch.equal(first.media, again.media) and torch.equal(first.texts, again.texts)


def test_a_micro_batch_is_its_part_of_the_batch() -> None:
    items = items_of([[i, 30 + i] for i in range(22)], negatives=[60 + i % 7 for i in range(22)])
    batches = batches_of(items)
    plan = batches.plan(3)
    whole, part = batches.micro_batch(plan, 0, 8), batches.micro_batch(plan, 3, 5)
    assert torch.equal(part.media, whole.media[3:5])
    assert torch.equal(part.texts, torch.cat([whole.texts[3:5], whole.texts[11:13]]))
    assert part.texts.dtype == torch.int64


def test_several_modalities_take_turns_by_their_share() -> None:
    pictures = items_of([[i] for i in range(60)])
    sounds = items_of([[i] for i in range(20)], modality="audio")
    batches = batches_of(pictures, sounds, batch_size=5, steps=64)
    assert batches.steps_per_epoch == 16
    plans = [batches.plan(step) for step in range(64)]
    for first in range(0, 64, 16):
        epoch = plans[first : first + 16]
        assert sum(plan.modality == "audio" for plan in epoch) == 4
        for modality, num in (("image", 60), ("audio", 20)):
            rows = [row for plan in epoch if plan.modality == modality for row in plan.rows]
            assert sorted(rows) == list(range(num))
    evenly = batches_of(pictures, sounds, batch_size=5, steps=64, mix={"image": 1, "audio": 1})
    found = [evenly.plan(step).modality for step in range(6)]
    assert found == ["image", "audio"] * 3
    assert evenly.steps_per_epoch == 24 and evenly.num_pairs(0, 64) == 320


def test_a_small_modality_has_smaller_batches() -> None:
    pictures = items_of([[i] for i in range(60)])
    sounds = items_of([[i] for i in range(7)], modality="audio")
    for num_processes in (1, 2, 4):
        batches = batches_of(pictures, sounds, batch_size=8, steps=8, num_processes=num_processes)
        sizes = {batches.plan(step).modality: len(batches.plan(step)) for step in range(8)}
        assert sizes == {"image": 8, "audio": 4} and batches.largest_batch == 8
    with pytest.raises(ConfigError, match="only 7 audio items"):
        batches_of(pictures, sounds, batch_size=8, num_processes=8)


def test_the_mix_names_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"train\.mix names audio; .* has pairs of image"):
        batches_of(items_of([[i] for i in range(20)]), mix={"audio": 1.0})


def test_captions_take_turns_over_the_epochs() -> None:
    items = items_of([[0, 1, 2], [3], [4, 5]])
    rows = np.array([2, 0, 1])
    seen: list[set[int]] = [set(), set(), set()]
    for epoch in range(40):
        chosen = choose_captions(items, rows, items.keys[rows], seed=1, epoch=epoch)
        for place, caption in enumerate(chosen):
            seen[place].add(int(caption))
    assert seen == [{4, 5}, {0, 1, 2}, {3}]


def test_keys_are_those_of_the_item_ids() -> None:
    items = items_of([[i] for i in range(9)])
    assert np.array_equal(items.keys, draws.sample_keys(items.item_ids(range(9))))


def test_positives_agree_with_looking_one_by_one() -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        captions = [rng.integers(0, 12, rng.integers(1, 4)).tolist() for _ in range(10)]
        items = items_of(captions)
        rows = rng.permutation(10)[:6]
        chosen = [*(rng.choice(captions[row]) for row in rows), *rng.integers(0, 12, 3)]
        expected = [
            [i, j]
            for i, row in enumerate(rows)
            for j, caption in enumerate(chosen)
            if i != j and caption in captions[row]
        ]
        found = find_positives(items, rows, np.array(chosen))
        assert ([] if found is None else found.tolist()) == expected


def test_positives_are_none_where_all_captions_differ() -> None:
    items = items_of([[0, 5], [1], [2]])
    assert find_positives(items, np.array([0, 1, 2]), np.array([0, 1, 2])) is None
    assert find_positives(items, np.array([0, 1, 2]), np.array([5, 1, 2])) is None


def test_batches_hold_what_the_model_takes(run: Run) -> None:
    _, spec = run.model()
    batches = run.batches(spec)
    batch = batches.micro_batch(batches.plan(0), 0, 8)
    assert batch.media.shape == (8, 32, 32, 3) and batch.media.dtype == torch.uint8
    assert batch.texts.shape == (8, 16) and batch.texts.dtype == torch.int64


def test_the_cache_and_the_shards_give_the_same_pictures(run: Run) -> None:
    _, spec = run.model()
    kinds = {"cache": {"mode": "decoded"}}, {"cache": {"mode": "shards", "num_threads": 3}}
    for step in (0, 7):
        first, second = (run.with_settings(steps=9, **kind).batches(spec) for kind in kinds)
        one = first.micro_batch(first.plan(step), 0, 8)
        other = second.micro_batch(second.plan(step), 0, 8)
        assert torch.equal(one.media, other.media) and torch.equal(one.texts, other.texts)


PLAN = Plan(0, 0, "image", *(np.zeros(0, np.int64),) * 4, None)  # type: ignore[arg-type]


def a_batch(step: int) -> MicroBatch:
    empty = torch.zeros(0)
    return MicroBatch(replace(PLAN, step=step), 0, 0, empty, empty)


def test_prefetch_keeps_the_order_and_ends() -> None:
    assert [b.plan.step for b in prefetch(map(a_batch, range(20)))] == list(range(20))


def test_prefetch_hands_over_the_error() -> None:
    def make(step: int) -> MicroBatch:
        if step == 3:
            raise ValueError("no such item")
        return a_batch(step)

    seen = []
    with pytest.raises(ValueError, match="no such item"):
        for batch in prefetch(map(make, range(9))):
            seen.append(batch.plan.step)  # noqa: PERF401 (the error comes in between)
    assert seen == [0, 1, 2]


def test_prefetch_stays_two_ahead_and_leaves_no_thread() -> None:
    made: list[int] = []

    def make(step: int) -> MicroBatch:
        made.append(step)
        return a_batch(step)

    ahead = prefetch(map(make, range(1000)))
    next(ahead)
    time.sleep(0.2)
    assert len(made) <= 4
    ahead.close()
    assert not [t for t in threading.enumerate() if t.name == "coembed-batches"]
