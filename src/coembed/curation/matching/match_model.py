"""Scores of all pairs of a pool by a given model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from coembed.curation.filters.base import PoolView
from coembed.curation.matching.cross_fit import torch_threads
from coembed.curation.matching.embedding_cache import Vectors
from coembed.curation.matching.embeddings import embed_captions, embed_pictures
from coembed.curation.matching.given_model import GivenModelSettings
from coembed.curation.matching.judged_pairs import JudgedPairs
from coembed.curation.matching.match_scores import (
    MAX_FITTED,
    MAX_REFERENCES,
    CaptionClusters,
    MatchScores,
)
from coembed.curation.matching.pair_scores import (
    References,
    fit_scale,
    score_mispaired,
    score_pairs,
)
from coembed.models.encoder import Encoder

_BATCH = 4096


def score_by_model(
    pool: PoolView, pairs: JudgedPairs, settings: GivenModelSettings, encoder: Encoder
) -> MatchScores:
    """Scores by the encoder's cosines, scaled to fit the pool; NaN where a picture is undecodable.

    A model that was trained on the pool itself has seen its mismatched pairs, and finds fewer.
    """
    with torch_threads(settings.num_threads):
        pictures = embed_pictures(pool, pairs, encoder)
        captions = embed_captions(pool, pairs, encoder)
        scale = 1.0
        sample = _tensor(captions[:MAX_FITTED])
        clusters = CaptionClusters(sample, num_captions=pairs.num_pairs, seed=pool.seed)
        references: References | None = None
        wrong, wrong_clusters = np.empty(0), np.empty(0, np.int64)
        scores = np.full(pairs.num_pairs, np.nan)
        found = np.zeros(pairs.num_pairs, np.int64)
        for batch in pairs.batches():
            for at in range(0, len(batch.numbers), _BATCH):
                numbers = batch.numbers[at : at + _BATCH]
                part = slice(batch.start + at, batch.start + at + len(numbers))
                texts, shown = _tensor(captions[part]), _tensor(pictures[numbers])
                found[part] = clusters.of(texts)
                usable = torch.isfinite(shown).all(1)
                own = torch.nonzero(usable)[:, 0]
                items = torch.from_numpy(numbers)[own]
                shown, texts = shown[own], texts[own]
                if references is None:  # the first pairs, in the order of hashes, are a sample
                    few = slice(0, MAX_REFERENCES)
                    scale = fit_scale(References(shown[few], texts[few], items[few]))
                texts *= scale
                if references is None:
                    references = References(shown[few], texts[few], items[few])
                    wrong, places = score_mispaired(references, seed=pool.seed)
                    wrong_clusters = found[part][own.numpy()[few]][places]
                scores[part.start + own.numpy()] = score_pairs(shown, texts, items, references)
        return MatchScores(scores, found, wrong, wrong_clusters)


def _tensor(vectors: Vectors) -> Tensor:
    return torch.from_numpy(np.asarray(vectors, np.float32))
