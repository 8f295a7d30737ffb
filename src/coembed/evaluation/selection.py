"""A part of many queries or items, chosen by their content: the same in every evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coembed import draws
from coembed.evaluation.retrieval import Ints, Positives, PositiveSource
from coembed.files import sha256_bytes

SEED = 0
"""Of all choices here: two models are always asked the same."""


def content_keys(texts: Sequence[str]) -> draws.Keys:
    """The key of each text (a caption, an item_id) for `coembed.draws`, [num_texts]."""
    return draws.sample_keys([sha256_bytes(text.encode()) for text in texts])


def hash_order(texts: Sequence[str], purpose: str) -> Ints:
    """Places of `texts` as if shuffled: one text more or less does not move the others."""
    order: Ints = np.argsort(draws.bits(SEED, purpose, 0, content_keys(texts)), kind="stable")
    return order.astype(np.int64)


def select(texts: Sequence[str], most: int, purpose: str) -> Ints:
    """Places of at most `most` of `texts`, the first ones of their hash order, rising."""
    if len(texts) <= most:
        return np.arange(len(texts), dtype=np.int64)
    return np.sort(hash_order(texts, purpose)[:most])


def draw_below(text: str, purpose: str, num: int) -> int:
    """A whole number in [0, num) that `text` decides."""
    return int(draws.below(SEED, purpose, 0, content_keys([text]), np.asarray(num))[0])


def positives_of(source: PositiveSource, queries: Ints) -> Positives:
    """The positives of some queries, in the order given."""
    found = [source.block(query, query + 1).candidates for query in queries.tolist()]
    starts = np.zeros(len(found) + 1, dtype=np.int64)
    np.cumsum([len(one) for one in found], out=starts[1:])
    return Positives(starts, np.concatenate(found) if found else np.empty(0, dtype=np.int64))
