"""tune: what quantisation and search settings cost and find, measured on the embeddings."""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path

from coembed.config import Config
from coembed.files import read_receipt
from coembed.index.opening import open_index
from coembed.index.points import read_columns, read_points, read_vectors
from coembed.index.queries import read_queries
from coembed.index.tune import Setting, Tuned, tune
from coembed.locking import exclusive
from coembed.services import Services
from coembed.stages.result import Listing

_NONE = "–"
_SCANNED_BYTES = 10_000 * 1024


def run(cfg: Config, *, services: Services, embeddings: Path, runs: Path) -> Listing:
    """Measure every setting on the embeddings in a folder and recommend one, changing nothing."""
    embedded = read_receipt(embeddings, what="embeddings", made_by="coembed embed")
    dim, num_items = int(embedded["dim"]), int(embedded["num_items"])
    lock = runs / "tune.lock"
    with exclusive(lock, doing="tuning the index", wait=False):
        tuned = tune(
            lambda settings: open_index(services, settings),
            lambda: read_points(embeddings),
            vector_name=f"item@{str(embedded['fingerprint'])[:8]}",
            dim=dim,
            columns=read_columns(embeddings),
            num_items=num_items,
            settings=cfg.index,
            queries=read_queries(embeddings, dim=dim),
            vectors=lambda: read_vectors(embeddings),
            holder=f"{platform.node()}:{lock.resolve()}",
        )
    return _listing(tuned, least=cfg.index.min_recall, small=num_items * dim * 4 < _SCANNED_BYTES)


def _listing(tuned: Tuned, *, least: float, small: bool) -> Listing:
    modalities = list(tuned.settings[0].recall_by_modality)
    best = tuned.best
    if best is None:
        advice = (
            f"no setting reaches index.min_recall ({least}): raise index.hnsw_m and "
            "index.hnsw_ef_construct"
        )
    else:
        advice = "recommended: " + " ".join(
            f"--set index.{key}={value}" for key, value in _as_settings(best).items()
        )
    title = f"{tuned.num_items:,} items, {tuned.num_queries} queries; {advice}"
    if small:
        title += "\nSo few items are scanned whole, without a graph: tune when there are more."
    return Listing(
        title,
        (
            "", "quantization", "ef", "oversampling", *(f"Recall@10 {name}" for name in modalities),
            "p50 ms", "memory", "disk",
        ),
        tuple(
            (
                "→" if one is best else "",
                one.quantization,
                str(one.ef),
                _NONE if one.oversampling is None else f"{one.oversampling:g}",
                *(f"{one.recall_by_modality[name]:.3f}" for name in modalities),
                f"{one.p50_ms:.2f}",
                _size(one.memory_bytes),
                _NONE if one.disk_bytes is None else _size(one.disk_bytes),
            )
            for one in tuned.settings
        ),
        {
            "num_items": tuned.num_items,
            "num_queries": tuned.num_queries,
            "min_recall": least,
            "settings": [asdict(one) for one in tuned.settings],
            "recommended": None if best is None else _as_settings(best),
        },
    )  # fmt: skip


def _as_settings(best: Setting) -> dict[str, object]:
    """As params.yaml has it, in the section `index`."""
    chosen: dict[str, object] = {"quantization": best.quantization, "search_ef": best.ef}
    if best.oversampling is not None:
        chosen["oversampling"] = best.oversampling
        chosen["rescore"] = True
    return chosen


def _size(num: int) -> str:
    return f"{num / 1e6:,.1f} MB"
