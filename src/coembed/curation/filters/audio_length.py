"""Drop sounds that are too short to hear anything, or too long for one caption."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from coembed.curation.candidate import Candidate
from coembed.curation.filters.base import Filter, Verdict
from coembed.settings import ComponentSettings


class Settings(ComponentSettings):
    """Bounds in seconds; both are guesses. A caption rarely speaks of more than some minutes, and
    half a second holds one event at least. Above an hour a sound is not even decoded."""

    name: Literal["audio_length"] = "audio_length"
    min_s: float = Field(default=0.5, ge=0)
    max_s: float = Field(default=300.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Settings:
        if self.min_s > self.max_s:
            raise ValueError(f"min_s ({self.min_s:g}) is above max_s ({self.max_s:g})")
        return self

    def build(self) -> Filter:
        """Make the filter."""
        return AudioLength(self.min_s, self.max_s)


class AudioLength(Filter):
    """Looks at the duration: as decoded where `readable` or `audio_level` is listed, else the
    header's. Other modalities pass, and sounds whose header does not say."""

    reasons = ("short_audio", "long_audio")

    def __init__(self, min_s: float, max_s: float) -> None:
        self._min_s = min_s
        self._max_s = max_s

    def judge(self, candidate: Candidate) -> Verdict:
        """Judge the duration."""
        seconds = candidate.facts.duration_s
        if seconds is None:
            return Verdict()
        if seconds < self._min_s:
            return Verdict("short_audio", f"{seconds:.4g} s < {self._min_s:g} s")
        if seconds > self._max_s:
            return Verdict("long_audio", f"{seconds:.4g} s > {self._max_s:g} s")
        return Verdict()
