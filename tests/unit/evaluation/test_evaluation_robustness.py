"""Queries asked again with something worse: which, with what, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest

from coembed.evaluation.answered import Answered
from coembed.evaluation.retrieval import Outcomes, Positives
from coembed.evaluation.robustness import (
    Degraded,
    ask_again,
    choose_items,
    drop_figures,
    embed_corrupted,
)
from coembed.evaluation.statistics import Resamples

RESAMPLE = partial(Resamples, num=500, seed=1)


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def clean_task(num: int, recall: Sequence[float]) -> Answered:
    values = np.asarray(recall, dtype=np.float64)
    return Answered(
        "retrieval",
        "image_to_text",
        Outcomes("image_to_text", {"recall_at_1": values}, {"recall_at_1": np.full(num, 1 / num)}),
        queries=tuple(f"item {place}" for place in range(num)),
        items=np.arange(num) + 100,
        clusters=np.arange(num) + 100,
        labels={"colour": ["red"] * num},
    )


def asked_again(
    noise: float, queries: Sequence[int], *, num: int = 60, before: Sequence[float] | None = None
) -> Degraded:
    texts = unit(num, 16)
    chosen = np.asarray(queries, dtype=np.int64)
    worse = texts[chosen] + noise * unit(len(chosen), 16, seed=1)
    worse /= np.linalg.norm(worse, axis=1, keepdims=True)
    positives = Positives(np.arange(len(chosen) + 1), chosen)
    recall = {"recall_at_1": 1}
    clean = clean_task(num, before or [1] * num)
    return ask_again(clean, chosen, "blur_image_to_text", worse, texts, positives, recall)


def test_worse_queries_keep_their_names_and_are_ranked_among_all() -> None:
    found = asked_again(1.5, range(0, 60, 2)).answered
    assert (found.group, found.key) == ("robustness", "blur_image_to_text")
    assert found.queries == tuple(f"item {place}" for place in range(0, 60, 2))
    assert found.items.tolist() == found.clusters.tolist() == list(range(100, 160, 2))
    texts, worse = unit(60, 16), None
    worse = texts[::2] + 1.5 * unit(30, 16, seed=1)
    right = (worse @ texts.T).argmax(axis=1) == np.arange(0, 60, 2)
    assert found.outcomes.values["recall_at_1"].tolist() == right.astype(float).tolist()
    assert 0 < right.mean() < 1
    assert found.outcomes.chance["recall_at_1"] == pytest.approx([1 / 60] * 30)


def test_the_drop_is_paired_with_the_same_queries() -> None:
    found = asked_again(1.5, range(0, 60, 2))
    (figure,) = drop_figures(found, RESAMPLE)
    recall = found.answered.outcomes.values["recall_at_1"]
    assert figure.path == "robustness/blur_image_to_text/recall_at_1_drop"
    assert figure.value == pytest.approx(1 - recall.mean())
    assert figure.low < figure.value < figure.high
    # Of all queries half were answered, but all of these.
    other = asked_again(1.5, range(0, 60, 2), before=[1, 0] * 30)
    assert drop_figures(other, RESAMPLE) == [figure]
    nothing = drop_figures(asked_again(0, range(60)), RESAMPLE)[0]
    assert nothing.value == 0
    assert nothing.low <= 0 <= nothing.high


def test_the_drop_is_narrower_than_of_two_unpaired_figures() -> None:
    """Queries that both kinds answer, or neither, say nothing of the drop."""
    num = 200
    before = np.arange(num) % 2
    after = before.copy()
    after[:10] = 0
    task = clean_task(num, before)
    values = {"recall_at_1": after.astype(np.float64)}
    answered = clean_task(num, after)
    found = Degraded(task, np.arange(num), answered)
    (figure,) = drop_figures(found, RESAMPLE)
    assert figure.value == pytest.approx(5 / num)
    unpaired = 2 * 1.96 * np.sqrt(2 * 0.25 / num)
    assert figure.high - figure.low < unpaired / 2
    assert values["recall_at_1"].mean() < before.mean()


def test_chosen_items_do_not_depend_on_the_others() -> None:
    names = [f"{place:064x}" for place in range(50)]
    chosen = choose_items(names, 10)
    assert len(chosen) == 10
    assert chosen.tolist() == sorted(chosen.tolist())
    fewer = choose_items([name for place, name in enumerate(names) if place not in chosen[:1]], 9)
    assert len(fewer) == 9
    kept = {names[place] for place in chosen[1:]}
    without = [name for place, name in enumerate(names) if place != chosen[0]]
    assert {without[place] for place in fewer} == kept
    assert choose_items(names[:5], 10).tolist() == [0, 1, 2, 3, 4]


def test_batches_hold_few_files_and_keep_their_order() -> None:
    calls: list[list[bytes]] = []

    def encode(files: Sequence[bytes]) -> np.ndarray:
        calls.append(list(files))
        return np.asarray([[len(file)] for file in files], dtype=np.float32)

    kinds = {
        "double": lambda media, _: media * 2,
        "named": lambda media, item_id: media + item_id.encode(),
    }
    media = [(f"{place}", b"x" * place) for place in (1, 2, 3, 50, 4, 5, 6)]
    batches = list(embed_corrupted(iter(media), kinds, encode, batch_size=3, max_bytes=40))
    doubled = np.concatenate([batch["double"] for batch in batches])
    named = np.concatenate([batch["named"] for batch in batches])
    assert doubled[:, 0].tolist() == [2, 4, 6, 100, 8, 10, 12]
    assert named[:, 0].tolist() == [2, 3, 4, 52, 5, 6, 7]
    assert [len(batch["double"]) for batch in batches] == [3, 1, 3]
    for call in calls:
        assert len(call) == 1 or sum(map(len, call)) <= 40
