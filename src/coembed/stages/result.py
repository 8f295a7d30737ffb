"""What every stage returns: the short table that its verb prints at the end, or a listing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """`rows` are (label, value) as a person reads them; `receipt` is the same for a program."""

    title: str
    rows: tuple[tuple[str, str], ...]
    receipt: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listing:
    """What a verb that lists prints: a table with a header, and the same for a program."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    receipt: dict[str, Any] = field(default_factory=dict)


def clock(iso: str) -> str:
    """A time in UTC as a table shows it, from ISO 8601."""
    return iso.replace("T", " ").removesuffix("+00:00")
