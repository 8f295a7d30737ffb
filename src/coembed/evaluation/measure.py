"""All that is measured on one evaluation set: from embeddings to outcomes, metrics, slices."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np

from coembed.errors import DataError
from coembed.evaluation.answered import Answered
from coembed.evaluation.attribute_queries import (
    AttributeQuery,
    attribute_outcomes,
    best_precision,
    make_queries,
    shared_value,
)
from coembed.evaluation.evaluation_set import EvaluationSet
from coembed.evaluation.meetings import Meetings, meet, meeting_keys
from coembed.evaluation.retrieval import (
    Embeddings,
    Floats,
    Ints,
    Outcomes,
    PositiveSource,
    check_embeddings,
    rank_outcomes,
    ranks,
    summarise,
)
from coembed.evaluation.settings import (
    AttributeQuerySettings,
    EvaluateSettings,
    ZeroShotSettings,
)
from coembed.evaluation.slices import SliceScore, slice_scores
from coembed.evaluation.zero_shot import ZeroShot, class_embeddings, classify
from coembed.types import Modality, plural, singular

EncodeTexts = Callable[[Sequence[str]], Embeddings]
Labels = Sequence[str | None]
Task = ZeroShotSettings | AttributeQuerySettings


@dataclass(frozen=True, slots=True)
class Retrieval:
    """One direction of retrieval."""

    outcomes: Outcomes
    ranks: Floats
    positives: PositiveSource
    num_candidates: int


@dataclass(frozen=True, slots=True)
class Part:
    """The items of one modality, against their own captions.

    `first`: the number of its first item in the whole set. `items` and `texts` are the embeddings,
    [num_items or num_texts, dim]. `slice_labels[column]` holds one value an item.
    """

    modality: Modality
    first: int
    data: EvaluationSet
    items: Embeddings
    texts: Embeddings
    text_to_item: Retrieval
    item_to_text: Retrieval
    slice_labels: Mapping[str, Labels]

    @property
    def retrieval(self) -> tuple[Retrieval, Retrieval]:
        """Both directions."""
        return self.text_to_item, self.item_to_text


@dataclass(frozen=True, slots=True)
class Crossing:
    """The items of one modality as queries for those of another; `retrieval` is None where no item
    of the one belongs to any of the other.
    """

    source: Part
    target: Part
    meetings: Meetings
    retrieval: Retrieval | None

    @property
    def task(self) -> str:
        """How metrics.json calls it: image_to_audio."""
        return f"{self.source.modality}_to_{self.target.modality}"


@dataclass(frozen=True, slots=True)
class Recognition:
    """Zero-shot classification of the items of one part."""

    settings: ZeroShotSettings
    part: Part
    result: ZeroShot


@dataclass(frozen=True, slots=True)
class AttributeSearch:
    """The searches of one template in one part. `embedded` is [num_queries, dim]."""

    settings: AttributeQuerySettings
    part: Part
    queries: Sequence[AttributeQuery]
    embedded: Embeddings
    labels: Mapping[str, Labels]
    outcomes: Outcomes


@dataclass(frozen=True, slots=True)
class Measurements:
    """What was measured.

    `data` is the whole set, `parts` what the model has towers for; `crossings` are all directions
    from one part to another. `zero_shot` and `attribute_queries` are keyed as in metrics.json.
    `answered` holds every task once more, query by query: the one ground of slices, intervals and
    comparisons.
    """

    data: EvaluationSet
    parts: Sequence[Part]
    crossings: Sequence[Crossing]
    zero_shot: Mapping[str, Recognition]
    attribute_queries: Mapping[str, AttributeSearch]
    answered: Sequence[Answered]
    slices: Sequence[SliceScore]

    @property
    def retrieval(self) -> list[Retrieval]:
        """All directions that were asked: with the captions first, then between modalities."""
        found = [way for part in self.parts for way in part.retrieval]
        return found + [way.retrieval for way in self.crossings if way.retrieval is not None]

    @property
    def num_items(self) -> int:
        """Items that were embedded."""
        return sum(len(part.items) for part in self.parts)

    @property
    def num_captions(self) -> int:
        """Captions that were asked, each once an item."""
        return sum(part.text_to_item.outcomes.num_queries for part in self.parts)

    @property
    def left_out(self) -> Mapping[Modality, int]:
        """Items by modality that the model has no tower for."""
        missing = set(self.data.first_items) - {part.modality for part in self.parts}
        return {
            modality: len(self.data.of_modality(modality).items)
            for modality in self.data.first_items
            if modality in missing
        }


def measure(
    data: EvaluationSet,
    items: Mapping[Modality, Embeddings],
    encode_texts: EncodeTexts,
    settings: EvaluateSettings,
    *,
    device: str = "cpu",
) -> Measurements:
    """Measure all that `settings` asks for.

    `items[modality]` [num_items, dim] are in the order of `data`. A modality of `data` that is not
    in `items` is one that the model has no tower for: what asks about it is left out.

    Raises:
        DataError: a column that no item has, or that cannot serve as asked.
        ModelError: embeddings that are not finite.
    """
    parts = []
    # A column's name is checked against all items: those that are left out may have it alone.
    slice_labels = _slice_labels(data, settings)
    meeting_labels = {
        column: data.labels(column, setting="evaluate.meets_on")
        for column in settings.meeting_columns
    }
    wanted = _wanted_labels(data, settings)
    for modality, first in data.first_items.items():
        if modality in items:
            check_embeddings(items[modality], plural(modality))
            parts.append(
                _part(modality, first, data, items[modality], encode_texts, slice_labels, settings,
                      device)
            )  # fmt: skip
    answered = [one for part in parts for one in _caption_answers(part)]
    by_modality = {part.modality: part for part in parts}

    zero_shot = {}
    for asked in settings.zero_shot:
        part = by_modality.get(_modality_of(asked, data))
        if part is None:
            continue
        result = _zero_shot(asked, wanted[asked][asked.column], part, encode_texts, device)
        zero_shot[slug(asked.name)] = Recognition(asked, part, result)
        answered.append(by_item("zero_shot", slug(asked.name), result.outcomes, part, result.items))

    attribute_queries = {}
    for query_settings in settings.attribute_queries:
        part = by_modality.get(_modality_of(query_settings, data))
        if part is None:
            continue
        search = _attribute_search(query_settings, wanted[query_settings], part, encode_texts)
        attribute_queries[slug(query_settings.name)] = search
        answered.append(_search_answers(slug(query_settings.name), search))

    crossings = [
        _crossing(source, target, meeting_labels, settings.ks, device)
        for source, target in permutations(parts, 2)
    ]
    answered += [
        by_item(
            "retrieval",
            crossing.task,
            crossing.retrieval.outcomes,
            crossing.source,
            crossing.meetings.queries,
        )
        for crossing in crossings
        if crossing.retrieval is not None
    ]
    slices = [
        row
        for one in answered
        for row in slice_scores(one.outcomes, one.labels, min_slice=settings.min_slice)
    ]
    return Measurements(data, parts, crossings, zero_shot, attribute_queries, answered, slices)


def metrics_tree(found: Measurements, settings: EvaluateSettings) -> dict[str, Any]:
    """The content of metrics.json: nested, keys of letters, digits and `_`, six decimals."""
    tree: dict[str, Any] = {"num_items": found.num_items}
    if len(found.parts) > 1:
        for part in found.parts:
            tree[f"num_{plural(part.modality)}"] = len(part.items)
    tree["num_captions"] = found.num_captions
    tree["retrieval"] = {
        way.outcomes.task: summarise(way.outcomes) | {"num_candidates": way.num_candidates}
        for way in found.retrieval
    }
    for crossing in found.crossings:
        if crossing.retrieval is not None:
            tree["retrieval"][crossing.task]["num_not_asked"] = crossing.meetings.num_not_asked
    if found.zero_shot:
        tree["zero_shot"] = {
            key: summarise(one.result.outcomes)
            | {"macro_top_1": one.result.macro_top_1(), "num_classes": len(one.result.classes)}
            for key, one in found.zero_shot.items()
        }
    if found.attribute_queries:
        tree["attribute_queries"] = {
            key: summarise(search.outcomes)
            | {
                f"best_precision_at_{k}": best_precision(search.queries, k)
                for k in search.settings.ks
            }
            for key, search in found.attribute_queries.items()
        }
    if settings.slices_in_metrics:
        tree["slices"] = _slices_tree(found.slices, settings.slices_in_metrics)
    rounded: dict[str, Any] = _rounded(tree)
    return rounded


def slug(name: str) -> str:
    """`name` in lower-case letters, digits and single underscores, as metrics are keyed."""
    return re.sub(r"[^a-z0-9]+", "_", name.casefold()).strip("_") or "_"


def _part(
    modality: Modality,
    first: int,
    data: EvaluationSet,
    items: Embeddings,
    encode_texts: EncodeTexts,
    slice_labels: Mapping[str, Labels],
    settings: EvaluateSettings,
    device: str,
) -> Part:
    """Retrieval between the items of one modality and their captions, both ways."""
    own = data.of_modality(modality)
    texts = encode_texts(own.texts)
    check_embeddings(texts, "captions")
    ways = (
        (f"text_to_{modality}", texts[own.query_texts], items, own.text_to_item()),
        (f"{modality}_to_text", items, texts, own.item_to_text()),
    )
    text_to_item, item_to_text = (_retrieval(*way, settings.ks, device) for way in ways)
    chosen = own.auto_slices() if settings.slices == "auto" else settings.slices
    labels = {
        # What a gate watches must be there even where "auto" would pass it over.
        column: slice_labels[column][first : first + len(own.items)]
        for column in sorted({*chosen, *settings.slices_in_metrics})
    }
    return Part(modality, first, own, items, texts, text_to_item, item_to_text, labels)


def _retrieval(
    task: str,
    queries: Embeddings,
    candidates: Embeddings,
    positives: PositiveSource,
    ks: Sequence[int],
    device: str,
) -> Retrieval:
    found = ranks(queries, candidates, positives, device=device)
    outcomes = rank_outcomes(task, found, len(candidates), positives, ks)
    return Retrieval(outcomes, found, positives, len(candidates))


def _crossing(
    source: Part,
    target: Part,
    labels: Mapping[str, Labels],
    ks: Sequence[int],
    device: str,
) -> Crossing:
    """Retrieval of the items of `target` by those of `source`. `labels` are of the whole set."""
    meetings = meet(_keys(source, labels), _keys(target, labels))
    crossing = Crossing(source, target, meetings, None)
    if not len(meetings.queries):
        return crossing
    queries = source.items[meetings.queries]
    found = _retrieval(crossing.task, queries, target.items, meetings, ks, device)
    return Crossing(source, target, meetings, found)


def _keys(part: Part, labels: Mapping[str, Labels]) -> list[list[tuple[str, str]]]:
    last = part.first + len(part.items)
    own = {column: values[part.first : last] for column, values in labels.items()}
    return meeting_keys(part.data, own)


def by_item(group: str, key: str, outcomes: Outcomes, part: Part, items: Ints) -> Answered:
    """Outcomes of queries that are about one item of `part` each: `items` [num_queries] are its
    numbers within the part, each item asked about once."""
    numbers = items.tolist()
    return Answered(
        group,
        key,
        outcomes,
        queries=tuple(part.data.items[item].item_id for item in numbers),
        items=items + part.first,
        clusters=items + part.first,
        labels=_labels_of(part, numbers),
    )


def _caption_answers(part: Part) -> list[Answered]:
    """Both directions between the items of a part and their captions."""
    items, texts = part.data.query_items, part.data.query_texts
    captions = Answered(
        "retrieval",
        part.text_to_item.outcomes.task,
        part.text_to_item.outcomes,
        queries=tuple(
            f"{part.data.items[item].item_id}: {part.data.texts[text]}"
            for item, text in zip(items.tolist(), texts.tolist(), strict=True)
        ),
        items=items + part.first,
        # The captions of one item say much the same: they are not independent of one another.
        clusters=items + part.first,
        labels=_labels_of(part, items.tolist()),
    )
    every = np.arange(len(part.data.items), dtype=np.int64)
    outcomes = part.item_to_text.outcomes
    return [captions, by_item("retrieval", outcomes.task, outcomes, part, every)]


def _search_answers(key: str, search: AttributeSearch) -> Answered:
    """Searches are about no single item: each is drawn by itself."""
    num = len(search.queries)
    return Answered(
        "attribute_queries",
        key,
        search.outcomes,
        queries=tuple(query.text for query in search.queries),
        items=np.full(num, -1, dtype=np.int64),
        clusters=np.arange(num, dtype=np.int64),
        labels={
            column: [shared_value(query, values) for query in search.queries]
            for column, values in search.part.slice_labels.items()
        },
    )


def _labels_of(part: Part, items: Sequence[int]) -> dict[str, Labels]:
    return {
        column: [values[item] for item in items] for column, values in part.slice_labels.items()
    }


def _zero_shot(
    asked: ZeroShotSettings,
    labels: Labels,
    part: Part,
    encode_texts: EncodeTexts,
    device: str,
) -> ZeroShot:
    classes = sorted({label for label in labels if label is not None})
    if len(classes) < 2:
        raise DataError(
            f"evaluate.zero_shot names the column {asked.column!r}, which has only the value "
            f"{classes[0]!r} in the evaluated split: there is nothing to tell apart",
            hint="name a column with several values, or take this entry out",
        )
    embedded = class_embeddings(classes, asked.prompts, encode_texts)
    return classify(
        f"zero_shot_{slug(asked.name)}", part.items, labels, classes, embedded, device=device
    )


def _attribute_search(
    settings: AttributeQuerySettings,
    labels: Mapping[str, Labels],
    part: Part,
    encode_texts: EncodeTexts,
) -> AttributeSearch:
    queries = make_queries(settings.template, labels)
    if not queries:
        raise DataError(
            f"no evaluated item has a value in each of the columns {', '.join(settings.columns)} "
            f"of evaluate.attribute_queries {settings.template!r}",
            hint="name columns that items have together, or take this entry out",
        )
    embedded = encode_texts([query.text for query in queries])
    task = f"attribute_queries_{slug(settings.name)}"
    outcomes = attribute_outcomes(task, queries, embedded, part.items, settings.ks)
    return AttributeSearch(settings, part, queries, embedded, labels, outcomes)


def _modality_of(asked: Task, data: EvaluationSet) -> Modality:
    """The modality whose items are asked about. Raises DataError where the set has none."""
    if asked.modality is None:
        return next(iter(data.first_items))
    if asked.modality not in data.first_items:
        there = " and ".join(plural(modality) for modality in data.first_items)
        raise DataError(
            f"evaluate asks for {asked.name!r} of {plural(asked.modality)}, and the evaluated "
            f"split has {there} only",
            hint=f"take `modality: {asked.modality}` or the whole entry out of evaluate",
        )
    return asked.modality


def _wanted_labels(
    data: EvaluationSet, settings: EvaluateSettings
) -> dict[Task, dict[str, Labels]]:
    """For each task the labels of the items that it asks about, by column."""
    several = len(data.first_items) > 1
    asked: list[tuple[str, Task, tuple[str, ...]]] = [
        *(("evaluate.zero_shot", task, (task.column,)) for task in settings.zero_shot),
        *(
            ("evaluate.attribute_queries", task, task.columns)
            for task in settings.attribute_queries
        ),
    ]
    wanted: dict[Task, dict[str, Labels]] = {}
    for setting, task, columns in asked:
        modality = _modality_of(task, data)
        what = singular(modality) if several else "item"
        own = data.of_modality(modality)
        wanted[task] = {
            column: own.labels(column, setting=setting, what=what) for column in columns
        }
    return wanted


def _slice_labels(data: EvaluationSet, settings: EvaluateSettings) -> dict[str, Labels]:
    """All columns that any part may be sliced by, with the labels of the whole set."""
    chosen = settings.slices
    if chosen == "auto":
        parts = [data.of_modality(modality) for modality in data.first_items]
        chosen = tuple(column for part in parts for column in part.auto_slices())
    wanted = sorted({*chosen, *settings.slices_in_metrics})
    return {column: data.labels(column, setting="evaluate.slices") for column in wanted}


def _slices_tree(slices: Iterable[SliceScore], columns: Sequence[str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    keys: dict[tuple[str, str], str] = {}
    for row in slices:
        if row.column not in columns:
            continue
        column = tree.setdefault(slug(row.column), {})
        if (row.column, row.value) not in keys:
            # Two values may have the same slug: the later one gets a number.
            taken = {key for (of, _), key in keys.items() if of == row.column}
            base, number = slug(row.value), 2
            key = base
            while key in taken:
                key, number = f"{base}_{number}", number + 1
            keys[row.column, row.value] = key
        task = column.setdefault(keys[row.column, row.value], {}).setdefault(row.task, {})
        task[row.metric] = row.score
        task["num_queries"] = row.num_queries
    return tree


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(child) for key, child in value.items()}
    return round(value, 6) if isinstance(value, float) else value
