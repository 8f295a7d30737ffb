"""The page of a decision: the verdict on a challenger, put in front of its evaluation report.

One HTML file again, without scripts and requests: what the gates say, each figure beside the
champion's, which slices changed, and what broke and was mended as pictures. Then the report itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from markupsafe import Markup

from coembed.errors import DataError
from coembed.evaluation.attribute_queries import fill
from coembed.evaluation.charts import Forest, Mark
from coembed.evaluation.comparison import Change, Comparison, Difference
from coembed.evaluation.contact_sheet import ShownHit, ShownItem, show_all
from coembed.evaluation.evaluation_set import as_label, same_text
from coembed.evaluation.outcomes_file import HITS, INTERVALS, Hit, RecordedHits, read_hits
from coembed.evaluation.parts import slug
from coembed.evaluation.report import (
    REPORT,
    TITLE,
    VERDICT_PLACE,
    Interval,
    interval,
    is_share,
    leading,
    number,
    percent,
    points,
    template,
    words,
)
from coembed.evaluation.settings import EvaluateSettings
from coembed.files import read_json
from coembed.types import Sample

Verdict = Literal["passed", "refused", "waiting"]

_TITLES: Mapping[Verdict, str] = {
    "passed": "can be promoted",
    "refused": "is refused",
    "waiting": "waits for a person",
}
_MARKS: Mapping[Verdict, str] = {"passed": "✓", "refused": "✗", "waiting": "…"}
_AGAIN = "evaluate the model again with this coembed"
_NUM_CHANGED = 6
_NUM_LARGEST = 12
# So many that the table shows those alone that changed for sure.
_ROBUSTNESS = "robustness/"


class GateLine(Protocol):
    """One line of the gates' table (`stages.decision.Gate` is one): all as a person reads it."""

    @property
    def name(self) -> str: ...
    @property
    def value(self) -> str: ...
    @property
    def limit(self) -> str: ...
    @property
    def verdict(self) -> Verdict: ...
    @property
    def detail(self) -> str: ...


class Decided(Protocol):
    """What was decided (`stages.decision.Decision` is such a thing)."""

    @property
    def version(self) -> int: ...
    @property
    def champion(self) -> int | None: ...
    @property
    def evaluation_set(self) -> str: ...
    @property
    def policy(self) -> str: ...
    @property
    def gates(self) -> Sequence[GateLine]: ...
    @property
    def reason(self) -> str: ...
    @property
    def verdict(self) -> Verdict: ...


def render_verdict(
    decision: Decided,
    *,
    evaluation: Path,
    champion: Path | None,
    comparison: Comparison | None,
    samples: Iterable[Sample],
    settings: EvaluateSettings,
    protected: Collection[str] = (),
    facts: Sequence[tuple[str, str]] = (),
    title: str | None = None,
) -> str:
    """The page as HTML.

    `evaluation` and `champion` are the finished evaluation folders of the challenger and of the
    champion (report.html, intervals.json and hits.parquet are read); `champion` and `comparison`
    are None for a first version. `samples` are the items of the evaluated split with their media
    (`read_samples(pairs, settings.split)`): read once, and only until all that is shown is there.
    `protected` are the names of the protected slice columns. `facts` are further (label, value) to
    show below the verdict. `title` stands in the verdict's place for a comparison that decides
    nothing.

    The same inputs make the same bytes.

    Raises:
        DataError: a report or a hits file that cannot be read, or a report that an older coembed
            wrote, without a place for the verdict.
    """
    tone = decision.verdict if title is None else "compared"
    title = title or f"Version {decision.version} {_TITLES[decision.verdict]}"
    names = _Names(
        champion="" if decision.champion is None else f"Version {decision.champion}",
        challenger=f"Version {decision.version}",
    )
    shown: dict[str, object] = {
        "overall": None, "every": None, "protected": None, "largest": None, "broken": (),
        "mended": (), "items": {}, "headline": "", "num_overall": 0, "num_slices": 0,
        "num_significant": 0, "num_few": 0,
    }  # fmt: skip
    if comparison is not None:
        own = [_read_intervals(folder) for folder in (champion, evaluation)]
        shown |= _compared(comparison, protected, own)
        if champion is not None:
            shown |= _changed(
                comparison,
                names,
                samples,
                settings,
                _read_hits(champion, comparison),
                _read_hits(evaluation, comparison),
            )
    part = template("verdict.html.j2").render(
        title=title,
        tone=tone,
        decision=decision,
        comparison=comparison,
        champion=names.champion,
        challenger=names.challenger,
        facts=[*_facts(decision, comparison), *facts],
        marks=_MARKS,
        **shown,
    )
    return _in_front(part, title, evaluation / REPORT)


@dataclass(frozen=True, slots=True)
class _Names:
    """What the two models are called."""

    champion: str
    challenger: str


@dataclass(frozen=True, slots=True)
class DifferenceRow:
    """One difference as it is shown. `tone` is better, worse or same; `said` is it in words.

    `own_intervals` are the champion's and the challenger's, each "" where it has none.
    """

    label: str
    detail: str
    is_headline: bool
    small: bool
    num_queries: int
    champion: str
    challenger: str
    own_intervals: Sequence[str]
    difference: str
    interval: str
    tone: str
    said: str
    mark: Mark


@dataclass(frozen=True, slots=True)
class DifferenceTable:
    """Differences on one axis."""

    forest: Forest
    rows: Sequence[DifferenceRow]


@dataclass(frozen=True, slots=True)
class ShownChange:
    """A query that one model answers and the other does not, with what both found.

    `asked` is the item that it is about, `role` what the item is to it; `moved` says how far.
    """

    text: str
    moved: str
    role: str
    asked: ShownItem | None
    champion: Sequence[ShownHit]
    challenger: Sequence[ShownHit]


def _facts(decision: Decided, comparison: Comparison | None) -> list[tuple[str, str]]:
    against = "nothing" if decision.champion is None else f"version {decision.champion}"
    facts = [("compared with", against)]
    if comparison is not None:
        facts.append(("queries compared", f"{comparison.num_queries:,}"))
    return [
        *facts,
        ("evaluation set", decision.evaluation_set[:12]),
        ("policy", decision.policy[:12]),
    ]


def _in_front(part: str, title: str, path: Path) -> str:
    """The report at `path` with `part` at its top."""
    try:
        page = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the evaluation report {path} cannot be read: {error}", hint=_AGAIN
        ) from error
    if page.count(VERDICT_PLACE) != 1:
        raise DataError(f"the evaluation report {path} has no place for a verdict", hint=_AGAIN)
    page = page.replace(f"<title>{TITLE}</title>", Markup("<title>{}</title>").format(title), 1)
    return page.replace(VERDICT_PLACE, part, 1)


def _read_intervals(folder: Path | None) -> Mapping[str, Interval]:
    """The intervals of one evaluation by path; none where there is no folder."""
    if folder is None:
        return {}
    found = read_json(folder / INTERVALS, what="evaluation's intervals", hint=_AGAIN)
    try:
        return {str(path): (float(low), float(high)) for path, (low, high) in found.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / INTERVALS} does not hold a low and a high by metric: {error}",
            hint=_AGAIN,
        ) from error


def _compared(
    comparison: Comparison, protected: Collection[str], own: Sequence[Mapping[str, Interval]]
) -> dict[str, object]:
    """The tables of differences. `own` are the champion's and the challenger's intervals."""
    leads = _leading_paths(comparison)
    overall = sorted(
        (
            row
            for row in comparison.overall
            if row.path in leads and (row.significant or not row.path.startswith(_ROBUSTNESS))
        ),
        key=lambda row: row.path != comparison.headline,
    )
    watched = [
        row
        for row in comparison.slices
        if row.path == comparison.headline and row.column in protected
    ]
    judged = [row for row in comparison.slices if not row.small]
    largest = sorted(
        (row for row in judged if row.path in leads and row.difference),
        key=lambda row: (
            not row.significant, -abs(row.difference), row.path, row.column, row.value,
        ),
    )[:_NUM_LARGEST]  # fmt: skip
    return {
        "overall": _table(overall, headline=comparison.headline, own=own),
        "every": _table(comparison.overall, headline=comparison.headline, own=own),
        "protected": _table(watched),
        "largest": _table(largest, with_metric=True),
        "headline": metric_words(comparison.headline),
        "num_overall": len(comparison.overall),
        "num_slices": len(comparison.slices),
        "num_significant": sum(row.significant for row in judged),
        "num_few": len(comparison.slices) - len(judged),
    }


def _leading_paths(comparison: Comparison) -> set[str]:
    """One metric for each task, and the headline."""
    tasks: dict[str, list[str]] = {}
    for row in comparison.overall:
        task, _, metric = row.path.rpartition("/")
        tasks.setdefault(task, []).append(metric)
    return {comparison.headline, *(f"{task}/{leading(names)}" for task, names in tasks.items())}


def _table(
    rows: Sequence[Difference],
    *,
    headline: str = "",
    with_metric: bool = False,
    own: Sequence[Mapping[str, Interval]] = ({}, {}),
) -> DifferenceTable | None:
    """Rows of one axis; those of slices are named after these, `with_metric` after both."""
    if not rows:
        return None
    drawn = [(row.low, row.difference, row.high) for row in rows if not row.small]
    forest = Forest.of(drawn)
    return DifferenceTable(forest, [_row(row, forest, headline, with_metric, own) for row in rows])


def _row(
    row: Difference,
    forest: Forest,
    headline: str,
    with_metric: bool,
    own: Sequence[Mapping[str, Interval]],
) -> DifferenceRow:
    share = is_share(row.path.rpartition("/")[2])
    tone, said = _judged(row, named_before=row.path == headline and row.column is None)
    return DifferenceRow(
        label=metric_words(row.path) if row.column is None else f"{row.column} = {row.value}",
        detail=metric_words(row.path) if with_metric else "",
        is_headline=row.path == headline,
        small=row.small,
        num_queries=row.num_queries,
        champion=percent(row.champion) if share else number(row.champion),
        challenger=percent(row.challenger) if share else number(row.challenger),
        own_intervals=[
            interval(found[row.path], share) if row.path in found else "" for found in own
        ],
        difference=points(row.difference),
        interval=f"{points(row.low)} to {points(row.high)}",
        tone=tone,
        said=said,
        mark=forest.mark(row.low, row.difference, row.high),
    )


def _judged(row: Difference, *, named_before: bool) -> tuple[str, str]:
    """The tone and the words for a difference.

    Most are judged after the correction for all that were looked at. The headline was
    `named_before` anything was looked at, and is judged by itself, as its gate does.
    """
    if row.small:
        return "same", "too few to tell"
    way = "better" if row.difference > 0 else "worse"
    beyond_zero = row.low > 0 or row.high < 0
    if row.significant or (named_before and beyond_zero):
        return way, way
    return "same", f"maybe {way}" if beyond_zero else "within chance"


def metric_words(path: str) -> str:
    """A metric's path in metrics.json as a person says it: Text → image, Recall@10."""
    group, _, rest = path.partition("/")
    key, _, metric = rest.partition("/")
    task = words(key if group == "retrieval" else f"{group}_{key}")
    return f"{task}, {words(metric)}"


def _read_hits(folder: Path, comparison: Comparison) -> RecordedHits:
    task = comparison.headline.rpartition("/")[0]
    changes = (*comparison.broken, *comparison.mended)
    return read_hits(folder / HITS, {task: {change.query for change in changes}})


def _changed(
    comparison: Comparison,
    names: _Names,
    samples: Iterable[Sample],
    settings: EvaluateSettings,
    before: RecordedHits,
    after: RecordedHits,
) -> dict[str, object]:
    """What broke and what was mended, as pictures."""
    broken, mended = _distinct(comparison.broken), _distinct(comparison.mended)
    task = comparison.headline.rpartition("/")[0]
    num = settings.contact_sheet.num_hits
    found = {
        change.query: (
            before.get(task, {}).get(change.query, ())[:num],
            after.get(task, {}).get(change.query, ())[:num],
        )
        for change in (*broken, *mended)
    }
    times: Counter[str] = Counter()
    for change in (*broken, *mended):
        times.update(hit.item_id for hits in found[change.query] for hit in hits)
        times.update([change.item_id] if change.item_id else [])
    pictures: dict[int, ShownItem] = {}
    known: dict[str, tuple[int, Sample]] = {}
    for place, (sample, item) in enumerate(show_all(samples, times, settings.contact_sheet)):
        pictures[place], known[sample.item_id] = item, (place, sample)
    sheet = _Sheet(task, settings, names, pictures, known)
    return {
        "items": pictures,
        "broken": [sheet.change(change, *found[change.query]) for change in broken],
        "mended": [sheet.change(change, *found[change.query]) for change in mended],
    }


def _distinct(changes: Sequence[Change]) -> list[Change]:
    """The first few changes, each query's words once."""
    found: dict[str, Change] = {}
    for change in changes:
        if len(found) == _NUM_CHANGED:
            break
        found.setdefault(same_text(_said(change)), change)
    return list(found.values())


def _said(change: Change) -> str:
    """The words of a query: captions are named "ITEM_ID: CAPTION"."""
    return change.query.removeprefix(f"{change.item_id}: ") if change.item_id else change.query


@dataclass(frozen=True, slots=True)
class _Sheet:
    """Makes what is shown of changes. `known[item_id]` is an item's number among the pictures, and
    the item; ids that the evaluated split does not have are left out."""

    task: str
    settings: EvaluateSettings
    names: _Names
    pictures: Mapping[int, ShownItem]
    known: Mapping[str, tuple[int, Sample]]

    def change(self, change: Change, before: Sequence[Hit], after: Sequence[Hit]) -> ShownChange:
        about = self.known.get(change.item_id)
        text = _said(change)
        asks_by_item = change.query == change.item_id
        if asks_by_item and about is not None:
            text = about[1].captions[0]
        return ShownChange(
            text=text,
            moved=self._moved(change),
            role="searched with" if asks_by_item else "looked for",
            asked=None if about is None else self.pictures[about[0]],
            champion=self._hits(change, text, before),
            challenger=self._hits(change, text, after),
        )

    def _moved(self, change: Change) -> str:
        names = (self.names.champion.lower(), self.names.challenger.lower())
        if change.champion_rank is not None and change.challenger_rank is not None:
            ranks = (change.champion_rank, change.challenger_rank)
            return " → ".join(
                f"rank {number(rank)} with {name}" for rank, name in zip(ranks, names, strict=True)
            )
        values = (change.champion, change.challenger)
        return " → ".join(
            f"{percent(value)} with {name}" for value, name in zip(values, names, strict=True)
        )

    def _hits(self, change: Change, text: str, hits: Sequence[Hit]) -> list[ShownHit]:
        shown = []
        for hit in hits:
            if hit.item_id not in self.known:
                continue
            place, sample = self.known[hit.item_id]
            right, parts = self._judged(change, text, sample)
            shown.append(ShownHit(place, hit.score, right, parts))
        return shown

    def _judged(
        self, change: Change, text: str, sample: Sample
    ) -> tuple[bool | None, tuple[tuple[str, bool], ...]]:
        """Whether an item is right for a search, None where nobody can say, and its words."""
        for asked in self.settings.attribute_queries:
            if self.task != f"attribute_queries/{slug(asked.name)}":
                continue
            values = {
                column: as_label(sample.attributes[column])
                for column in asked.columns
                if column in sample.attributes
            }
            right = fill(asked.template, values) == text
            spoken = f" {text} "
            return right, tuple(
                (values.get(column, "–"), f" {_spoken(values, column)} " in spoken)
                for column in asked.columns
            )
        same = {same_text(caption) for caption in sample.captions}
        right = sample.item_id == change.item_id or same_text(text) in same
        return (True if right else None), ((sample.captions[0], True),)


def _spoken(values: Mapping[str, str], column: str) -> str:
    return values.get(column, "–").replace("_", " ")
