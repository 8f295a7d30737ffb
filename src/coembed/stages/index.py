"""index: embeddings become a verified collection of a model version. No alias moves here."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from coembed.config import Config
from coembed.errors import UserError
from coembed.files import read_receipt, write_json
from coembed.index.build import Release, build
from coembed.index.points import read_columns, read_points
from coembed.index.qdrant import open_index
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
    release = Release(
        model=registered.name,
        version=version,
        fingerprint=registered.fingerprint,
        precision=registered.precision,
        corpus=str(embedded["corpus_hash"]),
        num_items=int(embedded["num_items"]),
        dim=int(embedded["dim"]),
        columns=read_columns(embeddings),
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
        )
    receipt = {
        "collection": built.collection,
        "model": release.model,
        "version": version,
        "fingerprint": release.fingerprint,
        "corpus": release.corpus,
        "num_items": built.num_items,
        "num_verified": built.search.num_queries,
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
            ("verified", f"exact count, {built.search.num_queries} items read back and found"),
            ("Recall@10 of the search", f"{built.search.recall_at_10:.3f} of a full scan's"),
            ("one query", f"p50 {built.search.p50_ms:.1f} ms, p95 {built.search.p95_ms:.1f} ms"),
        ),
        receipt,
    )
