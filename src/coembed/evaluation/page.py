"""From measurements to the report's content: which figures lead, which searches are shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from coembed.evaluation.charts import LineChart, line_chart, read_history
from coembed.evaluation.contact_sheet import (
    attribute_searches,
    caption_searches,
    choose,
    needed_items,
    thumbnail,
    worst,
)
from coembed.evaluation.measure import Measurements
from coembed.evaluation.report import (
    Headline,
    MetricRow,
    Report,
    SearchGroup,
    slice_table,
    words,
    zero_shot_view,
)
from coembed.evaluation.retrieval import Outcomes, summarise
from coembed.evaluation.settings import ContactSheetSettings, EvaluateSettings
from coembed.types import Sample

_MAX_CURVES = 6


def search_groups(found: Measurements, settings: ContactSheetSettings) -> list[SearchGroup]:
    """The searches of the contact sheet.

    Half of them are attribute queries where there are some, a quarter the captions with the worst
    ranks, the rest other captions.
    """
    groups: list[SearchGroup] = []
    left = settings.num_queries
    templates = list(found.attribute_queries.values())
    for search in templates:
        num = -(-settings.num_queries // (2 * len(templates)))
        places = choose([query.text for query in search.queries], num)
        shown = attribute_searches(
            search.queries,
            places,
            search.embedded,
            found.items,
            list(search.labels.values()),
            num_hits=settings.num_hits,
        )
        left -= len(shown)
        columns = " and ".join(search.settings.columns)
        groups.append(
            SearchGroup(
                "What a person at the search box sees",
                f"Searches by {columns}, picked at random. A hit is right when it has all that was "
                "asked; what is struck out is not as asked.",
                shown,
            )
        )
    ranks = found.text_to_item.ranks
    texts = [found.data.texts[text] for _, text in found.data.queries]
    num_worst = min(settings.num_queries // 4, max(left, 0))
    parts = (
        (
            "Captions as searches",
            "Captions picked at random: does each find its own item? It is marked, as are items "
            "with the very same caption; other hits may fit the words too, nobody has said.",
            choose(texts, max(left - num_worst, 0)),
        ),
        (
            "The worst misses",
            "The captions whose item came last. Look here for weak spots of the model, and for "
            "captions that don't fit their picture.",
            worst(texts, ranks, num_worst),
        ),
    )
    for title, explanation, places in parts:
        shown = caption_searches(
            found.data,
            found.text_to_item.positives,
            places,
            found.texts,
            found.items,
            ranks,
            num_hits=settings.num_hits,
        )
        groups.append(SearchGroup(title, explanation, shown))
    return [group for group in groups if group.searches]


def wanted_items(found: Measurements, groups: Iterable[SearchGroup]) -> dict[str, int]:
    """Item numbers by item_id of all items that the groups show."""
    numbers = sorted({n for group in groups for n in needed_items(group.searches)})
    return {found.data.items[number].item_id: number for number in numbers}


def thumbnails(samples: Iterable[Sample], wanted: Mapping[str, int], *, px: int) -> dict[int, str]:
    """Data URIs of the wanted items, by item number; stops reading when all are there."""
    matching = (sample for sample in samples if sample.item_id in wanted)
    return {
        wanted[sample.item_id]: thumbnail(sample, px=px) for sample in islice(matching, len(wanted))
    }


def make_report(
    found: Measurements,
    settings: EvaluateSettings,
    *,
    groups: Sequence[SearchGroup],
    pictures: Mapping[int, str],
    facts: Sequence[tuple[str, str]],
    history: Path | None,
) -> Report:
    """The report's content. `history` is the model's history.csv, or None where it has none."""
    tasks: list[tuple[Outcomes, str]] = [
        (way.outcomes, f"recall_at_{settings.ks[-1]}") for way in found.retrieval
    ]
    tasks += [
        (search.outcomes, f"capped_recall_at_{search.settings.ks[-1]}")
        for search in found.attribute_queries.values()
    ]
    tasks += [(result.outcomes, "top_1") for _, result in found.zero_shot.values()]
    tables = [slice_table(found.slices, outcomes.task, metric) for outcomes, metric in tasks]
    return Report(
        facts=facts,
        headlines=_headlines(found, settings),
        metrics=[(outcomes.task, _rows(outcomes)) for outcomes, _ in tasks],
        groups=groups,
        thumbnails=pictures,
        zero_shot=[zero_shot_view(asked.column, r) for asked, r in found.zero_shot.values()],
        slices=[table for table in tables if table is not None],
        min_slice=settings.min_slice,
        curves=_curves(history) if history is not None else [],
    )


def _headlines(found: Measurements, settings: EvaluateSettings) -> list[Headline]:
    """The figures that stand first: what a person at the search box meets, then the field's own."""
    cards = []
    for search in found.attribute_queries.values():
        columns = " and ".join(search.settings.columns)
        summary = summarise(search.outcomes)
        k = search.settings.ks[0]
        cards.append(
            Headline(
                "First hit right" if k == 1 else f"First {k} hits right",
                f"of {summary['num_queries']:,.0f} searches by {columns}",
                summary[f"precision_at_{k}"],
                summary[f"chance_precision_at_{k}"],
            )
        )
    k = settings.ks[-1]
    modality = found.data.items[0].modality
    explanations = (
        f"of {found.text_to_item.outcomes.num_queries:,} captions find their {modality} among the "
        f"first {k} of {len(found.data.items):,}",
        f"of {found.item_to_text.outcomes.num_queries:,} {modality}s find their caption among the "
        f"first {k} of {len(found.data.texts):,}",
    )
    for way, explanation in zip(found.retrieval, explanations, strict=True):
        summary = summarise(way.outcomes)
        name = f"recall_at_{k}"
        label = f"{words(way.outcomes.task)}, Recall@{k}"
        cards.append(Headline(label, explanation, summary[name], summary[f"chance_{name}"]))
    for asked, result in found.zero_shot.values():
        summary = summarise(result.outcomes)
        cards.append(
            Headline(
                f"{words(asked.column)} recognised",
                f"zero-shot, one of {len(result.classes)} for each of "
                f"{summary['num_queries']:,.0f} {modality}s",
                summary["top_1"],
                summary["chance_top_1"],
            )
        )
    return cards


def _rows(outcomes: Outcomes) -> list[MetricRow]:
    summary = summarise(outcomes)
    rows = [
        MetricRow(name, summary[name], summary[f"chance_{name}"], is_share=name != "mrr")
        for name in outcomes.values
    ]
    if "median_rank" in summary:
        rows.append(MetricRow("median_rank", summary["median_rank"], None, False))
    return rows


def _curves(history: Path) -> list[LineChart]:
    curves = read_history(history)
    return [line_chart(name, points) for name, points in islice(curves.items(), _MAX_CURVES)]
