"""Zero-shot classification against hand-written cases and scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix

from coembed.evaluation.retrieval import summarise
from coembed.evaluation.zero_shot import class_embeddings, classify

AXES = np.eye(3, dtype=np.float32)


def test_hand_written_classes() -> None:
    items = np.asarray(
        [[0.9, 0.1, 0], [0.8, 0.6, 0], [0.6, 0.8, 0], [0, 0, 1], [0.1, 0.9, 0]], dtype=np.float32
    )
    labels = ("cap", "cap", "cap", "shoe", None)
    result = classify("t", items, labels, ("cap", "mug", "shoe"), AXES)
    assert result.items.tolist() == [0, 1, 2, 3]
    assert result.outcomes.values["top_1"].tolist() == [1, 1, 0, 1]
    assert result.confusion().tolist() == [[2, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert summarise(result.outcomes) == {
        "num_queries": 4, "top_1": 0.75, "chance_top_1": pytest.approx(1 / 3)
    }  # fmt: skip


def test_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    classes = [f"c{i}" for i in range(8)]
    labels = [classes[i] for i in rng.integers(0, 8, size=300)]
    items = rng.normal(size=(300, 16)).astype(np.float32)
    embedded = rng.normal(size=(8, 16)).astype(np.float32)
    for place, label in enumerate(labels):  # some knowledge, so that rows differ
        items[place] += embedded[classes.index(label)] * rng.uniform(0, 0.5)
    result = classify("t", items, labels, classes, embedded)
    predicted = [classes[i] for i in (items @ embedded.T).argmax(axis=1)]
    assert result.outcomes.values["top_1"].mean() == pytest.approx(
        accuracy_score(labels, predicted)
    )
    assert result.macro_top_1() == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert np.array_equal(result.confusion(), confusion_matrix(labels, predicted, labels=classes))
    best_five = np.argsort(-(items @ embedded.T), axis=1)[:, :5]
    in_five = [classes.index(label) in row for label, row in zip(labels, best_five, strict=True)]
    assert result.outcomes.values["top_5"].mean() == pytest.approx(np.mean(in_five))


def test_a_collapsed_model_recognises_nothing() -> None:
    same = np.ones((10, 4), dtype=np.float32) / 2
    labels = ["a"] * 10
    # In index order the first class would be right every time.
    result = classify("t", same, [*labels[:9], "b"], ("a", "b"), same[:2])
    assert result.outcomes.values["top_1"].sum() == 0


def test_prompts_are_averaged_after_their_embeddings_have_unit_length() -> None:
    asked: list[str] = []

    def encode(texts: Sequence[str]) -> np.ndarray:
        asked.extend(texts)
        return np.asarray([AXES[0], AXES[1], AXES[2], AXES[2]], dtype=np.float32)

    found = class_embeddings(["ankle_boot", "{x}"], ["a {label}", "{label}, {label}"], encode)
    assert asked == ["a ankle boot", "ankle boot, ankle boot", "a {x}", "{x}, {x}"]
    assert found == pytest.approx(np.asarray([[0.5**0.5, 0.5**0.5, 0], [0, 0, 1]]))
    assert found.dtype == np.float32


def test_prompts_that_cancel_out_stay_finite() -> None:
    found = class_embeddings(
        ["a"], ["{label}", "not {label}"], lambda texts: np.stack([AXES[0], -AXES[0]])[: len(texts)]
    )
    assert np.array_equal(found, np.zeros((1, 3)))
