"""A review: pairs in a row, what was decided of each, and the way back.

Every decision is written to overrides.csv before it counts; nothing is kept elsewhere, so a page
that is closed or a process that is killed loses nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coembed.curation.overrides import Decision, read_overrides, remove_decision, write_decision
from coembed.curation.report.look import PICK_KEY, Manifest, PairRow
from coembed.curation.report.report_pictures import UNDECODABLE
from coembed.curation.report.report_sections import filter_of_reason, partner_id
from coembed.errors import DataError, UserError

Mark = Literal["keep", "drop", "skip"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One pair to decide about, and the pair that it is held against, if any."""

    row: PairRow
    partner: PairRow | None


@dataclass(frozen=True, slots=True)
class _Step:
    """One move of the review. `before`: what overrides.csv said of the pair before it."""

    pair_id: str
    mark: Mark
    before: tuple[Decision, str] | None


class Review:
    """The state of one review. Methods may be called from several threads.

    `overrides` is the file that is written; pairs that it decides about already are left out, and
    `num_decided_before` says how many those were.
    """

    def __init__(self, entries: Sequence[Entry], overrides: Path) -> None:
        decided = read_overrides(overrides).decisions
        by_id = {entry.row.text("pair_id"): entry for entry in reversed(entries)}
        ordered = dict.fromkeys(entry.row.text("pair_id") for entry in entries)
        self._entries = {i: by_id[i] for i in ordered if i not in decided}
        self.num_decided_before = len(ordered) - len(self._entries)
        self.overrides = overrides
        self._marks: dict[str, Mark] = {}
        self._steps: list[_Step] = []
        self._lock = threading.Lock()

    @property
    def entries(self) -> Mapping[str, Entry]:
        """All pairs of the review by pair_id, in order."""
        return self._entries

    def upcoming(self, num: int = 1) -> list[Entry]:
        """The next `num` pairs without a mark, the current one first."""
        with self._lock:
            waiting = (e for i, e in self._entries.items() if i not in self._marks)
            return [entry for entry, _ in zip(waiting, range(num), strict=False)]

    def count(self, mark: Mark) -> int:
        """How many pairs of this review bear `mark`."""
        with self._lock:
            return sum(1 for own in self._marks.values() if own == mark)

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to take back."""
        return bool(self._steps)

    def decide(self, pair_id: str, decision: Decision) -> None:
        """Write the decision. Raises DataError when overrides.csv is not one any more, KeyError
        when the pair is not in this review."""
        with self._lock:
            entry = self._entries[pair_id]
            before = read_overrides(self.overrides).decisions.get(pair_id)
            write_decision(self.overrides, pair_id, decision, _because(entry.row, decision))
            self._marks[pair_id] = decision
            self._steps.append(_Step(pair_id, decision, before))

    def skip(self, pair_id: str) -> None:
        """Leave the pair for now. Raises KeyError when it is not in this review."""
        with self._lock:
            if pair_id not in self._entries:
                raise KeyError(pair_id)
            if self._marks.get(pair_id) is None:
                self._marks[pair_id] = "skip"
                self._steps.append(_Step(pair_id, "skip", None))

    def undo(self) -> str | None:
        """Take the last step back, in the file too; the pair's id, None where there was none."""
        with self._lock:
            if not self._steps:
                return None
            step = self._steps[-1]
            if step.mark != "skip":
                if step.before is None:
                    remove_decision(self.overrides, step.pair_id)
                else:
                    write_decision(self.overrides, step.pair_id, *step.before)
            self._steps.pop()
            self._marks.pop(step.pair_id, None)
            return step.pair_id

    def take_up_skipped(self) -> None:
        """Bring the skipped pairs back."""
        with self._lock:
            self._marks = {i: mark for i, mark in self._marks.items() if mark != "skip"}
            self._steps = [step for step in self._steps if step.mark != "skip"]


def choose_entries(manifest: Manifest, *, reason: str | None, limit: int) -> list[Entry]:
    """The pairs to review: those dropped for `reason`, else the most doubtful kept ones.

    Raises UserError when there is none to review.
    """
    if reason is None:
        rows = manifest.rows(
            "kept AND decided_by IS NULL AND doubt > 0",
            order=f"doubt DESC, {PICK_KEY}",
            limit=limit,
        )
        if not rows:
            raise UserError(
                "no kept pair is in doubt",
                hint="filters such as near_duplicate and mismatched_pair measure doubt; "
                "`coembed pairs review --reason REASON` shows dropped pairs",
            )
    else:
        _check_reason(manifest, reason)
        rows = manifest.rows("drop_reason = ?", [reason], order=PICK_KEY, limit=limit)
    filters = filter_of_reason(manifest)
    partners_of = {row.number: partner_id(row, _filter(row, filters)) for row in rows}
    partners = manifest.with_ids(filter(None, partners_of.values()))
    return [Entry(row, partners.get(partners_of[row.number] or "")) for row in rows]


def _filter(row: PairRow, filters: Mapping[str, str]) -> str:
    if row.kept:
        return row.text("doubt_by").removesuffix("_doubt")
    return filters.get(row.text("drop_reason"), "")


def _check_reason(manifest: Manifest, reason: str) -> None:
    reasons = manifest.reasons()
    if reason == "repeated_pair_id":
        raise DataError(
            "pairs that share a pair_id cannot be told apart by it",
            hint="give them ids of their own in the pool's tables",
        )
    if reason in UNDECODABLE:
        raise UserError(
            f"pairs dropped as {reason!r} cannot be kept: there is nothing to keep",
            hint="mend the files, ingest them, and run `coembed curate` again",
        )
    if reason not in reasons:
        listed = ", ".join(f"{name} ({num:,})" for name, num in reasons.items()) or "none"
        raise UserError(f"no pair was dropped as {reason!r}", hint=f"there are: {listed}")


def _because(row: PairRow, decision: Decision) -> str:
    """What overrides.csv holds as the reason."""
    if not row.kept:
        return f"review: {decision}, where the filters said {row.text('drop_reason')}"
    if row["doubt"] is None:
        return f"review: {decision}"
    by = row.text("doubt_by").removesuffix("_doubt")
    return f"review: {decision}, at doubt {row['doubt']:.2f} by {by}"
