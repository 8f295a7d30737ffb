"""Embed: a model and the curated pairs → the corpus's embeddings, ready for an index."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coembed.code import code_hash
from coembed.config import Config
from coembed.embedding.parts import EmbeddedCorpus, assemble, embed_parts
from coembed.embedding.settings import EmbedSettings
from coembed.errors import DataError, ModelError
from coembed.files import RECEIPT, atomic_folder, sha256_file, sha256_json, write_receipt
from coembed.locking import exclusive
from coembed.models.encoder import Encoder, load_encoder
from coembed.pairs.shards import num_samples, read_samples
from coembed.progress import tracker
from coembed.stages.result import Result
from coembed.types import Sample, Split


def run(cfg: Config, *, model: Path, pairs: Path, out: Path, runs: Path) -> Result:
    """Embed the items of `embed.splits` of the curated pairs at `pairs` with the model `model`.

    Writes part-00000.parquet, part-00001.parquet ... and receipt.json into `out`. Whole parts wait
    in `runs`/embed/<key>/ until then, so that a killed run goes on where it was.

    Raises:
        DataError: an empty corpus, one that cannot be decoded at all, or a damaged shard.
        ModelError: no usable model, or one without a tower for the items' modality.
    """
    settings = cfg.embed
    encoder = load_encoder(
        model,
        device=settings.device,
        precision=settings.precision,
        batch_size=settings.batch_size,
    )
    total = sum(num_samples(pairs, split) for split in settings.splits)
    if total == 0:
        raise DataError(
            f"the splits {', '.join(settings.splits)} of {pairs} have no items: no corpus",
            hint="name other splits in embed.splits",
        )
    for modality in settings.modalities:
        if modality not in encoder.modalities:
            raise ModelError(
                f"embed.modalities names {modality}, but the model encodes "
                f"{' and '.join(encoder.modalities)} only",
                hint="take it out of embed.modalities, or embed with another model",
            )
    key = {
        "fingerprint": encoder.fingerprint,
        "device": encoder.device.type,
        "pairs": sha256_file(pairs / RECEIPT),  # it holds the hashes of the shards
        "settings": settings.model_dump(mode="json", exclude={"device"}),
        "code": code_hash("embedding", "modalities", "models"),
    }
    work = runs / "embed" / sha256_json(key)[:16]
    with exclusive(work / "lock", doing="embedding this very corpus", wait=False):
        embedded = _embed(encoder, settings, pairs, work, total=total)
        receipt = _receipt(encoder, settings, embedded)
        with atomic_folder(out) as folder:
            assemble(embedded, work, folder)
            write_receipt(folder, receipt)
        shutil.rmtree(work)
    rows = (
        ("items", f"{embedded.num_items:,}"),
        ("dimension", str(encoder.embed_dim)),
        ("parts", f"{len(embedded.parts):,} ({embedded.num_resumed:,} from an earlier run)"),
        ("unreadable", f"{len(embedded.unreadable):,}"),
        ("model", encoder.fingerprint[:12]),
    )
    return Result("Embedded corpus", rows, receipt)


def _embed(
    encoder: Encoder, settings: EmbedSettings, pairs: Path, work: Path, *, total: int
) -> EmbeddedCorpus:
    loader = encoder.spec.loader("image")
    task = tracker(total=total, label="embed", unit="items")
    try:
        embedded = embed_parts(
            _corpus(pairs, settings),
            encoder.encode_images,
            lambda media: loader.load([media]),
            dim=encoder.embed_dim,
            batch_size=settings.batch_size,
            part_size=settings.part_size,
            work=work,
            advance=task.advance,
        )
    finally:
        task.close()
    if not embedded.num_items:
        raise _nothing_embedded(embedded, settings, pairs)
    return embedded


def _corpus(pairs: Path, settings: EmbedSettings) -> Iterator[tuple[Split, Sample]]:
    for split in settings.splits:
        for sample in read_samples(pairs, split):
            if sample.modality in settings.modalities:
                yield split, sample


def _nothing_embedded(corpus: EmbeddedCorpus, settings: EmbedSettings, pairs: Path) -> DataError:
    if not corpus.unreadable:
        return DataError(
            f"no item of {pairs} is of modality {' or '.join(settings.modalities)}: no corpus",
            hint="name the modality of your items in embed.modalities",
        )
    first = corpus.unreadable[0]
    return DataError(
        f"none of the {len(corpus.unreadable):,} items can be decoded; the first is "
        f"{first.path!r}: {first.reason}",
        hint="run `coembed curate` again: it drops what cannot be decoded",
    )


def _receipt(encoder: Encoder, settings: EmbedSettings, embedded: EmbeddedCorpus) -> dict[str, Any]:
    return {
        "stage": "embed",
        "num_items": embedded.num_items,
        "dim": encoder.embed_dim,
        "fingerprint": encoder.fingerprint,
        "precision": settings.precision,
        "corpus_hash": embedded.content_hash,
        "splits": list(settings.splits),
        "parts": [
            {"file": part.file, "num_items": part.num_items, "sha256": part.sha256}
            for part in embedded.parts
        ],
        "unreadable": [asdict(item) for item in embedded.unreadable],
    }
