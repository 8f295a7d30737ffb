"""Balance the pool by what its captions speak of: cap the common concepts, keep the rare ones.

The rule is MetaCLIP's (Xu et al. 2023, "Demystifying CLIP Data", algorithm 1): with t the cap and n
the number of pairs with a concept, the concept takes a pair in with probability min(1, t / n), and
a pair stays when one of its concepts takes it in. MetaCLIP's concepts are 500,000 entries from
WordNet and Wikipedia. They cannot be had offline, so concepts are the words and two-word terms of
the captions themselves, or those that the settings name. A pair without any concept stays: its
words are rare ones, and rare is what is to be kept (MetaCLIP drops it, as it also filters so).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pyarrow as pa
from pydantic import Field

from coembed.curation.captions.words import WORD_SQL
from coembed.curation.filters.base import Filter, PoolView
from coembed.settings import ComponentSettings

_MAX_WORDS = 5
_WORDS = f"regexp_extract_all(lower(caption), '{WORD_SQL}')"


class Settings(ComponentSettings):
    """`max_per_concept` is t of the rule: about that many pairs stay of a concept that is in more,
    and further ones for the sake of their rarer concepts. 20,000 is MetaCLIP's for 400 million
    pairs.

    Without `concepts`, those are the words in at least `min_count` captions, and the two-word terms
    in as many that are together at least `min_lift` times as often as chance would have it ("hot
    dog", not "a dog"). Both are guesses. With `concepts` (words or terms of up to 5 words) there
    are no others.

    List it last, after the filters for duplicates and boilerplate: what they drop would count
    towards the cap, and a copy might be kept where its original is not.
    """

    name: Literal["concept_cap"] = "concept_cap"
    max_per_concept: int = Field(default=20_000, ge=1)
    min_count: int = Field(default=20, ge=1)
    min_lift: float = Field(default=30.0, ge=1)
    concepts: tuple[str, ...] = ()

    def build(self) -> Filter:
        """Make the filter."""
        return ConceptCap(self)


class ConceptCap(Filter):
    """Draws are a hash of the run's seed, the item and the concept, so that a pair's luck does not
    change while the pool grows. `rarest_concept` is the pair's concept that the fewest pairs have,
    of several the longest.
    """

    reasons = ("over_concept_cap",)
    columns = {"rarest_concept": "string"}  # noqa: RUF012

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def check_pool(self, pool: PoolView) -> Iterator[pa.Table]:
        """Judge all pairs."""
        grams = self._given(pool) if self._settings.concepts else self._find(pool)
        limit = self._settings.max_per_concept
        draw = (
            f"md5_number_lower('{pool.seed}:' || item_id || ':' || concept) / 18446744073709551616"
        )
        for batch in pool.query(
            "SELECT row, if(stays, NULL, 'over_concept_cap') AS reason,"
            " if(stays, NULL, 'no concept took it in; the rarest, ''' || rarest || ''', is in '"
            f" || least || ' pairs > {limit}') AS detail, rarest AS rarest_concept FROM"
            " (SELECT row, arg_min(concept, (n, -length(concept), concept)) AS rarest,"
            f" min(n) AS least, bool_or(CASE WHEN n <= {limit} THEN true ELSE"
            f" {draw} < {limit} / n END) AS stays FROM (SELECT row, item_id,"
            f" unnest({grams}) AS concept FROM kept) JOIN concepts USING (concept) GROUP BY row)"
        ):
            yield pa.Table.from_batches([batch])

    def _find(self, pool: PoolView) -> str:
        """Make the table `concepts` (concept, n: pairs) of the captions' own; SQL of a caption's
        candidates."""
        grams, least = _grams([1, 2]), self._settings.min_count
        pool.execute(
            "CREATE TEMP TABLE terms AS SELECT concept, count(*) AS n FROM"
            f" (SELECT unnest({grams}) AS concept FROM kept) GROUP BY concept HAVING n >= {least}"
        )
        lift = "t.n * (SELECT count(*) FROM kept) / (first.n * second.n)"
        pool.execute(
            "CREATE TEMP TABLE concepts AS SELECT concept, n FROM terms"
            " WHERE NOT contains(concept, ' ') UNION ALL SELECT t.concept, t.n FROM terms t"
            " JOIN terms first ON first.concept = split_part(t.concept, ' ', 1)"
            " JOIN terms second ON second.concept = split_part(t.concept, ' ', 2)"
            f" WHERE contains(t.concept, ' ') AND {lift} >= {self._settings.min_lift}"
        )
        return grams

    def _given(self, pool: PoolView) -> str:
        """The same of the concepts in the settings."""
        given = pa.table({"caption": pa.array(self._settings.concepts, pa.string())})
        pool.execute(
            f"CREATE TEMP TABLE wanted AS SELECT DISTINCT array_to_string(words, ' ') AS concept,"
            f" len(words) AS num FROM (SELECT {_WORDS} AS words FROM given) WHERE num > 0",
            given=given,
        )
        sizes = [
            size
            for batch in pool.query("SELECT DISTINCT num FROM wanted ORDER BY num")
            for size in batch.column(0).to_pylist()
        ]
        grams = _grams(sizes or [1])
        pool.execute(
            "CREATE TEMP TABLE concepts AS SELECT concept, count(*) AS n FROM"
            f" (SELECT unnest({grams}) AS concept FROM kept) SEMI JOIN wanted USING (concept)"
            " GROUP BY concept"
        )
        return grams


def _grams(sizes: list[int]) -> str:
    """SQL of the different runs of words of a caption, of `sizes` words each."""
    runs = [
        f"list_transform(range(1, len(words) - {size - 2}), lambda i:"
        f" array_to_string(words[i:i + {size - 1}], ' '))"
        for size in sizes
    ]
    return f"(SELECT list_distinct(flatten([{', '.join(runs)}])) FROM (SELECT {_WORDS} AS words))"
