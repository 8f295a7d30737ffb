"""A recording: all that decides the bytes of a sound, and the session in which it is played."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from coembed.pairs.shop.seeds import stream
from coembed.pairs.shop.sounds.waves import Signal, band

Pitch = Literal["low", "high"]
Tempo = Literal["slow", "fast"]
Place = Literal["outdoors", "room", "hall"]
Ending = Literal["flac", "wav"]


@dataclass(frozen=True, slots=True)
class Recording:
    """Two equal recordings are the same bytes.

    `source_seed` is that of what sounds (two takes share it), `take_seed` that of how it is played.
    `pitch` and `tempo` are None where the kind has none to speak of. `peak_dbfs`: level of the
    loudest sample; `snr_db`: by how much it is above the background's loudest.
    """

    source_seed: str
    take_seed: str
    kind: str
    manner: str
    pitch: Pitch | None
    tempo: Tempo | None
    place: Place
    length_s: float
    rate_hz: int
    num_channels: int
    peak_dbfs: float
    snr_db: float
    ending: Ending


class Session:
    """One take while it is played: its clock, its dice, and how high and how fast to play.

    `source` rolls what belongs to the thing that sounds, `play` what differs from take to take.
    """

    def __init__(self, recording: Recording) -> None:
        self.manner = recording.manner
        self.rate_hz = recording.rate_hz
        self.num = round(recording.length_s * recording.rate_hz)
        self.source = stream(recording.source_seed, "source")
        self.play = stream(recording.take_seed, "play")
        # Low and high, slow and fast leave a gap between them that can be heard.
        self._height = _spread(self.source, recording.pitch, low="low")
        self._pace = _spread(self.source, recording.tempo, low="slow")

    @cached_property
    def _generator(self) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(self.play.getrandbits(128)))

    def hz(self, low: float, high: float) -> float:
        """A frequency of the thing that sounds: in the lower third of the range where it is low, in
        the upper third where it is high."""
        return float(low * (high / low) ** self._height)

    def per_s(self, slow: float, fast: float) -> float:
        """How often a second something happens."""
        return float(slow * (fast / slow) ** self._pace)

    def samples(self, seconds: float) -> int:
        """How many samples last so long."""
        return max(1, round(seconds * self.rate_hz))

    def noise(self, num: int | None = None) -> Signal:
        """White noise, even between -1 and 1."""
        drawn: Signal = self._generator.random(self.num if num is None else num)
        return 2 * drawn - 1

    def hiss(self, low_hz: float, high_hz: float, num: int | None = None) -> Signal:
        """Noise between two frequencies."""
        return band(self.noise(num), self.rate_hz, low_hz, high_hz)

    def silence(self) -> Signal:
        """As long as the take."""
        return np.zeros(self.num)

    def beats(self, per_s: float, jitter: float = 0.04) -> list[int]:
        """Places of events in time, some `jitter` of their distance off; one at least."""
        distance = self.rate_hz / per_s
        at = self.play.uniform(0.05, 0.35) * min(distance, self.rate_hz)
        found = [round(at)]
        at += distance
        while at < self.num - 0.03 * self.rate_hz:
            found.append(round(at + self.play.uniform(-jitter, jitter) * distance))
            at += distance
        return found

    def scattered(self, per_s: float) -> list[int]:
        """Places of events at random."""
        num = max(1, round(per_s * self.num / self.rate_hz * self.play.uniform(0.9, 1.1)))
        return sorted(self.play.randrange(self.num) for _ in range(num))

    def wobble(self, per_s: float, depth: float) -> Signal:
        """A slow random change around 1, by up to `depth`."""
        num = max(2, round(per_s * self.num / self.rate_hz) + 2)
        values = [1 + self.play.uniform(-depth, depth) for _ in range(num)]
        path: Signal = np.interp(np.linspace(0, num - 1, self.num), np.arange(num), values)
        return path


def _spread(rng: random.Random, value: str | None, *, low: str) -> float:
    drawn = rng.random()
    if value is None:
        return 0.35 + 0.3 * drawn
    return drawn * 0.3 if value == low else 0.7 + drawn * 0.3
