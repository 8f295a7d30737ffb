"""The pieces of cross-fitting: folds, words, thumbnails' keys, clusters."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coembed.curation.matching.clusters import assign, fit_centres
from coembed.curation.matching.cross_fit import count_steps, torch_threads
from coembed.curation.matching.cross_fit_settings import CrossFitSettings
from coembed.curation.matching.folds import assign_folds
from coembed.curation.matching.small_towers import SmallTowers, Vocabulary, words
from coembed.curation.matching.thumbnails import picture_keys


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=12, max_size=60),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 80)), max_size=40),
)
def test_alike_stays_in_one_fold(pictures: list[int], pairs: list[tuple[int, int]]) -> None:
    items = np.array([item for item, _ in pairs], np.int64)
    folds = assign_folds(pictures, items, [text for _, text in pairs], num_folds=3)
    assert len(folds) == len(pictures)
    assert set(folds.tolist()) <= {0, 1, 2}
    for key in set(pictures):
        assert len({int(folds[i]) for i, other in enumerate(pictures) if other == key}) == 1


def test_equal_captions_stay_in_one_fold_unless_they_chain_everything() -> None:
    pictures = list(range(90))
    items = np.arange(90)
    twos = [number // 2 for number in range(90)]
    folds = assign_folds(pictures, items, twos, num_folds=3)
    assert (folds[::2] == folds[1::2]).all()
    assert np.bincount(folds).tolist() == [30, 30, 30]
    chained = assign_folds(pictures, items, ["the same"] * 90, num_folds=3)
    assert np.bincount(chained).tolist() == [30, 30, 30]


def test_words_of_any_script() -> None:
    assert words("A red T-shirt, a RED one!") == ["a", "red", "t", "shirt", "one"]
    assert words("赤い靴") == ["赤", "い", "靴", "赤い", "い靴"]
    assert words("") == words("--- !!") == []
    assert len(words(" ".join(map(str, range(1000))))) == 64


def test_the_vocabulary_keeps_frequent_words() -> None:
    captions = ["red shoe", "red hat", "red red", "blue shoe", "odd"]
    vocabulary = Vocabulary(captions, min_count=2, max_words=10)
    assert len(vocabulary) == 2  # red, shoe
    bags = vocabulary.bags(["red red shoe", "odd", "shoe"])
    assert bags.sizes.tolist() == [2, 0, 1]
    places, starts, sizes = bags.take(torch.tensor([2, 0]))
    assert places.tolist() == [1, 0, 1]
    assert (starts.tolist(), sizes.tolist()) == ([0, 1], [1, 2])
    assert len(Vocabulary(captions, min_count=1, max_words=2)) == 2


def test_captions_are_sums_of_words() -> None:
    torch.manual_seed(0)
    towers = SmallTowers(3).eval()
    vocabulary = Vocabulary(["a b c"], min_count=1, max_words=3)
    vectors = towers.caption_vectors(vocabulary.bags(["a b", "a", "b", "none"]))
    assert torch.allclose(vectors[0], vectors[1] + vectors[2])
    assert not vectors[3].any()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 17, 17, 3), dtype=np.uint8)
    pictures = towers.picture_vectors(pixels)
    mirrored = towers.picture_vectors(pixels[:, :, ::-1])
    assert torch.allclose(pictures, mirrored, atol=1e-5)
    assert pictures.shape == vectors[:3].shape


def test_near_copies_share_a_key() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (20, 4, 4, 3))
    pictures = coarse.repeat(8, 1).repeat(8, 2).astype(np.uint8)
    brighter = np.clip(pictures * 1.05, 0, 255).astype(np.uint8)
    assert (picture_keys(pictures) == picture_keys(brighter)).mean() > 0.8
    assert len(set(picture_keys(pictures).tolist())) == 20
    assert picture_keys(np.full((2, 32, 32, 3), 90, np.uint8)).tolist() == [0, 0]


def test_clusters_are_found_again() -> None:
    generator = torch.Generator().manual_seed(0)
    topics = torch.nn.functional.normalize(torch.randn((6, 20), generator=generator), dim=1)
    truth = torch.arange(600) % 6
    vectors = topics[truth] + 0.05 * torch.randn((600, 20), generator=generator)
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    centres = fit_centres(vectors, 6, seed=3)
    assert torch.equal(centres, fit_centres(vectors, 6, seed=3))
    nearest, cosines = assign(vectors, centres, num=2)
    assert (cosines[:, 0] >= cosines[:, 1]).all()
    together = nearest[:, 0][:, None] == nearest[:, 0]
    assert (together == (truth[:, None] == truth)).float().mean() > 0.9
    assert len(fit_centres(vectors[:3], 10, seed=0)) == 3
    same = torch.ones((50, 4)) / 2
    assert torch.isfinite(fit_centres(same, 5, seed=0)).all()


def test_steps_and_threads() -> None:
    chosen = CrossFitSettings(epochs=10, batch_size=100, min_steps=5)
    assert count_steps(1050, chosen) == 100
    assert count_steps(7, chosen) == 10
    assert count_steps(0, chosen) == 5
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
