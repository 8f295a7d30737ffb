"""Drop pictures that show nothing: one colour, a lens cap, a failed render."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from coembed.curation.candidate import Candidate
from coembed.curation.filters.base import Cell, ColumnType, Filter, Verdict
from coembed.curation.media.media import Media
from coembed.settings import ComponentSettings

_IGNORED_SHARE = 0.005  # at either end: dust, hot pixels, a scratch
_LOW = 32


class Settings(ComponentSettings):
    """`min_contrast`: see `BlankImage`, in levels of 255. 12 is a guess: the noise of JPEG and of a
    sensor on an empty wall stays below it, the faintest product on white that one can still see
    does not."""

    name: Literal["blank_image"] = "blank_image"
    min_contrast: int = Field(default=12, ge=0, le=255)

    def build(self) -> Filter:
        """Make the filter."""
        return BlankImage(self.min_contrast)


class BlankImage(Filter):
    """Looks at the range of levels, not at how much of the picture is one colour: a small product
    on white is mostly white. Other modalities pass.

    Columns: `contrast`, in levels of 255: the range of the brightness of the picture (scaled to 64
    to 127 px) without the 0.5 % of pixels at either end. Where that is below 32, colours may still
    differ: then it is the widest of the ranges of brightness, red, green and blue.
    """

    reasons = ("blank_image",)
    columns: ClassVar[Mapping[str, ColumnType]] = {"contrast": "int64"}

    def __init__(self, min_contrast: int) -> None:
        self._min_contrast = min_contrast

    def measure(self, media: Media) -> Mapping[str, Cell]:
        """Measure the contrast. Raises Undecodable."""
        if not media.is_image:
            return {}
        luma = media.luma
        ignored = int(luma.width * luma.height * _IGNORED_SHARE)
        contrast = _range(luma.histogram(), ignored)
        if contrast < _LOW:
            counts = media.thumbnail.histogram()
            channels = (counts[start : start + 256] for start in (0, 256, 512))
            contrast = max(contrast, *(_range(channel, ignored) for channel in channels))
        return {"contrast": contrast}

    def judge(self, candidate: Candidate) -> Verdict:
        """Judge the contrast that was measured."""
        contrast = candidate.columns.get("contrast")
        if not isinstance(contrast, int) or contrast >= self._min_contrast:
            return Verdict()
        return Verdict("blank_image", f"contrast {contrast} of 255 < {self._min_contrast}")


def _range(counts: Sequence[int], ignored: int) -> int:
    """Levels between the lowest and the highest that more than `ignored` values reach."""
    low = _first_above(counts, ignored)
    return 255 - _first_above(counts[::-1], ignored) - low


def _first_above(counts: Sequence[int], ignored: int) -> int:
    total = 0
    for level, count in enumerate(counts):
        total += count
        if total > ignored:
            return level
    return 255
