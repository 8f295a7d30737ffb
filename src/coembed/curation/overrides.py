"""overrides.csv: what people decided about single pairs, by pair id, with a reason.

A pair under `drop` is dropped; one under `keep` is kept whatever the filters say, unless there is
nothing to keep: its file is missing or cannot be read, or its pair_id is another pair's.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import pyarrow as pa

from coembed.errors import DataError
from coembed.files import write_text

OVERRIDE_REASON = "dropped_by_override"
COLUMNS = ("pair_id", "decision", "reason")
Decision = Literal["keep", "drop"]
DECISIONS: tuple[Decision, ...] = ("keep", "drop")
_HINT = "expected the columns pair_id, decision (keep or drop) and reason, as `coembed pairs review` writes them"  # noqa: E501


@dataclass(frozen=True)
class Overrides:
    """Decisions by pair id: the decision, and the reason as the person wrote it."""

    decisions: Mapping[str, tuple[Decision, str]] = field(default_factory=dict)

    def table(self) -> pa.Table:
        """Columns pair_id, decision, reason."""
        ids = sorted(self.decisions)
        return pa.table(
            {
                "pair_id": pa.array(ids, pa.string()),
                "decision": pa.array([self.decisions[i][0] for i in ids], pa.string()),
                "reason": pa.array([self.decisions[i][1] for i in ids], pa.string()),
            }
        )


def read_overrides(path: Path) -> Overrides:
    """Read and check the decisions in `path`; no file, or an empty one, means no decisions.

    Raises DataError that names the row and the value when a column is missing, a decision is not
    one of DECISIONS, a pair_id is empty, or two rows decide differently about one pair.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return Overrides()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}", hint=_HINT) from error
    decisions: dict[str, tuple[Decision, str]] = {}
    lines: dict[str, int] = {}
    if not text.strip():
        return Overrides()
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for number, cells in enumerate(reader, start=1):
            if number == 1:
                places = _places(path, cells)
                continue
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) <= max(places.values()):
                raise DataError(
                    f"{path}, row {number}: {len(cells)} cells, fewer than the header has",
                    hint=_HINT,
                )
            pair_id, decision, reason = (cells[places[name]].strip() for name in COLUMNS)
            if not pair_id:
                raise DataError(f"{path}, row {number}: no pair_id", hint=_HINT)
            if decision.lower() not in DECISIONS:
                raise DataError(
                    f"{path}, row {number}: decision is {decision!r}; expected keep or drop",
                    hint=_HINT,
                )
            decided = (cast("Decision", decision.lower()), reason)
            if pair_id in decisions and decisions[pair_id][0] != decided[0]:
                raise DataError(
                    f"{path}, row {number}: {decision} {pair_id!r}, but row {lines[pair_id]} says "
                    f"{decisions[pair_id][0]}",
                    hint="leave one of the two",
                )
            decisions[pair_id], lines[pair_id] = decided, number
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}", hint=_HINT) from error
    return Overrides(decisions)


def _places(path: Path, header: list[str]) -> dict[str, int]:
    """Where the columns are. More columns may stand beside them, for the person's own use."""
    names = [name.strip() for name in header]
    for name in COLUMNS:
        if names.count(name) != 1:
            found = "no" if name not in names else "more than one"
            raise DataError(
                f"{path} has {found} column {name!r} in its header {', '.join(map(repr, names))}",
                hint=_HINT,
            )
    return {name: names.index(name) for name in COLUMNS}


def write_decision(path: Path, pair_id: str, decision: Decision, reason: str) -> None:
    """Decide about one pair, in place of what `path` says about it so far.

    The file is rewritten whole or not at all, sorted by pair_id: the same decisions make the same
    bytes. It keeps these three columns only. Raises DataError when the file that is there is not
    one of overrides, or the pair id or decision cannot be written.
    """
    if not pair_id.strip() or pair_id != pair_id.strip() or decision not in DECISIONS:
        raise DataError(f"cannot decide {decision!r} about pair {pair_id!r}", hint=_HINT)
    decisions = dict(read_overrides(path).decisions)
    decisions[pair_id] = (decision, " ".join(reason.split()))
    _write(path, decisions)


def remove_decision(path: Path, pair_id: str) -> None:
    """Take back what was decided about one pair; does nothing where nothing was."""
    decisions = dict(read_overrides(path).decisions)
    if decisions.pop(pair_id, None) is not None:
        _write(path, decisions)


def _write(path: Path, decisions: Mapping[str, tuple[Decision, str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((pair_id, *decisions[pair_id]) for pair_id in sorted(decisions))
    write_text(path, text.getvalue())
