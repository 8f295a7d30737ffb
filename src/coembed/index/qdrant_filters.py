"""A filter in Qdrant's terms."""

from __future__ import annotations

from qdrant_client import models

from coembed.index.filters import AnyOf, Compare, Filter, payload_key
from coembed.types import Attribute

_BOUNDS = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}


def to_qdrant(where: Filter) -> models.Filter | None:
    """The same filter for the client; None when nothing is asked."""
    if not where.conditions:
        return None
    must: list[models.Condition] = []
    must_not: list[models.Condition] = []
    for condition in where.conditions:
        key = payload_key(condition.column)
        if isinstance(condition, Compare):
            bound = {_BOUNDS[condition.sign]: condition.bound}
            must.append(models.FieldCondition(key=key, range=models.Range(**bound)))
        else:
            (must_not if condition.negated else must).append(_any_of(key, condition))
    return models.Filter(must=must or None, must_not=must_not or None)


def _any_of(key: str, condition: AnyOf) -> models.Filter:
    return models.Filter(should=[_equals(key, value) for value in condition.values])


def _equals(key: str, value: Attribute) -> models.FieldCondition:
    if isinstance(value, str | bool):
        return models.FieldCondition(key=key, match=models.MatchValue(value=value))
    # Qdrant matches no floats; a range of one point is the same, and takes whole numbers too.
    return models.FieldCondition(key=key, range=models.Range(gte=float(value), lte=float(value)))
