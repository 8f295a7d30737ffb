"""Drop pictures too small to learn from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from coembed.curation.candidate import Candidate
from coembed.curation.filters.base import Filter, Verdict
from coembed.settings import ComponentSettings


class Settings(ComponentSettings):
    """`min_px` is the least width and the least height."""

    name: Literal["image_size"] = "image_size"
    min_px: int = Field(default=32, ge=1)

    def build(self) -> Filter:
        """Make the filter."""
        return ImageSize(self.min_px)


class ImageSize(Filter):
    """Looks at the header only. Other modalities pass."""

    reasons = ("small_image",)

    def __init__(self, min_px: int) -> None:
        self._min_px = min_px

    def check(self, candidate: Candidate) -> Verdict:
        """Judge width and height."""
        if not candidate.is_image:
            return Verdict()
        _, width, height = candidate.header
        if min(width, height) >= self._min_px:
            return Verdict()
        side, px = ("width", width) if width <= height else ("height", height)
        return Verdict("small_image", f"{side} {px} px < {self._min_px} px")
