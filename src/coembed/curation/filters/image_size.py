"""Drop pictures too small to learn from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from coembed.curation.candidate import Candidate
from coembed.curation.filters.base import Filter, Verdict
from coembed.settings import ComponentSettings


class Settings(ComponentSettings):
    """`min_px` is the least width and the least height. 32 is a guess: the smallest picture of
    which a person can still tell what it shows; web-scale sets ask for 200 (DataComp: Gadre et al.,
    2023, basic filtering)."""

    name: Literal["image_size"] = "image_size"
    min_px: int = Field(default=32, ge=1)

    def build(self) -> Filter:
        """Make the filter."""
        return ImageSize(self.min_px)


class ImageSize(Filter):
    """Looks at the size as shown. Other modalities pass."""

    reasons = ("small_image",)

    def __init__(self, min_px: int) -> None:
        self._min_px = min_px

    def judge(self, candidate: Candidate) -> Verdict:
        """Judge width and height."""
        width, height = candidate.facts.width_px, candidate.facts.height_px
        if width is None or height is None or min(width, height) >= self._min_px:
            return Verdict()
        side, px = ("width", width) if width <= height else ("height", height)
        return Verdict("small_image", f"{side} {px} px < {self._min_px} px")
