"""Exact search for 64-bit hashes within a Hamming distance, without comparing all with all.

Multi-index hashing after Manku, Jain and Das Sarma, "Detecting Near-Duplicates for Web Crawling"
(WWW 2007): cut the bits into b blocks; two hashes that differ in at most d bits are equal in at
least b - d blocks. So there is one table for every choice of b - d blocks, keyed by their bits, and
only hashes with an equal key are compared. More blocks mean longer keys (fewer comparisons) and
more tables; `plan_search` takes what costs least for the numbers at hand, so that the time grows
little faster than the number of hashes.

A pair is reported by one table only, that of its first equal blocks, so that nothing has to be
remembered. Memory: a table, and a few million comparisons at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coembed.curation.lookalikes.perceptual import NUM_BITS

Values = NDArray[np.uint64]
Places = NDArray[np.int64]

MOST_IN_BUCKET = 16_384
"""Hashes that share a key beyond this number are passed over in that table. Random hashes never
come near it; it bounds the time where very many pictures look almost the same. A pair is lost only
if all the tables that could report it are so full, and equal hashes never are."""

_QUERIES_AT_ONCE = 1 << 18
_COMPARISONS_AT_ONCE = 1 << 22
_MOST_KEY_BITS = 26
_SPARE_BITS = 3  # a table has at most this many powers of two more keys than hashes
_MOST_TABLES = 1000
# What a plan costs, in nanoseconds on one core of a server: sorting one hash into a table, looking
# one up, comparing two, and making room for a key. Measured roughly; only their ratios matter.
_SORT_NS, _LOOK_UP_NS, _COMPARE_NS, _KEY_NS = 120.0, 90.0, 50.0, 4.0
# Bits of real pictures' hashes are not independent: keys tell apart as much as this share of them.
_BIT_WORTH = 0.78


class Table(NamedTuple):
    """`blocks`: (shift, width) of all blocks of bits. `chosen`: those that make up the key, of
    which the first `key_bits` bits are used."""

    blocks: tuple[tuple[int, int], ...]
    chosen: tuple[int, ...]
    key_bits: int


def plan_search(num_queries: int, num_hashes: int, radius: int) -> list[Table]:
    """The tables that find every pair within `radius` (1 or more) for the least work."""
    assert radius >= 1  # equal hashes need no search
    most_bits = min(_MOST_KEY_BITS, num_hashes.bit_length() + _SPARE_BITS)
    best: tuple[float, int] | None = None
    for num_blocks in range(radius + 1, NUM_BITS + 1):
        equal = num_blocks - radius
        num_tables = comb(num_blocks, equal)
        if best and num_tables > _MOST_TABLES:
            break
        key_bits = min(NUM_BITS * equal / num_blocks, most_bits)
        compared = num_queries * num_hashes / 2 ** (_BIT_WORTH * key_bits)
        cost = num_tables * (
            num_hashes * _SORT_NS
            + num_queries * _LOOK_UP_NS
            + compared * _COMPARE_NS
            + 2**key_bits * _KEY_NS
        )
        if best is None or cost < best[0]:
            best = cost, num_blocks
    assert best is not None
    edges = [round(NUM_BITS * i / best[1]) for i in range(best[1] + 1)]
    blocks = tuple((start, end - start) for start, end in pairwise(edges))
    return [
        Table(blocks, chosen, min(sum(blocks[block][1] for block in chosen), most_bits))
        for chosen in combinations(range(best[1]), best[1] - radius)
    ]


def search_table(
    queries: Values, hashes: Values, table: Table, radius: int
) -> Iterator[tuple[Places, Places]]:
    """Places (in `queries`, in `hashes`) of the pairs that this table reports.

    Over all tables of a plan these are the pairs within `radius`, each once.
    """
    order, starts = _sort_into(hashes, table)
    in_order = hashes[order]
    for first in range(0, len(queries), _QUERIES_AT_ONCE):
        chunk = queries[first : first + _QUERIES_AT_ONCE]
        keys = _keys(chunk, table)
        begins = starts[keys]
        counts = starts[keys + 1] - begins
        some = np.flatnonzero((counts > 0) & (counts <= MOST_IN_BUCKET))
        for asked, found in _expand(begins[some].astype(np.int64), counts[some].astype(np.int64)):
            asked = some[asked]
            differing = chunk[asked] ^ in_order[found]
            near = np.bitwise_count(differing) <= radius
            near[near] = _is_first(differing[near], table)
            if near.any():
                yield first + asked[near], order[found[near]]


def _sort_into(hashes: Values, table: Table) -> tuple[Places, NDArray[np.uint32]]:
    """The order of the hashes by key, and where each key starts in it (one more at the end)."""
    keys = _keys(hashes, table)
    order = np.argsort(keys, kind="stable")
    starts = np.zeros((1 << table.key_bits) + 1, np.uint32)  # small: it is read all over
    np.cumsum(np.bincount(keys, minlength=1 << table.key_bits), out=starts[1:])
    return order, starts


def _keys(hashes: Values, table: Table) -> Places:
    keys = np.zeros(len(hashes), np.uint64)
    left = table.key_bits
    for block in table.chosen:
        shift, width = table.blocks[block]
        width = min(width, left)
        left -= width
        part = (hashes >> np.uint64(shift)) & np.uint64((1 << width) - 1)
        keys = (keys << np.uint64(width)) | part
    return keys.astype(np.int64)


def _expand(begins: Places, counts: Places) -> Iterator[tuple[Places, Places]]:
    """All (query, place) of runs that begin at `begins` and have `counts` places; bounded
    pieces."""
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):
        done = ends[first - 1] if first else 0
        last = int(np.searchsorted(ends, done + _COMPARISONS_AT_ONCE, side="right"))
        last = max(last, first + 1)
        part = counts[first:last]
        total = int(part.sum())
        if total:
            asked = np.repeat(np.arange(first, last), part)
            offsets = np.arange(total) - np.repeat(ends[first:last] - part - done, part)
            yield asked, begins[asked] + offsets
        first = last


def _is_first(differing: Values, table: Table) -> NDArray[np.bool_]:
    """Whether the table's blocks are the first ones in which these pairs are equal."""
    first = np.ones(len(differing), np.bool_)
    for block in range(table.chosen[-1] + 1):
        shift, width = table.blocks[block]
        equal = (differing & np.uint64(((1 << width) - 1) << shift)) == 0
        first &= equal == (block in table.chosen)
    return first
