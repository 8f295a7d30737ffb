"""What passes between the parent and the workers that examine: tasks, results, costs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, fields
from time import perf_counter

import pyarrow as pa

# What a worker may be doing with a row when it dies.
READING, MEASURING, JUDGING = 0, 1, 2


@dataclass
class Costs:
    """What the examination cost, all workers together. Differs from run to run.

    `seconds` by what took them: "read" (files), "hash" (SHA-256), "cache" (looking items up),
    "media" (headers), the names of the filters (whoever asks first for the pixels pays for
    decoding them), "parts" (checking and writing them). `num_reused` of the `num_rows` came from
    parts of an earlier run. Of the others `num_read` files were read; their items were measured,
    `num_measured`, or known by their content, `num_cached`. `num_deaths` of worker processes.
    """

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    num_rows: int = 0
    num_reused: int = 0
    num_read: int = 0
    num_bytes: int = 0
    num_measured: int = 0
    num_cached: int = 0
    num_deaths: int = 0

    def spend(self, what: str, since: float) -> float:
        """Add the time from `since` until now to `what`; returns now."""
        now = perf_counter()
        self.seconds[what] += now - since
        return now

    def add(self, other: Costs) -> None:
        """Add what another worker spent."""
        for what, seconds in other.seconds.items():
            self.seconds[what] += seconds
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


_COUNTS = tuple(field.name for field in fields(Costs) if field.name != "seconds")


@dataclass(frozen=True, slots=True)
class Mark:
    """A row that is not to be tried again: what happened when it was, and at which step.

    Up to MEASURING it stands for the row's item, in whichever rows of the part that is.
    """

    row: int
    phase: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class PartTask:
    """Rows `start` to `stop` (exclusive) of part `number`; `is_whole`: all rows of it.

    A task for a whole part writes it, or finds it current; otherwise the table is handed back.
    `suspect` is what a worker seemed to die of: it is tried first, by itself.
    """

    number: int
    start: int
    stop: int
    is_whole: bool
    marks: tuple[Mark, ...] = ()
    suspect: Mark | None = None


@dataclass
class PartResult:
    """The table unless it was written; new entries for the cache; what it cost."""

    table: pa.Table | None
    entries: list[tuple[bytes, bytes]]
    costs: Costs
