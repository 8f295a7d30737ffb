"""The faults planted among the sounds, each known to truth.parquet and to nobody else."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import numpy as np

from coembed.pairs.shop.seeds import stream
from coembed.pairs.shop.sounds.catalogue import Take
from coembed.pairs.shop.sounds.recording import Recording, Session
from coembed.pairs.shop.sounds.render import clipped, encoded, quantised, render

# Sounds with each fault per thousand sounds; 80 in all.
SHARES: dict[str, int] = {
    "silent_sound": 10,
    "clipped_sound": 12,
    "short_sound": 10,
    "truncated": 10,
    "corrupt": 6,
    "exact_duplicate": 14,
    "swapped_caption": 18,
}
_DAMAGES: dict[str, tuple["Damage", ...]] = {
    "silent_sound": ("silent", "hiss"),
    "clipped_sound": ("clipped",),
    "short_sound": ("short",),
    "truncated": ("truncated",),
    "corrupt": ("garbage", "html", "empty"),
}

Damage = Literal[
    "", "silent", "hiss", "clipped", "short", "truncated", "garbage", "html", "empty"
]  # fmt: skip


@dataclass(slots=True)
class SoundItem:
    """One sound file of the pool while it is being planned."""

    take: Take
    damage: Damage = ""
    number: int = -1

    @property
    def path(self) -> str:
        """Known once the items are numbered."""
        ending = self.take.recording.ending
        return f"media/sounds/{self.number // 100:02d}/{self.number:06d}.{ending}"

    def media(self) -> bytes:
        """The bytes of the file."""
        return media(self.take.recording, self.damage)


@dataclass(slots=True)
class SoundRow:
    """One pair of a sound and a caption while it is being planned, and its fault if it has one."""

    item: SoundItem
    caption: str
    caption_number: int
    fault: str = ""
    partner: "SoundRow | None" = None
    detail: str = ""

    @property
    def pair_id(self) -> str:
        """Known once the items are numbered."""
        return f"sound-{self.item.number:06d}-{self.caption_number}"


def counts(num_sounds: int) -> dict[str, int]:
    """How many rows of each fault `num_sounds` files have; at least one of each."""
    wanted = {fault: max(1, round(num_sounds * share / 1000)) for fault, share in SHARES.items()}
    return {**wanted, "swapped_caption": max(2, wanted["swapped_caption"] // 2 * 2)}


def plant(seed: int, rows: list[SoundRow], num_sounds: int) -> list[SoundRow]:
    """Plant the faults in `rows` and append the duplicates; the result has `num_sounds` files.

    A fault goes only to a file with one caption, so that each fault is one row; a row gets one
    fault at most, and what a duplicate repeats has none.
    """
    rng = stream(seed, "sound faults")
    num = counts(num_sounds)
    captions_of: dict[int, int] = {}
    for row in rows:
        captions_of[id(row.item)] = captions_of.get(id(row.item), 0) + 1
    free = [row for row in rows if captions_of[id(row.item)] == 1]
    rng.shuffle(free)
    _swap(rng, free, num["swapped_caption"])
    for fault, damages in _DAMAGES.items():
        for index in range(num[fault]):
            row = free.pop()
            row.fault, row.item.damage = fault, damages[index % len(damages)]
            row.detail = row.item.damage
    copies = []
    for index in range(num["exact_duplicate"]):
        row = free.pop()
        caption = f"{row.caption}, once more" if index % 2 else row.caption
        item = SoundItem(row.item.take)
        copies.append(SoundRow(item, caption, 0, "exact_duplicate", row, "same bytes"))
    return [*rows, *copies]


def _swap(rng: random.Random, free: list[SoundRow], num: int) -> None:
    for _ in range(num // 2):
        one = free.pop()
        kind = one.item.take.recording.kind
        other = rng.choice([row for row in free if row.item.take.recording.kind != kind])
        free.remove(other)
        one.caption, other.caption = other.caption, one.caption
        for row, partner in ((one, other), (other, one)):
            row.fault, row.partner, row.detail = "swapped_caption", partner, partner.caption


def media(recording: Recording, damage: Damage) -> bytes:
    """The bytes of one file: the recording, or what is left of it."""
    rng = stream(recording.take_seed, "damage", damage)
    rate_hz, ending = recording.rate_hz, recording.ending
    if damage == "garbage":
        return rng.randbytes(rng.randrange(600, 4000))
    if damage == "html":
        return b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>\n"
    if damage == "empty":
        return b""
    if damage == "clipped":
        return encoded(clipped(recording, share=0.25), rate_hz, ending)
    if damage in ("silent", "hiss"):
        session = Session(recording)
        # The noise of an input that nothing is plugged into, at about -80 dBFS, or nothing at all.
        level = 1.7e-4 if damage == "hiss" else 0.0
        quiet = np.stack([session.noise() * level] * recording.num_channels, axis=1)
        return encoded(quantised(quiet), rate_hz, ending)
    samples = render(recording)
    if damage == "short":
        start = len(samples) // 4
        return encoded(samples[start : start + rate_hz * rng.randrange(8, 30) // 100],
                       rate_hz, ending)  # fmt: skip
    whole = encoded(samples, rate_hz, ending)
    return whole[: len(whole) * rng.randrange(40, 75) // 100] if damage else whole
