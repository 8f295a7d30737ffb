"""One shard of Qdrant Edge: the files of a collection, opened in this process.

Edge is the real engine in process. It never releases Python's interpreter lock, so nothing else
runs in a process while it works (a load is in batches for that, and in a process of its own); it
takes NaN without a word, which `base.check_vectors` does not; its errors are bare `Exception`s.

Its write-ahead log is off. With it a folder could be open in one process only; without it any
number may read one. What is written is on the disk after `flush` alone, and a load that is killed
is thrown away and done again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge
from numpy.typing import NDArray

from coembed.errors import CoembedError, ServiceError
from coembed.index.base import (
    NO_VECTOR,
    OWN_KEYS,
    Point,
    SearchParams,
    point_id,
    split_payload,
    stored_payload,
)
from coembed.index.edge_filters import to_edge
from coembed.index.filters import ColumnKind, Filter, payload_key
from coembed.types import Hit

# The interpreter lock is held for a whole batch: 1,000 points of 512 numbers take 40 ms.
MAX_BATCH = 1000
# Mapped and not read into memory: to open 100,000 points then holds the interpreter lock for 45 ms,
# not 150, and processes share what they read; a filtered query takes 0.45 ms for 0.35.
_INDEXES: dict[ColumnKind, Any] = {
    "text": edge.KeywordIndexParams(memory=edge.Memory.Cached),
    # A whole-number index would round the bounds of `price<49.5`; a float index takes both.
    "number": edge.FloatIndexParams(memory=edge.Memory.Cached),
    "bool": edge.BoolIndexParams(memory=edge.Memory.Cached),
}
# Qdrant's own default, in KiB of vectors: what a filter leaves below it is scanned whole.
_FULL_SCAN_KIB = 10_000


@dataclass(frozen=True, slots=True)
class Shape:
    """What a shard is made with. It never changes, and a copy has the same."""

    vector_name: str
    dim: int
    columns: Mapping[str, ColumnKind]
    hnsw_m: int
    hnsw_ef_construct: int
    quantization: str

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "columns": dict(self.columns)}


@dataclass(frozen=True, slots=True)
class Parts:
    """What of its points a scroll gives, beside item ids and content hashes."""

    vectors: bool
    payload: bool


class Shard:
    """An open shard. Not for two threads to write at once."""

    def __init__(self, folder: Path, shape: Shape, shard: edge.EdgeShard) -> None:
        self._folder = folder
        self._shape = shape
        self._shard = shard

    @classmethod
    def create(cls, folder: Path, shape: Shape) -> Shard:
        """An empty shard in the empty folder `folder`, with its payload indexes."""
        folder.mkdir(parents=True)
        with explained(folder):
            shard = edge.EdgeShard.create(str(folder), _config(shape))
            # They have to be there before the graph is built: it gets links for filters from them.
            for column, kind in shape.columns.items():
                if kind in _INDEXES:
                    shard.update(
                        edge.UpdateOperation.create_field_index(payload_key(column), _INDEXES[kind])
                    )
        return cls(folder, shape, shard)

    @classmethod
    def load(cls, folder: Path, shape: Shape) -> Shard:
        """The shard in `folder`. Raises ServiceError if Edge cannot open it."""
        with explained(folder):
            return cls(folder, shape, edge.EdgeShard.load(str(folder)))

    # Writing

    def write(self, points: Sequence[Point]) -> int:
        """Write those of at most MAX_BATCH points that are not there just so; returns how many.

        To leave the others alone is what makes a small change small: every point that is written
        again leaves the graph, and is scanned until there are enough for a new one.
        """
        there = self.retrieve([point.item_id for point in points])
        changed = [point for point in points if not _same(point, there.get(point.item_id))]
        if changed:
            name = self._shape.vector_name
            with explained(self._folder):
                self._shard.update(
                    edge.UpdateOperation.upsert_points(
                        [
                            edge.Point(
                                point_id(point.item_id),
                                {name: point.vector.tolist()},
                                stored_payload(point),
                            )
                            for point in changed
                        ]
                    )
                )
        return len(changed)

    def remove(self, item_ids: Sequence[str]) -> int:
        """Remove these points; returns how many were there."""
        there = list(self.retrieve(item_ids))
        if there:
            with explained(self._folder):
                self._shard.update(
                    edge.UpdateOperation.delete_points([point_id(item_id) for item_id in there])
                )
        return len(there)

    def settle(self) -> None:
        """Build the graph and bring everything onto the disk."""
        with explained(self._folder):
            self._shard.optimize()
            self._shard.flush()

    def close(self) -> None:
        """Let go of the files."""
        with explained(self._folder):
            self._shard.close()

    # Reading

    def count(self) -> int:
        """The exact number of points. Edge's own `points_count` may say twice as many."""
        with explained(self._folder):
            return int(self._shard.count(edge.CountRequest(exact=True)))

    def retrieve(self, item_ids: Sequence[str]) -> dict[str, Point]:
        """The points of these items that are there."""
        with explained(self._folder):
            records = self._shard.retrieve(
                [point_id(item_id) for item_id in item_ids], with_payload=True, with_vector=True
            )
        return {point.item_id: point for point in map(self._point, records)}

    def scroll(self, after: str | None, limit: int, what: Parts) -> tuple[list[Point], str | None]:
        """At most `limit` points from the point id `after` on, and where to go on (None: done)."""
        with explained(self._folder):
            records, following = self._shard.scroll(
                edge.ScrollRequest(
                    offset=after,
                    limit=limit,
                    with_payload=what.payload or edge.PayloadSelector.Include(list(OWN_KEYS)),
                    with_vector=what.vectors,
                )
            )
        return (
            [self._point(record) for record in records],
            None if following is None else str(following),
        )

    def search(
        self,
        vector: NDArray[np.float32],
        *,
        where: Filter,
        limit: int,
        exact: bool,
        params: SearchParams,
    ) -> list[Hit]:
        """The nearest points to `vector` [dim]; `params` says everything, without None."""
        quantized = None
        if self._shape.quantization != "none":
            quantized = edge.QuantizationSearchParams(
                ignore=exact, rescore=params.rescore, oversampling=params.oversampling
            )
        with explained(self._folder):
            found = self._shard.query(
                edge.QueryRequest(
                    limit=limit,
                    query=edge.Query.Nearest(vector.tolist(), using=self._shape.vector_name),
                    filter=to_edge(where),
                    params=edge.SearchParams(
                        hnsw_ef=max(limit, params.ef or 0), exact=exact, quantization=quantized
                    ),
                    with_payload=True,
                )
            )
        hits = [(float(point.score), *split_payload(point.payload)) for point in found]
        hits.sort(key=lambda hit: (-hit[0], hit[1]))
        return [
            Hit(rank, score, item_id, payload)
            for rank, (score, item_id, _, payload) in enumerate(hits, start=1)
        ]

    def _point(self, record: Any) -> Point:
        item_id, content_hash, payload = split_payload(record.payload)
        vector = NO_VECTOR
        if record.vector:
            vector = np.asarray(record.vector[self._shape.vector_name], dtype=np.float32)
        return Point(item_id, vector, payload, content_hash)


def _config(shape: Shape) -> edge.EdgeConfig:
    quantization = {
        "none": None,
        "int8": edge.ScalarQuantizationConfig(
            type=edge.ScalarType.Int8, quantile=0.99, memory=edge.Memory.Pinned
        ),
        "binary": edge.BinaryQuantizationConfig(memory=edge.Memory.Pinned),
    }[shape.quantization]
    return edge.EdgeConfig(
        vectors={
            shape.vector_name: edge.EdgeVectorParams(size=shape.dim, distance=edge.Distance.Cosine)
        },
        hnsw_config=edge.HnswIndexConfig(
            m=shape.hnsw_m,
            ef_construct=shape.hnsw_ef_construct,
            full_scan_threshold=_FULL_SCAN_KIB,
        ),
        quantization_config=quantization,
        # One segment is one graph to walk; one thread, because readers are many processes.
        optimizers=edge.EdgeOptimizersConfig(default_segment_number=1),
        max_search_threads=1,
        wal_enabled=False,
    )


def _same(point: Point, there: Point | None) -> bool:
    # Edge normalises what it is given: the last bit of a unit vector may differ.
    return (
        there is not None
        and there.content_hash == point.content_hash
        and there.payload == dict(point.payload)
        and bool(np.abs(there.vector - point.vector).max() <= 1e-6)
    )


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn whatever Edge raises into a ServiceError that says where."""
    try:
        yield
    except (CoembedError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of Edge is no Exception
        raise ServiceError(
            f"Qdrant Edge failed in {folder}: {error or type(error).__name__}",
            hint="is there space on the disk and in memory? If it stays, `coembed index` builds "
            "the collection again from artifacts/embeddings",
        ) from error
