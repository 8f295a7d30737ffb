"""The rows of a source that were not taken: counted, a few kept as examples, all in a CSV."""

from __future__ import annotations

import csv
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from coembed.files import atomic_path
from coembed.pairs.limits import shown
from coembed.pairs.readers.base import Refusal

_NUM_EXAMPLES = 5


class Refusals:
    """Use it as a context manager; the CSV at `path` is written also when an error ends it."""

    def __init__(self, path: Path | None) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: list[Refusal] = []
        self._path = path
        self._stack = ExitStack()
        self._writer: Any = None

    def add(self, refusal: Refusal) -> None:
        """Count and write one."""
        said = replace(refusal, where=shown(refusal.where), detail=shown(refusal.detail))
        self.counts[said.reason] += 1
        # A few of each kind say more than many of one.
        if self.counts[said.reason] <= 2 and len(self.examples) < _NUM_EXAMPLES:
            self.examples.append(said)
        if self._writer:
            self._writer.writerow([said.where, said.reason, said.detail])

    def __enter__(self) -> Refusals:
        if self._path is not None:
            partial = self._stack.enter_context(atomic_path(self._path))
            file = self._stack.enter_context(partial.open("w", encoding="utf-8", newline=""))
            self._writer = csv.writer(file, lineterminator="\n")
            self._writer.writerow(["where", "reason", "detail"])
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        # Also after an error: the list of refused rows is what explains it.
        self._stack.close()
