"""Drop pictures that show what another picture shows, as a model sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from coembed.curation.filters.base import ColumnType, Filter, PoolView
from coembed.curation.matching.given_model import GivenModelSettings
from coembed.progress import tracker

Numbers = NDArray[np.int64]


class Settings(GivenModelSettings):
    """Off unless it is listed, because it needs a model: the champion's directory, or any other.

    min_cosine: of the embeddings of two pictures that count as one. What it means depends on the
        model; SemDeDup (arXiv 2303.09540) chooses it by how much is to go. 0.95 is a guess that
        keeps to variants of one photograph in CLIP's space: look at what goes before trusting it.
    cluster_items: pictures a cluster on average: smaller is faster and misses more.
    """

    name: Literal["semantic_duplicate"] = "semantic_duplicate"
    min_cosine: float = Field(default=0.95, gt=0, le=1)
    cluster_items: int = Field(default=300, ge=10, le=100_000)

    @model_validator(mode="after")
    def _has_model(self) -> Settings:
        if not self.names_model:
            raise ValueError("it needs a model: give `model` (a model directory) or `open_clip`")
        return self

    def build(self) -> Filter:
        """Make the filter."""
        return SemanticDuplicate(self)


class SemanticDuplicate(Filter):
    """Compares the embeddings of all kept images. Of two that are near, the one with more pixels
    stays, then the one with more bytes, then the smaller item id; it takes over the captions of
    those that go. Audio passes.

    Columns: `semantic_cosine`, of a dropped picture and the one that stays.
    """

    reasons = ("semantic_duplicate",)
    columns: ClassVar[Mapping[str, ColumnType]] = {"semantic_cosine": "float64"}

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.notes: list[str] = []

    def check_pool(self, pool: PoolView) -> Iterator[pa.Table]:
        """Judge all kept images."""
        from coembed.curation.matching.cross_fit import torch_threads
        from coembed.curation.matching.embeddings import embed_pictures
        from coembed.curation.matching.judged_pairs import JudgedPairs
        from coembed.curation.matching.semantic import find_semantic_duplicates

        settings = self._settings
        self.notes = []
        pairs = JudgedPairs(pool)
        if pairs.num_items < 2:
            return
        encoder = settings.open(pool.root)
        notice = settings.pin_notice(encoder)
        if notice is not None:
            self.notes.append(notice)
        with torch_threads(settings.num_threads):
            vectors = embed_pictures(pool, pairs, encoder)
            progress = tracker(total=pairs.num_items, label="semantic duplicates", unit="images")
            try:
                places, kept, cosines = find_semantic_duplicates(
                    vectors,
                    _ranks(pool, pairs.num_items),
                    min_cosine=settings.min_cosine,
                    cluster_items=settings.cluster_items,
                    seed=pool.seed,
                    progress=progress,
                )
            finally:
                progress.close()
        yield from _verdicts(pool, places, kept, cosines, settings.min_cosine)


def _ranks(pool: PoolView, num_items: int) -> Numbers:
    """Rank of each item, the best 0, in the order of item numbers."""
    ranks = np.zeros(num_items, np.int64)
    for batch in pool.query(
        "SELECT number, row_number() OVER (ORDER BY pixels DESC, bytes DESC, item) - 1 AS rank "
        "FROM (SELECT item, max(coalesce(width_px, 0) * coalesce(height_px, 0)) AS pixels, "
        "max(num_bytes) AS bytes FROM kept WHERE modality = 'image' GROUP BY item) "
        "JOIN judged_items USING (item)"
    ):
        ranks[batch.column("number").to_numpy()] = batch.column("rank").to_numpy()
    return ranks


def _verdicts(
    pool: PoolView,
    places: Numbers,
    kept: Numbers,
    cosines: NDArray[np.float64],
    min_cosine: float,
) -> Iterator[pa.Table]:
    found = pa.table({"number": places, "kept_number": kept, "cosine": cosines})
    for batch in pool.query(
        "WITH first_rows AS (SELECT item, min(row) AS row FROM kept WHERE modality = 'image' "
        "GROUP BY item) "
        "SELECT kept.row AS row, better.path AS path, first_rows.row AS duplicate_of, "
        "found_duplicates.cosine AS cosine FROM found_duplicates "
        "JOIN judged_items AS worse ON worse.number = found_duplicates.number "
        "JOIN judged_items AS better ON better.number = found_duplicates.kept_number "
        "JOIN first_rows ON first_rows.item = better.item "
        "JOIN kept ON kept.item = worse.item WHERE kept.modality = 'image' ORDER BY kept.row",
        found_duplicates=found,
    ):
        details = [
            f"cosine {cosine:.4f} >= {min_cosine:g} with {path}"
            for cosine, path in zip(
                batch.column("cosine").to_pylist(), batch.column("path").to_pylist(), strict=True
            )
        ]
        yield pa.table(
            {
                "row": batch.column("row"),
                "reason": pa.array(["semantic_duplicate"] * batch.num_rows, pa.string()),
                "detail": pa.array(details, pa.string()),
                "duplicate_of": batch.column("duplicate_of"),
                "keep_caption": pa.array([True] * batch.num_rows, pa.bool_()),
                "semantic_cosine": batch.column("cosine"),
            }
        )
