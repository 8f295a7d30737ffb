"""What every stage returns: the short table that its verb prints at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """`rows` are (label, value) as a person reads them; `receipt` is the same for a program."""

    title: str
    rows: tuple[tuple[str, str], ...]
    receipt: dict[str, Any] = field(default_factory=dict)
