"""From measurements to the report's content: which figures lead, which searches are shown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from coembed.evaluation.answered import Answered
from coembed.evaluation.charts import LineChart, line_chart, read_history, reliability_chart
from coembed.evaluation.contact_sheet import (
    ShownItem,
    attribute_searches,
    caption_searches,
    choose,
    crossing_searches,
    show_all,
    shown_items,
    worst,
)
from coembed.evaluation.measure import Measurements
from coembed.evaluation.origins import Origins
from coembed.evaluation.parts import Crossing, Part, Retrieval
from coembed.evaluation.report import (
    Geometry,
    Headline,
    Interval,
    MetricRow,
    Reliability,
    Report,
    SearchGroup,
    WorseQueries,
    is_share,
    leading,
    percent,
    slice_table,
    weakest,
    words,
    zero_shot_view,
)
from coembed.evaluation.retrieval import Outcomes, summarise
from coembed.evaluation.scoring import score
from coembed.evaluation.settings import ContactSheetSettings, EvaluateSettings
from coembed.evaluation.zero_shot import ZeroShot
from coembed.types import Modality, Sample, plural, singular

_MAX_CURVES = 6
_MAX_CARDS = 5
_NUM_WEAKEST = 3
_ROBUSTNESS = "robustness"
# What further measurements mean, by their group in metrics.json.
_MEANT = (
    (
        "compositional",
        (
            "altered_captions",
            "Each item is put beside its true caption and one with a single thing wrong: another "
            "value of the column, or two words in each other's places (order). It counts when the "
            "item lies nearer to the true one; guessing gives 50 %.",
        ),
    ),
    (
        "calibration",
        (
            "ece",
            "The mean distance between how sure the model is and how often it is right. 0 is best.",
        ),
    ),
    ("calibration", ("brier", "The mean squared distance between the two, hit by hit. 0 is best.")),
    (
        "calibration",
        ("nll", "How surprised the model is by what was right. 0 is best; being sure and wrong "
         "costs most."),
    ),
)  # fmt: skip
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
    numbers = {found.data.items[number].item_id: number for number in times}
    wanted = {item_id: times[number] for item_id, number in numbers.items()}
    return {numbers[sample.item_id]: item for sample, item in show_all(samples, wanted, settings)}


def make_report(
    found: Measurements,
    settings: EvaluateSettings,
    *,
    groups: Sequence[SearchGroup],
    items: Mapping[int, ShownItem],
    facts: Sequence[tuple[str, str]],
    history: Path | None,
    origins: Origins | None = None,
) -> Report:
    """The report's content. `history` is the model's history.csv, or None where it has none."""
    bounds = _bounds(found)
    several = len(found.parts) > 1
    leads = [(one.outcomes.task, leading(list(one.outcomes.values))) for one in found.answered]
    tables = [slice_table(found.slices, task, metric) for task, metric in leads]
    cards = _headlines(found, settings, bounds)
    details = {task: card.explanation for task, card in cards}
    return Report(
        facts=facts,
        headlines=[card for _, card in cards[:_MAX_CARDS]],
        metrics=[
            (one.outcomes.task, _rows(one, found, bounds, details.get(one.outcomes.task, "")))
            for one in found.answered
            if one.group != _ROBUSTNESS
        ],
        groups=groups,
        directions=_directions(found, settings),
        notes=_notes(found, settings),
        items=items,
        zero_shot=[
            zero_shot_view(
                one.settings.column,
                one.result,
                class_intervals(one.result, settings),
                of=plural(one.part.modality) if several else "",
            )
            for one in found.zero_shot.values()
        ],
        slices=[table for table in tables if table is not None],
        min_slice=settings.min_slice,
        curves=_curves(history) if history is not None else [],
        weakest=weakest(found.slices, leads, _NUM_WEAKEST),
        robustness=_robustness(found, bounds),
        reliability=_reliability(found, settings, bounds),
        reliability_explained=_explained(found),
        geometry=[
            Geometry(plural(part.modality).capitalize(), figures)
            for part in found.parts
            if (figures := _named(found, f"geometry/{part.modality}", bounds))
        ],
        origins=origins,
    )


def _bounds(found: Measurements) -> dict[str, Interval]:
    """The intervals by path in metrics.json; a figure without one is not there."""
    return {
        figure.path: (figure.low, figure.high)
        for figure in found.figures
        if not math.isnan(figure.low)
    }


def class_intervals(result: ZeroShot, settings: EvaluateSettings) -> dict[str, Interval]:
    """95 % intervals of each class's top-1 accuracy."""
    items = np.arange(len(result.items), dtype=np.int64)
    labels = [result.classes[actual] for actual in result.actual.tolist()]
    one = Answered("", "", result.outcomes, labels, items, items, {"class": labels})
    _, slices = score([one], bootstrap=settings.bootstrap, min_slice=1)
    return {row.value: (row.low, row.high) for row in slices if row.metric == "top_1"}


def _robustness(found: Measurements, bounds: Mapping[str, Interval]) -> list[WorseQueries]:
    """The leading metric of each task with corrupted queries. What the same queries get unharmed is
    the score and the drop together."""
    drops = {figure.path: figure.value for figure in found.figures}
    rows = []
    for one in found.answered:
        if one.group != _ROBUSTNESS:
            continue
        metric = leading(list(one.outcomes.values))
        score, drop = float(one.outcomes.values[metric].mean()), drops[one.path(f"{metric}_drop")]
        rows.append(
            WorseQueries(
                task=one.outcomes.task,
                metric=metric,
                num_queries=one.outcomes.num_queries,
                clean=score + drop,
                score=score,
                interval=bounds.get(one.path(metric)),
                drop=drop,
                drop_interval=bounds.get(one.path(f"{metric}_drop")),
            )
        )
    return rows


def _reliability(
    found: Measurements, settings: EvaluateSettings, bounds: Mapping[str, Interval]
) -> list[Reliability]:
    """A chart for each calibrated task, with intervals of each bin's share of right hits."""
    shown = []
    for key, calibration in found.calibration.items():
        num = len(calibration.right)
        bins = [str(number) for number in calibration.bins.tolist()]
        outcomes = Outcomes("", {"right": calibration.right}, {"right": np.zeros(num)})
        every = np.arange(num, dtype=np.int64)
        one = Answered("", "", outcomes, bins, every, calibration.clusters, {"bin": bins})
        _, slices = score([one], bootstrap=settings.bootstrap, min_slice=1)
        right = {row.value: row for row in slices}
        sure = {
            number: float(calibration.confidence[calibration.bins == int(number)].mean())
            for number in right
        }
        chart = reliability_chart(
            (
                sure[number],
                row.score,
                row.low,
                row.high,
                f"{row.num_queries:,} queries: sure {percent(sure[number])}, "
                f"right {percent(row.score)}",
            )
            for number, row in right.items()
        )
        shown.append(Reliability(key, chart, _named(found, f"calibration/{key}", bounds)))
    return shown


def _explained(found: Measurements) -> str:
    """What a confidence is here."""
    kinds = {calibration.kind for calibration in found.calibration.values()}
    if "sigmoid" in kinds:
        return (
            "This model was trained to say of each pair by itself whether it belongs together: its "
            "confidence is what it says of the best hit."
        )
    return (
        "This model was trained to pick one of several candidates: its confidence is the best "
        "hit's share among all candidates. Where several are right they share it, and it is modest."
    )


def _named(
    found: Measurements, path: str, bounds: Mapping[str, Interval]
) -> list[tuple[str, float, Interval | None]]:
    """Name, value and interval of the figures under `path`."""
    return [
        (figure.path.rpartition("/")[2], figure.value, bounds.get(figure.path))
        for figure in found.figures
        if figure.path.rpartition("/")[0] == path
    ]


def _headlines(
    found: Measurements, settings: EvaluateSettings, bounds: Mapping[str, Interval]
) -> list[tuple[str, Headline]]:
    """A large figure for each task, by its name: what a person at the search box meets first, then
    whether things are recognised, then the rest."""
    cards: list[tuple[str, Headline]] = []
    several = len(found.parts) > 1
    for key, search in found.attribute_queries.items():
        columns = " and ".join(search.settings.columns)
        among = f" among the {plural(search.part.modality)}" if several else ""
        summary = summarise(search.outcomes)
        k = search.settings.ks[0]
        card = Headline(
            "First hit right" if k == 1 else f"First {k} hits right",
            f"of {summary['num_queries']:,.0f} searches by {columns}{among}",
            summary[f"precision_at_{k}"],
            summary[f"chance_precision_at_{k}"],
            bounds.get(f"attribute_queries/{key}/precision_at_{k}"),
        )
        cards.append((search.outcomes.task, card))
    ways = [
        (way.outcomes.task, _retrieval_card(way, who, sought, k=settings.ks[-1], bounds=bounds))
        for way, who, sought in _explained_ways(found)
    ]
    by_words = [way for way in ways if way[0].startswith("text_to_")]
    cards += by_words
    for key, one in found.zero_shot.items():
        summary = summarise(one.result.outcomes)
        card = Headline(
            f"{words(one.settings.column)} recognised",
            f"zero-shot, one of {len(one.result.classes)} for each of "
            f"{summary['num_queries']:,.0f} {plural(one.part.modality)}",
            summary["top_1"],
            summary["chance_top_1"],
            bounds.get(f"zero_shot/{key}/top_1"),
        )
        cards.append((one.result.outcomes.task, card))
    return cards + [way for way in ways if way not in by_words]


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


def _retrieval_card(
    way: Retrieval, who: str, sought: str, *, k: int, bounds: Mapping[str, Interval]
) -> Headline:
    summary = summarise(way.outcomes)
    return Headline(
        f"{words(way.outcomes.task)}, Recall@{k}",
        f"of {way.outcomes.num_queries:,} {who} find {sought} among the first {k} of "
        f"{way.num_candidates:,}",
        summary[f"recall_at_{k}"],
        summary[f"chance_recall_at_{k}"],
        bounds.get(f"retrieval/{way.outcomes.task}/recall_at_{k}"),
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
    return explained + [entry for group, entry in _MEANT if group in _measured(found)]


def _measured(found: Measurements) -> set[str]:
    """The groups of metrics.json that are there."""
    return {figure.path.partition("/")[0] for figure in found.figures}


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


def _rows(
    one: Answered, found: Measurements, bounds: Mapping[str, Interval], detail: str
) -> list[MetricRow]:
    """All metrics of one task: the means over its queries, then its other figures. `detail` says
    what the leading one counts."""
    summary = summarise(one.outcomes)
    lead = leading(list(one.outcomes.values))
    rows = [
        MetricRow(
            name,
            summary[name],
            summary[f"chance_{name}"],
            is_share(name),
            bounds.get(one.path(name)),
            leads=name == lead,
            detail=detail if name == lead else "",
        )
        for name in one.outcomes.values
    ]
    for figure in found.figures:
        task, _, name = figure.path.rpartition("/")
        if f"{task}/" == one.path("") and name not in one.outcomes.values:
            rows.append(
                MetricRow(name, figure.value, None, is_share(name), bounds.get(figure.path))
            )
    return rows


def _curves(history: Path) -> list[LineChart]:
    """The loss, what was found on val, and what else there is room for."""
    curves = sorted(
        read_history(history).items(),
        key=lambda curve: (curve[0] != "loss", not curve[0].startswith("val_")),
    )
    return [line_chart(name, points) for name, points in curves[:_MAX_CURVES]]
