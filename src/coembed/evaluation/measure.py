"""All that is measured on one evaluation set: from embeddings to outcomes, metrics, slices."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coembed.errors import DataError
from coembed.evaluation.attribute_queries import (
    AttributeQuery,
    attribute_outcomes,
    best_precision,
    make_queries,
    shared_value,
)
from coembed.evaluation.evaluation_set import EvaluationSet
from coembed.evaluation.retrieval import (
    Embeddings,
    Floats,
    Outcomes,
    Positives,
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

EncodeTexts = Callable[[Sequence[str]], Embeddings]
Labels = Sequence[str | None]


@dataclass(frozen=True, slots=True)
class Retrieval:
    """One direction of retrieval."""

    outcomes: Outcomes
    ranks: Floats
    positives: Positives
    num_candidates: int


@dataclass(frozen=True, slots=True)
class AttributeSearch:
    """The searches of one template. `embedded` is [num_queries, dim]."""

    settings: AttributeQuerySettings
    queries: Sequence[AttributeQuery]
    embedded: Embeddings
    labels: Mapping[str, Labels]
    outcomes: Outcomes


@dataclass(frozen=True, slots=True)
class Measurements:
    """What was measured. `items` and `texts` are the embeddings, [num_items or num_texts, dim].

    `zero_shot` and `attribute_queries` are keyed as in metrics.json.
    """

    data: EvaluationSet
    items: Embeddings
    texts: Embeddings
    text_to_item: Retrieval
    item_to_text: Retrieval
    zero_shot: Mapping[str, tuple[ZeroShotSettings, ZeroShot]]
    attribute_queries: Mapping[str, AttributeSearch]
    slices: Sequence[SliceScore]

    @property
    def retrieval(self) -> tuple[Retrieval, Retrieval]:
        """Both directions."""
        return self.text_to_item, self.item_to_text


def measure(
    data: EvaluationSet,
    items: Embeddings,
    encode_texts: EncodeTexts,
    settings: EvaluateSettings,
    *,
    device: str = "cpu",
) -> Measurements:
    """Measure all that `settings` asks for. `items` [num_items, dim] are in the order of `data`.

    Raises:
        DataError: a column that no item has, or that cannot serve as asked.
        ModelError: embeddings that are not finite.
    """
    modality = data.items[0].modality
    slice_labels = _slice_labels(data, settings)
    zero_shot_labels = {
        asked.column: data.labels(asked.column, setting="evaluate.zero_shot")
        for asked in settings.zero_shot
    }
    query_labels = {
        asked.name: {
            column: data.labels(column, setting="evaluate.attribute_queries")
            for column in asked.columns
        }
        for asked in settings.attribute_queries
    }
    check_embeddings(items, f"{modality}s")
    texts = encode_texts(data.texts)
    check_embeddings(texts, "captions")

    text_to_item = _retrieval(
        f"text_to_{modality}",
        texts[data.query_texts],
        items,
        data.text_to_item(),
        settings.ks,
        device,
    )
    item_to_text = _retrieval(
        f"{modality}_to_text", items, texts, data.item_to_text(), settings.ks, device
    )
    by_item = {column: list(values) for column, values in slice_labels.items()}
    by_query = {
        column: [values[item] for item in data.query_items.tolist()]
        for column, values in slice_labels.items()
    }
    slices = [
        *slice_scores(text_to_item.outcomes, by_query, min_slice=settings.min_slice),
        *slice_scores(item_to_text.outcomes, by_item, min_slice=settings.min_slice),
    ]

    zero_shot = {}
    for asked in settings.zero_shot:
        result = _zero_shot(asked, zero_shot_labels[asked.column], items, encode_texts, device)
        zero_shot[slug(asked.column)] = (asked, result)
        labelled = {
            column: [values[item] for item in result.items.tolist()]
            for column, values in slice_labels.items()
        }
        slices += slice_scores(result.outcomes, labelled, min_slice=settings.min_slice)

    attribute_queries = {}
    for query_settings in settings.attribute_queries:
        search = _attribute_search(
            query_settings, query_labels[query_settings.name], items, encode_texts
        )
        attribute_queries[slug(query_settings.name)] = search
        shared = {
            column: [shared_value(query, values) for query in search.queries]
            for column, values in slice_labels.items()
        }
        slices += slice_scores(search.outcomes, shared, min_slice=settings.min_slice)

    return Measurements(
        data, items, texts, text_to_item, item_to_text, zero_shot, attribute_queries, slices
    )


def metrics_tree(found: Measurements, settings: EvaluateSettings) -> dict[str, Any]:
    """The content of metrics.json: nested, keys of letters, digits and `_`, six decimals."""
    tree: dict[str, Any] = {
        "num_items": len(found.data.items),
        "num_captions": found.text_to_item.outcomes.num_queries,
        "retrieval": {
            way.outcomes.task: summarise(way.outcomes) | {"num_candidates": way.num_candidates}
            for way in found.retrieval
        },
    }
    if found.zero_shot:
        tree["zero_shot"] = {
            key: summarise(result.outcomes)
            | {"macro_top_1": result.macro_top_1(), "num_classes": len(result.classes)}
            for key, (_, result) in found.zero_shot.items()
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


def _retrieval(
    task: str,
    queries: Embeddings,
    candidates: Embeddings,
    positives: Positives,
    ks: Sequence[int],
    device: str,
) -> Retrieval:
    found = ranks(queries, candidates, positives, device=device)
    outcomes = rank_outcomes(task, found, len(candidates), positives, ks)
    return Retrieval(outcomes, found, positives, len(candidates))


def _zero_shot(
    asked: ZeroShotSettings,
    labels: Labels,
    items: Embeddings,
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
        f"zero_shot_{slug(asked.column)}", items, labels, classes, embedded, device=device
    )


def _attribute_search(
    settings: AttributeQuerySettings,
    labels: Mapping[str, Labels],
    items: Embeddings,
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
    outcomes = attribute_outcomes(task, queries, embedded, items, settings.ks)
    return AttributeSearch(settings, queries, embedded, labels, outcomes)


def _slice_labels(data: EvaluationSet, settings: EvaluateSettings) -> dict[str, Labels]:
    chosen = data.auto_slices() if settings.slices == "auto" else settings.slices
    # What a gate watches must be there even where "auto" would pass it over.
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
