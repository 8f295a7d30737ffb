"""Curated pairs with a test split, and small models, for the tests of evaluation and embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from training_pairs import SMALL_MODEL, make_samples

from coembed.config import Config, parse_config
from coembed.files import write_receipt
from coembed.models.build import build_model
from coembed.models.checkpoint import save_model
from coembed.models.settings import ModelSettings
from coembed.pairs.shards import ShardWriter
from coembed.types import Sample

# (colour, shape) that a catalogue could keep out of training.
UNSEEN = {("red", "ring"), ("blue", "bar")}


def catalogue(num: int, *, seed: int) -> list[Sample]:
    """`num` items of coloured shapes with colour, shape, composition and price."""
    return [
        replace(
            sample,
            attributes={
                **sample.attributes,
                "composition": "unseen"
                if (sample.attributes["colour"], sample.attributes["shape"]) in UNSEEN
                else "seen",
                "price": 1.5 * place,
            },
        )
        for place, sample in enumerate(make_samples(num, seed=seed))
    ]


def write_pairs(folder: Path, *, shard_items: int = 50, **splits: Sequence[Sample]) -> Path:
    """Curated pairs as the curate stage leaves them."""
    folder.mkdir(parents=True)
    receipt = {}
    for split in ("train", "val", "test"):
        samples = splits.get(split, ())
        with ShardWriter(folder, split, max_samples=shard_items, max_bytes=1 << 30) as writer:
            for sample in samples:
                writer.write(sample)
        shards = [shard.as_dict() for shard in writer.shards]
        receipt[split] = {"num_items": len(samples), "shards": shards}
    write_receipt(folder, {"splits": receipt})
    return folder


def write_model(folder: Path, *, seed: int = 0, poison: bool = False) -> Path:
    """A model directory with random weights; a poisoned one embeds everything as NaN."""
    folder.mkdir(parents=True)
    model, spec = build_model(ModelSettings.model_validate(SMALL_MODEL), seed=seed)
    if poison:
        with torch.no_grad():
            for parameter in model.towers["image"].parameters():
                parameter.fill_(torch.nan)
    save_model(folder, model, spec, {"made_by": "a test"})
    return folder


def make_config(**sections: dict[str, Any]) -> Config:
    """A whole config on the CPU with what `sections` say."""
    values: dict[str, Any] = {
        "seed": 1,
        "model": SMALL_MODEL,
        "curate": {},
        "train": {},
        "evaluate": {"device": "cpu", "batch_size": 16},
        "embed": {"device": "cpu", "batch_size": 8, "part_size": 16},
        "register": {},
        "index": {},
        "promote": {},
    }
    for name, section in sections.items():
        values[name] = {**values[name], **section}
    return parse_config(values)


def tree_bytes(folder: Path) -> dict[str, bytes]:
    """Contents of all files under `folder`, by relative name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
