"""The parts of artifacts/embeddings, read as points; what is damaged is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_cases import make_points, write_part

from coembed.errors import DataError
from coembed.index.points import read_columns, read_points, read_vectors


def test_points_are_read_from_all_parts_in_order(tmp_path: Path) -> None:
    points = make_points()
    write_part(tmp_path / "e", points[30:], "part-00001.parquet")
    write_part(tmp_path / "e", points[:30])
    found = list(read_points(tmp_path / "e"))
    assert [point.item_id for point in found] == [point.item_id for point in points]
    np.testing.assert_array_equal(found[40].vector, points[40].vector)
    assert found[40].payload == {
        "path": "40.jpg", "modality": "image", "captions": ["a", "b"], "split": "train",
        "attributes": {"price": 40},
    }  # fmt: skip
    assert read_columns(tmp_path / "e") == {"price": "number"}


def test_vectors_are_the_same_without_the_payload(tmp_path: Path) -> None:
    points = make_points()
    write_part(tmp_path / "e", points)
    batches = list(read_vectors(tmp_path / "e"))
    assert [item_id for ids, _ in batches for item_id in ids] == [one.item_id for one in points]
    vectors = np.concatenate([vectors for _, vectors in batches])
    np.testing.assert_array_equal(vectors, np.stack([one.vector for one in points]))


def _nan(folder: Path) -> None:
    points = make_points(3)
    write_part(folder, [*points[:2], replace(points[2], vector=points[2].vector * np.nan)])


def _long(folder: Path) -> None:
    points = make_points(3)
    write_part(folder, [*points[:2], replace(points[2], vector=points[2].vector * 2)])


def _cut(folder: Path) -> None:
    write_part(folder, make_points(3))
    path = folder / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_nan, r"part-00000.parquet: .* item 0{63}2 has the length nan, expected 1"),
        (_long, r"item 0{63}2 has the length 2, expected 1"),
        (_cut, r"part-00000.parquet cannot be read"),
    ],
)
def test_damaged_parts_are_named(damage: Any, message: str, tmp_path: Path) -> None:
    damage(tmp_path / "e")
    for read in (read_points, read_vectors):
        with pytest.raises(DataError, match=message):
            list(read(tmp_path / "e"))
