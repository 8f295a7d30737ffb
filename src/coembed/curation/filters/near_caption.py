"""Drop captions that are near-identical: further ones of one item, and boilerplate with variations.

Two texts are near-identical by the Jaccard similarity of their runs of three characters. MinHash
bands propose which to compare (minhash.py); what is proposed is verified on the runs themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from coembed.curation.captions.agreement import agreements, evidence
from coembed.curation.captions.bands import Bands
from coembed.curation.captions.boilerplate import Cluster, Limits, find_clusters
from coembed.curation.captions.minhash import BANDS, band_keys, jaccard, shingles
from coembed.curation.examination.part_cells import normal_caption
from coembed.curation.filters.base import Filter, PoolView
from coembed.settings import ComponentSettings

# What boilerplate varies in is a number (a price, a code, a counter), so all numbers are one here.
_SHAPE = (
    r"left(regexp_replace(trim(regexp_replace(lower(caption), '[\s\p{Z}]+', ' ', 'g')),"
    r" '\p{Nd}+', '0', 'g'), 1024)"
)
# Items with more captions than this are compared by bands instead of all with all.
_MAX_ALL_PAIRS = 32
# One blank picture may stand beside millions of captions; they are compared a lot at a time.
_MAX_LOT = 10_000
# Captions of one band that a new one is compared with.
_MAX_PER_BAND = 8
# What is enough where the items have nothing in common: a part of the bounds.
_EVIDENT_ITEMS = 5
_EVIDENT_EXCLUSIVE = 2 / 3


class Settings(ComponentSettings):
    """Two rules.

    A further caption of one item is a `near_repeated_pair` when its similarity with an earlier one
    of that item is at least `pair_similarity`: nothing but a letter, a comma or an article differs.

    Captions are `near_repeated_caption` when one of them and those with at least `similarity` to it
    (numbers counting as equal) stand beside more than `max_items` different items and more than the
    share `max_share` of all, and yet say nothing of them. They say nothing when their common words
    hardly occur in other captions: on average at least the share `min_exclusive` of each word's
    captions is in the group. "Buy now! Free shipping 1234" is made of words that describe no item,
    "a red mug with 2 dots" of words that describe others as well.

    But "Eiffel Tower 12" is made of its own words too. Where the pool has attributes, they tell the
    two apart as in repeated_caption (agreement.py): items that agree by `agreement` keep their
    captions; of items that agree by less than half of it, a fifth of both bounds and two thirds of
    `min_exclusive` are enough. A group beside more than the share `max_group_share` of all items
    stays: it is what this pool is like ("Plate 12"), not what slipped in. One caption that is
    repeated letter by letter is repeated_caption's.

    All of these are guesses. On the demo, `pair_similarity` takes 3 of 1,235 pairs of captions.
    """

    name: Literal["near_caption"] = "near_caption"
    pair_similarity: float = Field(default=0.9, ge=0.5, le=1)
    similarity: float = Field(default=0.5, ge=0.4, le=1)
    max_items: int = Field(default=50, ge=1)
    max_share: float = Field(default=0.002, ge=0, lt=1)
    max_group_share: float = Field(default=0.25, gt=0, le=1)
    min_exclusive: float = Field(default=0.75, ge=0.5, le=1)
    agreement: float = Field(default=0.5, gt=0, le=1)

    def build(self) -> Filter:
        """Make the filter."""
        return NearCaption(self)


class NearCaption(Filter):
    """`near_caption_group` is the pair_id of the group's first pair, for every pair of a group."""

    reasons = ("near_repeated_pair", "near_repeated_caption")
    columns = {"near_caption_group": "string"}  # noqa: RUF012

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def check_pool(self, pool: PoolView) -> Iterator[pa.Table]:
        """Judge the captions of each item, then all captions together."""
        yield from self._repeats(pool)
        yield from self._boilerplate(pool)

    def _repeats(self, pool: PoolView) -> Iterator[pa.Table]:
        rows = _rows(
            pool,
            "SELECT item, row, pair_id, caption FROM kept SEMI JOIN (SELECT item FROM kept"
            " GROUP BY item HAVING count(*) > 1) USING (item) ORDER BY item, row",
        )
        found: list[dict[str, Any]] = []
        for _, group in groupby(rows, key=lambda cells: cells[0]):
            captions = list(group)
            for start in range(0, len(captions), _MAX_LOT):
                found += self._compare(captions[start : start + _MAX_LOT])
            if len(found) > _MAX_LOT:
                yield pa.Table.from_pylist(found, _REPEATS)
                found = []
        yield pa.Table.from_pylist(found, _REPEATS)

    def _compare(self, captions: list[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
        """Captions (item, row, pair_id, caption) of one item, each with the earlier ones that
        stay."""
        texts = [normal_caption(caption) for *_, caption in captions]
        sets = [shingles(text) for text in texts]
        keys = band_keys(texts) if len(texts) > _MAX_ALL_PAIRS else None
        staying: dict[tuple[int, int], list[int]] = {}
        for place, (_, row, _, _) in enumerate(captions):
            # Without keys, all that stay are in one list.
            own = [(0, 0)] if keys is None else list(enumerate(keys[place].tolist()))
            earlier = dict.fromkeys(other for key in own for other in staying.get(key, ()))
            for other in earlier:
                similarity = jaccard(sets[place], sets[other])
                if similarity >= self._settings.pair_similarity:
                    _, first_row, first_id, _ = captions[other]
                    yield {
                        "row": row,
                        "reason": "near_repeated_pair",
                        "detail": f"{similarity:.3g} >= {self._settings.pair_similarity:g} like "
                        f"the caption of pair {first_id}, which has the same media",
                        "duplicate_of": first_row,
                        "near_caption_group": first_id,
                    }
                    break
            else:
                for key in own:
                    others = staying.setdefault(key, [])
                    if keys is None or len(others) < _MAX_PER_BAND:
                        others.append(place)

    def _boilerplate(self, pool: PoolView) -> Iterator[pa.Table]:
        settings = self._settings
        ((num_items,),) = _rows(pool, "SELECT count(DISTINCT item) FROM kept")
        # What tells whether a column is evidence are captions that are equal to the letter.
        pool.execute(
            "CREATE TEMP TABLE equal_captions AS SELECT caption_key AS grp, item, min(row) AS row"
            " FROM kept SEMI JOIN (SELECT caption_key FROM kept GROUP BY caption_key"
            " HAVING min(item) < max(item)) USING (caption_key) GROUP BY caption_key, item"
        )
        columns = evidence(pool, "equal_captions", settings.agreement)
        limit = max(settings.max_items, int(settings.max_share * num_items))
        bounds = Limits(limit, settings.similarity, settings.min_exclusive)
        low = replace(
            bounds,
            num_items=limit // _EVIDENT_ITEMS,
            exclusive=settings.min_exclusive * _EVIDENT_EXCLUSIVE,
        )
        if num_items <= (low if columns else bounds).num_items:
            return
        _make_shapes(pool)
        bands, weights = _make_bands(pool)
        clusters = find_clusters(pool, bands, weights, low if columns else bounds)
        if clusters:
            _make_groups(pool, clusters)
            agreeing = agreements(pool, "beside", columns)
            yield from self._judge(pool, clusters, agreeing, num_items, bounds, low)

    def _judge(
        self,
        pool: PoolView,
        clusters: list[Cluster],
        agreeing: dict[int, tuple[float, str]],
        num_all: int,
        bounds: Limits,
        low: Limits,
    ) -> Iterator[pa.Table]:
        """Tell of all pairs in `clusters` where they belong, and drop those that say nothing."""
        verdicts = []
        for group, num_items, num_captions, first in _rows(
            pool,
            "SELECT grp, count(DISTINCT item), count(DISTINCT caption_key), arg_min(pair_id, row)"
            " FROM grouped GROUP BY grp ORDER BY grp",
        ):
            cluster = clusters[group]
            agreement, column = agreeing.get(group, (None, ""))
            least = self._settings.agreement
            is_evident = agreement is not None and agreement < least / 2
            limits = low if is_evident else bounds
            reason = detail = None
            if (
                limits.num_items < num_items <= self._settings.max_group_share * num_all
                and num_captions > 1
                and cluster.exclusive >= limits.exclusive
                and (agreement is None or agreement < least)
            ):
                shown = ", ".join(repr(word) for word in cluster.words[:5])
                reason = "near_repeated_caption"
                detail = (
                    f"{num_captions} captions like that of pair {first} stand beside {num_items} "
                    f"items > {limits.num_items}; {cluster.exclusive:.2g} of the captions with the "
                    f"words {shown} are among them"
                )
                if is_evident:
                    detail += f"; the items' {column} agrees by {agreement:.2g} < {least:g} / 2"
            verdicts.append(
                {"grp": group, "reason": reason, "detail": detail, "near_caption_group": first}
            )
        for batch in pool.query(
            "SELECT row, reason, detail, near_caption_group FROM grouped JOIN verdicts USING (grp)",
            verdicts=pa.Table.from_pylist(verdicts, _VERDICTS),
        ):
            yield pa.Table.from_batches([batch])


_REPEATS = pa.schema(
    {
        "row": pa.int64(),
        "reason": pa.string(),
        "detail": pa.string(),
        "duplicate_of": pa.int64(),
        "near_caption_group": pa.string(),
    }
)
_VERDICTS = pa.schema(
    {
        "grp": pa.int64(),
        "reason": pa.string(),
        "detail": pa.string(),
        "near_caption_group": pa.string(),
    }
)


def _make_shapes(pool: PoolView) -> None:
    """A table of the different captions, numbers apart: id (0, 1, ... in their order), shape, and
    n, the items that they stand beside."""
    pool.execute(
        "CREATE TEMP TABLE shapes AS SELECT row_number() OVER (ORDER BY shape) - 1 AS id, shape,"
        f" CAST(n AS INTEGER) AS n FROM (SELECT shape, count(*) AS n FROM (SELECT DISTINCT {_SHAPE}"
        " AS shape, item FROM kept) GROUP BY shape)"
    )


def _make_bands(pool: PoolView) -> tuple[Bands, NDArray[np.int32]]:
    ((num,),) = _rows(pool, "SELECT count(*) FROM shapes")
    weights = np.zeros(num, np.int32)

    def lots() -> Iterator[list[str]]:
        start = 0
        for batch in pool.query("SELECT shape, n FROM shapes ORDER BY id"):
            weights[start : start + batch.num_rows] = batch.column("n").to_numpy()
            start += batch.num_rows
            yield batch.column("shape").to_pylist()

    bands = Bands(pool.scratch, BANDS, weights)
    bands.write(pool.map(band_keys, lots()))
    return bands, weights


def _make_groups(pool: PoolView, clusters: list[Cluster]) -> None:
    """The tables `grouped`, the pairs of each cluster, and `beside`, one line an item of it."""
    sizes = [len(cluster.members) for cluster in clusters]
    members = {
        "id": np.concatenate([cluster.members for cluster in clusters]),
        "grp": np.repeat(np.arange(len(clusters)), sizes),
    }
    pool.execute(
        "CREATE TEMP TABLE grouped AS SELECT grp, row, item, caption_key, pair_id FROM"
        f" (SELECT *, {_SHAPE} AS shape FROM (SELECT row, item, caption_key, pair_id, caption"
        " FROM kept)) JOIN shapes USING (shape) JOIN members USING (id)",
        members=pa.table(members),
    )
    pool.execute(
        "CREATE TEMP TABLE beside AS SELECT grp, item, min(row) AS row FROM grouped"
        " GROUP BY grp, item"
    )


def _rows(pool: PoolView, sql: str) -> Iterator[tuple[Any, ...]]:
    """The rows of a query, streamed."""
    for batch in pool.query(sql):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
