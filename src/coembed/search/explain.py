"""Which terms of a query earned a hit: the score, taken apart exactly.

A mixed query is q = Σ cᵢ·tᵢ, so the score q·x of an item x is Σ cᵢ·(tᵢ·x): each term's part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coembed.search.mix import Floats, Mix


@dataclass(frozen=True, slots=True)
class Parts:
    """Of each item (rows) and each term (columns), [num_items, num_terms].

    scores: what the term adds to the item's score; a row sums to it. cosines: the term alone
    against the item. shares: the scores over the sum of their magnitudes, −1 to 1.
    """

    scores: Floats
    cosines: Floats
    shares: Floats


def explain(query: Mix, items: NDArray[np.float32]) -> Parts:
    """Take apart the scores of unit embeddings `items` [num_items, dim]."""
    cosines: Floats = items.astype(np.float64) @ query.terms.astype(np.float64).T
    scores = cosines * query.coefficients
    magnitudes = np.abs(scores).sum(axis=1, keepdims=True)
    return Parts(scores, cosines, scores / np.where(magnitudes > 0, magnitudes, 1.0))
