"""A release as it is served: what every step of an answer goes by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coembed.index.release import Release
from coembed.models.query_encoder import QueryEncoder
from coembed.search.calibration import Calibration
from coembed.serve.batcher import Batcher
from coembed.serve.cache import Cache
from coembed.serve.catalogue import Catalogue


@dataclass(frozen=True, slots=True)
class BoundEncoder:
    """An encoder with its queue and the embeddings it made: (modality, item or its hash) → [dim].

    Releases of one model share it.
    """

    encoder: QueryEncoder
    batcher: Batcher
    embeddings: Cache[NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class BoundRelease:
    """One immutable release: collection, encoder, catalogue, calibration, and the answers it gave.

    results: answers as JSON without their ending (see engine.py), by what was asked.
    """

    collection: str
    vector_name: str
    release: Release
    recall_at_10: float | None
    calibration: Calibration
    encoding: BoundEncoder
    catalogue: Catalogue
    results: Cache[bytes]
    named: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        named = {
            "collection": self.collection,
            "model": self.release.model,
            "version": self.release.version,
            "fingerprint": self.release.fingerprint,
            "num_items": self.release.num_items,
            "recall_at_10": self.recall_at_10,
        }
        object.__setattr__(self, "named", named)
