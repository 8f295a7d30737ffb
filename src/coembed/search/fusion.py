"""Vector search and keyword search as one order: a convex combination of their scores.

Method: Bruch, Gai and Ingber, "An analysis of fusion functions for hybrid retrieval" (ACM TOIS
2023, arXiv 2210.11934): (1 − w)·φ(cosine) + w·φ(BM25), which they found better than reciprocal rank
fusion on every data set, and whose weight means something. φ is min-max over the candidates; BM25's
least value is 0, which is also what an item has that holds none of the words.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def fuse(cosines: Floats, bm25: Floats, *, keywords: float) -> tuple[Floats, Floats, Floats]:
    """(fused, vector part, keyword part) of candidates, [num_candidates] each.

    cosines: of all of them. bm25: 0 or more, 0 where no word was found. keywords: the weight w of
    keyword search, 0 to 1. Fused is the sum of its parts and lies between 0 and 1.
    """
    low, high = (float(cosines.min()), float(cosines.max())) if len(cosines) else (0.0, 0.0)
    near = (cosines - low) / (high - low) if high - low > 1e-12 else np.ones_like(cosines)
    most = float(bm25.max(initial=0.0))
    worded = bm25 / most if most > 0 else np.zeros_like(bm25)
    vector_part, keyword_part = (1.0 - keywords) * near, keywords * worded
    return vector_part + keyword_part, vector_part, keyword_part
