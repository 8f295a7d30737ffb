"""What a flow run says of its data: what changed since the last run, and what curating them took.

It only describes. Whatever cannot be told is a note on the page, and never fails the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coembed.errors import CoembedError, DataError
from coembed.files import read_json
from coembed.lineage import dvc
from coembed.lineage.data_diff import diff_data

_NUM_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Told:
    """`line` for a terminal, `page` (Markdown) with all there is to say."""

    line: str
    page: str


def data_change(tree: Path, pool: Path, receipt: Path) -> Told:
    """What changed in the data of the workspace `tree` (`pool` is relative to it) since the run
    that left the retrain `receipt`."""
    left = _last_data(receipt)
    if left is None:
        return _brief("no earlier run to compare with")
    if left["md5"] == dvc.data_hash(tree, pool):
        return _brief(f"the same as in the last run ({left['md5'][:10]})")
    since = f"since the last run ({left['commit'][:10]})"
    try:
        diff = diff_data(tree, pool, left["commit"], limit=_NUM_EXAMPLES)
        page = diff.as_markdown()
    except Exception as error:  # a description: whatever is wrong with it, the run goes on
        why = error.message if isinstance(error, CoembedError) else f"{error!r}"
        return _brief(f"what changed {since} cannot be told: {why}")
    counts = [
        f"{num:,} {label}"
        for label, num in (
            ("added", diff.added),
            ("removed", diff.removed),
            ("recaptioned", diff.recaptioned),
            ("with other media", diff.media_replaced),
            ("moved", diff.moved),
            ("with other attributes", max(diff.attributes_changed.values(), default=0)),
        )
        if num
    ]
    before, after = diff.num_pairs
    return Told(
        f"{before:,} → {after:,} pairs {since}: {', '.join(counts) or 'no pair differs'}", page
    )


def curation_costs(outcome: str, costs: Path) -> Told:
    """What the curate stage took, after a run with `outcome`; `costs` is its costs.json."""
    if outcome != "ran":
        return Told(f"not run: {outcome}", f"Curation did not run: {outcome}.\n")
    try:
        found = read_json(costs, what="curation's costs")
        steps = _seconds(found["steps_s"])
        examine = found["examine"]
        rows, read, cached = (int(examine[f"num_{name}"]) for name in ("rows", "read", "cached"))
    except (DataError, KeyError, TypeError, ValueError) as error:
        line = f"it left no costs that can be read: {error}"
        return Told(line, f"Curation ran; {line}\n")
    slowest = sorted(steps.items(), key=lambda step: (-step[1], step[0]))
    total = sum(steps.values())
    looked = f"{rows:,} pairs, {read:,} files read, {cached:,} known from earlier runs"
    table = "\n".join(f"| {name} | {seconds:,.1f} |" for name, seconds in slowest)
    return Told(
        f"{total:,.1f} s ({', '.join(f'{name} {s:,.1f} s' for name, s in slowest[:2])}); {looked}",
        f"{total:,.1f} s in all; {looked}.\n\n| step | seconds |\n|---|---|\n{table}\n",
    )


def _last_data(receipt: Path) -> dict[str, str] | None:
    """The last run's data: `commit` and `md5`. None where there was none, or it did not say."""
    try:
        left = read_json(receipt, what="retrain receipt")
    except DataError:
        return None
    data = left.get("data") if isinstance(left, dict) else None
    if not isinstance(data, dict) or not all(
        isinstance(data.get(key), str) for key in ("commit", "md5")
    ):
        return None
    return data


def _brief(line: str) -> Told:
    return Told(line, f"# Data\n\n{line[:1].upper()}{line[1:]}.\n")


def _seconds(steps: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(seconds) for name, seconds in steps.items()}
