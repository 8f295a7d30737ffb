"""Drop a file that is another one's copy, and a pair that was already there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from coembed.curation.filters.base import Filter, PoolDrop, Records
from coembed.settings import ComponentSettings


class Settings(ComponentSettings):
    """Nothing to set: same bytes are the same item.

    List it last: a filter after it may drop the pair that the duplicates were dropped for.
    """

    name: Literal["exact_duplicate"] = "exact_duplicate"

    def build(self) -> Filter:
        """Make the filter."""
        return ExactDuplicate()


class ExactDuplicate(Filter):
    """The first kept row of an item owns it.

    Another path with the same bytes is an `exact_duplicate`: its caption goes to the owner's item
    unless the item already has it. The same path with a caption it already had is a
    `repeated_pair`. Captions are compared up to case and whitespace.
    """

    reasons = ("exact_duplicate", "repeated_pair")

    def check_pool(self, records: Records) -> Iterator[PoolDrop]:
        """Judge the rows of every item that has more than one."""
        rows = np.flatnonzero(records.kept)
        rows = rows[np.argsort(records.items[rows], kind="stable")]
        items = records.items[rows]
        starts = np.flatnonzero(np.r_[True, items[1:] != items[:-1]]) if len(rows) else rows
        ends = np.r_[starts[1:], len(rows)]
        several = ends - starts > 1
        for start, end in zip(starts[several], ends[several], strict=True):
            yield from self._judge(rows[start:end].tolist(), records)

    def _judge(self, rows: list[int], records: Records) -> Iterator[PoolDrop]:
        """`rows` are one item's, in pool order."""
        owner = rows[0]
        own = [row for row in rows if records.paths[row] == records.paths[owner]]
        copies = [row for row in rows if records.paths[row] != records.paths[owner]]
        by_caption: dict[int, int] = {}
        # The owner's own captions first: a copy must not push one of them out.
        for row in own:
            caption = int(records.captions[row])
            if caption in by_caption:
                first = by_caption[caption]
                detail = f"same path and caption as pair {records.pair_id(first)}"
                yield PoolDrop(row, "repeated_pair", detail, first)
            else:
                by_caption[caption] = row
        for row in copies:
            caption = int(records.captions[row])
            is_new = caption not in by_caption
            by_caption.setdefault(caption, row)
            added = "its caption was added there" if is_new else "its caption was there already"
            detail = f"same bytes as {records.path(owner)}; {added}"
            yield PoolDrop(row, "exact_duplicate", detail, owner, keep_caption=is_new)
