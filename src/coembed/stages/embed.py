"""Embed: a model and the curated pairs → the corpus's embeddings, ready for an index."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

from coembed.code import code_hash
from coembed.config import Config
from coembed.embedding.corpus import Corpus, list_corpus
from coembed.embedding.fill import fill_items, fill_texts, num_without_vector
from coembed.embedding.parts import Part, write_parts
from coembed.embedding.queries import (
    CALIBRATION,
    QUERIES,
    Asked,
    choose_queries,
    write_calibration,
    write_queries,
)
from coembed.embedding.settings import EmbedSettings, Share
from coembed.embedding.store import StaleVectorsError, VectorStore
from coembed.errors import DataError, ModelError, ServiceError
from coembed.files import atomic_folder, sha256_file, sha256_json, write_receipt
from coembed.locking import exclusive
from coembed.models.encoder import Encoder, load_encoder
from coembed.pairs.shards import num_samples
from coembed.progress import tracker
from coembed.stages.result import Result
from coembed.types import MODALITIES, Modality

_LOCK: Final = "lock"
# Beside coembed's own code, what may change the bits of a vector.
_LIBRARIES: Final = (
    "torch", "open_clip_torch", "timm", "numpy", "pillow", "simplejpeg", "soundfile", "soxr",
)  # fmt: skip
# What the encoder is made of, but not what else lies in those rooms (a test holds this).
ENCODER_CODE: Final = (
    "modalities",
    "models/architecture", "models/build", "models/checkpoint", "models/encoder",
    "models/hf_checkpoint", "models/joint", "models/pretrained", "models/settings", "models/spec",
)  # fmt: skip


def run(
    cfg: Config, *, model: Path, pairs: Path, out: Path, runs: Path, share: Share | None = None
) -> Result:
    """Embed the items of `embed.splits` of the curated pairs at `pairs` with the model `model`.

    Writes part-00000.parquet, part-00001.parquet ..., queries.parquet, calibration.json and
    receipt.json into `out`. Vectors wait in `runs`/embed/<key>/: those that a killed run has made,
    and those of the last corpus, so that only new and changed items are embedded. What comes out is
    the same bytes either way.

    With `share` (K, N) only share K of N of the items is embedded, for as many processes or
    machines that share `runs`; nothing is written to `out` until a run without it.

    Raises:
        DataError: an empty corpus, one that cannot be decoded at all, or a damaged shard.
        ModelError: no usable model, or one without a tower that the settings name.
        ServiceError: another process embeds with this very model.
    """
    settings = cfg.embed
    encoder = load_encoder(
        model,
        device=settings.device,
        precision=settings.precision,
        batch_size=settings.batch_size,
    )
    return embed_corpus(encoder, settings, pairs=pairs, out=out, runs=runs, share=share)


def embed_corpus(
    encoder: Encoder,
    settings: EmbedSettings,
    *,
    pairs: Path,
    out: Path,
    runs: Path,
    share: Share | None = None,
) -> Result:
    """What `run` does, with an encoder that is loaded already."""
    if not sum(num_samples(pairs, split) for split in settings.splits):
        raise DataError(
            f"the splits {', '.join(settings.splits)} of {pairs} have no items: no corpus",
            hint="name other splits in embed.splits",
        )
    modalities = _modalities(encoder, settings)
    folder = runs / "embed" / _key(encoder, settings)
    name = _LOCK if share is None else f"{_LOCK}-{share[0]}-of-{share[1]}"
    with exclusive(folder / name, doing="embedding with this very model", wait=False):
        rows = folder / f"rows{name.removeprefix(_LOCK)}"
        shutil.rmtree(rows, ignore_errors=True)
        rows.mkdir()
        corpus = list_corpus(
            pairs, settings.splits, modalities, part_size=settings.part_size, folder=rows
        )
        if not corpus.files:
            raise _other_modalities(corpus, modalities)
        try:
            return _embed(encoder, settings, corpus, folder, out, share)
        except StaleVectorsError as error:
            print(f"embed: {error}; everything is embedded again", file=sys.stderr, flush=True)
            VectorStore(folder, dim=encoder.embed_dim).forget()
            return _embed(encoder, settings, corpus, folder, out, share)
        finally:
            shutil.rmtree(rows)
            if share is None:
                _prune(folder, settings.kept_models)


def _embed(
    encoder: Encoder,
    settings: EmbedSettings,
    corpus: Corpus,
    folder: Path,
    out: Path,
    share: Share | None,
) -> Result:
    store = VectorStore(folder, dim=encoder.embed_dim)
    unreadable, num_embedded = _fill(store, encoder, settings, corpus, share)
    if share is not None:
        return _share_result(encoder, share, num_embedded, unreadable)
    if len(unreadable) == sum(corpus.num_items.values()):
        raise _nothing_decoded(corpus, unreadable)
    asked = choose_queries(
        corpus,
        unreadable,
        num_queries=settings.num_queries,
        canaries=settings.canaries,
        with_texts="text" in encoder.modalities,
    )
    texts = asked.texts()
    if texts:
        fill_texts(store, encoder, texts, block_size=settings.part_size)
    changes = store.changes(corpus)
    with atomic_folder(out) as partial:
        parts = write_parts(corpus, store, unreadable, partial)
        write_queries(partial / QUERIES, asked, store, dim=encoder.embed_dim)
        write_calibration(partial / CALIBRATION, asked, corpus, store)
        receipt = _receipt(encoder, settings, corpus, parts, asked, partial)
        write_receipt(partial, receipt)
    store.keep(corpus, out, list(texts))
    # What this run found done already is no part of what it made: that is the same without it.
    return _result(encoder, corpus, receipt, {**changes, "embedded": num_embedded})


def _fill(
    store: VectorStore,
    encoder: Encoder,
    settings: EmbedSettings,
    corpus: Corpus,
    share: Share | None,
) -> tuple[dict[str, str], int]:
    """Give every item a vector. Returns the reasons of those that have none, by id, and how many
    were embedded."""
    missing = {name: num_without_vector(store, corpus, name, share) for name in corpus.num_items}
    task = tracker(total=sum(missing.values()), label="embed", unit="items")
    unreadable: dict[str, str] = {}
    try:
        for modality in corpus.num_items:
            unreadable |= fill_items(
                store,
                encoder,
                corpus,
                modality,
                block_size=settings.part_size,
                share=share,
                advance=task.advance,
            )
    finally:
        task.close()
    return unreadable, sum(missing.values()) - len(unreadable)


def _key(encoder: Encoder, settings: EmbedSettings) -> str:
    """The name of the folder in which vectors of just these bits wait."""
    device = encoder.device.type
    key = {
        "fingerprint": encoder.fingerprint,
        "batch_size": settings.batch_size,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "num_threads": torch.get_num_threads(),  # the kernels split their work by it
        "libraries": {name: version(name) for name in _LIBRARIES},
        "code": code_hash(*ENCODER_CODE),
    }
    return sha256_json(key)[:16]


def _prune(folder: Path, kept: int) -> None:
    """Remove the vectors of all models but the `kept` that were used last."""
    (folder / _LOCK).touch()
    others = [path for path in folder.parent.iterdir() if path != folder and path.is_dir()]
    others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for other in others[kept - 1 :]:
        # Another process may be using it; it is removed next time.
        with suppress(ServiceError), exclusive(other / _LOCK, doing="embedding", wait=False):
            shutil.rmtree(other)


def _modalities(encoder: Encoder, settings: EmbedSettings) -> tuple[Modality, ...]:
    """What is embedded: what the settings name, else all items that the model has a tower for."""
    if settings.canaries and "text" not in encoder.modalities:
        raise ModelError(
            "embed.canaries are texts, but the model has no text tower",
            hint="take them out of params.yaml",
        )
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


def _receipt(
    encoder: Encoder,
    settings: EmbedSettings,
    corpus: Corpus,
    parts: Sequence[Part],
    asked: Asked,
    folder: Path,
) -> dict[str, Any]:
    return {
        "stage": "embed",
        "num_items": sum(part.num_items for part in parts),
        "dim": encoder.embed_dim,
        "fingerprint": encoder.fingerprint,
        "precision": settings.precision,
        "corpus_hash": corpus.content_hash,
        "splits": list(settings.splits),
        "parts": [
            {"file": part.file, "num_items": part.num_items, "sha256": part.sha256}
            for part in parts
        ],
        "queries": {
            "file": QUERIES,
            "num_samples": len(asked.samples()),
            "num_canaries": len(asked.canaries),
            "split": asked.split,
            "sha256": sha256_file(folder / QUERIES),
        },
        "calibration": {"file": CALIBRATION, "sha256": sha256_file(folder / CALIBRATION)},
        "unreadable": [asdict(item) for part in parts for item in part.unreadable],
    }


def _result(
    encoder: Encoder, corpus: Corpus, receipt: dict[str, Any], changes: dict[str, int]
) -> Result:
    queries = receipt["queries"]
    rows = (
        ("items", f"{receipt['num_items']:,}"),
        *_by_modality(corpus, receipt, encoder),
        ("  new", f"{changes['new']:,}"),
        ("  unchanged", f"{changes['unchanged']:,}"),
        ("  changed captions or attributes only", f"{changes['changed']:,}"),
        ("  removed since the last corpus", f"{changes['removed']:,}"),
        ("embedded in this run", f"{changes['embedded']:,}"),
        ("dimension", str(encoder.embed_dim)),
        ("parts", f"{len(receipt['parts']):,}"),
        ("queries", f"{queries['num_samples']:,} captions, {queries['num_canaries']:,} canaries"),
        ("unreadable", f"{len(receipt['unreadable']):,}"),
        ("model", encoder.fingerprint[:12]),
    )
    return Result("Embedded corpus", rows, {**receipt, "changes": changes})


def _share_result(
    encoder: Encoder, share: Share, num_embedded: int, unreadable: dict[str, str]
) -> Result:
    rows = (
        ("embedded in this run", f"{num_embedded:,}"),
        ("unreadable", f"{len(unreadable):,}"),
        ("model", encoder.fingerprint[:12]),
    )
    receipt = {"share": list(share), "embedded": num_embedded, "unreadable": len(unreadable)}
    return Result(f"Embedded share {share[0]} of {share[1]}", rows, receipt)


def _by_modality(
    corpus: Corpus, receipt: dict[str, Any], encoder: Encoder
) -> list[tuple[str, str]]:
    """Rows of the result where there is more than one modality to speak of."""
    rows = []
    if len(corpus.num_items) > 1:
        lost = {item["item_id"] for item in receipt["unreadable"]}
        rows = [(f"  {name}", f"{num:,}") for name, num in corpus.num_readable(lost).items()]
    for name, num in sorted(corpus.left_out.items()):
        why = "embed.modalities" if name in encoder.modalities else f"the model has no {name} tower"
        why = "texts are queries, not items" if name == "text" else why
        rows.append((f"  {name}, left out", f"{num:,} ({why})"))
    return rows


def _other_modalities(corpus: Corpus, modalities: Sequence[Modality]) -> DataError:
    there = " and ".join(sorted(corpus.left_out))
    return DataError(
        f"no item is of modality {' or '.join(modalities)}, all are of {there}: no corpus",
        hint="name the modality of your items in embed.modalities, or embed with a model that "
        "has a tower for it",
    )


def _nothing_decoded(corpus: Corpus, unreadable: dict[str, str]) -> DataError:
    first = next(iter(corpus.tables())).slice(0, 1).to_pylist()[0]
    return DataError(
        f"none of the {len(unreadable):,} items can be decoded; the first is "
        f"{first['path']!r}: {unreadable[first['item_id']]}",
        hint="run `coembed curate` again: it drops what cannot be decoded",
    )
