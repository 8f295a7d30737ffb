"""What metrics.json and intervals.json hold of all that was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from coembed.evaluation.attribute_queries import best_precision
from coembed.evaluation.measure import Measurements
from coembed.evaluation.parts import slug
from coembed.evaluation.retrieval import summarise
from coembed.evaluation.settings import EvaluateSettings
from coembed.evaluation.slices import SliceScore
from coembed.types import plural


def metrics_tree(found: Measurements, settings: EvaluateSettings) -> dict[str, Any]:
    """The content of metrics.json: nested, keys of letters, digits and `_`, six decimals."""
    tree: dict[str, Any] = {"num_items": found.num_items}
    if len(found.parts) > 1:
        for part in found.parts:
            tree[f"num_{plural(part.modality)}"] = len(part.items)
    tree["num_captions"] = found.num_captions
    for one in found.answered:
        for name, value in summarise(one.outcomes).items():
            _put(tree, one.path(name), value)
    for figure in found.figures:
        _put(tree, figure.path, figure.value)
    for way in found.retrieval:
        _put(tree, f"retrieval/{way.outcomes.task}/num_candidates", way.num_candidates)
    for crossing in found.crossings:
        if crossing.retrieval is not None:
            num_not_asked = crossing.meetings.num_not_asked
            _put(tree, f"retrieval/{crossing.task}/num_not_asked", num_not_asked)
    for key, recognition in found.zero_shot.items():
        _put(tree, f"zero_shot/{key}/num_classes", len(recognition.result.classes))
    for key, search in found.attribute_queries.items():
        for k in search.settings.ks:
            best = best_precision(search.queries, k)
            _put(tree, f"attribute_queries/{key}/best_precision_at_{k}", best)
    for path, row in _slice_paths(found.slices, settings.slices_in_metrics):
        _put(tree, f"{path}/{row.metric}", row.score)
        _put(tree, f"{path}/num_queries", row.num_queries)
    rounded: dict[str, Any] = _rounded(tree)
    return rounded


def intervals(found: Measurements, settings: EvaluateSettings) -> dict[str, list[float]]:
    """The content of intervals.json: low and high of a number of metrics.json by its path."""
    bounds = {
        figure.path: [figure.low, figure.high]
        for figure in found.figures
        if not math.isnan(figure.low)
    }
    for path, row in _slice_paths(found.slices, settings.slices_in_metrics):
        bounds[f"{path}/{row.metric}"] = [row.low, row.high]
    rounded: dict[str, list[float]] = _rounded(bounds)
    return rounded


def _slice_paths(
    slices: Iterable[SliceScore], columns: Sequence[str]
) -> Iterator[tuple[str, SliceScore]]:
    """Where metrics.json holds the slices of `columns`: slices/COLUMN/VALUE/TASK."""
    keys: dict[tuple[str, str], str] = {}
    for row in slices:
        if row.column not in columns:
            continue
        if (row.column, row.value) not in keys:
            # Two values may have the same slug: the later one gets a number.
            taken = {key for (of, _), key in keys.items() if of == row.column}
            base, number = slug(row.value), 2
            key = base
            while key in taken:
                key, number = f"{base}_{number}", number + 1
            keys[row.column, row.value] = key
        yield f"slices/{slug(row.column)}/{keys[row.column, row.value]}/{row.task}", row


def _put(tree: dict[str, Any], path: str, value: float) -> None:
    """Set the number at `path`, names between slashes, in nested objects."""
    *above, name = path.split("/")
    for key in above:
        tree = tree.setdefault(key, {})
    tree[name] = value


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_rounded(child) for child in value]
    return round(value, 6) if isinstance(value, float) else value
