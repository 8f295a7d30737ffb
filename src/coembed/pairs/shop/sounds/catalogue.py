"""Which recordings are made: every kind as often as every other, one or two takes of each."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from coembed.pairs.shop.seeds import stream
from coembed.pairs.shop.sounds.kinds import KINDS
from coembed.pairs.shop.sounds.recording import Pitch, Recording, Tempo

# What sound libraries deliver, most of it at the rate that speech and sound models take.
_RATES_HZ = (16_000,) * 17 + (22_050,) * 2 + (44_100,)
_MAX_S = 6.0


@dataclass(frozen=True, slots=True)
class Take:
    """One take of a recording."""

    product_id: str
    recording: Recording


def takes(seed: int) -> Iterator[list[Take]]:
    """Endless recordings, each as its takes."""
    rng = stream(seed, "sounds")
    kinds = list(KINDS)
    number = 0
    while True:
        rng.shuffle(kinds)
        for kind in kinds:
            yield _takes(seed, number, kind)
            number += 1


def _takes(seed: int, number: int, name: str) -> list[Take]:
    kind = KINDS[name]
    rng = stream(seed, "recording", number)
    product_id = f"recording-{number:04d}"
    manner = rng.choice(sorted(kind.phrases))
    pitch: Pitch | None = rng.choice(("low", "high")) if manner in kind.pitched else None
    tempo: Tempo | None = rng.choice(("slow", "fast")) if manner in kind.paced else None
    place = rng.choice(kind.places)
    rate_hz = rng.choice(_RATES_HZ)
    is_wav = rng.random() < 0.08
    return [
        Take(
            product_id,
            Recording(
                source_seed=f"{seed}/{product_id}",
                take_seed=f"{seed}/{product_id}/{take}",
                kind=name,
                manner=manner,
                pitch=pitch,
                tempo=tempo,
                place=place,
                length_s=_length_s(rng, kind.min_s, slow=tempo == "slow"),
                rate_hz=rate_hz,
                num_channels=2 if is_wav and rng.random() < 0.4 else 1,
                peak_dbfs=round(rng.uniform(-24, -5), 1),
                snr_db=round(rng.uniform(30, 58), 1),
                ending="wav" if is_wav else "flac",
            ),
        )
        for take in range(rng.choice((1, 1, 2)))
    ]


def _length_s(rng: random.Random, min_s: float, *, slow: bool) -> float:
    """Mostly short; what is slow takes longer to be known as slow."""
    least = max(min_s, 1.8) if slow else min_s
    return round(least + (_MAX_S - least) * rng.random() ** 6, 2)
