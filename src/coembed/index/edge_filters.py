"""A filter in the terms of Qdrant Edge."""

from __future__ import annotations

from typing import cast

import numpy as np
import qdrant_edge as edge

from coembed.index.filters import AnyOf, Compare, Filter, payload_key
from coembed.types import Attribute

_BOUNDS = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}


def to_edge(where: Filter) -> edge.Filter | None:
    """The same filter for a shard; None when nothing is asked."""
    if not where.conditions:
        return None
    must: list[edge.ConditionType] = []
    must_not: list[edge.ConditionType] = []
    for condition in where.conditions:
        key = payload_key(condition.column)
        if isinstance(condition, Compare):
            bound = edge.RangeFloat(**{_BOUNDS[condition.sign]: condition.bound})
            must.append(edge.FieldCondition(key, range=bound))
        else:
            (must_not if condition.negated else must).append(_any_of(key, condition))
    return edge.Filter(must=must or None, must_not=must_not or None)


def _any_of(key: str, condition: AnyOf) -> edge.Filter:
    return edge.Filter(should=[_equals(key, value) for value in condition.values])


def _equals(key: str, value: Attribute) -> edge.FieldCondition:
    if isinstance(value, bool):
        # Edge takes Python's True for the number 1, which no payload's True is equal to.
        return edge.FieldCondition(key, match=edge.MatchValue(cast("bool", np.bool_(value))))
    if isinstance(value, str):
        return edge.FieldCondition(key, match=edge.MatchValue(value))
    # Qdrant matches no floats; a range of one point is the same, and takes whole numbers too.
    return edge.FieldCondition(key, range=edge.RangeFloat(gte=float(value), lte=float(value)))
