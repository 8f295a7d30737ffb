"""Maximal marginal relevance: hits that are good and unlike one another.

Method: Carbonell and Goldstein, "The use of MMR, diversity-based reranking" (SIGIR 1998): the next
hit is the one with the highest λ·relevance − (1 − λ)·(likeness to the most similar hit before it).
Both are first brought to 0 to 1 over the candidates: the cosine of a caption with a picture and the
cosine of two pictures lie in different ranges, and unscaled the second would drown the first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def diverse_order(
    relevance: NDArray[np.floating], items: NDArray[np.float32], *, diversity: float, num: int
) -> list[int]:
    """Places of the first `num` hits among candidates, in the order of maximal marginal relevance.

    relevance: [num_candidates], higher is better. items: their unit embeddings [num_candidates,
    dim]. diversity: 1 − λ; 0 is the order of relevance. The first hits do not depend on `num`.
    """
    num = min(num, len(relevance))
    if not num:
        return []
    likeness = items.astype(np.float64) @ items.astype(np.float64).T
    others = likeness[~np.eye(len(items), dtype=bool)]
    scaled = _scale(likeness, others) if len(others) else np.zeros_like(likeness)
    gain = (1.0 - diversity) * _scale(np.asarray(relevance, dtype=np.float64), relevance)
    nearest = np.zeros(len(gain))  # the first hit is like none before it
    left = np.ones(len(gain), dtype=bool)
    chosen: list[int] = []
    for _ in range(num):
        marginal = np.where(left, gain - diversity * nearest, -np.inf)
        best = int(marginal.argmax())  # of equals the one that scores higher: it stands first
        chosen.append(best)
        left[best] = False
        nearest = np.maximum(nearest, scaled[best])
    return chosen


def _scale(values: NDArray[np.float64], over: NDArray[np.floating]) -> NDArray[np.float64]:
    """To 0 to 1 between the least and the greatest of `over`; all 0 where these are equal."""
    low, high = float(over.min()), float(over.max())
    if high - low <= 1e-12:
        return np.zeros_like(values)
    return (values - low) / (high - low)
