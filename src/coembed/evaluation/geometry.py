"""How items and captions lie in the embedding space: the modality gap, alignment and uniformity.

- gap: distance between the centroids of the items and of their captions (Liang et al. 2022, arXiv
  2203.02053, section 3). 0 when both fill the same region, 2 at most.
- alignment: mean squared distance between an item and a caption of it, α = 2; 0 is best, 2 is that
  of random directions (Wang & Isola 2020, arXiv 2005.10242, section 4).
- uniformity: log of the mean of exp(-2 · squared distance) over two distinct items, t = 2, and
  likewise of two distinct captions; -4 is that of random directions in many dimensions, 0 that of a
  collapsed model (the same section).

They describe, and decide nothing: a model may search well with a wide gap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from coembed.evaluation.parts import Part
from coembed.evaluation.retrieval import Embeddings, Floats, Ints
from coembed.evaluation.selection import select
from coembed.evaluation.settings import GeometrySettings
from coembed.evaluation.statistics import ClusterSums, Figure, Resamples, Weigh, estimate

# Captions whose embeddings are gathered at one time: 64 MB at 1,024 dimensions.
_BLOCK = 16_384


@dataclass(frozen=True, slots=True)
class Gap:
    """The modality gap as a function of weights over items.

    `items` and `captions` [num_items, dim]: an item's embedding, and the sum of its captions';
    `num_captions` [num_items].
    """

    items: Embeddings
    captions: Embeddings
    num_captions: Ints

    @classmethod
    def of(cls, items: Embeddings, texts: Embeddings, owners: Ints, owned: Ints) -> Gap:
        """From the item and the text of each caption, [num_captions]."""
        sums = np.zeros_like(items)
        for start in range(0, len(owners), _BLOCK):
            some = slice(start, start + _BLOCK)
            np.add.at(sums, owners[some], texts[owned[some]])
        return cls(items, sums, np.bincount(owners, minlength=len(items)))

    def weigh(self, weights: Floats) -> Floats:
        """For each row of weights, [some, num_items] → [some]."""
        single = weights.astype(np.float32)
        of_items = (single @ self.items) / weights.sum(axis=1, keepdims=True)
        of_captions = (single @ self.captions) / (weights @ self.num_captions)[:, None]
        found: Floats = np.linalg.norm(of_items - of_captions, axis=1)
        return found


@dataclass(frozen=True, slots=True)
class Uniformity:
    """Uniformity as a function of weights over points. `kernel` [num, num] has an empty diagonal:
    a point that is drawn twice is not two points."""

    kernel: Embeddings

    @classmethod
    def of(cls, points: Embeddings) -> Uniformity:
        """From unit embeddings [num, dim], whose squared distance is 2 - 2 · cosine."""
        kernel = np.exp(4 * (points @ points.T) - 4)
        np.fill_diagonal(kernel, 0)
        return cls(kernel)

    def weigh(self, weights: Floats) -> Floats:
        """For each row of weights, [some, num] → [some]; NaN where a row draws one point only."""
        single = weights.astype(np.float32)
        pairs = ((single @ self.kernel) * single).sum(axis=1, dtype=np.float64)
        num_pairs = weights.sum(axis=1) ** 2 - (weights**2).sum(axis=1)
        mean = np.divide(pairs, num_pairs, out=np.full_like(pairs, np.nan), where=num_pairs > 0)
        found: Floats = np.log(mean)
        return found


@dataclass(frozen=True, slots=True)
class Points:
    """Embeddings [num, dim] and what names each, by which some are chosen."""

    names: tuple[str, ...]
    embedded: Embeddings

    def some(self, most: int) -> Embeddings:
        """At most `most` of them, chosen by the hash of their names."""
        return self.embedded[select(self.names, most, "geometry")]


def squared_distances(items: Embeddings, texts: Embeddings, owners: Ints, owned: Ints) -> Floats:
    """Of each caption's embedding to its item's, [num_captions]."""
    found = np.empty(len(owners), dtype=np.float64)
    for start in range(0, len(owners), _BLOCK):
        some = slice(start, start + _BLOCK)
        apart = items[owners[some]] - texts[owned[some]]
        found[some] = (apart**2).sum(axis=1, dtype=np.float64)
    return found


def part_figures(
    part: Part, asked: GeometrySettings, resample: Callable[[int], Resamples]
) -> list[Figure]:
    """`geometry_figures` of the items of one part."""
    return geometry_figures(
        f"geometry/{part.modality}",
        Points(tuple(item.item_id for item in part.data.items), part.items),
        Points(part.data.texts, part.texts),
        owners=part.data.query_items,
        owned=part.data.query_texts,
        max_points=asked.max_points,
        resample=resample,
    )


def geometry_figures(
    path: str,
    items: Points,
    texts: Points,
    *,
    owners: Ints,
    owned: Ints,
    max_points: int,
    resample: Callable[[int], Resamples],
) -> list[Figure]:
    """Gap, alignment and uniformity between the items of one modality and their captions.

    `texts` are the distinct ones; `owners` and `owned` [num_captions] are the numbers of the item
    and of the text of each caption, items rising. `path` is put before each figure's name;
    `resample` draws so many points.
    Uniformity takes at most `max_points` items, and texts: memory grows with their square. What
    has fewer than two points has none.
    """
    distances = squared_distances(items.embedded, texts.embedded, owners, owned)
    aligned = ClusterSums.of(distances[:, None], owners)
    pairs: dict[str, Weigh] = {
        f"{path}/gap": Gap.of(items.embedded, texts.embedded, owners, owned).weigh,
        f"{path}/alignment": lambda weights: aligned.weigh(weights)[:, 0],
    }
    found = estimate(pairs, resample(len(items.embedded)))
    for name, points in (("uniformity", items), ("text_uniformity", texts)):
        some = points.some(max_points)
        if len(some) > 1:
            spread: dict[str, Weigh] = {f"{path}/{name}": Uniformity.of(some).weigh}
            found += estimate(spread, resample(len(some)))
    return found
