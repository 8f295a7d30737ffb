"""The gates: what the policy asks, what was found, and whether that will do. Pure functions.

Every gate is one line a person can read. A gate that cannot be asked (a metric or a slice column
that nobody measured) is a ConfigError: a misspelt gate must not be one that always passes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coembed.errors import ConfigError
from coembed.evaluation.comparison import Comparison, Difference
from coembed.evaluation.report import is_share
from coembed.evaluation.statistics import ALPHA
from coembed.evaluation.verdict_page import metric_words
from coembed.files import sha256_json
from coembed.index.release import SearchMeasured
from coembed.registry.settings import PromoteSettings
from coembed.registry.store import flatten_metrics
from coembed.stages.decision import Decision, Gate, Verdict
from coembed.stages.leakage import Leaks

# Two runs of one model may differ in the last digits of a metric; that is not "worse".
_ROUNDING = 1e-9
# Groups of metrics.json whose figures are no shares of anything.
_NO_SHARES = ("geometry", "calibration")
_MOST_LEAKS = 20  # in a gate's detail; decision.json has all of them
_KINDS = {
    "same_item": "the same file",
    "near_duplicate": "a near duplicate",
    "lookalike": "a lookalike by hash",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """What there is to compare: `metrics` is the challenger's metrics.json.

    `by_query` are the paths in it that are means over single queries and so can be compared;
    `columns` are the slice columns of the headline's task.
    """

    metrics: Mapping[str, Any]
    by_query: Collection[str]
    columns: Collection[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that the gates look at.

    `champion` is the version that is served, None where nothing is; it may be `version` itself.
    `comparison` is None where there is nothing to compare with, and `incomparable` says why
    if there should have been something. `search` is what `coembed index` measured, None where it
    did not. `model_mb` are megabytes of 1,000,000 bytes. `rolled_back_to` is the version that was
    served again in this one's place, "" for none; `asked_for`: a person named this version.
    `approved_by` is who approved it, "" for nobody.
    """

    version: int
    champion: int | None
    evaluation_set: str
    measured: Measured
    comparison: Comparison | None
    incomparable: str
    search: SearchMeasured | None
    model_mb: float
    leaks: Leaks
    rolled_back_to: str
    asked_for: bool
    approved_by: str


def decide(policy: PromoteSettings, facts: Facts) -> Decision:
    """Ask every gate. Raises ConfigError when the policy names what was not measured."""
    gates = tuple(_gates(policy, facts))
    return Decision(
        version=facts.version,
        champion=facts.champion if facts.comparison is not None else None,
        evaluation_set=facts.evaluation_set,
        policy=policy_hash(policy),
        gates=gates,
        reason=_reason(gates, facts),
    )


def policy_hash(policy: PromoteSettings) -> str:
    """SHA-256 of the policy's settings."""
    return sha256_json(policy.model_dump(mode="json"))


def _gates(policy: PromoteSettings, facts: Facts) -> Iterator[Gate]:
    for metric, floor in policy.floors.items():
        yield floor_gate(metric, floor, facts.measured.metrics)
    alone = "there is no champion to compare with"
    if facts.champion == facts.version:
        alone = "it is the champion itself"
    compared = comparison_gates(policy, facts.measured, facts.comparison, alone=alone)
    if facts.incomparable:
        deque(compared, maxlen=0)  # for its errors alone
        yield Gate(
            key="metric",
            name="Comparison with what is served",
            value="not possible",
            limit="the same items",
            verdict="refused",
            detail=facts.incomparable,
        )
    else:
        yield from compared
    yield from search_gates(policy, facts.search)
    yield size_gate(policy, facts.model_mb)
    yield leakage_gate(policy, facts.leaks)
    if facts.rolled_back_to and facts.champion != facts.version:
        yield Gate(
            key="rollback",
            name="Not rolled back",
            value=f"version {facts.rolled_back_to} was served again in its place",
            limit="a person names it",
            verdict="passed" if facts.asked_for else "refused",
            detail=f"version {facts.version} was rolled back; `coembed promote {facts.version}` "
            "serves it all the same",
        )
    if policy.approval and facts.champion != facts.version:
        yield Gate(
            key="approval",
            name="Approval",
            value=facts.approved_by or "nobody yet",
            limit="a person says yes",
            verdict="passed" if facts.approved_by else "waiting",
            detail="" if facts.approved_by else f"`coembed approve {facts.version} --by NAME`",
        )


def comparison_gates(
    policy: PromoteSettings, measured: Measured, comparison: Comparison | None, *, alone: str
) -> Iterator[Gate]:
    """The gates that compare with a champion. `alone` says why `comparison` is None."""
    for key, metric, margin in (
        ("metric", policy.metric, policy.margin),
        *(("guards", metric, margin) for metric, margin in policy.guards.items()),
    ):
        value = _find(measured.metrics, metric, f"promote.{key}")
        if metric not in measured.by_query:
            raise ConfigError(
                f"promote.{key} names {metric!r}, which is no mean over single queries: it cannot "
                f"be compared with the champion's; those that can are "
                f"{', '.join(sorted(measured.by_query))}",
                hint="name one of these, or give the metric a floor",
            )
        yield regression_gate(key, metric, value, margin, policy, comparison, alone=alone)
    for column in policy.protected_slices:
        if column not in measured.columns:
            raise ConfigError(
                f"promote.protected_slices names the column {column!r}; the slices of "
                f"{policy.metric} are by {', '.join(sorted(measured.columns)) or 'no column'}",
                hint="name one of these, or add the column to evaluate.slices",
            )
    if comparison is not None:
        yield from slice_gates(policy, comparison)


def floor_gate(metric: str, floor: float, metrics: Mapping[str, Any]) -> Gate:
    """A metric is not below its floor."""
    value = _find(metrics, metric, "promote.floors")
    return Gate(
        key="floors",
        name=f"{metric_words(metric)}: floor",
        value=_amount(metric, value),
        limit=f"{_limit(metric, floor)} or more",
        verdict=_passed(math.isfinite(value) and value >= floor - _ROUNDING),
        detail="" if math.isfinite(value) else "it is not a number",
    )


def regression_gate(
    key: str,
    metric: str,
    value: float,
    margin: float,
    policy: PromoteSettings,
    comparison: Comparison | None,
    *,
    alone: str,
) -> Gate:
    """A metric is not worse than the champion's, as the policy's `proof` says.

    What the champion alone lacks (it has no tower for that modality) has nothing to beat.
    """
    name = f"{metric_words(metric)}: no regression"
    found = None if comparison is None else comparison.difference(metric)
    if found is not None and math.isfinite(value):
        return _judged(key, name, found, margin, policy)
    detail = alone if comparison is None else "the champion was not measured there"
    if not math.isfinite(value):
        detail = "it is not a number"
    return Gate(
        key=key,
        name=name,
        value=_amount(metric, value),
        limit=_asked(metric, margin, policy),
        verdict=_passed(math.isfinite(value)),
        detail=detail,
    )


def slice_gates(policy: PromoteSettings, comparison: Comparison) -> Iterator[Gate]:
    """No value of a protected column that is not small is worse on the headline.

    A loss counts only if it stays significant among all the slices that are protected (Holm 1979).
    These were named beforehand: the many others that a report looks at are no reason to doubt it.
    """
    headline = [one for one in comparison.slices if one.path == policy.metric]
    found = {
        column: [one for one in headline if one.column == column]
        for column in policy.protected_slices
    }
    judged = [one for rows in found.values() for one in rows if not one.small]
    corrected = dict(zip(map(_place, judged), holm([one.p_value for one in judged]), strict=True))
    for column, margin in policy.protected_slices.items():
        rows = [one for one in found[column] if not one.small]
        for one in rows:
            name = f"{metric_words(policy.metric)} of {column} = {one.value}"
            p = corrected[_place(one)]
            yield _judged("protected_slices", name, one, margin, policy, corrected=p)
        if not rows:
            small = ", ".join(f"{one.value}: {one.num_queries} queries" for one in found[column])
            yield Gate(
                key="protected_slices",
                name=f"{metric_words(policy.metric)} by {column}",
                value="too few queries" if small else "the champion was not measured there",
                limit=_asked(policy.metric, margin, policy),
                verdict="passed",
                detail=small,
            )


def _place(one: Difference) -> tuple[str | None, str | None]:
    return one.column, one.value


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected p-values, in the order given: the smallest times their number, the next times one
    less, and so on, none below the one before it (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    found = [0.0] * len(p_values)
    least = 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, p_values[place] * (len(p_values) - rank)))
        found[place] = least
    return found


def _judged(
    key: str,
    name: str,
    found: Difference,
    margin: float,
    policy: PromoteSettings,
    *,
    corrected: float | None = None,
) -> Gate:
    if policy.proof == "non_inferiority":
        good = found.low >= -margin - _ROUNDING
    else:
        by_chance = corrected is not None and corrected >= ALPHA
        good = found.high >= -margin - _ROUNDING or by_chance
    finite = math.isfinite(found.challenger) and math.isfinite(found.difference)
    path, unit = found.path, " points" if _in_percent(found.path) else ""
    return Gate(
        key=key,
        name=name,
        value=f"{_signed(path, found.difference)}{unit} "
        f"({_amount(path, found.champion)} → {_amount(path, found.challenger)})",
        limit=_asked(path, margin, policy),
        verdict=_passed(good and finite),
        detail=f"95 % interval {_signed(path, found.low)} to {_signed(path, found.high)}{unit}, "
        f"p {found.p_value:.3g}"
        + (f" (corrected {corrected:.3g})" if corrected is not None else "")
        + f", {found.num_queries:,} queries about {found.num_clusters:,} items",
    )


def _asked(metric: str, margin: float, policy: PromoteSettings) -> str:
    beyond = f" of more than {_margin(metric, margin)}" if margin else ""
    if policy.proof == "non_inferiority":
        return f"surely no loss{beyond}"
    return f"no sure loss{beyond}"


# Shares are told in percent and in points of it, as elsewhere on the page; others as they are.


def _amount(metric: str, value: float) -> str:
    return f"{100 * value:.2f} %" if _in_percent(metric) else f"{value:.4f}"


def _limit(metric: str, value: float) -> str:
    return f"{100 * value:g} %" if _in_percent(metric) else f"{value:g}"


def _margin(metric: str, margin: float) -> str:
    if not _in_percent(metric):
        return f"{margin:g}"
    shown = f"{100 * margin:g}"
    return f"{shown} {'point' if shown == '1' else 'points'}"


def _signed(metric: str, difference: float) -> str:
    shown = f"{100 * difference:+.2f}" if _in_percent(metric) else f"{difference:+.4f}"
    return shown.replace("-", "−")


def _in_percent(metric: str) -> bool:
    group, name = metric.partition("/")[0], metric.rpartition("/")[2]
    return group not in _NO_SHARES and not name.startswith("num_") and is_share(name)


def search_gates(policy: PromoteSettings, search: SearchMeasured | None) -> Iterator[Gate]:
    """The collection's search finds what a full scan finds, and soon enough."""
    least, slowest = policy.index.min_recall, policy.index.max_p95_ms
    limits = (
        f"{100 * least:g} % or more",
        "any" if slowest is None else f"{slowest:g} ms or less",
    )
    names = ("Recall@10 of the search", "One query of the search, p95")
    if search is None:
        detail = "run `coembed index` again: it measures the collection"
        for name, limit, asked in zip(names, limits, (least > 0, slowest is not None), strict=True):
            verdict: Verdict = "refused" if asked else "passed"
            yield Gate("index", name, "not measured", limit, verdict, detail)
        return
    queries = f"{search.num_queries:,} queries"
    yield Gate(
        key="index",
        name=names[0],
        value=f"{100 * search.recall_at_10:.2f} %",
        limit=limits[0],
        verdict=_passed(search.recall_at_10 >= least - _ROUNDING),
        detail=f"against a full scan, {queries}",
    )
    yield Gate(
        key="index",
        name=names[1],
        value=f"{search.p95_ms:.1f} ms",
        limit=limits[1],
        verdict=_passed(slowest is None or search.p95_ms <= slowest),
        detail=f"p50 {search.p50_ms:.1f} ms, {queries}, without the encoder",
    )


def size_gate(policy: PromoteSettings, model_mb: float) -> Gate:
    """The weights, model.safetensors, are not too large."""
    most = policy.max_model_mb
    return Gate(
        key="max_model_mb",
        name="Size of the model",
        value=f"{model_mb:.1f} MB",
        limit="any" if most is None else f"{most:g} MB or less",
        verdict=_passed(most is None or model_mb <= most),
    )


def leakage_gate(policy: PromoteSettings, leaks: Leaks) -> Gate:
    """The model was not trained on what it is evaluated on."""
    told = [
        f"{leak.path} ({_KINDS[leak.kind]}, seen in {leak.seen_in}"
        + (f", through {leak.through})" if leak.through else ")")
        for leak in leaks.found[:_MOST_LEAKS]
    ]
    if len(leaks.found) > _MOST_LEAKS:
        told.append(f"and {len(leaks.found) - _MOST_LEAKS:,} more, in decision.json")
    if not leaks.known:
        told.append("the model does not say what it was trained on: train it again")
    if leaks.unknown:
        told.append(f"not known: what {', '.join(leaks.unknown)} was trained on")
    allowed = policy.leakage == "allow"
    return Gate(
        key="leakage",
        name="Evaluation items seen in training",
        value=f"{len(leaks.found):,} of {leaks.num_evaluated:,}" if leaks.known else "not known",
        limit="any (recorded)" if allowed else "none",
        verdict=_passed(allowed or (leaks.known and not leaks.found)),
        detail="; ".join(told),
    )


def _reason(gates: Sequence[Gate], facts: Facts) -> str:
    refused = [gate for gate in gates if gate.verdict == "refused"]
    if refused:
        return "; ".join(
            gate.detail
            if gate.key == "rollback" or gate.value == "not possible"
            else f"{gate.name}: {gate.value}, asked for {gate.limit}"
            for gate in refused
        )
    if any(gate.verdict == "waiting" for gate in gates):
        return f"waiting for approval: `coembed approve {facts.version} --by NAME`"
    if facts.champion == facts.version:
        return "it is the champion already"
    if facts.champion is None:
        return "the first version: there is no champion to beat"
    return f"not worse than the champion, version {facts.champion}"


def _passed(good: bool) -> Verdict:
    return "passed" if good else "refused"


def _find(metrics: Mapping[str, Any], path: str, setting: str) -> float:
    """The metric at `path` of nested metrics. Raises ConfigError naming those that are there."""
    value: Any = metrics
    for key in path.split("/"):
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ConfigError(
        f"{setting} names the metric {path!r}, which was not measured; there are "
        f"{', '.join(sorted(flatten_metrics(metrics)))}",
        hint="name one of these",
    )
