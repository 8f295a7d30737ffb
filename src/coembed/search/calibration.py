"""What a score means: the share of true matches that score no higher.

Cosines of different models, and of a caption or a picture with a picture, lie in different ranges,
so a bare score tells nobody whether a hit is good. With every release come the percentiles of the
scores of true matches of its validation queries, by the query's modality and the item's. A hit's
`match` is where its score stands among them; a best hit below the lowest few (`floor`) is worse
than nearly every true match was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coembed.errors import DataError

_NUM_QUANTILES = 101


@dataclass(frozen=True, slots=True)
class Calibration:
    """By (query modality, item modality): the 0th to 100th percentile of true matches' scores."""

    quantiles: Mapping[tuple[str, str], NDArray[np.float64]]

    def match(self, score: float, *, query: str, item: str) -> float | None:
        """The share of true matches that score at or below `score`, 0 to 1; None where nothing was
        measured."""
        found = self.quantiles.get((query, item))
        if found is None:
            return None
        # Of equal percentiles the last: a score that many matches share is at or above all of them.
        above = int(np.searchsorted(found, score, side="right"))
        if above == 0:
            return 0.0
        if above == len(found):
            return 1.0
        low, high = found[above - 1], found[above]
        return float((above - 1 + (score - low) / (high - low)) / (len(found) - 1))

    def floor(self, share: float, *, query: str, item: str) -> float | None:
        """The score that the share `share` of true matches falls below."""
        found = self.quantiles.get((query, item))
        if found is None:
            return None
        return float(np.interp(share, np.linspace(0, 1, len(found)), found))


def read_calibration(data: Mapping[str, Any] | None) -> Calibration:
    """Read a release's calibration; that of a release without one knows nothing.

    Raises DataError where it is not what `coembed embed` writes.
    """
    quantiles: dict[tuple[str, str], NDArray[np.float64]] = {}
    try:
        for query, items in (data or {}).items():
            if not isinstance(items, Mapping):
                continue  # its version
            for item, measured in items.items():
                values = np.asarray(measured["quantiles"], dtype=np.float64)
                if values.shape != (_NUM_QUANTILES,) or not np.isfinite(values).all():
                    raise ValueError(f"{query} → {item}: expected {_NUM_QUANTILES} numbers")
                if (np.diff(values) < 0).any():
                    raise ValueError(f"{query} → {item}: the percentiles fall")
                quantiles[query, item] = values
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"the release's calibration cannot be read: {error}", hint="run `coembed embed` again"
        ) from None
    return Calibration(quantiles)
