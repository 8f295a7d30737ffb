"""Tuning: which quantisation and search settings are the cheapest that find enough.

Your own embeddings are loaded into a temporary collection a quantisation, through the same
interface as a release, and every setting answers the same queries as verification asks. Nothing
that is served is touched, and the temporary collections are removed, those of a killed run by the
next.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import numpy as np

from coembed.index.base import DamagedError, Point, SearchParams, VectorIndex
from coembed.index.build import load
from coembed.index.filters import ColumnKind
from coembed.index.queries import Query
from coembed.index.release import Layout
from coembed.index.settings import IndexSettings
from coembed.index.verify import Nearest, Questions, Vectors
from coembed.progress import tracker

Quantization = Literal["none", "int8", "binary"]
Open = Callable[[IndexSettings], AbstractContextManager[VectorIndex]]

_QUANTIZATIONS: tuple[Quantization, ...] = ("none", "int8", "binary")
_EFS = (32, 64, 128, 256)
_OVERSAMPLINGS = (1.0, 2.0, 4.0)
_BITS: dict[Quantization, int] = {"none": 32, "int8": 8, "binary": 1}
# A temporary collection of another machine is left alone for this long: it may be at work.
_PATIENCE = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to search, and what it costs and finds.

    `oversampling` is None where nothing is quantised. `memory_bytes` is what the search reads of
    the vectors: the small copies of a quantised collection, else the vectors themselves.
    `disk_bytes` is None where the backend cannot say.
    """

    quantization: Quantization
    ef: int
    oversampling: float | None
    recall_by_modality: Mapping[str, float]
    p50_ms: float
    memory_bytes: int
    disk_bytes: int | None


@dataclass(frozen=True, slots=True)
class Tuned:
    """All settings that were tried, and the `best`: None where none of them finds enough.

    The best is the one that needs the least memory, and of those the quickest, among those whose
    Recall@10 is at least `index.min_recall` for every modality of query.
    """

    settings: tuple[Setting, ...]
    best: Setting | None
    num_items: int
    num_queries: int


def tune(
    open_index: Open,
    points: Callable[[], Iterator[Point]],
    *,
    vector_name: str,
    dim: int,
    columns: Mapping[str, ColumnKind],
    num_items: int,
    settings: IndexSettings,
    queries: Sequence[Query],
    vectors: Vectors,
    holder: str,
) -> Tuned:
    """Try every setting on these points. `open_index` opens the index with settings of its own.

    `holder` names this machine and project: only one process of them may tune at a time, so that
    what is theirs in the index was left by one that was killed.
    """
    tried: list[Setting] = []
    asked: tuple[Questions, Nearest] | None = None
    for quantization in _QUANTIZATIONS:
        own = settings.model_copy(update={"quantization": quantization})
        name = f"{_prefix(settings)}{quantization}_{secrets.token_hex(4)}"
        with open_index(own) as index:
            sweep(index, settings, holder=holder)
            try:
                index.create(
                    name,
                    vector_name=vector_name,
                    dim=dim,
                    metadata={"tune": holder, "since": datetime.now(UTC).isoformat()},
                    columns=Layout.of(own).indexed(columns),
                )
                _, expected = load(index, name, points(), own, total=num_items)
                index.finish(name)
                if asked is None:
                    questions = Questions.of(expected.sample(), queries)
                    asked = questions, questions.nearest(vectors)
                tried += _measure(index, name, vector_name, own, asked, num_items * dim)
            finally:
                # Ctrl-C comes by here too.
                index.delete(name)
    enough = [
        one for one in tried if min(one.recall_by_modality.values()) >= settings.min_recall - 1e-9
    ]
    best = min(enough, key=lambda one: (one.memory_bytes, one.p50_ms), default=None)
    return Tuned(tuple(tried), best, num_items, len(asked[0].queries) if asked else 0)


def sweep(index: VectorIndex, settings: IndexSettings, *, holder: str) -> list[str]:
    """Remove the temporary collections that a killed process left; returns their names."""
    swept = []
    for name in index.collections():
        if not name.startswith(_prefix(settings)):
            continue
        try:
            metadata = index.describe(name).metadata
            own = metadata.get("tune") == holder
            old = datetime.now(UTC) - datetime.fromisoformat(str(metadata["since"])) > _PATIENCE
        except (DamagedError, KeyError, ValueError, TypeError):
            own, old = True, True
        if own or old:
            index.delete(name)
            swept.append(name)
    return swept


def _prefix(settings: IndexSettings) -> str:
    return f"{settings.collection}__tune__"


def _measure(
    index: VectorIndex,
    name: str,
    vector_name: str,
    settings: IndexSettings,
    asked: tuple[Questions, Nearest],
    num_numbers: int,
) -> list[Setting]:
    quantization = settings.quantization
    oversamplings = (None,) if quantization == "none" else _OVERSAMPLINGS
    disk_bytes = index.size_bytes(name)
    found = []
    progress = tracker(
        total=len(_EFS) * len(oversamplings), label=f"search {quantization}", unit="settings"
    )
    try:
        for ef in _EFS:
            for oversampling in oversamplings:
                # Without oversampling there is nothing to choose from by scoring again.
                search = SearchParams(ef, oversampling, oversampling is not None)
                answers = asked[0].ask(index, name, vector_name, asked[1], search)
                found.append(
                    Setting(
                        quantization,
                        ef,
                        oversampling,
                        answers.recall_by_modality,
                        round(float(np.median(answers.times_ms)), 3),
                        num_numbers * _BITS[quantization] // 8,
                        disk_bytes,
                    )
                )
                progress.advance()
    finally:
        progress.close()
    return found
