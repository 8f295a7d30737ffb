"""What the tests of the embedded index share: points, a build, and what a store holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coembed.index.base import Point, VectorIndex
from coembed.index.edge import EdgeIndex, open_store
from coembed.index.filters import ColumnKind
from coembed.index.settings import IndexSettings

NAME = "shop__v1"
VECTOR = "item@0123abcd"
COLUMNS: dict[str, ColumnKind] = {"modality": "text", "colour": "text", "price": "number"}


def make_points(num: int, *, dim: int = 16, seed: int = 0, mark: str = "a") -> list[Point]:
    """Random unit vectors around a few centres, with payloads that carry `mark`."""
    centres = np.random.default_rng(99).normal(size=(20, dim))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(20, size=num)] + 0.7 * rng.normal(size=(num, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [
        Point(
            f"{i:064x}",
            vector,
            {
                "path": f"media/{i}.jpg",
                "modality": "image" if i % 3 else "audio",
                "attributes": {
                    "colour": ["red", "blue", "green", "grey"][i % 4],
                    "price": i % 100 + 0.5,
                    "sale": i % 2 == 0,
                    "mark": mark,
                },
            },
        )
        for i, vector in enumerate(vectors.astype(np.float32))
    ]


def open_edge(path: Path, **settings: Any) -> EdgeIndex:
    return open_store(path, IndexSettings(**settings))


def create(index: VectorIndex, name: str, *, dim: int = 16, base: str | None = None) -> bool:
    return index.create(
        name, vector_name=VECTOR, dim=dim, metadata={"state": "new"}, columns=COLUMNS, base=base
    )


def build(index: VectorIndex, name: str, points: Sequence[Point]) -> None:
    """Build a collection, or complete it, or find it built."""
    if not index.exists(name):
        create(index, name, dim=len(points[0].vector))
    index.upsert(name, points)
    index.finish(name)


def contents(index: VectorIndex, name: str) -> dict[str, str]:
    """Item id → mark of every point; each is there once."""
    found = [point for batch in index.scroll(name, batch_size=500) for point in batch]
    marks = {point.item_id: str(point.payload["attributes"]["mark"]) for point in found}
    assert len(marks) == len(found) == index.count(name)
    return marks


def children(pid: int) -> list[int]:
    """The processes that `pid` has started and that still run."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def left_over(store: Path) -> list[str]:
    """What lies in a store beside finished collections."""
    return sorted(
        path.relative_to(store).as_posix()
        for path in store.rglob("*")
        if "building" in path.relative_to(store).parts[:-1] or path.name.endswith(".partial")
    )


def files_of(store: Path, name: str) -> list[Path]:
    """All files of a collection's generation."""
    (folder,) = [path for path in (store / "collections" / name).iterdir() if path.is_dir()]
    return sorted(path for path in folder.rglob("*") if path.is_file())


def environment() -> dict[str, str]:
    """For a process that imports this module."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
