"""From measurements to the report's content: which figures lead, which searches are shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from coembed.evaluation.charts import LineChart, line_chart, read_history
from coembed.evaluation.contact_sheet import (
    ShownItem,
    attribute_searches,
    caption_searches,
    choose,
    crossing_searches,
    show_item,
    shown_items,
    worst,
)
from coembed.evaluation.measure import Crossing, Measurements, Part, Retrieval
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
from coembed.types import Modality, Sample, plural, singular

_MAX_CURVES = 6
# What a person calls an item whose picture is before them.
_DRAWN: Mapping[Modality, str] = {"image": "picture", "audio": "sound"}


def search_groups(found: Measurements, settings: EvaluateSettings) -> list[SearchGroup]:
    """The searches of the contact sheet, modality by modality, then from one to another.

    Half of a modality's are attribute queries where there are some, a quarter the captions with the
    worst ranks, the rest other captions.
    """
    groups = [group for part in found.parts for group in _part_groups(found, part, settings)]
    num_crossing = -(-settings.contact_sheet.num_queries // 4)
    groups += [
        _crossing_group(crossing, settings, num_crossing)
        for crossing in found.crossings
        if crossing.retrieval is not None
    ]
    return [group for group in groups if group.searches]


def _part_groups(found: Measurements, part: Part, settings: EvaluateSettings) -> list[SearchGroup]:
    sheet = settings.contact_sheet
    among = f": {plural(part.modality)}" if len(found.parts) > 1 else ""
    groups: list[SearchGroup] = []
    left = sheet.num_queries
    templates = [search for search in found.attribute_queries.values() if search.part is part]
    for search in templates:
        num = -(-sheet.num_queries // (2 * len(templates)))
        places = choose([query.text for query in search.queries], num)
        shown = attribute_searches(search, places, num_hits=sheet.num_hits)
        left -= len(shown)
        columns = " and ".join(search.settings.columns)
        groups.append(
            SearchGroup(
                f"What a person at the search box sees{among}",
                f"Searches by {columns}, picked at random. A hit is right when it has all that was "
                "asked; what is struck out is not as asked.",
                shown,
            )
        )
    texts = [part.data.texts[text] for _, text in part.data.queries]
    num_worst = min(sheet.num_queries // 4, max(left, 0))
    parts = (
        (
            f"Captions as searches{among}",
            "Captions picked at random: does each find its own item? It is marked, as are items "
            "with the very same caption; other hits may fit the words too, nobody has said.",
            choose(texts, max(left - num_worst, 0)),
        ),
        (
            f"The worst misses{among}",
            "The captions whose item came last. Look here for weak spots of the model, and for "
            f"captions that don't fit their {_DRAWN[part.modality]}.",
            worst(texts, part.text_to_item.ranks, num_worst),
        ),
    )
    for title, explanation, places in parts:
        shown = caption_searches(part, places, num_hits=sheet.num_hits)
        groups.append(SearchGroup(title, explanation, shown))
    return groups


def _crossing_group(crossing: Crossing, settings: EvaluateSettings, num: int) -> SearchGroup:
    source, target = crossing.source, crossing.target
    texts = [source.data.items[item].captions[0] for item in crossing.meetings.queries.tolist()]
    columns = settings.meeting_columns
    what = _listed(["caption", *columns], "or")
    unknown = "" if columns else " Other hits may belong to it too, nobody has said."
    return SearchGroup(
        f"{plural(target.modality).capitalize()} found by {plural(source.modality)}",
        f"Each search is the {singular(source.modality)} at the left, picked at random. A hit is "
        f"right when it has the same {what}.{unknown}",
        crossing_searches(
            crossing,
            choose(texts, num),
            wrong=False if columns else None,
            num_hits=settings.contact_sheet.num_hits,
        ),
    )


def show_items(
    samples: Iterable[Sample],
    found: Measurements,
    groups: Iterable[SearchGroup],
    settings: ContactSheetSettings,
) -> dict[int, ShownItem]:
    """What the groups show, by item number. Stops reading `samples` when all are there."""
    times = shown_items(search for group in groups for search in group.searches)
    wanted = {found.data.items[number].item_id: number for number in times}
    shown: dict[int, ShownItem] = {}
    left = settings.max_sounds_bytes
    matching = (sample for sample in samples if sample.item_id in wanted)
    for sample in islice(matching, len(wanted)):
        number = wanted[sample.item_id]
        # The page holds a sound as often as it shows it.
        most = min(settings.max_sound_bytes, left // times[number])
        item = show_item(sample, px=settings.thumbnail_px, max_sound_bytes=most)
        if item.sound is not None:
            left -= times[number] * len(sample.media)
        shown[number] = item
    return shown


def make_report(
    found: Measurements,
    settings: EvaluateSettings,
    *,
    groups: Sequence[SearchGroup],
    items: Mapping[int, ShownItem],
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
    tasks += [(one.result.outcomes, "top_1") for one in found.zero_shot.values()]
    several = len(found.parts) > 1
    tables = [slice_table(found.slices, outcomes.task, metric) for outcomes, metric in tasks]
    return Report(
        facts=facts,
        headlines=_headlines(found, settings),
        metrics=[(outcomes.task, _rows(outcomes)) for outcomes, _ in tasks],
        groups=groups,
        directions=_directions(found, settings),
        notes=_notes(found, settings),
        items=items,
        zero_shot=[
            zero_shot_view(
                one.settings.column,
                one.result,
                of=plural(one.part.modality) if several else "",
            )
            for one in found.zero_shot.values()
        ],
        slices=[table for table in tables if table is not None],
        min_slice=settings.min_slice,
        curves=_curves(history) if history is not None else [],
    )


def _headlines(found: Measurements, settings: EvaluateSettings) -> list[Headline]:
    """The figures that stand first: what a person at the search box meets, then the field's own."""
    cards = []
    several = len(found.parts) > 1
    for search in found.attribute_queries.values():
        columns = " and ".join(search.settings.columns)
        among = f" among the {plural(search.part.modality)}" if several else ""
        summary = summarise(search.outcomes)
        k = search.settings.ks[0]
        cards.append(
            Headline(
                "First hit right" if k == 1 else f"First {k} hits right",
                f"of {summary['num_queries']:,.0f} searches by {columns}{among}",
                summary[f"precision_at_{k}"],
                summary[f"chance_precision_at_{k}"],
            )
        )
    cards += [_retrieval_card(*entry, k=settings.ks[-1]) for entry in _explained_ways(found)]
    for one in found.zero_shot.values():
        summary = summarise(one.result.outcomes)
        cards.append(
            Headline(
                f"{words(one.settings.column)} recognised",
                f"zero-shot, one of {len(one.result.classes)} for each of "
                f"{summary['num_queries']:,.0f} {plural(one.part.modality)}",
                summary["top_1"],
                summary["chance_top_1"],
            )
        )
    return cards


def _explained_ways(found: Measurements) -> Iterator[tuple[Retrieval, str, str]]:
    """Each direction with who looks for what."""
    for part in found.parts:
        own = singular(part.modality)
        yield part.text_to_item, "captions", f"their {own}"
        yield part.item_to_text, plural(part.modality), "their caption"
    for crossing in found.crossings:
        if crossing.retrieval is not None:
            sought = f"one of their {plural(crossing.target.modality)}"
            yield crossing.retrieval, plural(crossing.source.modality), sought


def _retrieval_card(way: Retrieval, who: str, sought: str, *, k: int) -> Headline:
    summary = summarise(way.outcomes)
    return Headline(
        f"{words(way.outcomes.task)}, Recall@{k}",
        f"of {way.outcomes.num_queries:,} {who} find {sought} among the first {k} of "
        f"{way.num_candidates:,}",
        summary[f"recall_at_{k}"],
        summary[f"chance_recall_at_{k}"],
    )


def _directions(found: Measurements, settings: EvaluateSettings) -> list[tuple[str, str]]:
    """What each direction of retrieval asks."""
    explained = []
    for part in found.parts:
        kind = _DRAWN[part.modality]
        explained += [
            (
                part.text_to_item.outcomes.task,
                f"Each caption is typed into the search; its own {kind}, or one with the same "
                "caption, is right.",
            ),
            (
                part.item_to_text.outcomes.task,
                f"Each {kind} looks for its own caption among all of them.",
            ),
        ]
    what = _listed(["caption", *settings.meeting_columns], "or")
    for crossing in found.crossings:
        if crossing.retrieval is not None:
            source, target = _DRAWN[crossing.source.modality], _DRAWN[crossing.target.modality]
            explained.append(
                (crossing.task, f"Each {source} looks for a {target} with the same {what}.")
            )
    return explained


def _notes(found: Measurements, settings: EvaluateSettings) -> list[str]:
    """What was not measured, and why."""
    notes = [
        f"{num:,} {plural(modality)} were not measured: the model has no {modality} tower."
        for modality, num in found.left_out.items()
    ]
    what = _listed(["caption", *settings.meeting_columns], "or")
    for crossing in found.crossings:
        source, target = crossing.source.modality, crossing.target.modality
        left = crossing.meetings.num_not_asked
        if crossing.retrieval is None:
            notes.append(
                f"{words(crossing.task)} was not measured: no {singular(source)} has the same "
                f"{what} as any {singular(target)}. Name a column that ties them together in "
                "evaluate.meets_on."
            )
        elif left:
            notes.append(
                f"{words(crossing.task)}: {left:,} of {len(crossing.source.items):,} "
                f"{plural(source)} were not asked, for no {singular(target)} has the same {what}."
            )
    return notes


def _listed(names: Sequence[str], joint: str) -> str:
    """a, b or c."""
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} {joint} {names[-1]}"


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
