"""Modality gap, alignment and uniformity, beside plain formulas."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from coembed.evaluation.geometry import (
    Gap,
    Points,
    Uniformity,
    geometry_figures,
    squared_distances,
)
from coembed.evaluation.statistics import Figure, Resamples

RESAMPLE = partial(Resamples, num=300, seed=1)
NAMES = ("gap", "alignment", "uniformity", "text_uniformity")


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def figures(
    items: np.ndarray,
    texts: np.ndarray,
    owners: list[int],
    owned: list[int],
    *,
    max_points: int = 1000,
) -> dict[str, Figure]:
    found = geometry_figures(
        "geometry/image",
        Points(tuple(f"item {place}" for place in range(len(items))), items),
        Points(tuple(f"text {place}" for place in range(len(texts))), texts),
        owners=np.asarray(owners),
        owned=np.asarray(owned),
        max_points=max_points,
        resample=RESAMPLE,
    )
    return {figure.path.removeprefix("geometry/image/"): figure for figure in found}


def uniformity(points: np.ndarray) -> float:
    """Wang & Isola's listing, `lunif`: over all pairs of distinct points."""
    points = points.astype(np.float64)
    kernel = [
        np.exp(-2 * ((one - other) ** 2).sum())
        for place, one in enumerate(points)
        for other in points[:place]
    ]
    return float(np.log(np.mean(kernel)))


def test_figures_are_those_of_the_plain_formulas() -> None:
    items, texts = unit(40, 8), unit(50, 8, seed=1)
    owners, owned = [*range(40), 3, 3, 7], [*range(40), 41, 42, 3]
    found = figures(items, texts, owners, owned)
    pairs = [(items[one], texts[other]) for one, other in zip(owners, owned, strict=True)]
    assert found["alignment"].value == pytest.approx(
        np.mean([((one - other) ** 2).sum() for one, other in pairs]), abs=1e-6
    )
    centroids = items.mean(axis=0), np.mean([other for _, other in pairs], axis=0)
    assert found["gap"].value == pytest.approx(
        np.linalg.norm(centroids[0] - centroids[1]), abs=1e-6
    )
    assert found["uniformity"].value == pytest.approx(uniformity(items), abs=1e-5)
    assert found["text_uniformity"].value == pytest.approx(uniformity(texts), abs=1e-5)
    assert tuple(found) == NAMES
    for figure in found.values():
        assert figure.low < figure.high


def test_weights_are_repeats() -> None:
    items, texts = unit(6, 4), unit(6, 4, seed=1)
    owners, owned = np.asarray([0, 1, 1, 2, 3, 4, 5]), np.asarray([0, 1, 2, 2, 3, 4, 5])
    weights = np.asarray([[2, 0, 1, 3, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=np.float64)
    drawn = [0, 0, 2, 3, 3, 3]
    gap = Gap.of(items, texts, owners, owned).weigh(weights)
    captions = [texts[text] for one in drawn for item, text in zip(owners, owned, strict=True)
                if item == one]  # fmt: skip
    expected = np.linalg.norm(items[drawn].mean(axis=0) - np.mean(captions, axis=0))
    assert gap[0] == pytest.approx(expected, abs=1e-6)
    # A point drawn twice is not two points at distance 0: pairs of distinct points alone count.
    spread = Uniformity.of(items).weigh(weights)
    kernel = np.exp(-2 * ((items[:, None] - items[None]) ** 2).sum(axis=-1))
    pairs = [(2, 0, 2), (6, 0, 3), (3, 2, 3)]
    mean = sum(times * kernel[one, other] for times, one, other in pairs) / 11
    assert spread[0] == pytest.approx(np.log(mean), abs=1e-5)
    assert spread[1] == pytest.approx(uniformity(items), abs=1e-5)
    assert np.isnan(Uniformity.of(items).weigh(np.asarray([[6.0, 0, 0, 0, 0, 0]])))


def test_a_collapsed_and_a_perfect_model() -> None:
    same = np.repeat(unit(1, 8), 20, axis=0)
    found = figures(same, same, [*range(20)], [*range(20)])
    assert [found[name].value for name in NAMES] == pytest.approx([0, 0, 0, 0], abs=1e-5)
    apart = figures(same, -same, [*range(20)], [*range(20)])
    assert [apart[name].value for name in ("gap", "alignment")] == pytest.approx([2, 4], abs=1e-5)


def test_a_rotation_changes_nothing() -> None:
    items, texts = unit(30, 8), unit(30, 8, seed=1)
    turned, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(8, 8)))
    turned = turned.astype(np.float32)
    one = figures(items, texts, [*range(30)], [*range(30)])
    other = figures(items @ turned, texts @ turned, [*range(30)], [*range(30)])
    for name in NAMES:
        assert one[name].value == pytest.approx(other[name].value, abs=1e-5)


def test_random_directions_in_many_dimensions() -> None:
    found = figures(unit(300, 512), unit(300, 512, seed=1), [*range(300)], [*range(300)])
    assert found["uniformity"].value == pytest.approx(-4, abs=0.05)
    assert found["alignment"].value == pytest.approx(2, abs=0.05)


def test_uniformity_takes_some_points_by_their_names() -> None:
    items, texts = unit(60, 8), unit(60, 8, seed=1)
    some = figures(items, texts, [*range(60)], [*range(60)], max_points=20)
    assert some["uniformity"].value != pytest.approx(uniformity(items), abs=1e-3)
    chosen = Points(tuple(f"item {place}" for place in range(60)), items).some(20)
    assert some["uniformity"].value == pytest.approx(uniformity(chosen), abs=1e-5)
    backwards = Points(tuple(f"item {place}" for place in reversed(range(60))), items[::-1])
    assert sorted(map(tuple, backwards.some(20))) == sorted(map(tuple, chosen))


def test_distances_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    items, texts = unit(10, 4), unit(9, 4, seed=1)
    owners, owned = np.arange(10).repeat(3), np.arange(30) % 9
    whole = squared_distances(items, texts, owners, owned)
    gap = Gap.of(items, texts, owners, owned)
    monkeypatch.setattr("coembed.evaluation.geometry._BLOCK", 7)
    assert squared_distances(items, texts, owners, owned).tolist() == whole.tolist()
    assert np.allclose(Gap.of(items, texts, owners, owned).captions, gap.captions, atol=1e-6)


def test_one_item_has_no_uniformity() -> None:
    assert set(figures(unit(1, 4), unit(1, 4), [0], [0])) == {"gap", "alignment"}
