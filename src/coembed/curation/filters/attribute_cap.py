"""Balance the pool by an attribute: cap the pairs that one value of it may have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from coembed.curation.filters.base import Filter, PoolView
from coembed.errors import ConfigError
from coembed.settings import ComponentSettings

# Items that are told to go at a time.
_LOT = 1_000_000


class Settings(ComponentSettings):
    """No value of `column` stays beside more than `max_pairs` pairs, or beside more than the share
    `max_share` of the pairs that stay; one of the two is null. `column` is one of the pool's own,
    or what a filter or the media told (`format`, `language`).

    Items stay or go whole, in the order of a hash of the seed and the item: an item whose captions
    do not fit under the cap any more goes, smaller ones after it may still stay. An item with
    several values counts under the first in order. Items without a value stay.

    List it last, after the filters for duplicates and boilerplate: what they drop would count
    towards the cap, and a copy might be kept where its original is not.
    """

    name: Literal["attribute_cap"] = "attribute_cap"
    column: str = Field(default="modality", min_length=1)
    max_pairs: int | None = Field(default=1_000_000, ge=1)
    max_share: float | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="after")
    def _one_limit(self) -> Settings:
        if (self.max_pairs is None) == (self.max_share is None):
            raise ValueError(
                f"max_pairs is {self.max_pairs} and max_share is {self.max_share}; exactly one of "
                "the two must be null"
            )
        return self

    def build(self) -> Filter:
        """Make the filter."""
        return AttributeCap(self)


class AttributeCap(Filter):
    """Which items stay is a function of content, whatever their order in the pool."""

    reasons = ("over_attribute_cap",)

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def check_pool(self, pool: PoolView) -> Iterator[pa.Table]:
        """Judge all items."""
        column = self._settings.column
        cell, source = self._source(pool)
        pool.execute(
            "CREATE TEMP TABLE valued AS SELECT item, any_value(item_id) AS item_id,"
            f" min(value) AS value, count(*) AS n FROM (SELECT item, item_id,"
            f" CAST({cell} AS VARCHAR) AS value FROM {source})"
            " GROUP BY item HAVING min(value) IS NOT NULL"
        )
        pool.execute(
            "CREATE TEMP TABLE totals AS SELECT value, sum(n)::BIGINT AS n FROM valued"
            " GROUP BY value"
        )
        cap = self._cap(pool)
        for items in _in_lots(self._choose(pool, cap)):
            for batch in pool.query(
                "SELECT row, 'over_attribute_cap' AS reason,"
                f" {_literal(column)} || ' ' || value || ': ' || n || ' pairs > {cap}' AS detail"
                " FROM kept JOIN gone USING (item) JOIN (SELECT item, value FROM valued)"
                " USING (item) JOIN totals USING (value)",
                gone=pa.table({"item": pa.array(items, pa.int64())}),
            ):
                yield pa.Table.from_batches([batch])

    def _source(self, pool: PoolView) -> tuple[str, str]:
        """SQL of the column, and of what to select it from. Raises ConfigError where neither view
        has it."""
        column = self._settings.column
        if column in pool.attribute_names:
            # The pool may have a column of a name that `kept` has too: the pool's own is meant.
            return f"attributes.{_quoted(column)}", "kept LEFT JOIN attributes USING (row)"
        described = pool.query("SELECT column_name FROM (DESCRIBE SELECT * FROM kept)")
        own = [name for batch in described for name in batch.column(0).to_pylist()]
        if column in own:
            return f"kept.{_quoted(column)}", "kept"
        names = ", ".join(pool.attribute_names) or "none"
        raise ConfigError(
            f"attribute_cap names the column {column!r}, which the pool does not have; its "
            f"attributes are: {names}",
            hint="set `column` of attribute_cap in params.yaml to one of them, or to a column of "
            "the manifest such as format",
        )

    def _cap(self, pool: PoolView) -> int:
        if self._settings.max_pairs is not None:
            return self._settings.max_pairs
        share = self._settings.max_share
        assert share is not None
        totals = np.concatenate(
            [
                np.zeros(0, np.int64),
                *(batch.column(0).to_numpy() for batch in pool.query("SELECT n FROM totals")),
            ]
        )
        if len(totals) and share * len(totals) < 1:
            raise ConfigError(
                f"max_share {share:g} of attribute_cap cannot hold: {self._settings.column!r} has "
                f"{len(totals)} values, so that one of them has at least 1/{len(totals)}",
                hint=f"set it to {1 / len(totals):.2g} or more, or use max_pairs",
            )
        return greatest_cap(totals, share)

    def _choose(self, pool: PoolView, cap: int) -> Iterator[int]:
        """The items that go."""
        value, num = None, 0
        for batch in pool.query(
            "SELECT value, item, valued.n FROM valued JOIN totals USING (value)"
            f" WHERE totals.n > {cap}"
            f" ORDER BY value, md5_number_lower('{pool.seed}:' || item_id), item_id"
        ):
            for own, item, size in zip(*batch.to_pydict().values(), strict=True):
                if own != value:
                    value, num = own, 0
                if num + size <= cap:
                    num += size
                else:
                    yield item


def greatest_cap(totals: NDArray[np.int64], share: float) -> int:
    """The greatest cap c for which no value has more than `share` of what stays: c <= share times
    the sum of min(total, c) over the values. At least 1."""
    low, high = 1, int(totals.max(initial=1))
    # The right side is concave in c and both are 0 at 0, so that c holds up to one point only.
    while low < high:
        middle = (low + high + 1) // 2
        if middle <= share * int(np.minimum(totals, middle).sum()):
            low = middle
        else:
            high = middle - 1
    return low


def _in_lots(items: Iterator[int]) -> Iterator[list[int]]:
    lot: list[int] = []
    for item in items:
        lot.append(item)
        if len(lot) >= _LOT:
            yield lot
            lot = []
    if lot:
        yield lot


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
