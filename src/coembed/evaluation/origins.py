"""Where an evaluation comes from: its data in numbers, and the hashes of all that made the model.

Read from what stands beside the model and the pairs: model.json, the receipts, summary.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from coembed.files import RECEIPT, read_json, read_receipt, sha256_file
from coembed.models.checkpoint import read_card
from coembed.types import MODALITIES, SPLITS, Modality, Split, plural

_Value = TypeVar("_Value")

_SUMMARY = "summary.json"
# What `identity` of model.json calls the parts of a model's making, in a person's words.
_MADE_OF = {
    "pairs": "training pairs (receipt)",
    "params": "training settings",
    "code": "training code",
    "model": "architecture",
    "start": "weights at the start",
    "teacher": "teacher model",
    "seed": "seed",
    "precision": "training precision",
}
_USED_FOR: Mapping[Split, str] = {
    "train": "training",
    "val": "watching the training",
    "test": "kept apart",
}


@dataclass(frozen=True, slots=True)
class SplitRow:
    """One split of the curated pairs. `num_captions` is None where nobody counted."""

    split: str
    num_items: int
    num_captions: int | None
    used_for: str


@dataclass(frozen=True, slots=True)
class Origins:
    """What the page says of data and lineage: sentences, the splits, and (label, value) rows."""

    sentences: tuple[str, ...]
    splits: tuple[SplitRow, ...]
    lineage: tuple[tuple[str, str], ...]


def read_origins(
    *, model: Path, pairs: Path, split: Split, evaluation_set: str, fingerprint: str
) -> Origins:
    """Origins of the evaluation of `model` on `split` of `pairs`.

    What a folder made elsewhere lacks (summary.json, the training's receipt, an identity) is left
    out.

    Raises:
        DataError: a file that is there and cannot be read.
        ModelError: no readable model.json.
    """
    receipt = read_receipt(pairs, what="set of curated pairs", made_by="coembed curate")
    has_summary = (pairs / _SUMMARY).is_file()
    summary = read_json(pairs / _SUMMARY, what="summary of the pairs") if has_summary else {}
    card = read_card(model)
    trained = (
        read_receipt(model, what="model", made_by="coembed train")
        if (model / RECEIPT).is_file()
        else {}
    )
    these = card.identity.get("pairs") == sha256_file(pairs / RECEIPT)
    sentences = [*_pool(summary), *_training(trained, card.identity, these=these)]
    return Origins(
        tuple(sentences),
        tuple(_splits(receipt, summary, evaluated=split)),
        (
            ("embedding space (fingerprint)", fingerprint),
            ("weights (SHA-256)", card.weights_sha256),
            ("evaluation set", evaluation_set),
            *(
                (label, str(card.identity[name]))
                for name, label in _MADE_OF.items()
                if name in card.identity
            ),
        ),
    )


def _pool(summary: Mapping[str, Any]) -> Iterator[str]:
    """What became of the pool's pairs."""
    if "num_pairs" not in summary:
        return
    kinds = [
        f"{found['num_kept']:,} of {found['num_pairs']:,} with {plural(modality)}"
        for modality, found in _in_order(summary.get("modalities", {}))
    ]
    yield (
        f"The pool held {summary['num_pairs']:,} pairs; {summary['num_kept']:,} of them were kept"
        + (f" ({' and '.join(kinds)})." if kinds else ".")
    )
    dropped = sorted(
        ((count, reason) for reason, count in summary.get("dropped", {}).items() if count),
        key=lambda entry: (-entry[0], entry[1]),
    )
    if dropped:
        most = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for count, reason in dropped[:5])
        yield f"Dropped most often for: {most}."


def _training(
    receipt: Mapping[str, Any], identity: Mapping[str, Any], *, these: bool
) -> Iterator[str]:
    """What the model was trained on."""
    kinds: Mapping[Modality, int] = receipt.get("num_items_by_modality", {})
    if kinds:
        counted = " and ".join(f"{num:,} {plural(kind)}" for kind, num in _in_order(kinds))
        yield (
            f"The model was trained on {counted}: {receipt['num_steps']:,} optimiser steps of "
            f"{receipt['batch_size']:,} pairs."
        )
    if "pairs" in identity:
        yield (
            "Its training pairs and the evaluated ones come from one and the same curation."
            if these
            else "Its training pairs come from another curation than the evaluated ones."
        )


def _in_order(values: Mapping[Modality, _Value]) -> list[tuple[Modality, _Value]]:
    """Entries by modality, in the order of reports."""
    return [(modality, values[modality]) for modality in MODALITIES if modality in values]


def _splits(
    receipt: Mapping[str, Any], summary: Mapping[str, Any], *, evaluated: Split
) -> Iterator[SplitRow]:
    captions = summary.get("splits", {})
    for split in SPLITS:
        num_items = receipt.get("splits", {}).get(split, {}).get("num_items", 0)
        used_for = _USED_FOR[split]
        if split == evaluated:
            used_for = f"{used_for}; this evaluation" if split != "test" else "this evaluation"
        yield SplitRow(split, num_items, captions.get(split, {}).get("num_captions"), used_for)
