"""Drop pictures that are mostly a strip: banners, rules, sprites."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from coembed.curation.candidate import Candidate
from coembed.curation.filters.base import Filter, Verdict
from coembed.settings import ComponentSettings


class Settings(ComponentSettings):
    """`max_ratio` is the longer side over the shorter one. 3 is what DataComp's basic filter takes
    (Gadre et al., 2023, appendix on baselines); 4 leaves room for furniture and panoramas."""

    name: Literal["aspect_ratio"] = "aspect_ratio"
    max_ratio: float = Field(default=4.0, ge=1)

    def build(self) -> Filter:
        """Make the filter."""
        return AspectRatio(self.max_ratio)


class AspectRatio(Filter):
    """Looks at the size as shown. Other modalities pass."""

    reasons = ("extreme_ratio",)

    def __init__(self, max_ratio: float) -> None:
        self._max_ratio = max_ratio

    def judge(self, candidate: Candidate) -> Verdict:
        """Judge the longer side over the shorter one."""
        width, height = candidate.facts.width_px, candidate.facts.height_px
        if width is None or height is None:
            return Verdict()
        ratio = max(width, height) / min(width, height)
        if ratio <= self._max_ratio:
            return Verdict()
        return Verdict(
            "extreme_ratio", f"{width} x {height} px is {ratio:.4g} > {self._max_ratio:g}"
        )
