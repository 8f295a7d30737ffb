"""The ledger: light records of all pool rows in the parent process, and what became of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coembed.curation.examine import Findings
from coembed.curation.filters.base import Filter, PoolDrop, Records, ScoreType
from coembed.curation.spool import Spool

KEPT = -1
_DTYPES: dict[ScoreType, Any] = {"int64": np.float64, "float64": np.float64, "string": object}


class Ledger:
    """One array element a pool row.

    `reason` [rows] int16: a place in `reasons`, or KEPT. `duplicate_of` [rows] int64: a row or -1.
    `joins` [rows] bool: dropped as a duplicate, but its caption goes to that row's item. About 150
    bytes a row, without scores.
    """

    def __init__(
        self, num_rows: int, reasons: Sequence[str], scores: Mapping[str, ScoreType]
    ) -> None:
        self.reasons = tuple(reasons)
        self.reason = np.full(num_rows, KEPT, np.int16)
        self.details: dict[int, str] = {}
        self.duplicate_of = np.full(num_rows, -1, np.int64)
        self.joins = np.zeros(num_rows, np.bool_)
        self.num_bytes = np.zeros(num_rows, np.int64)
        self.width_px = np.zeros(num_rows, np.int32)
        self.height_px = np.zeros(num_rows, np.int32)
        self.item_digests = np.zeros((num_rows, 32), np.uint8)
        self._paths = np.zeros((num_rows, 16), np.uint8)
        self._captions = np.zeros((num_rows, 16), np.uint8)
        self._pair_ids = np.zeros((num_rows, 16), np.uint8)
        self.score_types = dict(scores)
        self.scores = {name: _no_scores(num_rows, kind) for name, kind in scores.items()}

    @property
    def num_rows(self) -> int:
        """Pool rows."""
        return len(self.reason)

    @property
    def kept(self) -> NDArray[np.bool_]:
        """[rows]: not dropped."""
        return self.reason == KEPT

    @property
    def used(self) -> NDArray[np.bool_]:
        """[rows]: the caption goes into a shard, under its own item or the one it joins."""
        return self.kept | self.joins

    def add(self, found: Findings) -> None:
        """Take in what a worker found."""
        rows = slice(found.start, found.start + len(found.num_bytes))
        self.item_digests[rows] = found.items
        self._paths[rows] = found.paths
        self._captions[rows] = found.captions
        self._pair_ids[rows] = found.pair_ids
        self.num_bytes[rows] = found.num_bytes
        self.width_px[rows] = found.width_px
        self.height_px[rows] = found.height_px
        for row, reason, detail in found.drops:
            self.drop(row, reason, detail)
        for name, cells in found.scores.items():
            for row, cell in cells.items():
                self.scores[name][row] = cell

    def drop(self, row: int, reason: str, detail: str) -> None:
        """Drop a row. The first reason stands."""
        if self.reason[row] == KEPT:
            self.reason[row] = self.reasons.index(reason)
            self.details[row] = detail

    def drop_repeated_ids(self, spool: Spool) -> None:
        """Of several pairs with one pair_id the first stands: an id of two pairs tells neither."""
        ids = _keys(self._pair_ids)
        _, first, codes = np.unique(ids, return_index=True, return_inverse=True)
        for row in np.flatnonzero(first[codes] != np.arange(len(ids))).tolist():
            earlier = int(first[codes[row]])
            detail = f"pair_id {spool.text(row, 'pair_id')!r} is that of pool row {earlier + 1}"
            self.drop(row, "repeated_pair_id", detail)

    def apply_pool_filter(self, chosen: Filter, spool: Spool, codes: Codes) -> None:
        """Let a filter judge all rows together."""
        records = Records(
            kept=self.kept,
            items=codes.items,
            paths=codes.paths,
            captions=codes.captions,
            scores=self.scores,
            pair_id=lambda row: spool.text(row, "pair_id"),
            path=lambda row: spool.text(row, "path"),
        )
        for found in sorted(chosen.check_pool(records), key=lambda found: found.row):
            self._drop_duplicate(found)

    def _drop_duplicate(self, found: PoolDrop) -> None:
        if self.reason[found.row] != KEPT:
            return
        self.drop(found.row, found.reason, found.detail)
        if found.duplicate_of is not None:
            self.duplicate_of[found.row] = found.duplicate_of
            self.joins[found.row] = found.keep_caption

    def settle_duplicates(self, items: NDArray[np.int64]) -> None:
        """Make every `duplicate_of` a kept row, following chains of duplicates to their end.

        Where a later filter dropped the end, another kept pair of that item takes its place; where
        there is none, nothing is left to join. `items` [rows]: numbers of the items.
        """
        kept_rows = np.flatnonzero(self.kept)
        kept_items, first = np.unique(items[kept_rows], return_index=True)
        kept_row = dict(zip(kept_items.tolist(), kept_rows[first].tolist(), strict=True))
        for row in np.flatnonzero(self.duplicate_of >= 0).tolist():
            end, steps = int(self.duplicate_of[row]), 0
            while self.reason[end] != KEPT and self.duplicate_of[end] >= 0:
                end, steps = int(self.duplicate_of[end]), steps + 1
                if steps > self.num_rows:
                    raise AssertionError("filters made a circle of duplicates")
            if self.reason[end] != KEPT:
                end = kept_row.get(int(items[end]), end)
            self.duplicate_of[row] = end
            self.joins[row] &= self.reason[end] == KEPT

    def owner_items(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """[rows]: the item number under which a used row's caption goes."""
        return np.where(self.joins, items[self.duplicate_of], items)

    def codes(self) -> Codes:
        """Equal numbers for equal media, paths and captions."""
        items, item_ids = _number(self.item_digests)
        unread = ~self.item_digests.any(axis=1)
        return Codes(
            items=np.where(unread, -1, items),
            item_ids=item_ids,
            paths=_number(self._paths)[0],
            captions=_number(self._captions)[0],
        )

    def count_drops(self) -> dict[str, int]:
        """Dropped rows by reason, zeros included."""
        counts = Counter(self.reason[self.reason != KEPT].tolist())
        return {reason: counts[place] for place, reason in enumerate(self.reasons)}


class Codes:
    """Numbers [rows] of items, paths and captions. `item_ids`: the SHA-256 of item number i."""

    def __init__(
        self,
        *,
        items: NDArray[np.int64],
        item_ids: list[str],
        paths: NDArray[np.int64],
        captions: NDArray[np.int64],
    ) -> None:
        self.items, self.item_ids, self.paths, self.captions = items, item_ids, paths, captions


def _number(digests: NDArray[np.uint8]) -> tuple[NDArray[np.int64], list[str]]:
    """[rows] the place of each digest among the sorted distinct ones, and those in hexadecimal."""
    width = digests.shape[1]
    distinct, codes = np.unique(_keys(digests), return_inverse=True)
    raw = distinct.tobytes()
    texts = [raw[i : i + width].hex() for i in range(0, len(raw), width)]
    return codes.astype(np.int64), texts


def _keys(digests: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """[rows] the digests as byte strings of fixed width, which compare whole: numpy hides trailing
    zeros only when it shows them."""
    return np.ascontiguousarray(digests).view(f"S{digests.shape[1]}").ravel()


def _no_scores(num_rows: int, kind: ScoreType) -> NDArray[Any]:
    empty: Any = None if kind == "string" else np.nan
    return np.full(num_rows, empty, dtype=_DTYPES[kind])
