"""index: embeddings become a verified collection of a model version. No alias moves here."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from coembed.config import Config
from coembed.errors import DataError, UserError
from coembed.files import read_receipt, sha256_file, write_json
from coembed.index.build import Built, build
from coembed.index.opening import open_index
from coembed.index.points import read_columns, read_points, read_vectors
from coembed.index.queries import read_calibration, read_queries
from coembed.index.release import Layout, Release
from coembed.registry.store import open_registry
from coembed.services import Services
from coembed.stages.result import Result


def run(cfg: Config, *, services: Services, embeddings: Path, version: int, out: Path) -> Result:
    """Build the collection of model version `version` from the embeddings in a folder.

    Building the same thing twice only verifies it again. Raises UserError when another model than
    that version made the embeddings. `out` is the receipt's file.
    """
    embedded = read_receipt(embeddings, what="embeddings", made_by="coembed embed")
    registered = open_registry(services, cfg.register_).version(version)
    if embedded["fingerprint"] != registered.fingerprint:
        raise UserError(
            f"the embeddings in {embeddings} were made by the model "
            f"{str(embedded['fingerprint'])[:12]}; version {version} of {registered.name!r} is "
            f"{registered.fingerprint[:12]}",
            hint="run `coembed embed` with that version's model, or index the version that made "
            "these embeddings",
        )
    _check_files(embeddings, embedded)
    release = Release(
        model=registered.name,
        version=version,
        fingerprint=registered.fingerprint,
        precision=registered.precision,
        corpus=str(embedded["corpus_hash"]),
        num_items=int(embedded["num_items"]),
        dim=int(embedded["dim"]),
        columns=read_columns(embeddings),
        calibration=read_calibration(embeddings),
        manifest={
            "parts": embedded["parts"],
            "num_items": int(embedded["num_items"]),
            "corpus": str(embedded["corpus_hash"]),
        },
        layout=Layout.of(cfg.index),
    )
    if release.num_items == 0:
        raise UserError(f"there is no item in {embeddings}", hint="is embed.splits right?")
    with open_index(services, cfg.index) as index:
        built = build(
            index,
            release,
            lambda: read_points(embeddings),
            alias=cfg.index.collection,
            settings=cfg.index,
            queries=read_queries(embeddings, dim=release.dim),
            vectors=lambda: read_vectors(embeddings),
        )
    loaded = built.loaded
    receipt = {
        "collection": built.collection,
        "model": release.model,
        "version": version,
        "fingerprint": release.fingerprint,
        "corpus": release.corpus,
        "num_items": built.num_items,
        "num_copied": loaded.num_copied,
        "num_written": loaded.num_written,
        "num_removed": loaded.num_removed,
        "base": loaded.base,
        "num_verified": built.search.num_read_back,
        "search": asdict(built.search),
        "already_built": built.already_built,
    }
    write_json(out, receipt)
    return Result(
        "The collection was built already" if built.already_built else "Built a collection",
        (
            ("collection", built.collection),
            ("model version", f"{release.model} v{version}"),
            ("items", f"{built.num_items:,}"),
            ("dimension", str(release.dim)),
            *_by_origin(built),
            ("verified", f"every item is there, {built.search.num_read_back:,} read back"),
            *(
                (f"Recall@10 of {modality} queries", f"{recall:.3f} of a full scan's")
                for modality, recall in built.search.recall_by_modality.items()
            ),
            *(
                (f"canary {canary.text!r}", f"met at rank {canary.rank}")
                for canary in built.search.canaries
            ),
            ("one query", f"p50 {built.search.p50_ms:.1f} ms, p95 {built.search.p95_ms:.1f} ms"),
        ),
        receipt,
    )


def _check_files(embeddings: Path, embedded: dict[str, Any]) -> None:
    """Raise DataError unless the parts are those that the receipt, and so the manifest, names."""
    for part in embedded["parts"]:
        path = embeddings / str(part["file"])
        if not path.exists() or sha256_file(path) != part["sha256"]:
            raise DataError(
                f"{path} is not the file that the receipt beside it names",
                hint="was it changed by hand? Run `coembed embed` again",
            )


def _by_origin(built: Built) -> list[tuple[str, str]]:
    """Rows on where the points came from, where that is worth saying."""
    loaded = built.loaded
    if built.already_built or not (loaded.num_copied or loaded.num_removed):
        return []
    source = f"from {loaded.base}" if loaded.base else "there already"
    return [
        ("  written", f"{loaded.num_written:,}"),
        ("  kept", f"{loaded.num_copied:,} ({source})"),
        ("  removed", f"{loaded.num_removed:,}"),
    ]
