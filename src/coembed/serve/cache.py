"""A cache bounded by entries and by bytes: what was used least lately goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")

# What an entry costs beside its value: its key, its place.
_ENTRY_BYTES = 300


class Cache(Generic[T]):
    """Safe to use from several threads."""

    def __init__(self, *, max_entries: int, max_bytes: int) -> None:
        self._max_entries, self._max_bytes = max_entries, max_bytes
        self._entries: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> T | None:
        """The value under `key`; None where there is none."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: Hashable, value: T, *, num_bytes: int) -> None:
        """Keep `value`, which takes `num_bytes`, if it fits at all."""
        cost = num_bytes + _ENTRY_BYTES
        if cost > self._max_bytes:
            return
        with self._lock:
            before = self._entries.pop(key, None)
            if before is not None:
                self._num_bytes -= before[1]
            self._entries[key] = (value, cost)
            self._num_bytes += cost
            while len(self._entries) > self._max_entries or self._num_bytes > self._max_bytes:
                _, (_, freed) = self._entries.popitem(last=False)
                self._num_bytes -= freed

    @property
    def num_bytes(self) -> int:
        """What the entries take up by now."""
        return self._num_bytes

    def __len__(self) -> int:
        return len(self._entries)
