"""The report: one HTML file that needs nothing else, not even a script.

`Report` holds plain values, ready to be shown; `report.html.j2` lays them out. Everything that
comes from data is escaped, and the page's own policy forbids scripts and requests. The same values
make the same bytes: there is no date in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from coembed.evaluation.charts import HEIGHT, WIDTH, LineChart, ReliabilityChart
from coembed.evaluation.contact_sheet import ShownItem, ShownSearch
from coembed.evaluation.origins import Origins
from coembed.evaluation.slices import SliceScore
from coembed.evaluation.zero_shot import ZeroShot

VERDICT_PLACE = Markup("<!-- the verdict goes here -->")
"""Stands once in every report, at its top: the page of a decision is written there. Escaped data
cannot contain it."""

REPORT = "report.html"
TITLE = "coembed evaluation"

Interval = tuple[float, float]
"""From where to where a figure lies with 95 % confidence."""

# What tasks are called, by how their names start.
_GROUPS = {
    "zero_shot_": "Zero-shot: {}",
    "attribute_queries_": "Attribute queries: {}",
    "compositional_swap_": "Altered captions: {} swapped",
    "compositional_": "Altered captions: {}",
    "robustness_": "{thing}: {task}",
}
# What is no share from 0 to 1.
_PLAIN = ("mrr", "median_rank")
_LEADING = ("recall_at_", "capped_recall_at_", "top_1", "accuracy")
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
    interval: Interval | None = None


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric. `chance` is None where there is none; shares are shown in percent. The one that
    `leads` stands for its task; `detail` says more."""

    metric: str
    score: float
    chance: float | None
    is_share: bool
    interval: Interval | None = None
    leads: bool = False
    detail: str = ""


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
    interval: Interval | None = None


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
class WorseQueries:
    """One metric of a task whose queries were corrupted, beside the same queries unharmed.

    `drop` is what it costs, with its own interval: the two are paired.
    """

    task: str
    metric: str
    num_queries: int
    clean: float
    score: float
    interval: Interval | None
    drop: float
    drop_interval: Interval | None


@dataclass(frozen=True, slots=True)
class Reliability:
    """How far the confidence of one task can be believed. `figures` are (name, value, interval)."""

    task: str
    chart: ReliabilityChart
    figures: Sequence[tuple[str, float, Interval | None]]


@dataclass(frozen=True, slots=True)
class Geometry:
    """How one modality lies beside its captions. `figures` are (name, value, interval)."""

    title: str
    figures: Sequence[tuple[str, float, Interval | None]]


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

    `facts` are (label, value); `metrics` are (task, rows), one row of which leads; `directions` are
    the tasks of retrieval, each with what it asks; `notes` say what was not measured; `items` holds
    what the groups show, by item number; `weakest` are the slices to name first.
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
    weakest: Sequence[SliceScore] = ()
    robustness: Sequence[WorseQueries] = ()
    reliability: Sequence[Reliability] = ()
    reliability_explained: str = ""
    geometry: Sequence[Geometry] = ()
    origins: Origins | None = None

    @property
    def num_small(self) -> int:
        """Slices that have too few queries to tell."""
        return sum(row.small for table in self.slices for row in table.rows)


def render(report: Report) -> str:
    """The page as HTML, without a verdict."""
    page = template("report.html.j2").render(
        report=report,
        chart_width=WIDTH,
        chart_height=HEIGHT,
        rows_in_view=_ROWS_IN_VIEW,
        verdict_goes_here=VERDICT_PLACE,
        title=TITLE,
    )
    return page + "\n"


def template(name: str) -> Template:
    """A template of this room, which escapes whatever it is given."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_source),
    )
    for how in (percent, points, number, words, interval, bounds):
        environment.filters[how.__name__] = how
    return environment.get_template(name)


def _source(name: str) -> str:
    return (files("coembed.evaluation") / name).read_text(encoding="utf-8")


def zero_shot_view(
    column: str,
    result: ZeroShot,
    intervals: Mapping[str, Interval] | None = None,
    *,
    of: str = "",
) -> ZeroShotView:
    """Classes worst first, the confusion table of few classes, and the most frequent mistakes.

    `intervals` are of the classes' accuracy, by class.
    """
    known = intervals or {}
    accuracy, counts = result.class_top_1(), result.class_counts()
    order = sorted(range(len(result.classes)), key=lambda c: (accuracy[c], result.classes[c]))
    bars = [
        ClassBar(
            result.classes[c], int(counts[c]), float(accuracy[c]), known.get(result.classes[c])
        )
        for c in order
    ]
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


def points(difference: float) -> str:
    """A difference of two shares in percentage points, with its sign."""
    shown = f"{100 * difference:+.1f}".replace("-", "−")
    return "0.0" if shown in ("+0.0", "−0.0") else shown


def number(value: float) -> str:
    """A plain figure: whole and half numbers (ranks, counts) as they are, others to 3 decimals."""
    shown = f"{value:,g}" if float(2 * value).is_integer() else f"{value:,.3f}"
    return shown.replace("-", "−")


def interval(found: Interval, is_share: bool) -> str:
    """From where to where: 82.8 to 87.0, without the sign of percent."""
    low, high = found
    if not is_share:
        return f"{number(low)} to {number(high)}"
    return f"{percent(low)} to {percent(high)}".replace(" %", "")


def bounds(row: SliceScore) -> Interval | None:
    """The interval of a slice's score, None where it has none."""
    return None if math.isnan(row.low) else (row.low, row.high)


def is_share(metric: str) -> bool:
    """Whether a metric is a share of something, which is shown in percent."""
    return not metric.startswith(_PLAIN)


def leading(metrics: Sequence[str]) -> str:
    """The metric that stands for a task which has `metrics`: of those at several k the largest."""
    for start in _LEADING:
        found = [name for name in metrics if name.startswith(start)]
        if found:
            return max(found, key=lambda name: int("0" + name.partition("_at_")[2]))
    return metrics[0]


def weakest(
    scores: Sequence[SliceScore], tasks: Iterable[tuple[str, str]], num: int
) -> list[SliceScore]:
    """The `num` slices that lie furthest below their task as a whole, each value of a column once.

    Only slices count that are not small and whose whole interval lies below. `tasks` are (task,
    metric).
    """
    looked_at = set(tasks)
    below = [
        row
        for row in scores
        if (row.task, row.metric) in looked_at and not row.small and row.high < row.overall
    ]
    below.sort(key=lambda row: (row.score - row.overall, row.task, row.column, row.value))
    first: dict[tuple[str, str], SliceScore] = {}
    for row in below:
        first.setdefault((row.column, row.value), row)
    return list(first.values())[:num]


def words(name: str) -> str:
    """A metric's or task's name as a person says it: recall_at_10 → Recall@10."""
    known = {
        "lr": "Learning rate",
        "mrr": "Mean reciprocal rank",
        "median_rank": "Median rank",
        "ece": "Expected calibration error",
        "brier": "Brier score",
        "nll": "Log loss",
        "gap": "Modality gap",
        "text_uniformity": "Uniformity of captions",
        "top_1": "Top-1 accuracy",
        "top_5": "Top-5 accuracy",
        "macro_top_1": "Top-1 accuracy, mean over classes",
    }
    if name in known:
        return known[name]
    prefix = next((start for start in _GROUPS if name.startswith(start)), "")
    if prefix:
        rest = name.removeprefix(prefix)
        return _GROUPS[prefix].format(
            rest.replace("_", " "), thing=rest.partition("_")[0].capitalize(),
            task=_lowered(words(rest.partition("_")[2])),
        )  # fmt: skip
    stem, at, k = name.partition("_at_")
    if at and stem == "map":
        return f"mAP@{k}"
    label = stem.replace("_", " ").replace(" to ", " → ")
    return f"{label[:1].upper()}{label[1:]}{'@' + k if at else ''}"


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]


def _mistakes(result: ZeroShot) -> list[tuple[str, str, int]]:
    """(actual, predicted, how often), most frequent first."""
    counts: dict[tuple[str, str], int] = {}
    for actual, predicted in zip(result.actual.tolist(), result.predicted.tolist(), strict=True):
        if actual != predicted:
            pair = (result.classes[actual], result.classes[predicted])
            counts[pair] = counts.get(pair, 0) + 1
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return [(actual, predicted, count) for (actual, predicted), count in ordered]
