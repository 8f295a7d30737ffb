"""Drop pictures in which nothing is sharp."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from coembed.curation.candidate import Candidate
from coembed.curation.filters.base import Cell, ColumnType, Filter, Verdict
from coembed.curation.media.media import MIN_SIDE_PX, Media
from coembed.modalities._pixels import Pixels
from coembed.settings import ComponentSettings

# The window over which contrast is measured: an eighth of the shorter side.
_STEPS_IN_WINDOW = 8
_LEAST_PX = 32
_MIN_CONTRAST = 8.0


class Settings(ComponentSettings):
    """`min_sharpness`: see `BlurredImage`. 0.27 lies between the demo's sound pictures (4,910 of
    them, from 0.376 up) and the demo's, photographs and synthetic textures after a Gaussian blur
    with a sigma of 3 % of the shorter side (up to 0.26). A picture of nothing but haze or a smooth
    backdrop (0.15 to 0.23) cannot be told from a blurred one. 0 drops nothing."""

    name: Literal["blurred_image"] = "blurred_image"
    min_sharpness: float = Field(default=0.27, ge=0, le=1)

    def build(self) -> Filter:
        """Make the filter."""
        return BlurredImage(self.min_sharpness)


class BlurredImage(Filter):
    """Compares the steepest step of the picture with its greatest contrast. Other modalities pass.

    Columns: `sharpness`, of the brightness at 64 to 127 px (so that it depends neither on the
    resolution nor on noise): the 8-norm of the differences of neighbours over the 8-norm of the
    differences across an eighth of the shorter side, rows and columns together. Where every edge
    is as sharp as the scale can show, it is 0.77 or above (an edge is one step and stands in 8
    windows); where everything is a ramp, 1/8. The norm lets the strongest edges speak, so that an
    object in focus before a blurred background counts as sharp. The idea is that of Crete et al.
    (2007): a blurred picture changes as little from pixel to pixel as if it were blurred once more;
    the strongest edges in place of the mean keep smooth pictures apart from blurred ones.
    `blurred_image_doubt`: 1 at the limit, 0 from twice the limit on.
    Missing where the picture is below 32 px, or has no contrast that could be sharp.
    """

    reasons = ("blurred_image",)
    columns: ClassVar[Mapping[str, ColumnType]] = {
        "sharpness": "float64",
        "blurred_image_doubt": "float64",
    }

    def __init__(self, min_sharpness: float) -> None:
        self._min_sharpness = min_sharpness

    def measure(self, media: Media) -> Mapping[str, Cell]:
        """Measure the sharpness. Raises Undecodable."""
        if not media.is_image:
            return {}
        sharpness = measure_sharpness(media.grey)
        return {} if sharpness is None else {"sharpness": sharpness}

    def judge(self, candidate: Candidate) -> Verdict:
        """Judge the sharpness that was measured."""
        sharpness = candidate.columns.get("sharpness")
        limit = self._min_sharpness
        if not isinstance(sharpness, float) or not limit:
            return Verdict()
        if sharpness < limit:
            return Verdict("blurred_image", f"sharpness {sharpness:.3f} < {limit:g}")
        doubt = max(0.0, 2.0 - sharpness / limit)
        return Verdict(columns={"blurred_image_doubt": doubt})


def measure_sharpness(grey: Pixels) -> float | None:
    """Sharpness, 0 to 1, of a brightness [height, width]; None where none can be told."""
    side = min(grey.shape)
    if side < _LEAST_PX:
        return None
    # Neighbours are a 64th of the shorter side apart, whatever the thumbnail's scale.
    near = max(1, (side + MIN_SIDE_PX // 2) // MIN_SIDE_PX)
    far = near * _STEPS_IN_WINDOW
    values = grey.astype(np.float32)
    steps = _eighth_powers(values[near:] - values[:-near])
    steps += _eighth_powers(values[:, near:] - values[:, :-near])
    contrasts = _eighth_powers(values[far:] - values[:-far])
    contrasts += _eighth_powers(values[:, far:] - values[:, :-far])
    if contrasts < _MIN_CONTRAST**8:
        return None
    return min(1.0, float((steps / contrasts) ** 0.125))


def _eighth_powers(values: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> float:
    """The sum of the eighth powers; `values` are overwritten."""
    values *= values
    values *= values
    flat = values.ravel()
    return float(flat @ flat)
