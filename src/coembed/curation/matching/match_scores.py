"""The scores of all pairs of a pool, whatever model gave them, and clusters of their captions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from coembed.curation.matching.clusters import assign, fit_centres
from coembed.files import atomic_path

Numbers = NDArray[np.int64]

MAX_REFERENCES = 2048
"""Pairs that every other is compared with (a guess: the mean of e^similarity over so many moves by
a few per cent from draw to draw)."""
PAIRS_PER_CLUSTER = 300
"""Captions a cluster on average (a guess: enough to tell where its sound pairs lie)."""
_MAX_CLUSTERS = 256
MAX_FITTED = 20_000
"""Captions that clusters are fitted to."""


@dataclass(frozen=True)
class MatchScores:
    """scores, clusters: of each judged pair, in order; a score is NaN where the pair could not be
    judged. mispaired, mispaired_clusters: of pairs put together at random."""

    scores: NDArray[np.float64]
    clusters: Numbers
    mispaired: NDArray[np.float64]
    mispaired_clusters: Numbers

    @property
    def num_clusters(self) -> int:
        """Clusters that there may be."""
        return int(max(self.clusters.max(initial=0), self.mispaired_clusters.max(initial=0))) + 1

    def save(self, path: Path) -> None:
        """Write them whole or not at all."""
        with atomic_path(path) as partial, partial.open("wb") as file:
            np.savez(file, **vars(self))

    @classmethod
    def load(cls, path: Path) -> MatchScores | None:
        """Read them; None where they are not there or not readable."""
        try:
            with np.load(path, allow_pickle=False) as found:
                return cls(**{name: found[name] for name in cls.__dataclass_fields__})
        except (OSError, ValueError, KeyError, EOFError):
            return None


class CaptionClusters:
    """Clusters of captions by their vectors: about 300 captions each."""

    def __init__(self, vectors: Tensor, *, num_captions: int, seed: int) -> None:
        """Fit them to `vectors`, a sample of the pool's `num_captions` captions."""
        num = min(max(num_captions // PAIRS_PER_CLUSTER, 1), _MAX_CLUSTERS)
        self._centres = fit_centres(F.normalize(vectors[:MAX_FITTED], dim=1), num, seed=seed)

    def of(self, vectors: Tensor) -> Numbers:
        """The cluster of each caption."""
        nearest, _ = assign(F.normalize(vectors, dim=1), self._centres, num=1)
        found: Numbers = nearest[:, 0].numpy()
        return found
