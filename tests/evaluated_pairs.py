"""Curated pairs with a test split, and small models, for the tests of evaluation and embedding.

There are pictures (`catalogue`) and sounds, and models of two towers and of three.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
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

# The towers of SMALL_MODEL and one that hears half a second at 8 kHz.
THREE_TOWERS: dict[str, Any] = {
    "architecture": {
        **SMALL_MODEL["architecture"],
        "audio_cfg": {
            "timm_model_name": "test_resnet",
            "sample_rate_hz": 8_000,
            "clip_s": 0.5,
            "num_mels": 32,
        },
    }
}
# What makes a noise, as if it were a thing of the catalogue: pictures and sounds meet there.
NOISES = {"beep": "disc", "hiss": "bar", "clicks": "ring"}
_HZ = 8_000


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


def sounds(num: int, *, seed: int, extension: str = "wav") -> list[Sample]:
    """`num` sounds of a quarter to a whole second with noise, pitch and the shape that makes it."""
    rng = np.random.default_rng(seed)
    samples = []
    for place in range(num):
        noise, pitch = str(rng.choice(list(NOISES))), str(rng.choice(["low", "high"]))
        shape = NOISES[noise]
        media = encode_sound(make_noise(noise, pitch, rng), extension)
        samples.append(
            Sample(
                item_id=hashlib.sha256(media).hexdigest(),
                modality="audio",
                path=f"media/{seed}-{place}.{extension}",
                media=media,
                extension=extension,
                captions=(f"a {pitch} {noise}", f"{noise} of a {shape}, {pitch}"),
                pair_ids=(f"s{seed}-{place}-a", f"s{seed}-{place}-b"),
                attributes={"noise": noise, "pitch": pitch, "shape": shape},
            )
        )
    return samples


def make_noise(noise: str, pitch: str, rng: np.random.Generator) -> np.ndarray:
    """Samples at 8 kHz, full scale 1."""
    time = np.arange(rng.integers(_HZ // 4, _HZ)) / _HZ
    hz = rng.uniform(250, 400) * (4 if pitch == "high" else 1)
    tone = np.sin(2 * np.pi * hz * time)
    if noise == "beep":
        samples = tone * (np.sin(2 * np.pi * 6 * time) > 0)
    elif noise == "hiss":
        samples = tone * rng.normal(0, 0.3, len(time))
    else:
        samples = tone * np.exp(-60 * (time % 0.125))
    return (0.6 * samples + rng.normal(0, 0.003, len(time))).clip(-1, 1)


def encode_sound(samples: np.ndarray, extension: str = "wav") -> bytes:
    """A file of one channel at 8 kHz."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, _HZ, format=extension.upper())
    return buffer.getvalue()


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


def write_model(
    folder: Path, *, seed: int = 0, poison: bool = False, settings: dict[str, Any] = SMALL_MODEL
) -> Path:
    """A model directory with random weights; a poisoned one embeds everything as NaN."""
    folder.mkdir(parents=True)
    model, spec = build_model(ModelSettings.model_validate(settings), seed=seed)
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
