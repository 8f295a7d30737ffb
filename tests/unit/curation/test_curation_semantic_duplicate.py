"""Semantic duplicates against all pairs compared, and the filter with a real model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image
from pool_views import SmallPool
from pydantic import ValidationError

from coembed.curation.filters.semantic_duplicate import Settings
from coembed.curation.matching.embedding_cache import EmbeddingCache
from coembed.curation.matching.semantic import find_semantic_duplicates
from coembed.errors import ModelError
from coembed.models.build import build_model
from coembed.models.checkpoint import save_model
from coembed.models.encoder import load_encoder
from coembed.models.settings import ModelSettings
from coembed.progress import Tracker

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 16,
        "heads": 1,
        "layers": 1,
    },
}


def _planted(num: int, dim: int, seed: int) -> NDArray[np.float16]:
    """Vectors around some hundred topics, a tenth of them near copies of others."""
    rng = np.random.default_rng(seed)
    topics = rng.normal(size=(100, dim))
    vectors = topics[rng.integers(100, size=num)] + 0.8 * rng.normal(size=(num, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    copies = rng.choice(num, num // 10, replace=False)
    near = vectors[rng.integers(num, size=len(copies))]
    noise = rng.normal(size=near.shape) / np.sqrt(dim)
    vectors[copies] = near + rng.uniform(0.05, 0.4, (len(copies), 1)) * noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float16)


def _exact(vectors: NDArray[np.float16], ranks: NDArray[np.int64], min_cosine: float) -> set[int]:
    """The slow and obvious way: from the best to the worst, against all that are kept."""
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    kept: list[int] = []
    gone = set()
    for place in np.argsort(ranks).tolist():
        if kept and (unit[kept] @ unit[place]).max() >= min_cosine:
            gone.add(place)
        else:
            kept.append(place)
    return gone


@pytest.mark.parametrize("seed", [0, 1])
def test_clusters_find_what_all_pairs_find(seed: int) -> None:
    vectors = _planted(4000, 64, seed)
    ranks = np.random.default_rng(seed).permutation(len(vectors))
    expected = _exact(vectors, ranks, 0.93)
    places, kept, cosines = find_semantic_duplicates(
        vectors, ranks, min_cosine=0.93, cluster_items=200, seed=3, progress=Tracker()
    )
    found = set(places.tolist())
    assert len(expected) > 200
    assert len(found & expected) / len(expected) >= 0.99
    assert len(found - expected) / len(found) <= 0.01
    assert found.isdisjoint(kept.tolist())  # nothing is a duplicate of what goes
    assert (ranks[kept] < ranks[places]).all()
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    assert np.allclose((unit[places] * unit[kept]).sum(1), cosines, atol=1e-5)
    assert (cosines >= 0.93 - 1e-6).all()


def test_a_chain_keeps_its_far_end() -> None:
    angles = np.deg2rad([0.0, 10.0, 20.0, 30.0])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float16)
    places, kept, _ = find_semantic_duplicates(
        vectors, np.arange(4), min_cosine=0.98, cluster_items=10, seed=0, progress=Tracker()
    )
    assert (places.tolist(), kept.tolist()) == ([1, 3], [0, 2])


def test_missing_and_equal_vectors() -> None:
    vectors = np.zeros((5000, 8), np.float16)
    vectors[:, 0] = 1
    vectors[7] = np.nan
    places, kept, _ = find_semantic_duplicates(
        vectors, np.arange(5000), min_cosine=0.95, cluster_items=1000, seed=0, progress=Tracker()
    )
    assert len(places) == 4998
    assert set(kept.tolist()) == {0}


def test_the_cache_embeds_each_key_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        asked.extend(texts)
        return np.array([[len(text), 1] for text in texts], np.float32)

    def fill(texts: list[str]) -> NDArray[np.float16]:
        keys = [hashlib.sha256(text.encode()).digest()[:16] for text in texts]
        cache = EmbeddingCache(tmp_path / "cache", dim=2)
        return cache.fill(
            tmp_path / "out.npy", keys, lambda: iter([texts[:1], texts[1:]]), embed, label="test"
        )

    first = ["a", "bb", "ccc"]
    assert fill(first)[:, 0].tolist() == [1, 2, 3]
    assert fill(["ccc", "dddd", "a", "ccc"])[:, 0].tolist() == [3, 4, 1, 3]
    assert asked == ["a", "bb", "ccc", "dddd"]
    for part in (tmp_path / "cache").iterdir():
        part.write_bytes(part.read_bytes()[:-30])  # a torn part is made again
    assert fill(first)[:, 0].tolist() == [1, 2, 3]
    assert len(asked) == 7


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    joint, spec = build_model(ModelSettings(architecture=TINY), seed=1)
    save_model(folder, joint, spec, {})
    return folder


def _draw(path: Path, seed: int, px: int) -> None:
    small = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(small).resize((px, px), Image.Resampling.BICUBIC).save(path, quality=95)


def test_the_larger_picture_stays_and_takes_the_captions(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "pool"
    _draw(folder / "small.jpg", 1, 48)
    _draw(folder / "large.jpg", 1, 96)
    _draw(folder / "other.jpg", 2, 96)
    rows = [("small.jpg", "one"), ("large.jpg", "two"), ("other.jpg", "three"), ("small.jpg", "4")]
    pool = SmallPool(tmp_path, rows)
    settings = Settings(model="model", min_cosine=0.999)
    chosen = settings.build()
    found = pa.concat_tables(list(chosen.check_pool(pool))).to_pylist()
    fingerprint = load_encoder(model).fingerprint
    (note,) = chosen.notes
    assert f"fingerprint: {fingerprint}" in note and str(tmp_path) not in note
    assert [(row["row"], row["duplicate_of"]) for row in found] == [(0, 1), (3, 1)]
    assert all(row["keep_caption"] and "large.jpg" in row["detail"] for row in found)
    assert all(row["semantic_cosine"] >= 0.999 for row in found)

    again = SmallPool(tmp_path, rows)
    pinned = settings.model_copy(update={"fingerprint": fingerprint})
    with_pin = pinned.build()
    assert pa.concat_tables(list(with_pin.check_pool(again))).to_pylist() == found
    assert again.num_read == 0  # embeddings came from the cache
    assert not with_pin.notes

    other = settings.model_copy(update={"fingerprint": "0" * 64})
    with pytest.raises(ModelError, match=f"has the fingerprint {fingerprint}, but .* ask for 000"):
        list(other.build().check_pool(SmallPool(tmp_path, rows)))


def test_a_model_is_needed() -> None:
    with pytest.raises(ValidationError, match="needs a model"):
        Settings()
    with pytest.raises(ValidationError, match="both given"):
        Settings(model="m", open_clip={"name": "ViT-B-32", "pretrained": "openai"})
