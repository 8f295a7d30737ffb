"""Embed: a model and the curated pairs → the corpus's embeddings, ready for an index."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
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
from coembed.types import MODALITIES, Modality, Sample, Split


def run(cfg: Config, *, model: Path, pairs: Path, out: Path, runs: Path) -> Result:
    """Embed the items of `embed.splits` of the curated pairs at `pairs` with the model `model`.

    Writes part-00000.parquet, part-00001.parquet ... and receipt.json into `out`. Whole parts wait
    in `runs`/embed/<key>/ until then, so that a killed run goes on where it was.

    Raises:
        DataError: an empty corpus, one that cannot be decoded at all, or a damaged shard.
        ModelError: no usable model, or one without a tower that the settings name.
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
    modalities = _modalities(encoder, settings)
    key = {
        "fingerprint": encoder.fingerprint,
        "device": encoder.device.type,
        "pairs": sha256_file(pairs / RECEIPT),  # it holds the hashes of the shards
        "settings": settings.model_dump(mode="json", exclude={"device"}),
        "code": code_hash("embedding", "modalities", "models"),
    }
    work = runs / "embed" / sha256_json(key)[:16]
    with exclusive(work / "lock", doing="embedding this very corpus", wait=False):
        corpus = _Corpus(pairs, settings.splits, modalities)
        embedded = _embed(encoder, settings, corpus, work, total=total)
        receipt = _receipt(encoder, settings, embedded)
        with atomic_folder(out) as folder:
            assemble(embedded, work, folder)
            write_receipt(folder, receipt)
        shutil.rmtree(work)
    rows = (
        ("items", f"{embedded.num_items:,}"),
        *_by_modality(embedded, corpus, encoder),
        ("dimension", str(encoder.embed_dim)),
        ("parts", f"{len(embedded.parts):,} ({embedded.num_resumed:,} from an earlier run)"),
        ("unreadable", f"{len(embedded.unreadable):,}"),
        ("model", encoder.fingerprint[:12]),
    )
    return Result("Embedded corpus", rows, receipt)


def _modalities(encoder: Encoder, settings: EmbedSettings) -> tuple[Modality, ...]:
    """What is embedded: what the settings name, else all items that the model has a tower for."""
    if settings.modalities is None:
        # Texts are what items are searched with, not items themselves.
        return tuple(name for name in MODALITIES if name in encoder.modalities and name != "text")
    for modality in settings.modalities:
        if modality not in encoder.modalities:
            raise ModelError(
                f"embed.modalities names {modality}, but the model encodes "
                f"{' and '.join(encoder.modalities)} only",
                hint="take it out of embed.modalities, or embed with another model",
            )
    return settings.modalities


class _Corpus:
    """The items to embed, in order. What is of other modalities is counted in `left_out`."""

    def __init__(
        self, pairs: Path, splits: Sequence[Split], modalities: Sequence[Modality]
    ) -> None:
        self._pairs, self._splits = pairs, splits
        self.modalities = modalities
        self.left_out: Counter[Modality] = Counter()

    def __iter__(self) -> Iterator[tuple[Split, Sample]]:
        self.left_out.clear()
        for split in self._splits:
            for sample in read_samples(self._pairs, split):
                if sample.modality in self.modalities:
                    yield split, sample
                else:
                    self.left_out[sample.modality] += 1


def _embed(
    encoder: Encoder, settings: EmbedSettings, corpus: _Corpus, work: Path, *, total: int
) -> EmbeddedCorpus:
    loaders = {modality: encoder.spec.loader(modality) for modality in corpus.modalities}
    task = tracker(total=total, label="embed", unit="items")
    try:
        embedded = embed_parts(
            corpus,
            encoder.encode,
            lambda modality, media: loaders[modality].load([media]),
            dim=encoder.embed_dim,
            batch_size=settings.batch_size,
            part_size=settings.part_size,
            work=work,
            advance=task.advance,
        )
    finally:
        task.close()
    if not embedded.num_items:
        raise _nothing_embedded(embedded, corpus)
    return embedded


def _by_modality(
    embedded: EmbeddedCorpus, corpus: _Corpus, encoder: Encoder
) -> list[tuple[str, str]]:
    """Rows of the result where there is more than one modality to speak of."""
    rows = []
    if len(embedded.modalities) > 1:
        rows = [(f"  {name}", f"{num:,}") for name, num in embedded.modalities.items()]
    for name, num in sorted(corpus.left_out.items()):
        why = "embed.modalities" if name in encoder.modalities else f"the model has no {name} tower"
        why = "texts are queries, not items" if name == "text" else why
        rows.append((f"  {name}, left out", f"{num:,} ({why})"))
    return rows


def _nothing_embedded(embedded: EmbeddedCorpus, corpus: _Corpus) -> DataError:
    if not embedded.unreadable:
        there = " and ".join(sorted(corpus.left_out))
        return DataError(
            f"no item is of modality {' or '.join(corpus.modalities)}, all are of {there}: "
            "no corpus",
            hint="name the modality of your items in embed.modalities, or embed with a model that "
            "has a tower for it",
        )
    first = embedded.unreadable[0]
    return DataError(
        f"none of the {len(embedded.unreadable):,} items can be decoded; the first is "
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
