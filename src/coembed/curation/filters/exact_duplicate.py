"""Drop a file that is another one's copy, and a pair that was already there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pyarrow as pa

from coembed.curation.filters.base import Filter, PoolView
from coembed.settings import ComponentSettings


class Settings(ComponentSettings):
    """Nothing to set: same bytes are the same item.

    List it after the filters that judge captions and media: a filter after it may drop the pair
    that the duplicates were dropped for.
    """

    name: Literal["exact_duplicate"] = "exact_duplicate"

    def build(self) -> Filter:
        """Make the filter."""
        return ExactDuplicate()


# The rows of every item that has several, and to each the first row that has its caption. The
# owner's own captions come first: a copy must not push one of them out.
_MEMBERS = """
CREATE TEMP TABLE exact_members AS
WITH owners AS (SELECT item, min(row) AS owner FROM kept GROUP BY item HAVING count(*) > 1),
members AS (
    SELECT kept.row, kept.item, kept.caption_key, owner, kept.path_key = own.path_key AS is_own
    FROM kept JOIN owners USING (item) JOIN kept AS own ON own.row = owners.owner
)
SELECT row, owner, is_own, first_value(row) OVER (
    PARTITION BY item, caption_key ORDER BY is_own DESC, row
) AS earliest FROM members
"""
_VERDICTS = """
SELECT found.row,
    if(is_own, 'repeated_pair', 'exact_duplicate') AS reason,
    if(is_own, 'same path and caption as pair ' || named.pair_id,
       'same bytes as ' || named.path || if(found.row = earliest,
       '; its caption was added there', '; its caption was there already')) AS detail,
    named.row AS duplicate_of,
    NOT is_own AND found.row = earliest AS keep_caption
FROM exact_members AS found JOIN kept AS named ON named.row = if(is_own, earliest, owner)
WHERE NOT is_own OR found.row <> earliest
"""


class ExactDuplicate(Filter):
    """The first kept row of an item owns it.

    Another path with the same bytes is an `exact_duplicate`: its caption goes to the owner's item
    unless the item already has it. The same path with a caption it already had is a
    `repeated_pair`. Captions are compared up to case and whitespace.
    """

    reasons = ("exact_duplicate", "repeated_pair")

    def check_pool(self, pool: PoolView) -> Iterator[pa.Table]:
        """Judge the rows of every item that has more than one."""
        pool.execute(_MEMBERS)
        for batch in pool.query(_VERDICTS):
            yield pa.Table.from_batches([batch])
