"""Drop sounds that were sampled too slowly; every other rate is resampled when it is used."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from coembed.curation.candidate import Candidate
from coembed.curation.filters.base import Filter, Verdict
from coembed.settings import ComponentSettings


class Settings(ComponentSettings):
    """`min_rate_hz`: the lowest sample rate that stays; null drops none, because a telephone's
    8,000 Hz can be all that there is of a sound. Half the rate is the highest pitch it can hold."""

    name: Literal["audio_rate"] = "audio_rate"
    min_rate_hz: int | None = Field(default=None, ge=1)

    def build(self) -> Filter:
        """Make the filter."""
        return AudioRate(self.min_rate_hz)


class AudioRate(Filter):
    """Looks at the header only. Other modalities pass."""

    reasons = ("low_sample_rate",)

    def __init__(self, min_rate_hz: int | None) -> None:
        self._min_rate_hz = min_rate_hz

    def judge(self, candidate: Candidate) -> Verdict:
        """Judge the sample rate."""
        rate_hz = candidate.facts.sample_rate_hz
        if rate_hz is None or self._min_rate_hz is None or rate_hz >= self._min_rate_hz:
            return Verdict()
        return Verdict("low_sample_rate", f"{rate_hz:,} Hz < {self._min_rate_hz:,} Hz")
