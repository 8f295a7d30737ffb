"""Which split a pair is in: a function of content that only ever moves towards held out.

The rule:

1. Pairs are grouped. In one group are pairs of one item (same media bytes), pairs with an equal
   value in a `group_by` column, and pairs that a filter has linked: duplicates of each other, near
   ones included, whether or not one of them was dropped. Groups that share a pair are one group.
2. A group in which the pool gives some pair a split takes that split whole. Where it gives several,
   the most held-out one wins: test before val before train. Otherwise a picture that the pool puts
   into both train and test would be learnt and then tested.
3. Any other group is put by hashes. Each of its pairs has a key: "<column>=<value>" of the first
   `group_by` column in which it has a value, or else its item_id. A key hashes to a split:
   u = SHA-256("<seed>:<key>") as a fraction; test where u < test, val where u < test + val, else
   train. The most held-out of the group's outcomes wins.

So a pool that grows adds keys and links to groups and takes none away, and a pair moves, if at all,
towards test: what was once tested is never trained on. (Unless a filter drops a pair, for the sake
of new ones, that held a group together.) The price: a group of n keys is in test with probability
1 - (1 - test)^n. Hence list the coarsest `group_by` column first: sellers before their products,
or every seller of some size ends in test.

Pairs that count: those whose captions are packed, and dropped ones that a filter has linked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coembed.curation.database import Database, literal
from coembed.curation.settings import SplitSettings
from coembed.curation.settle import Standing, mapped
from coembed.types import SPLITS

NO_SPLIT = -1
SPLIT_REASONS = ("given", "group", "hashed")
_CHUNK = 2**20


@dataclass(frozen=True)
class Assignment:
    """Arrays [rows] of int8: `splits` are places in SPLITS, `reasons` in SPLIT_REASONS; -1 where a
    row is in no split."""

    splits: NDArray[np.int8]
    reasons: NDArray[np.int8]


class Groups:
    """Union-find over the numbers 0 to `num` (exclusive), link by link, in chunks.

    `parent` [num] points towards the smallest number of the group; 8 bytes each, memory-mapped.
    """

    def __init__(self, parent: NDArray[np.int64]) -> None:
        self._parent = parent
        for start, stop in _chunks(len(parent)):
            parent[start:stop] = np.arange(start, stop)

    def link(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> None:
        """Put `a[i]` and `b[i]` into one group, for all i."""
        a, b = self.find(a), self.find(b)
        apart = a != b
        if not apart.any():
            return
        # Only the roots of this chunk matter: their components are found among themselves.
        roots, places = np.unique(np.concatenate([a[apart], b[apart]]), return_inverse=True)
        # Sorted, so the smallest place is the smallest number.
        one, other = places.reshape(2, -1)
        self._parent[roots] = roots[_components(one, other, len(roots))]

    def find(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The smallest number of each one's group."""
        found = self._parent[numbers]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                break
            found = above
        self._parent[numbers] = found  # so that the next search is short
        return found


def _components(a: NDArray[np.int64], b: NDArray[np.int64], num: int) -> NDArray[np.int64]:
    """For each of `num` nodes the smallest node that the edges from `a` to `b` join it with.

    Labels sink along the edges, at the nodes and at what the nodes' labels point to, which makes
    long chains short (as FastSV: Zhang, Azad and Hu 2020).
    """
    label = np.arange(num)
    while True:
        before = label.copy()
        above_a, above_b = label[a], label[b]
        least = np.minimum(above_a, above_b)
        for nodes in (above_a, above_b, a, b):
            np.minimum.at(label, nodes, least)
        label = label[label]
        if np.array_equal(label, before):
            return label


def assign_splits(
    database: Database,
    standing: Standing,
    settings: SplitSettings,
    *,
    num_items: int,
    seed: int,
    folder: Path,
) -> Assignment:
    """Give every row that is packed a split.

    The group_by columns are `g0`, `g1`, ... of the table `rows`. Besides DuckDB's memory it takes
    10 bytes an item and 2 a row, memory-mapped in `folder`.
    """
    columns = [f"g{i}" for i in range(len(settings.group_by))]
    database.execute(
        "CREATE TABLE counted AS WITH linked AS (SELECT row FROM links UNION SELECT other FROM"
        " links) SELECT row, item, given_split"
        + "".join(f", {column}" for column in columns)
        + " FROM rows WHERE item IS NOT NULL"
        " AND (row NOT IN (SELECT row FROM drops) OR row IN (SELECT row FROM linked))"
    )
    groups = Groups(mapped(folder / "parent", num_items, np.int64))
    for column in columns:
        for batch in database.query(
            f"SELECT item, least FROM counted JOIN (SELECT {column}, min(item) AS least FROM"
            f" counted WHERE {column} IS NOT NULL GROUP BY {column} HAVING min(item) < max(item))"
            f" USING ({column}) WHERE item <> least"
        ):
            groups.link(*_numbers(batch))
    for batch in database.query("SELECT row, other FROM links"):
        row, other = _numbers(batch)
        ends = standing.item[row], standing.item[other]
        read = (ends[0] >= 0) & (ends[1] >= 0)
        groups.link(ends[0][read], ends[1][read])

    # SPLITS runs from the least to the most held out, so the largest place wins; -1 is none given.
    given = mapped(folder / "given", num_items, np.int8)
    hashed = mapped(folder / "hashed", num_items, np.int8)
    for start, stop in _chunks(num_items):
        given[start:stop], hashed[start:stop] = NO_SPLIT, NO_SPLIT
    for batch in database.query(_places_sql(settings, columns, seed)):
        item, own_given, own_hashed = _numbers(batch)
        root = groups.find(item)
        np.maximum.at(given, root, own_given.astype(np.int8))
        np.maximum.at(hashed, root, own_hashed.astype(np.int8))
    database.execute("DROP TABLE counted")
    return _assign_rows(database, standing, groups, given, hashed, folder)


def _assign_rows(
    database: Database,
    standing: Standing,
    groups: Groups,
    given: NDArray[np.int8],
    hashed: NDArray[np.int8],
    folder: Path,
) -> Assignment:
    num = standing.num_rows
    splits = mapped(folder / "splits", num, np.int8)
    reasons = mapped(folder / "split_reasons", num, np.int8)
    own = mapped(folder / "own_splits", num, np.int8)
    own[:] = NO_SPLIT
    for batch in database.query(
        f"SELECT row, {_place('given_split')} AS place FROM rows WHERE given_split IS NOT NULL"
    ):
        row, place = _numbers(batch)
        own[row] = place
    for start, stop in _chunks(num):
        splits[start:stop], reasons[start:stop] = NO_SPLIT, NO_SPLIT
        used = start + np.flatnonzero(standing.kept[start:stop] | standing.joins[start:stop])
        root = groups.find(standing.item[used])
        place = np.where(given[root] != NO_SPLIT, given[root], hashed[root])
        splits[used] = place
        reasons[used] = np.where(given[root] == NO_SPLIT, 2, np.where(own[used] == place, 0, 1))
    return Assignment(splits, reasons)


def _places_sql(settings: SplitSettings, columns: Sequence[str], seed: int) -> str:
    """A query for the item, the given place and the hashed place of every row that counts."""
    values = [
        f"{literal(f'{name}=')} || {column}"
        for name, column in zip(settings.group_by, columns, strict=True)
    ]
    key = f"coalesce({', '.join([*values, 'lower(hex(item_id))'])})"
    # The first 53 bits of the hash: they fill a float exactly, as in `hash_fraction`.
    fraction = (
        f"((('0x' || sha256({literal(f'{seed}:')} || {key})[:16])::UBIGINT >> 11)::DOUBLE"
        " / 9007199254740992)"
    )
    test, val = repr(float(settings.test)), repr(float(settings.test + settings.val))
    return (
        f"SELECT DISTINCT item, given, CASE WHEN u < {test} THEN 2 WHEN u < {val} THEN 1 ELSE 0 END"
        f" AS hashed FROM (SELECT item, {_place('given_split')} AS given, {fraction} AS u"
        " FROM counted JOIN items USING (item))"
    )


def _place(column: str) -> str:
    cases = " ".join(f"WHEN {literal(name)} THEN {place}" for place, name in enumerate(SPLITS))
    return f"CASE {column} {cases} ELSE {NO_SPLIT} END"


def _numbers(batch: pa.RecordBatch) -> list[NDArray[np.int64]]:
    """The columns of `batch`, all of them whole numbers."""
    return [column.to_numpy().astype(np.int64) for column in batch.columns]


def _chunks(num: int) -> Iterable[tuple[int, int]]:
    return ((start, min(start + _CHUNK, num)) for start in range(0, num, _CHUNK))


def hash_fraction(seed: int, key: str) -> float:
    """A number in [0, 1) made of (seed, key)."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    # 53 bits fill a float exactly; more could round up to 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
