"""Zero-shot classification: an item belongs to the class whose sentence lies nearest.

Method: CLIP (Radford et al. 2021, arXiv 2103.00020, section 3.1.4): a class's embedding is the mean
of the embeddings of several sentences around its label, brought back to unit length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from coembed.evaluation.retrieval import Embeddings, Floats, Ints, Outcomes, Positives, ranks

_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class ZeroShot:
    """`outcomes` are of the items that have a label, whose numbers are `items` [num_labelled].

    `classes` are sorted; `actual` and `predicted` [num_labelled] are places in it. Of classes with
    equal scores the first one counts as predicted, while top_1 counts such an item as missed.
    """

    classes: tuple[str, ...]
    items: Ints
    actual: Ints
    predicted: Ints
    outcomes: Outcomes

    def class_counts(self) -> Ints:
        """Items of each class, [num_classes]."""
        return np.bincount(self.actual, minlength=len(self.classes)).astype(np.int64)

    def class_top_1(self) -> Floats:
        """Top-1 accuracy of each class, [num_classes]."""
        right = np.bincount(
            self.actual, weights=self.outcomes.values["top_1"], minlength=len(self.classes)
        )
        accuracy: Floats = right / self.class_counts()
        return accuracy

    def macro_top_1(self) -> float:
        """Mean of the classes' top-1 accuracy, whatever their numbers of items."""
        return float(self.class_top_1().mean())

    def weigh_macro_top_1(self, weights: Floats) -> Floats:
        """`macro_top_1` for each row of weights of the labelled items, [some, num_labelled] →
        [some]; classes of which no item was drawn are left out of the mean."""
        order = np.argsort(self.actual, kind="stable")
        starts = np.searchsorted(self.actual[order], np.arange(len(self.classes)))
        drawn = weights[:, order]
        counts = np.add.reduceat(drawn, starts, axis=1)
        right = np.add.reduceat(drawn * self.outcomes.values["top_1"][order], starts, axis=1)
        accuracy = np.divide(right, counts, out=np.zeros_like(right), where=counts > 0)
        mean: Floats = accuracy.sum(axis=1) / (counts > 0).sum(axis=1)
        return mean

    def confusion(self) -> Ints:
        """Counts [actual class, predicted class]. Has num_classes squared cells."""
        counts = np.zeros((len(self.classes), len(self.classes)), dtype=np.int64)
        np.add.at(counts, (self.actual, self.predicted), 1)
        return counts


def class_embeddings(
    classes: Sequence[str],
    prompts: Sequence[str],
    encode_texts: Callable[[Sequence[str]], Embeddings],
) -> Embeddings:
    """One unit embedding a class, [num_classes, dim]. Underscores of a label are read as spaces."""
    sentences = [
        prompt.replace("{label}", label.replace("_", " "))
        for label in classes
        for prompt in prompts
    ]
    embedded = encode_texts(sentences).reshape(len(classes), len(prompts), -1)
    mean = embedded.mean(axis=1, dtype=np.float64)
    length = np.linalg.norm(mean, axis=1, keepdims=True)
    # Sentences that cancel out leave no direction: such a class scores 0 with everything.
    unit: Embeddings = (mean / np.where(length > 0, length, 1)).astype(np.float32)
    return unit


def classify(
    task: str,
    items: Embeddings,
    labels: Sequence[str | None],
    classes: Sequence[str],
    embedded_classes: Embeddings,
    *,
    device: str = "cpu",
) -> ZeroShot:
    """Classify every item that has a label. `items` is [num_items, dim], `labels` as long.

    `classes` are the distinct labels, sorted; `embedded_classes` is [num_classes, dim].

    Metrics: top_1, and top_5 where there are more than 5 classes; ties count by mid-rank.
    """
    number = {label: index for index, label in enumerate(classes)}
    labelled = np.asarray(
        [i for i, label in enumerate(labels) if label is not None], dtype=np.int64
    )
    actual = np.asarray([number[label] for label in labels if label is not None], dtype=np.int64)
    chosen = items[labelled]
    positives = Positives(np.arange(len(actual) + 1, dtype=np.int64), actual)
    found = ranks(chosen, embedded_classes, positives, device=device)
    ks = (1, 5) if len(classes) > 5 else (1,)
    outcomes = Outcomes(
        task,
        values={f"top_{k}": (found <= k).astype(np.float64) for k in ks},
        chance={f"top_{k}": np.full(len(found), k / len(classes)) for k in ks},
    )
    predicted = [
        (chosen[start : start + _BLOCK] @ embedded_classes.T).argmax(axis=1)
        for start in range(0, len(chosen), _BLOCK)
    ]
    return ZeroShot(tuple(classes), labelled, actual, np.concatenate(predicted), outcomes)
