"""Drop pictures that do not decode whole: cut short, damaged, or no picture at all."""

from __future__ import annotations

from typing import Literal

from coembed.curation.candidate import Candidate, Undecodable
from coembed.curation.filters.base import Filter, Verdict
from coembed.settings import ComponentSettings


class Settings(ComponentSettings):
    """Nothing to set: `curate.max_pixels` holds the largest picture that is decoded."""

    name: Literal["readable"] = "readable"

    def build(self) -> Filter:
        """Make the filter."""
        return Readable()


class Readable(Filter):
    """Decodes every pixel as strictly as the decoders can. Other modalities pass."""

    reasons = ("unreadable", "truncated", "too_many_pixels")

    def check(self, candidate: Candidate) -> Verdict:
        """Judge the picture."""
        if candidate.is_image:
            try:
                candidate.check_pixels()
            except Undecodable as finding:
                return Verdict(finding.reason, finding.detail)
        return Verdict()
