"""The report: one HTML file that needs nothing else, not even a script.

`Report` holds plain values, ready to be shown; `report.html.j2` lays them out. Everything that
comes from data is escaped, and the page's own policy forbids scripts and requests. The same values
make the same bytes: there is no date in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from coembed.evaluation.charts import HEIGHT, WIDTH, LineChart
from coembed.evaluation.contact_sheet import ShownItem, ShownSearch
from coembed.evaluation.slices import SliceScore
from coembed.evaluation.zero_shot import ZeroShot

_MAX_CONFUSION_CLASSES = 40
_MAX_ROWS = 60
_ROWS_IN_VIEW = 10


@dataclass(frozen=True, slots=True)
class Headline:
    """One large figure. `score` and `chance` are shares from 0 to 1."""

    label: str
    explanation: str
    score: float
    chance: float


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric. `chance` is None where there is none; shares are shown in percent."""

    metric: str
    score: float
    chance: float | None
    is_share: bool


@dataclass(frozen=True, slots=True)
class SearchGroup:
    """A part of the contact sheet."""

    title: str
    explanation: str
    searches: Sequence[ShownSearch]


@dataclass(frozen=True, slots=True)
class ClassBar:
    """Accuracy of one class."""

    label: str
    num_items: int
    score: float


@dataclass(frozen=True, slots=True)
class ZeroShotView:
    """Zero-shot classification by one column of the items `of`, which are named where others are
    evaluated too. `confusion` has [label, cells] rows, or is None."""

    column: str
    of: str
    chance: float
    bars: Sequence[ClassBar]
    num_hidden: int
    classes: Sequence[str]
    confusion: Sequence[tuple[str, Sequence[int], int]] | None
    mistakes: Sequence[tuple[str, str, int]]


@dataclass(frozen=True, slots=True)
class SliceTable:
    """Slices of one task by its main metric, worst first."""

    task: str
    metric: str
    overall: float
    rows: Sequence[SliceScore]
    num_hidden: int


@dataclass(frozen=True, slots=True)
class Report:
    """All that the page shows.

    `facts` are (label, value); `metrics` are (task, rows); `directions` are the tasks of retrieval,
    each with what it asks; `notes` say what was not measured; `items` holds what the groups
    show, by item number.
    """

    facts: Sequence[tuple[str, str]]
    headlines: Sequence[Headline]
    metrics: Sequence[tuple[str, Sequence[MetricRow]]]
    directions: Sequence[tuple[str, str]]
    notes: Sequence[str]
    groups: Sequence[SearchGroup]
    items: Mapping[int, ShownItem]
    zero_shot: Sequence[ZeroShotView]
    slices: Sequence[SliceTable]
    min_slice: int
    curves: Sequence[LineChart]


def render(report: Report) -> str:
    """The page as HTML."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = percent
    environment.filters["number"] = _number
    environment.filters["words"] = words
    source = (files("coembed.evaluation") / "report.html.j2").read_text(encoding="utf-8")
    template = environment.from_string(source)
    page = template.render(
        report=report, chart_width=WIDTH, chart_height=HEIGHT, rows_in_view=_ROWS_IN_VIEW
    )
    return page + "\n"


def zero_shot_view(column: str, result: ZeroShot, *, of: str = "") -> ZeroShotView:
    """Classes worst first, the confusion table of few classes, and the most frequent mistakes."""
    accuracy, counts = result.class_top_1(), result.class_counts()
    order = sorted(range(len(result.classes)), key=lambda c: (accuracy[c], result.classes[c]))
    bars = [ClassBar(result.classes[c], int(counts[c]), float(accuracy[c])) for c in order]
    confusion = None
    if len(result.classes) <= _MAX_CONFUSION_CLASSES:
        rows = result.confusion()
        confusion = [
            (label, [int(cell) for cell in row], int(row.sum()))
            for label, row in zip(result.classes, rows, strict=True)
        ]
    return ZeroShotView(
        column=column,
        of=of,
        chance=1 / len(result.classes),
        bars=bars[:_MAX_ROWS],
        num_hidden=max(len(bars) - _MAX_ROWS, 0),
        classes=result.classes,
        confusion=confusion,
        mistakes=_mistakes(result)[:8],
    )


def slice_table(scores: Sequence[SliceScore], task: str, metric: str) -> SliceTable | None:
    """The slices of one task by `metric`, worst first and small ones last; None without any."""
    rows = [score for score in scores if score.task == task and score.metric == metric]
    if not rows:
        return None
    rows.sort(key=lambda row: (row.small, row.score, row.column, row.value))
    return SliceTable(
        task, metric, rows[0].overall, rows[:_MAX_ROWS], max(len(rows) - _MAX_ROWS, 0)
    )


def percent(share: float) -> str:
    """A share from 0 to 1 in percent: one decimal below 99.95 %, none at 0 and 100."""
    shown = f"{100 * share:.1f}"
    return {"0.0": "0", "100.0": "100"}.get(shown, shown) + " %"


def words(name: str) -> str:
    """A metric's or task's name as a person says it: recall_at_10 → Recall@10."""
    known = {
        "lr": "Learning rate",
        "mrr": "Mean reciprocal rank",
        "median_rank": "Median rank",
        "top_1": "Top-1 accuracy",
        "top_5": "Top-5 accuracy",
        "macro_top_1": "Top-1 accuracy, mean over classes",
    }
    if name in known:
        return known[name]
    for prefix, label in (("zero_shot_", "Zero-shot"), ("attribute_queries_", "Attribute queries")):
        if name.startswith(prefix):
            return f"{label}: {name.removeprefix(prefix).replace('_', ' ')}"
    stem, at, k = name.partition("_at_")
    label = stem.replace("_", " ").replace(" to ", " → ")
    return f"{label[:1].upper()}{label[1:]}{'@' + k if at else ''}"


def _mistakes(result: ZeroShot) -> list[tuple[str, str, int]]:
    """(actual, predicted, how often), most frequent first."""
    counts: dict[tuple[str, str], int] = {}
    for actual, predicted in zip(result.actual.tolist(), result.predicted.tolist(), strict=True):
        if actual != predicted:
            pair = (result.classes[actual], result.classes[predicted])
            counts[pair] = counts.get(pair, 0) + 1
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return [(actual, predicted, count) for (actual, predicted), count in ordered]


def _number(value: float) -> str:
    """A plain figure: whole and half numbers (ranks, counts) as they are, others to 3 decimals."""
    return f"{value:,g}" if float(2 * value).is_integer() else f"{value:,.3f}"
