"""Drop sounds that are silent, or that were recorded so loud that they are mostly clipped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from coembed.curation.candidate import Candidate
from coembed.curation.filters.base import Cell, ColumnType, Filter, Verdict
from coembed.curation.media.media import Media
from coembed.settings import ComponentSettings


class Settings(ComponentSettings):
    """`min_rms_dbfs`: below it a sound counts as silent; -60 is what ffmpeg's silencedetect takes
    (ffmpeg-filters manual, `noise`), and the noise of a poor sound card lies about there.
    `max_clipped_share`: the largest share of samples in runs of 3 or more at full scale; 1 % is a
    guess: music that was mastered loud stays below it, a shout into a microphone does not.
    """

    name: Literal["audio_level"] = "audio_level"
    min_rms_dbfs: float = Field(default=-60.0, ge=-120, le=0)
    max_clipped_share: float = Field(default=0.01, ge=0, le=1)

    def build(self) -> Filter:
        """Make the filter."""
        return AudioLevel(self.min_rms_dbfs, self.max_clipped_share)


class AudioLevel(Filter):
    """One pass over all samples (see `coembed.curation.media.sound.Sound`). Other modalities pass.

    Columns: `rms_dbfs`, `peak_dbfs`, `clipped_share`.
    """

    reasons = ("silent_audio", "clipped_audio")
    columns: ClassVar[Mapping[str, ColumnType]] = {
        "rms_dbfs": "float64",
        "peak_dbfs": "float64",
        "clipped_share": "float64",
    }

    def __init__(self, min_rms_dbfs: float, max_clipped_share: float) -> None:
        self._min_rms_dbfs = min_rms_dbfs
        self._max_clipped_share = max_clipped_share

    def measure(self, media: Media) -> Mapping[str, Cell]:
        """Measure the levels. Raises Undecodable."""
        if not media.is_audio:
            return {}
        sound = media.sound
        return {
            "rms_dbfs": sound.rms_dbfs,
            "peak_dbfs": sound.peak_dbfs,
            "clipped_share": sound.clipped_share,
        }

    def judge(self, candidate: Candidate) -> Verdict:
        """Judge the levels that were measured."""
        rms, clipped = candidate.columns.get("rms_dbfs"), candidate.columns.get("clipped_share")
        if not isinstance(rms, float) or not isinstance(clipped, float):
            return Verdict()
        if rms < self._min_rms_dbfs:
            return Verdict("silent_audio", f"{rms:.1f} dBFS < {self._min_rms_dbfs:g} dBFS")
        if clipped > self._max_clipped_share:
            return Verdict(
                "clipped_audio", f"{clipped:.2%} of the samples > {self._max_clipped_share:.2%}"
            )
        return Verdict()
