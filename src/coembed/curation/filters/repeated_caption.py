"""Drop boilerplate: one caption that stands beside many different items that have nothing in
common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pyarrow as pa
from pydantic import Field, model_validator

from coembed.curation.captions.agreement import evidence
from coembed.curation.filters.base import Filter, PoolView
from coembed.settings import ComponentSettings


class Settings(ComponentSettings):
    """How many different items one caption may stand beside.

    "Red sneakers" may be true of a thousand items, "no description available" of none. Where the
    pool has attributes, they tell the two apart. A column counts as evidence when items that share
    a caption mostly share its value (see `captions.agreement`; at least `agreement` on
    average): a kind or a colour will, a licence or a year will not. Then

    - items that agree in such a column have their caption in common for a reason, and keep it
      however many they are;
    - items that agree in no such column more than any two items of the pool do (less than half of
      `agreement`) have a caption that says nothing: from `min_items` of them it is boilerplate.

    Agreement is the share of pairs of items with equal values, less what chance gives in this pool:
    0 is chance, 1 is all equal. Without evidence a caption is boilerplate when it stands beside
    more than `max_items` items and more than the share `max_share` of all. But when that would take
    more than the share `max_pool_share` of the pairs, the pool is made of such captions (names of
    classes, say), and it takes none.

    `max_items` is ALIGN's bound (Jia et al. 2021, section 3: alt-texts shared by more than 10
    images are dropped). The others are guesses; `max_share` keeps that bound from taking plain
    captions of large pools, which ALIGN did not mind.
    """

    name: Literal["repeated_caption"] = "repeated_caption"
    max_items: int = Field(default=10, ge=1)
    max_share: float = Field(default=0.001, ge=0, lt=1)
    min_items: int = Field(default=5, ge=3)
    agreement: float = Field(default=0.5, gt=0, le=1)
    max_pool_share: float = Field(default=0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Settings:
        if self.min_items > self.max_items:
            raise ValueError(
                f"min_items ({self.min_items}) is above max_items ({self.max_items}): a caption "
                "without evidence would be dropped sooner than one with"
            )
        return self

    def build(self) -> Filter:
        """Make the filter."""
        return RepeatedCaption(self)


class RepeatedCaption(Filter):
    """Counts different items, not pairs. Captions are compared up to case and whitespace.

    `caption_num_items` is the number of items beside the pair's caption.
    """

    reasons = ("repeated_caption",)
    columns = {"caption_num_items": "int64", "repeated_caption_doubt": "float64"}  # noqa: RUF012

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def check_pool(self, pool: PoolView) -> Iterator[pa.Table]:
        """Judge all captions."""
        pool.execute(
            "CREATE TEMP TABLE beside AS SELECT caption_key AS grp, item, min(row) AS row FROM kept"
            " GROUP BY caption_key, item"
        )
        pool.execute(
            "CREATE TEMP TABLE counted AS"
            " SELECT grp, count(*) AS num_items FROM beside GROUP BY grp"
        )
        pool.execute(
            "CREATE TEMP TABLE several AS SELECT beside.* FROM beside"
            " SEMI JOIN (FROM counted WHERE num_items > 1) AS more USING (grp)"
        )
        # The agreements of captions that stand beside several items, a line a caption and column.
        pool.execute("CREATE TEMP TABLE agreements (grp UUID, name VARCHAR, agreement DOUBLE)")
        for name, chance in evidence(pool, "several", self._settings.agreement).items():
            column = '"' + name.replace('"', '""') + '"'
            literal = "'" + name.replace("'", "''") + "'"
            pool.execute(
                f"INSERT INTO agreements SELECT grp, {literal},"
                f" (sum(n * (n - 1)) / (sum(n) * (sum(n) - 1)) - {chance!r}) / {1 - chance!r}"
                f" FROM (SELECT grp, count(*) AS n FROM several JOIN attributes USING (row)"
                f" WHERE {column} IS NOT NULL GROUP BY grp, {column})"
                " GROUP BY grp HAVING sum(n) > 1"
            )
        yield from self._judge(pool)

    def _judge(self, pool: PoolView) -> Iterator[pa.Table]:
        settings = self._settings
        ((num_items,),) = (
            batch.to_pydict()["num"]
            for batch in pool.query("SELECT max(item) + 1 AS num FROM kept")
        )
        limit = max(settings.max_items, int(settings.max_share * (num_items or 0)))
        agree = repr(settings.agreement)
        pool.execute(
            "CREATE TEMP TABLE best AS SELECT grp, max(agreement) AS agreement,"
            " first(name ORDER BY agreement DESC, name) AS name FROM agreements GROUP BY grp"
        )
        pool.execute(
            "CREATE TEMP TABLE verdicts AS SELECT grp, num_items,"
            f" CASE WHEN agreement >= {agree} THEN 'alike' WHEN agreement < {agree} / 2 AND"
            f" num_items >= {settings.min_items} THEN 'unlike' WHEN num_items > {limit} THEN 'many'"
            f" END AS verdict, CASE WHEN num_items < 2 OR agreement >= {agree} THEN 0"
            f" WHEN agreement < {agree} / 2 THEN num_items / {float(settings.min_items)}"
            f" ELSE num_items / {float(limit + 1)} END AS doubt,"
            " CASE verdict WHEN 'many' THEN 'beside ' || num_items || ' items > "
            f"{limit}' WHEN 'unlike' THEN 'beside ' || num_items || ' items that are no more alike"
            " than any others: their ' || name || ' agrees by ' || round(agreement, 2) || ' < "
            f"{settings.agreement / 2:g}' END AS detail FROM counted LEFT JOIN best USING (grp)"
        )
        ((share,),) = (
            batch.to_pydict()["share"]
            for batch in pool.query(
                "SELECT count(*) FILTER (verdict = 'many') / count(*) AS share"
                " FROM kept JOIN verdicts ON caption_key = grp"
            )
        )
        if share is not None and share > settings.max_pool_share:
            self.notes = [
                f"{share:.1%} of the pairs have a caption of more than {settings.max_items} items: "
                "taken for names of classes, and kept (max_pool_share is "
                f"{settings.max_pool_share:g})"
            ]
            pool.execute("UPDATE verdicts SET detail = NULL, doubt = 0 WHERE verdict = 'many'")
        for batch in pool.query(
            "SELECT row, if(detail IS NULL, NULL, 'repeated_caption') AS reason, detail,"
            " num_items AS caption_num_items, least(doubt, 1.0) AS repeated_caption_doubt"
            " FROM kept JOIN verdicts ON caption_key = grp"
        ):
            yield pa.Table.from_batches([batch])
