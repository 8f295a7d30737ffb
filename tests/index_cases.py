"""Points, a release and a folder of embeddings for the tests of building and verifying."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coembed.index.base import Point, VectorIndex
from coembed.index.build import Built, build
from coembed.index.queries import Query
from coembed.index.release import Release
from coembed.index.settings import IndexSettings
from coembed.index.verify import Expected, in_batches, verify
from coembed.services import Services

DIM, NUM = 8, 50
SETTINGS = IndexSettings(batch_size=4, verify_sample=NUM, lock_wait_s=0.3)
RELEASE = Release("shop", 2, "ab" * 32, "fp32", "cd" * 32, NUM, DIM, {"price": "number"})
NAME = "items__v2__abababab_cdcdcdcd"


def unit(vector: Any) -> Any:
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


def make_points(num: int = NUM, *, seed: int = 1) -> list[Point]:
    vectors = np.random.default_rng(seed).normal(size=(num, DIM))
    return [
        Point(f"{i:064x}", unit(vector), {"path": f"{i}.jpg", "attributes": {"price": i}})
        for i, vector in enumerate(vectors)
    ]


def make_queries(points: Sequence[Point], num: int = 10) -> list[Query]:
    """Texts near the first items, as captions are."""
    noise = np.random.default_rng(7).normal(size=(num, DIM)) * 0.1
    return [
        Query(f"caption {i}", unit(points[i].vector + noise[i]), "text", points[i].item_id)
        for i in range(num)
    ]


def build_with(index: VectorIndex, points: Sequence[Point] | None = None, **changes: Any) -> Built:
    chosen = make_points() if points is None else points
    release = changes.pop("release", replace(RELEASE, num_items=len(chosen)))
    settings = changes.pop("settings", SETTINGS)
    return build(index, release, lambda: iter(chosen), alias="items", settings=settings, **changes)


def verify_with(index: VectorIndex, points: Sequence[Point] | None = None, **changes: Any) -> Any:
    chosen = make_points() if points is None else points
    settings = changes.pop("settings", SETTINGS)
    expected = Expected.of(chosen, settings.verify_sample)
    return verify(
        index, NAME, replace(RELEASE, num_items=len(chosen)), expected,
        lambda: in_batches(chosen), settings, **changes,
    )  # fmt: skip


def embedded_services(path: Path) -> Services:
    """The embedded index in a folder."""
    return Services("", None, None, None, path)


def write_part(folder: Path, points: Sequence[Point], name: str = "part-00000.parquet") -> None:
    folder.mkdir(exist_ok=True)
    flat = np.concatenate([point.vector for point in points])
    pq.write_table(
        pa.table(
            {
                "item_id": [point.item_id for point in points],
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(flat), DIM),
                "path": [point.payload["path"] for point in points],
                "modality": ["image"] * len(points),
                "captions": [["a", "b"]] * len(points),
                "split": ["train"] * len(points),
                "attributes": [json.dumps(point.payload["attributes"]) for point in points],
            }
        ),
        folder / name,
    )
