"""All that is measured on one evaluation set: from embeddings to outcomes, metrics, slices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations

import numpy as np

from coembed.errors import DataError
from coembed.evaluation.answered import Answered
from coembed.evaluation.attribute_queries import (
    attribute_outcomes,
    make_queries,
    shared_value,
)
from coembed.evaluation.calibration import Calibration, Logits, calibrations
from coembed.evaluation.compositional import altered_answers
from coembed.evaluation.evaluation_set import EvaluationSet, same_text
from coembed.evaluation.geometry import part_figures
from coembed.evaluation.meetings import meet, meeting_keys
from coembed.evaluation.outcomes_file import NUM_HITS, TaskHits
from coembed.evaluation.parts import (
    AttributeSearch,
    Crossing,
    EncodeTexts,
    Labels,
    Part,
    Recognition,
    Retrieval,
    by_item,
    labels_of,
    slug,
)
from coembed.evaluation.retrieval import (
    Embeddings,
    PositiveSource,
    check_embeddings,
    rank_outcomes,
    rankings,
)
from coembed.evaluation.robustness import CorruptedItems, degrade, drop_figures
from coembed.evaluation.scoring import score
from coembed.evaluation.settings import (
    AttributeQuerySettings,
    EvaluateSettings,
    ZeroShotSettings,
)
from coembed.evaluation.slices import SliceScore, label_slices, makes_slices
from coembed.evaluation.statistics import Figure, Resamples, estimate, unseen
from coembed.evaluation.top import top_candidates
from coembed.evaluation.zero_shot import class_embeddings, classify
from coembed.types import Modality, plural, singular

Task = ZeroShotSettings | AttributeQuerySettings


@dataclass(frozen=True, slots=True)
class Measurements:
    """What was measured.

    `data` is the whole set, `parts` what the model has towers for; `crossings` are all directions
    from one part to another. `zero_shot` and `attribute_queries` are keyed as in metrics.json.
    `answered` holds every task once more, query by query: the one ground of slices, intervals and
    comparisons. `figures` are all numbers of metrics.json that have an interval, but for slices.
    `calibration` holds the reliability of each calibrated task by its key in metrics.json.
    """

    data: EvaluationSet
    parts: Sequence[Part]
    crossings: Sequence[Crossing]
    zero_shot: Mapping[str, Recognition]
    attribute_queries: Mapping[str, AttributeSearch]
    answered: Sequence[Answered]
    figures: Sequence[Figure]
    slices: Sequence[SliceScore]
    calibration: Mapping[str, Calibration]

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
    logits: Logits,
    corrupted: Mapping[Modality, CorruptedItems],
    device: str = "cpu",
) -> Measurements:
    """Measure all that `settings` asks for.

    `items[modality]` [num_items, dim] are in the order of `data`. A modality of `data` that is not
    in `items` is one that the model has no tower for: what asks about it is left out. `corrupted`
    are the items that `settings.robustness` asks for, of the same modalities.

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
        recognition = _zero_shot(asked, wanted[asked][asked.column], part, encode_texts, device)
        zero_shot[slug(asked.name)] = recognition
        result = recognition.result
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
        _crossing(source, target, meeting_labels, settings, device)
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
    if settings.compositional is not None:
        answered += altered_answers(data, parts, encode_texts, settings.compositional)
    tasks = {one.outcomes.task: one for one in answered}
    degraded = []
    if settings.robustness is not None:
        degraded = degrade(
            parts, list(zero_shot.values()), tasks, corrupted, encode_texts, settings.robustness,
            ks=settings.ks, device=device,
        )  # fmt: skip
        answered += [one.answered for one in degraded]
    calibration = {}
    if settings.calibration is not None:
        calibration = calibrations(
            parts, list(zero_shot.values()), tasks, logits, settings.calibration, device=device
        )

    bootstrap = settings.bootstrap
    resample = partial(Resamples, num=bootstrap.num_resamples, seed=bootstrap.seed)
    figures, slices = score(answered, bootstrap=bootstrap, min_slice=settings.min_slice)
    figures += _macro_figures(zero_shot, resample)
    figures += [figure for one in degraded for figure in drop_figures(one, resample)]
    if settings.geometry is not None:
        for part in parts:
            figures += part_figures(part, settings.geometry, resample)
    for key, sureness in calibration.items():
        figures += sureness.figures(f"calibration/{key}", resample)
    return Measurements(
        data,
        parts,
        crossings,
        zero_shot,
        attribute_queries,
        answered,
        figures,
        slices,
        calibration,
    )


def text_searches(found: Measurements, *, device: str = "cpu") -> Iterator[TaskHits]:
    """What each caption, and each search by attributes, finds: its NUM_HITS best items."""
    queries = {(one.group, one.key): one.queries for one in found.answered}
    for part in found.parts:
        key, ranked = part.text_to_item.outcomes.task, part.text_to_item.found
        if ranked.k >= NUM_HITS:
            items, scores = ranked.top[:, :NUM_HITS], ranked.top_scores[:, :NUM_HITS]
        else:
            asked = part.texts[part.data.query_texts]
            items, scores = top_candidates(asked, part.items, NUM_HITS, device=device)
        yield TaskHits("retrieval", key, queries["retrieval", key], items + part.first, scores)
    for key, search in found.attribute_queries.items():
        part = search.part
        items, scores = top_candidates(search.embedded, part.items, NUM_HITS, device=device)
        asked_for = queries["attribute_queries", key]
        yield TaskHits("attribute_queries", key, asked_for, items + part.first, scores)


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
    _check_negatives(own, modality)
    texts = encode_texts(own.texts)
    check_embeddings(texts, "captions")
    ways = (
        (f"text_to_{modality}", texts[own.query_texts], items, own.text_to_item()),
        (f"{modality}_to_text", items, texts, own.item_to_text()),
    )
    text_to_item, item_to_text = (_retrieval(*way, settings, device) for way in ways)
    chosen = _auto_columns(own) if settings.slices == "auto" else settings.slices
    labels = {
        # What a gate watches must be there even where "auto" would pass it over.
        column: slice_labels[column][first : first + len(own.items)]
        for column in sorted({*chosen, *settings.slices_in_metrics})
    }
    return Part(modality, first, own, items, texts, text_to_item, item_to_text, labels)


def _check_negatives(data: EvaluationSet, modality: Modality) -> None:
    """Refuse items that all answer every query: any model would find them all."""
    if len(data.items) > 1 and len({same_text(text) for text in data.texts}) == 1:
        raise DataError(
            f"all {len(data.items):,} evaluated {plural(modality)} have the same caption "
            f"{data.texts[0]!r}: there is nothing to tell apart",
            hint="evaluate on items with captions of their own",
        )


def _retrieval(
    task: str,
    queries: Embeddings,
    candidates: Embeddings,
    positives: PositiveSource,
    settings: EvaluateSettings,
    device: str,
) -> Retrieval:
    found = rankings(queries, candidates, positives, settings.map_k, device=device)
    outcomes = rank_outcomes(task, found, len(candidates), positives, settings.ks)
    return Retrieval(outcomes, found, positives, len(candidates))


def _crossing(
    source: Part,
    target: Part,
    labels: Mapping[str, Labels],
    settings: EvaluateSettings,
    device: str,
) -> Crossing:
    """Retrieval of the items of `target` by those of `source`. `labels` are of the whole set."""
    meetings = meet(_keys(source, labels), _keys(target, labels))
    crossing = Crossing(source, target, meetings, None)
    if not len(meetings.queries):
        return crossing
    queries = source.items[meetings.queries]
    found = _retrieval(crossing.task, queries, target.items, meetings, settings, device)
    return Crossing(source, target, meetings, found)


def _keys(part: Part, labels: Mapping[str, Labels]) -> list[list[tuple[str, str]]]:
    last = part.first + len(part.items)
    own = {column: values[part.first : last] for column, values in labels.items()}
    return meeting_keys(part.data, own)


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
        labels=labels_of(part, items.tolist()),
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


def _zero_shot(
    asked: ZeroShotSettings,
    labels: Labels,
    part: Part,
    encode_texts: EncodeTexts,
    device: str,
) -> Recognition:
    classes = sorted({label for label in labels if label is not None})
    if len(classes) < 2:
        raise DataError(
            f"evaluate.zero_shot names the column {asked.column!r}, which has only the value "
            f"{classes[0]!r} in the evaluated split: there is nothing to tell apart",
            hint="name a column with several values, or take this entry out",
        )
    embedded = class_embeddings(classes, asked.prompts, encode_texts)
    task = f"zero_shot_{slug(asked.name)}"
    result = classify(task, part.items, labels, classes, embedded, device=device)
    return Recognition(asked, part, result, embedded)


def _macro_figures(
    zero_shot: Mapping[str, Recognition], resample: Callable[[int], Resamples]
) -> list[Figure]:
    """Mean accuracy of the classes, of each classification."""
    found = []
    for key, one in zero_shot.items():
        path = f"zero_shot/{key}/macro_top_1"
        weigh = one.result.weigh_macro_top_1
        [figure] = estimate({path: weigh}, resample(len(one.result.items)))
        if figure.low == figure.high:
            # Each class is all right or all wrong. The smallest is the least to rely on.
            fewest = int(one.result.class_counts().min())
            low, high = unseen(np.asarray(figure.value), fewest)
            figure = replace(figure, low=float(low), high=float(high))
        found.append(figure)
    return found


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
        chosen = tuple(column for part in parts for column in _auto_columns(part))
    wanted = sorted({*chosen, *settings.slices_in_metrics})
    return {
        column: label_slices(data.values(column, setting="evaluate.slices")) for column in wanted
    }


def _auto_columns(data: EvaluationSet) -> list[str]:
    """The columns that the items of one modality are sliced by, if none are named."""
    return [
        column
        for column in data.columns()
        if makes_slices(data.values(column, setting="evaluate.slices"))
    ]
