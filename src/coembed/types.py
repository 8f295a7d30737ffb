"""What passes between the rooms: Pair, Item, Sample, Hit.

Plain frozen values; no room's behaviour lives here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Modality = Literal["image", "text", "audio"]
Split = Literal["train", "val", "test"]
Attribute = str | int | float | bool

MODALITIES: tuple[Modality, ...] = ("image", "text", "audio")
SPLITS: tuple[Split, ...] = ("train", "val", "test")

_WORDS = {"image": ("image", "images"), "audio": ("sound", "sounds"), "text": ("text", "texts")}


@dataclass(frozen=True, slots=True)
class Pair:
    """One row of a pool: a media file and one caption of it.

    `path` is relative to the pool's folder, with forward slashes. `attributes` holds every column
    that the pool reader does not know; missing values are left out.
    """

    pair_id: str
    path: str
    caption: str
    modality: Modality = "image"
    split: Split | None = None
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """One curated item: its media bytes and all of its captions, as a shard holds it.

    `item_id` is the SHA-256 of `media` in hexadecimal. `captions[i]` came from pair `pair_ids[i]`.
    `extension` is the media type's usual file ending without a dot ("jpg", "png", "webp").
    """

    item_id: str
    modality: Modality
    path: str
    media: bytes
    extension: str
    captions: tuple[str, ...]
    pair_ids: tuple[str, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hit:
    """One search result. `score` is the cosine similarity, higher is better; `rank` starts at 1."""

    rank: int
    score: float
    item_id: str
    payload: Mapping[str, object]


def singular(modality: Modality) -> str:
    """What one item of a modality is called: an image, a sound."""
    return _WORDS[modality][0]


def plural(modality: Modality) -> str:
    """What several items of a modality are called: images, sounds."""
    return _WORDS[modality][1]
