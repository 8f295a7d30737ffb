"""A mixed query: the weighted sum of its terms' embeddings, brought back to unit length.

"This shoe, but red, not leather" is 1 × shoe + 1 × red − 0.5 × leather. The sum is linear in the
terms, so a hit's score is a sum of what each term adds to it (`explain`). Adding and subtracting
embeddings of a joint space is the composition of Kiros, Salakhutdinov and Zemel (2014, arXiv
1411.2539, section 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coembed.errors import UserError

Embeddings = NDArray[np.float32]
Floats = NDArray[np.float64]

# Of the terms' weights in all: less than that is left over by rounding, and points anywhere.
_LEAST_LEFT = 1e-3


@dataclass(frozen=True, slots=True)
class Mix:
    """A query [dim] of unit length: Σ coefficients[i] · terms[i].

    terms: unit embeddings [num_terms, dim]. coefficients: [num_terms], the weights over the length
    of their sum.
    """

    vector: Embeddings
    terms: Embeddings
    coefficients: Floats


def mix(terms: Embeddings, weights: Floats) -> Mix:
    """The query of unit embeddings `terms` [num_terms, dim] with `weights` [num_terms].

    A negative weight leads away from its term. Raises UserError where the terms cancel out.
    """
    total = float(np.abs(weights).sum())
    if not np.isfinite(weights).all() or total <= 0:
        raise UserError("the weights of a query must be numbers, and not all of them 0")
    shares = weights / total  # a weight's size means nothing, only its share does
    summed: Floats = shares @ terms.astype(np.float64)
    length = float(np.linalg.norm(summed))
    if not length > _LEAST_LEFT:
        raise UserError(
            "the terms of the query cancel out: nothing is left to search for",
            hint="give them other weights, or leave one of them out",
        )
    return Mix((summed / length).astype(np.float32), terms, shares / length)
