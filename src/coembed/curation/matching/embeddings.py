"""Embeddings of a pool's pictures and captions by a given model, from the cache where they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coembed.curation.filters.base import PoolView
from coembed.curation.matching.embedding_cache import KEY_BYTES, EmbeddingCache, Vectors
from coembed.curation.matching.judged_pairs import JudgedPairs
from coembed.errors import DataError

if TYPE_CHECKING:
    from coembed.models.encoder import Encoder


def embed_pictures(pool: PoolView, pairs: JudgedPairs, encoder: Encoder) -> Vectors:
    """Unit vectors [items, dim] in half precision, in the order of item numbers. NaN where the
    picture cannot be decoded."""
    keys = np.concatenate(
        [
            np.frombuffer(bytes.fromhex("".join(ids)), np.uint8).reshape(len(ids), 32)[
                :, :KEY_BYTES
            ]
            for ids, _ in pairs.items()
        ]
    )

    def embed(paths: Sequence[str]) -> NDArray[np.float32]:
        return _encode(encoder, "image", [pool.read_media(path) for path in paths])

    return _cache(pool, encoder, "image").fill(
        pool.scratch / "pictures.npy",
        np.ascontiguousarray(keys).view(f"S{KEY_BYTES}")[:, 0],
        lambda: (paths for _, paths in pairs.items()),
        embed,
        label="embed pictures",
    )


def embed_captions(pool: PoolView, pairs: JudgedPairs, encoder: Encoder) -> Vectors:
    """Unit vectors [pairs, dim] in half precision, of each judged pair's caption."""
    keys = np.array(
        [_text_key(caption) for batch in pairs.batches() for caption in batch.captions],
        f"S{KEY_BYTES}",
    )

    def embed(captions: Sequence[str]) -> NDArray[np.float32]:
        distinct = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
        found = _encode(encoder, "text", list(distinct))
        return found[[distinct[caption] for caption in captions]]

    def texts() -> Iterator[list[str]]:
        return (batch.captions for batch in pairs.batches())

    return _cache(pool, encoder, "text").fill(
        pool.scratch / "captions.npy", keys, texts, embed, label="embed captions"
    )


def _cache(pool: PoolView, encoder: Encoder, modality: str) -> EmbeddingCache:
    return EmbeddingCache(pool.lasting / encoder.fingerprint[:32] / modality, dim=encoder.embed_dim)


def _encode(encoder: Encoder, modality: str, items: list[Any]) -> NDArray[np.float32]:
    """Embeddings; NaN where one cannot be decoded."""
    try:
        return encoder.encode(modality, items)
    except DataError:
        if len(items) == 1:
            return np.full((1, encoder.embed_dim), np.nan, np.float32)
    # One of them is at fault: halve until it is alone.
    middle = len(items) // 2
    return np.concatenate(
        [_encode(encoder, modality, items[:middle]), _encode(encoder, modality, items[middle:])]
    )


def _text_key(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:KEY_BYTES]
