"""Balance and splits: how the values of the pool's columns are shared out, before and after
curation, and between train, val and test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coembed.curation.report.look import Manifest
from coembed.curation.report.report_numbers import kinds
from coembed.curation.report.report_text import column_label, visible, words
from coembed.types import SPLITS

_SHOWN_VALUES = 14
SPLIT_REASONS: Mapping[str, str] = {
    "given": "The pool's split column says so.",
    "group": "Another pair of its group has that split given, and a group is never parted.",
    "hashed": "Nobody said: a hash decides, of its content or of the group that it belongs to.",
}


@dataclass(frozen=True, slots=True)
class Share:
    """One value of a column: its share of the pairs that came and of those that stayed, and of
    each split."""

    label: str
    num_before: int
    num_after: int
    before: float
    after: float
    by_split: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Balance:
    """One column. `evenness_*`: how many equally frequent values would be as varied (the
    exponential of the entropy). `drift`: for each split but train, the share of its pairs that
    would need another value for it to be like train (half the sum of absolute differences), and
    about what that share would be had its pairs been drawn from train one by one. `moved`: the
    value whose share curation changed most."""

    title: str
    shares: tuple[Share, ...]
    num_values: int
    evenness_before: float
    evenness_after: float
    largest: float
    drift: tuple[tuple[str, float, float], ...]
    moved: Share


@dataclass(frozen=True, slots=True)
class SplitRow:
    """One split."""

    name: str
    num_items: int
    num_captions: int
    share: float


def split_rows(summary: Mapping[str, Any]) -> list[SplitRow]:
    """The splits' sizes from summary.json."""
    splits: Mapping[str, Mapping[str, int]] = summary.get("splits", {})
    total = sum(split["num_items"] for split in splits.values()) or 1
    return [
        SplitRow(name, s["num_items"], s["num_captions"], s["num_items"] / total)
        for name in SPLITS
        if (s := splits.get(name)) is not None
    ]


def split_reasons(manifest: Manifest) -> list[tuple[str, str, int]]:
    """(reason, what it means, pairs), most first."""
    found = manifest.ask(
        "SELECT split_reason, count(*) AS num FROM pairs WHERE split_reason IS NOT NULL "
        "GROUP BY split_reason ORDER BY num DESC, split_reason"
    )
    return [(words(r), SPLIT_REASONS.get(r, ""), num) for r, num in found]


def balances(manifest: Manifest) -> list[Balance]:
    """The balance of every column of the pool, and of every measured text, that holds kinds."""
    return [_balance(manifest, name) for name in kinds(manifest)]


def _balance(manifest: Manifest, name: str) -> Balance:
    column = manifest.sql(name)
    per_split = ", ".join(f"count(*) FILTER (split = '{split}')" for split in SPLITS)
    found = manifest.ask(
        f"SELECT {column} AS value, count(*) AS num, count(*) FILTER (kept), {per_split} "
        f"FROM pairs WHERE {column} IS NOT NULL GROUP BY value ORDER BY num DESC, value"
    )
    before, after, *splits = zip(*(counts for _, *counts in found), strict=True)
    shares_before, shares_after = _shares(before), _shares(after)
    by_split = [_shares(counts) for counts in splits]
    shares = [
        Share(
            label=_label(value),
            num_before=before[place],
            num_after=after[place],
            before=shares_before[place],
            after=shares_after[place],
            by_split=tuple(split[place] for split in by_split),
        )
        for place, (value, *_) in enumerate(found)
    ]
    train = by_split[0]
    sizes = [sum(counts) for counts in splits]
    drift = [
        (split, _distance(train, own), _chance(train, num))
        for split, own, num in zip(SPLITS[1:], by_split[1:], sizes[1:], strict=True)
        if num and sizes[0]
    ]
    return Balance(
        title=visible(column_label(name)[0], 60),
        shares=tuple(shares[:_SHOWN_VALUES]),
        num_values=len(shares),
        evenness_before=_evenness(shares_before),
        evenness_after=_evenness(shares_after),
        largest=max(max(s.before, s.after, *s.by_split) for s in shares),
        drift=tuple(drift),
        moved=max(shares, key=lambda share: abs(share.after - share.before)),
    )


def _label(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else visible(value, 40)


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def _distance(first: Sequence[float], second: Sequence[float]) -> float:
    return sum((abs(a - b) for a, b in zip(first, second, strict=True)), 0.0) / 2


def _chance(shares: Sequence[float], num: int) -> float:
    """The mean distance of `num` draws from `shares`, by the normal approximation of each count
    (mean absolute deviation: the standard deviation times the square root of 2 / pi)."""
    return sum(math.sqrt(2 * s * (1 - s) / (math.pi * num)) for s in shares if s) / 2


def _evenness(shares: Sequence[float]) -> float:
    return math.exp(-sum(share * math.log(share) for share in shares if share))
