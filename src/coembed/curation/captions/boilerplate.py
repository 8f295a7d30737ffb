"""Groups of near-identical captions that are made of words which other captions hardly use.

A group is a star: one caption, its centre, and those that are near-identical to it. Chains of
neighbours would join all captions of one template.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coembed.curation.captions.bands import Bands
from coembed.curation.captions.minhash import band_keys, jaccard, shingles
from coembed.curation.captions.words import WORD_SQL
from coembed.curation.filters.base import PoolView

# A group shows itself in some band with at least this share of its items: at similarity 0.5 a
# caption shares a given band with 6% of its group or more, and the best of 16 with twice as many.
_SHARE_IN_ONE_BAND = 1 / 8
_WORDS = f"list_distinct(regexp_extract_all(shape, '{WORD_SQL}'))"


@dataclass(frozen=True)
class Cluster:
    """One group. `members`: ids of its captions in the table `shapes`. `words`: those that most of
    them share, the most exclusive first. `exclusive`: the share of these words' captions that are
    in the group, averaged over the words."""

    members: NDArray[np.int64]
    words: tuple[str, ...]
    exclusive: float


@dataclass(frozen=True)
class Limits:
    """More than `num_items` items; `similarity` to the centre; `exclusive` at least."""

    num_items: int
    similarity: float
    exclusive: float


def find_clusters(
    pool: PoolView, bands: Bands, weights: NDArray[np.int32], limits: Limits
) -> list[Cluster]:
    """The groups beyond `limits`, apart from one another, those with the most captions in one band
    first.

    The pool has a table `shapes` (id, shape, n): the different captions, and the number of items
    beside each. `weights` [ids] is its column n.
    """
    least = max(2, int(limits.num_items * _SHARE_IN_ONE_BAND))
    heaviest: dict[int, int] = {}
    for centre, weight in bands.heavy(least):
        heaviest[centre] = max(weight, heaviest.get(centre, 0))
    if not heaviest:
        return []
    centres = _texts(pool, np.array(sorted(heaviest), np.int64))
    counts = _counts(pool, {word for _, words in centres.values() for word in words})
    covered = np.zeros(len(weights), np.bool_)
    taken = np.zeros(len(weights), np.bool_)
    found = []
    for centre in sorted(heaviest, key=lambda id_: (-heaviest[id_], id_)):
        if covered[centre]:
            continue
        shape, words = centres[centre]
        near = bands.neighbours(band_keys([shape])[0])
        covered[near] = True
        # What costs little comes first: do the centre's words leave room for other captions?
        most = int(weights[near].sum())
        share = _mean([min(1.0, most / counts[word]) for word in words])
        if most <= limits.num_items or share < limits.exclusive:
            continue
        cluster = _verify(pool, shape, words, near[~taken[near]], weights, counts, limits)
        if cluster is not None:
            taken[cluster.members] = True
            found.append(cluster)
    return found


def _verify(
    pool: PoolView,
    centre: str,
    words: list[str],
    near: NDArray[np.int64],
    weights: NDArray[np.int32],
    counts: dict[str, int],
    limits: Limits,
) -> Cluster | None:
    """The group of those of `near` that are similar to `centre`, if it is beyond the limits."""
    own, known = shingles(centre), set(words)
    members: list[int] = []
    inside: Counter[str] = Counter()
    for id_, (shape, its_words) in _stream(pool, near):
        if jaccard(own, shingles(shape)) >= limits.similarity:
            members.append(id_)
            for word in known.intersection(its_words):
                inside[word] += int(weights[id_])
    num_items = int(weights[members].sum())
    common = {word: num / counts[word] for word, num in inside.items() if 2 * num > num_items}
    exclusive = _mean(list(common.values()))
    if num_items <= limits.num_items or exclusive < limits.exclusive:
        return None
    ranked = sorted(common, key=lambda word: (-common[word], word))
    return Cluster(np.array(sorted(members), np.int64), tuple(ranked), exclusive)


def _texts(pool: PoolView, ids: NDArray[np.int64]) -> dict[int, tuple[str, list[str]]]:
    return dict(_stream(pool, ids))


def _stream(pool: PoolView, ids: NDArray[np.int64]) -> Iterator[tuple[int, tuple[str, list[str]]]]:
    """Id, caption and different words of the captions `ids`; a number is no word."""
    for batch in pool.query(
        f"SELECT id, shape, {_WORDS} AS words FROM shapes SEMI JOIN wanted USING (id)",
        wanted=pa.table({"id": ids}),
    ):
        for id_, shape, words in zip(*batch.to_pydict().values(), strict=True):
            yield id_, (shape, [word for word in words if word != "0"])


def _counts(pool: PoolView, words: set[str]) -> dict[str, int]:
    """For each word: the items beside captions with it, each as often as it has such captions."""
    counts: dict[str, int] = {}
    for batch in pool.query(
        f"SELECT word, sum(n)::BIGINT AS num FROM (SELECT unnest({_WORDS}) AS word, n FROM shapes)"
        " SEMI JOIN wanted USING (word) GROUP BY word",
        wanted=pa.table({"word": pa.array(sorted(words), pa.string())}),
    ):
        counts.update(zip(*batch.to_pydict().values(), strict=True))
    return counts


def _mean(shares: list[float]) -> float:
    return sum(shares) / len(shares) if shares else 0.0
