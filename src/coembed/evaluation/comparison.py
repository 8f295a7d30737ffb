"""Champion and challenger on the same frozen queries: what differs, by how much, how surely.

Both are resampled alike (paired bootstrap over clusters), so that what is hard for both cancels
out. Where hundreds of differences are looked at, some look large by chance. p-values are corrected
for that by the largest of all resampled differences (Westfall & Young 1993, single-step max-T;
Romano & Wolf 2005 for the bootstrap): it is known how large the largest gets where nothing differs.
Holm and Benjamini-Hochberg multiply each p-value by up to the number of differences instead; with
2,000 resamples no p-value is below 0.0005, and among 200 slices one that is truly broken could
never be told. What changed in too few clusters ever to be significant is no part of the correction
(Tarone 1990): else many slices in which next to nothing happened would hide one in which much did.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from coembed.errors import DataError, UserError
from coembed.evaluation.outcomes_file import RecordedOutcomes, TaskOutcomes
from coembed.evaluation.retrieval import Floats, Ints
from coembed.evaluation.settings import BootstrapSettings
from coembed.evaluation.slices import slice_places
from coembed.evaluation.statistics import ALPHA, ClusterSums, Resamples, draw, p_values

ONLY_CHAMPION = "only the champion answered it"
ONLY_CHALLENGER = "only the challenger answered it"
NO_METRIC = "the two evaluations measured it by different metrics"

NUM_CHANGES = 200
"""How many broken and how many mended queries a comparison names."""

# So many changed clusters are enough to be judged among any number of differences.
_MANY_CHANGED = 32
_ROUNDING = 1e-9
_RIGHT = 0.5  # an outcome between 0 and 1 from here on counts as right


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of one task, over all shared queries or over those of one slice.

    `path` is the metric's in metrics.json. `column` and `value` name the slice, None for all
    queries. `difference` is the challenger's mean minus the champion's; `low` and `high` bound it
    with 95 % confidence (paired bootstrap over clusters). `p_value` is two-sided, `p_adjusted` the
    same corrected for all that is looked at together: the overall differences of all tasks, and the
    slices of one task. `small` marks slices with too few queries to trust: these are shown and not
    judged, so their `p_adjusted` is 1 and the others are not corrected for them.
    """

    path: str
    column: str | None
    value: str | None
    num_queries: int
    num_clusters: int
    small: bool
    champion: float
    challenger: float
    difference: float
    low: float
    high: float
    p_value: float
    p_adjusted: float

    @property
    def significant(self) -> bool:
        """Whether chance alone would seldom bring such a difference, corrected at 5 %."""
        return self.p_adjusted < ALPHA


@dataclass(frozen=True, slots=True)
class Change:
    """A query that one model answers and the other does not: `path` as of a `Difference`.

    `query` is its name in the outcomes, `item_id` the item it is about ("" for none); the two
    values are what each model's outcome was, the ranks those of the best right answer (None where
    the task has none).
    """

    path: str
    query: str
    item_id: str
    champion: float
    challenger: float
    champion_rank: float | None
    challenger_rank: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that was compared.

    `num_queries` were compared, over all tasks. `left_out` says how many were not, by reason (such
    as "the champion was trained on the item"). `broken` and `mended` are queries whose outcome of
    the headline metric went from right to wrong or back, largest change of rank first, at most
    NUM_CHANGES of each; `num_broken` and `num_mended` count all.
    """

    evaluation_set: str
    headline: str
    num_queries: int
    left_out: Sequence[tuple[str, int]]
    overall: Sequence[Difference]
    slices: Sequence[Difference]
    broken: Sequence[Change]
    mended: Sequence[Change]
    num_broken: int
    num_mended: int

    def difference(
        self, path: str, column: str | None = None, value: str | None = None
    ) -> Difference | None:
        """The difference of one metric, overall or on one slice; None where it was not compared."""
        rows = self.overall if column is None else self.slices
        wanted = (path, column, value)
        return next((row for row in rows if (row.path, row.column, row.value) == wanted), None)

    def to_json(self) -> dict[str, Any]:
        """Plain values for comparison.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Comparison:
        """What `to_json` gave. Raises DataError on anything else."""
        try:
            parts = {
                "left_out": tuple((str(reason), int(num)) for reason, num in value["left_out"]),
                "overall": tuple(Difference(**row) for row in value["overall"]),
                "slices": tuple(Difference(**row) for row in value["slices"]),
                "broken": tuple(Change(**row) for row in value["broken"]),
                "mended": tuple(Change(**row) for row in value["mended"]),
            }
            return cls(**{**value, **parts})
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"this is no comparison of two models: {error!r}",
                hint="it was written by another version of coembed: compare again",
            ) from error


def compare(
    champion: RecordedOutcomes,
    challenger: RecordedOutcomes,
    *,
    headline: str,
    bootstrap: BootstrapSettings,
    min_slice: int,
    leave_out: Mapping[str, str] | None = None,
) -> Comparison:
    """Compare two evaluations of the same set, query by query.

    Queries are matched by task and name. What only one model answered is left out and counted, as
    are queries about the items in `leave_out` (item_id → reason). Slices are the challenger's, and
    those with fewer than `min_slice` compared queries are marked small. `headline` is the path of
    the metric that `broken` and `mended` are about; one that is no mean over queries has none.

    Raises:
        UserError: evaluations of different sets.
        DataError: no query that both answered, or none that is not to be left out.
    """
    if champion.evaluation_set != challenger.evaluation_set:
        raise UserError(
            f"the champion was evaluated on the set {champion.evaluation_set[:12]} and the "
            f"challenger on {challenger.evaluation_set[:12]}: figures of different sets cannot be "
            "compared",
            hint="evaluate both models on the same curated pairs",
        )
    left_out: Counter[str] = Counter()
    matched = _match(champion, challenger, leave_out or {}, left_out)
    if not matched:
        counted = ", ".join(f"{num:,} because {reason}" for reason, num in sorted(left_out.items()))
        raise DataError(
            "the two models have no query in common that can be compared"
            + (f"; left out: {counted}" if counted else ""),
            hint="evaluate both models with the same `evaluate` settings, on items that neither "
            "was trained on",
        )
    overall = _Family(bootstrap.num_resamples)
    slices = [row for both in matched for row in _compare_task(both, overall, bootstrap, min_slice)]
    broken, mended = _changes(matched, headline)
    return Comparison(
        evaluation_set=challenger.evaluation_set,
        headline=headline,
        num_queries=sum(len(both.before) for both in matched),
        left_out=tuple(sorted(left_out.items())),
        overall=tuple(overall.corrected()),
        slices=tuple(slices),
        broken=tuple(broken[:NUM_CHANGES]),
        mended=tuple(mended[:NUM_CHANGES]),
        num_broken=len(broken),
        num_mended=len(mended),
    )


@dataclass(frozen=True, slots=True)
class _Both:
    """One task that both answered; `before` and `after` [num_shared] are the places of the shared
    queries in the champion's and the challenger's rows."""

    champion: TaskOutcomes
    challenger: TaskOutcomes
    before: Ints
    after: Ints

    @property
    def metrics(self) -> list[str]:
        return [name for name in self.challenger.values if name in self.champion.values]

    def values(self, metric: str) -> tuple[Floats, Floats]:
        """The champion's and the challenger's outcomes of the shared queries."""
        return (
            self.champion.values[metric][self.before],
            self.challenger.values[metric][self.after],
        )


def _match(
    champion: RecordedOutcomes,
    challenger: RecordedOutcomes,
    leave_out: Mapping[str, str],
    left_out: Counter[str],
) -> list[_Both]:
    """Tasks with the queries to compare; all others are counted in `left_out`."""
    for name in sorted(champion.tasks.keys() - challenger.tasks.keys()):
        left_out[ONLY_CHAMPION] += len(champion.tasks[name].queries)
    matched = []
    for name, after in challenger.tasks.items():
        before = champion.tasks.get(name)
        if before is None:
            left_out[ONLY_CHALLENGER] += len(after.queries)
            continue
        place = {query: number for number, query in enumerate(before.queries)}
        rows: list[tuple[int, int]] = []
        num_shared = 0
        for number, (query, item_id) in enumerate(zip(after.queries, after.item_ids, strict=True)):
            if query not in place:
                left_out[ONLY_CHALLENGER] += 1
                continue
            num_shared += 1
            if item_id in leave_out:
                left_out[leave_out[item_id]] += 1
            else:
                rows.append((place[query], number))
        if num_shared < len(before.queries):
            left_out[ONLY_CHAMPION] += len(before.queries) - num_shared
        found = np.asarray(rows, dtype=np.int64).reshape(-1, 2)
        both = _Both(before, after, found[:, 0], found[:, 1])
        if not both.metrics:
            left_out[NO_METRIC] += len(rows)
        elif rows:
            matched.append(both)
    return matched


class _Family:
    """Differences that are judged together, and the largest of them in each resample."""

    def __init__(self, num_resamples: int) -> None:
        self._rows: list[tuple[Difference, float, int]] = []
        # By the number of clusters that changed: which of them count is known at the end.
        self._largest = np.zeros((_MANY_CHANGED + 1, num_resamples))

    def add(self, rows: Sequence[Difference], draws: Floats, changed: Ints) -> None:
        """`draws` [num_resamples, len(rows)] are the resampled differences, `changed` [len(rows)]
        the numbers of clusters that changed."""
        errors = np.nanstd(draws, axis=0)
        for place, row in enumerate(rows):
            error, num = float(errors[place]), min(int(changed[place]), _MANY_CHANGED)
            # All clusters changed alike, or none did: that one's p-value is 1 anyway.
            size = abs(row.difference) / error if error > _ROUNDING else np.inf
            self._rows.append((row, size, num))
            if error > _ROUNDING and not row.small:
                away = np.abs(draws[:, place] - row.difference) / error
                # A resample without a query of the slice has no value: it is no large one.
                np.fmax(self._largest[num], away, out=self._largest[num])

    def corrected(self) -> list[Difference]:
        """All differences with their corrected p-values, never below the uncorrected ones."""
        needed = self._needed()
        rising = np.sort(self._largest[needed:].max(axis=0))
        found = []
        for row, size, changed in self._rows:
            at_least = len(rising) - int(np.searchsorted(rising, size - _ROUNDING))
            judged = changed >= needed and not row.small
            p = (1 + at_least) / (1 + len(rising)) if judged else 1.0
            found.append(replace(row, p_adjusted=max(row.p_value, p)))
        return found

    def _needed(self) -> int:
        """How many clusters must have changed for a difference to be judged.

        2^(1 - changed) is the least p-value there can be. Of K that can reach ALPHA / K all are
        judged, for the smallest K that is enough for them (Tarone 1990, "A modified Bonferroni
        method for discrete data").
        """
        counts = np.bincount(
            [changed for row, _, changed in self._rows if not row.small],
            minlength=_MANY_CHANGED + 1,
        )
        num_judged = 1
        while True:
            needed = min(math.ceil(1 + math.log2(num_judged / ALPHA)), _MANY_CHANGED)
            if counts[needed:].sum() <= num_judged:
                return needed
            num_judged += 1


def _compare_task(
    both: _Both, overall: _Family, bootstrap: BootstrapSettings, min_slice: int
) -> list[Difference]:
    """The slices of one task, corrected; its differences over all queries go into `overall`."""
    slices = _Family(bootstrap.num_resamples)
    pairs = [both.values(metric) for metric in both.metrics]
    before, after = (np.stack(values, axis=1) for values in zip(*pairs, strict=True))
    _, clusters = np.unique(both.challenger.clusters[both.after], return_inverse=True)
    everything: tuple[str | None, str | None, Ints] = (None, None, np.arange(len(before)))
    groups = [everything, *_groups(both)]
    sums = [
        ClusterSums.of(after[inside] - before[inside], clusters[inside]) for _, _, inside in groups
    ]
    resamples = Resamples(int(clusters.max()) + 1, num=bootstrap.num_resamples, seed=bootstrap.seed)
    drawn = draw([one.weigh for one in sums], resamples)
    for (column, value, inside), one, draws in zip(groups, sums, drawn, strict=True):
        low, high = one.difference_interval(draws)
        p = p_values(one, draws)
        rows = [
            Difference(
                path=both.challenger.path(metric),
                column=column,
                value=value,
                num_queries=len(inside),
                num_clusters=one.num_clusters,
                small=column is not None and len(inside) < min_slice,
                champion=float(before[inside, place].mean()),
                challenger=float(after[inside, place].mean()),
                difference=float(one.means[place]),
                low=float(low[place]),
                high=float(high[place]),
                p_value=float(p[place]),
                p_adjusted=1.0,
            )
            for place, metric in enumerate(both.metrics)
        ]
        (overall if column is None else slices).add(rows, draws, one.num_changed)
    return slices.corrected()


def _groups(both: _Both) -> list[tuple[str, str, Ints]]:
    """Column, value and shared queries of every slice, by name."""
    return [
        (column, value, inside)
        for column, labels in sorted(both.challenger.labels.items())
        for value, inside in slice_places([labels[place] for place in both.after.tolist()])
    ]


def _changes(matched: Sequence[_Both], headline: str) -> tuple[list[Change], list[Change]]:
    """Broken and mended queries by `headline`, the largest change of rank first."""
    broken: list[Change] = []
    mended: list[Change] = []
    for both in matched:
        for metric in both.metrics:
            if both.challenger.path(metric) != headline:
                continue
            before, after = both.values(metric)
            changed = np.flatnonzero((before >= _RIGHT) != (after >= _RIGHT))
            for place in changed.tolist():
                change = _change(both, headline, metric, place)
                (mended if after[place] >= _RIGHT else broken).append(change)
    return sorted(broken, key=_by_size), sorted(mended, key=_by_size)


def _change(both: _Both, path: str, metric: str, place: int) -> Change:
    before, after = int(both.before[place]), int(both.after[place])
    ranks = both.champion.ranks, both.challenger.ranks
    return Change(
        path=path,
        query=both.challenger.queries[after],
        item_id=both.challenger.item_ids[after],
        champion=float(both.champion.values[metric][before]),
        challenger=float(both.challenger.values[metric][after]),
        champion_rank=None if ranks[0] is None else float(ranks[0][before]),
        challenger_rank=None if ranks[1] is None else float(ranks[1][after]),
    )


def _by_size(change: Change) -> tuple[float, float, str]:
    """Sorts the largest change of rank first, then of the outcome, then by name."""
    ranks = change.champion_rank, change.challenger_rank
    places = 0.0 if ranks[0] is None or ranks[1] is None else abs(ranks[0] - ranks[1])
    return -places, -abs(change.challenger - change.champion), change.query
