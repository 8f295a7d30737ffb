"""The cells of an examined part while it is being made, and the keys that stand for texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import pyarrow as pa

from coembed.curation.candidate import Facts
from coembed.curation.examination.parts import FACT_FIELDS
from coembed.curation.spool import Spool
from coembed.types import Pair

FACT_NAMES = tuple(FACT_FIELDS)
fact_values = attrgetter(*FACT_NAMES)


def normal_caption(caption: str) -> str:
    """`caption` in one case and with single spaces: what counts as the same caption."""
    return " ".join(caption.casefold().split())


def text_key(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class Cells:
    """The columns of rows `start` onwards of a part to be: a list each, None where nothing is set.

    `places` are rows counted from `start`.
    """

    def __init__(self, schema: pa.Schema, start: int, num: int) -> None:
        self._schema = schema
        self.columns: dict[str, list[Any]] = {name: [None] * num for name in schema.names}
        self.columns["row"] = list(range(start, start + num))

    def set(self, name: str, places: Sequence[int], value: object) -> None:
        """Write one value into some rows of a column."""
        column = self.columns[name]
        for place in places:
            column[place] = value

    def set_facts(self, places: Sequence[int], facts: Facts) -> None:
        """Write what is known of the rows' item."""
        columns = self.columns
        for name, value in zip(FACT_NAMES, fact_values(facts), strict=True):
            if value is not None and value != "":
                column = columns[name]
                for place in places:
                    column[place] = value

    def refuse(self, places: Sequence[int], reason: str, detail: str) -> None:
        """Drop some rows."""
        self.set("reason", places, reason)
        self.set("detail", places, detail)

    def table(self) -> pa.Table:
        """The columns as a table."""
        arrays = [_array(self.columns[part.name], part.type) for part in self._schema]
        return pa.Table.from_arrays(arrays, schema=self._schema)


def _array(cells: list[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(cells, kind)
    except UnicodeEncodeError:  # half a surrogate pair, from a decoder's message say
        return pa.array([c and c.encode("utf-8", "replace").decode() for c in cells], kind)


class LazyPairs:
    """The pairs of a run of rows, made when the first is asked for: where all files are missing,
    none is."""

    def __init__(self, spool: Spool, start: int, stop: int) -> None:
        self._spool, self._start, self._stop = spool, start, stop
        self._pairs: list[Pair] | None = None

    def __getitem__(self, place: int) -> Pair:
        if self._pairs is None:
            self._pairs = list(self._spool.pairs(self._start, self._stop))
        return self._pairs[place]
