"""Drop pictures and sounds that do not decode whole: cut short, damaged, or something else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from coembed.curation.filters.base import Cell, Filter
from coembed.curation.media.media import DECODE_REASONS, Media
from coembed.settings import ComponentSettings


class Settings(ComponentSettings):
    """Nothing to set: `curate.max_pixels` holds the largest picture that is decoded."""

    name: Literal["readable"] = "readable"

    def build(self) -> Filter:
        """Make the filter."""
        return Readable()


class Readable(Filter):
    """Decodes every pixel and every sample, as strictly as the decoders can.

    What it finds are faults (`Facts.fault`), which drop a pair whichever filter met them first.
    Without it, and without any other filter that looks at pixels or samples, only headers are read.
    """

    reasons = DECODE_REASONS

    def measure(self, media: Media) -> Mapping[str, Cell]:
        """Decode everything. Raises Undecodable."""
        media.check()
        return {}
