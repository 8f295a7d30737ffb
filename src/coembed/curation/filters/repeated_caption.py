"""Drop boilerplate: one caption that stands beside many different items."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import Field

from coembed.curation.filters.base import Filter, PoolDrop, Records
from coembed.settings import ComponentSettings


class Settings(ComponentSettings):
    """A caption is boilerplate when it stands beside more than `max_items` different items and
    beside more than the share `max_share` of all items.

    Both bounds are guesses. The filter is not on by default, because a caption such as "red shoe"
    may be true of every item it stands beside.
    """

    name: Literal["repeated_caption"] = "repeated_caption"
    max_items: int = Field(default=20, ge=1)
    max_share: float = Field(default=0.001, ge=0, lt=1)

    def build(self) -> Filter:
        """Make the filter."""
        return RepeatedCaption(self.max_items, self.max_share)


class RepeatedCaption(Filter):
    """Counts different items, not pairs. Captions are compared up to case and whitespace."""

    reasons = ("repeated_caption",)

    def __init__(self, max_items: int, max_share: float) -> None:
        self._max_items = max_items
        self._max_share = max_share

    def check_pool(self, records: Records) -> Iterator[PoolDrop]:
        """Judge all captions."""
        rows = np.flatnonzero(records.kept)
        if not len(rows):
            return
        beside = np.unique(np.stack([records.captions[rows], records.items[rows]]), axis=1)
        captions, num_items = np.unique(beside[0], return_counts=True)
        limit = max(self._max_items, self._max_share * len(np.unique(beside[1])))
        counts = dict(zip(captions.tolist(), num_items.tolist(), strict=True))
        for row in rows.tolist():
            num = counts[int(records.captions[row])]
            if num > limit:
                yield PoolDrop(row, "repeated_caption", f"the caption of {num} items > {limit:.6g}")
