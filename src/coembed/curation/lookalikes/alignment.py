"""Lay one thumbnail over another: find the crop between them, in fractions of a pixel.

Gauss-Newton after Lucas and Kanade (1981), for the four edges of the crop window and for a gain and
an offset of the brightness at once, with weights that let go of pixels which do not fit (a
watermark, a reflection). Everything is vectorised over pairs, and no pair's outcome depends on the
others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_STEPS = 4
_MOST_STEP = 0.04  # of a side: the hash windows are 5 % apart
# How far beyond the picture a window may reach: the other one is then the crop.
_MOST_OUTSIDE = 0.12
_LEAST_SIDE = 0.7
# Grey levels at which a pixel counts half. A guess: twice the usual residual of a sound pair.
_OUTLIER = 12.0
_PARAMETERS = 6
# In pixels squared: 1/6 of the triangle filter that made the thumbnail, 1/2 of `blur`.
_BLUR_VARIANCE = 2 / 3


class Aligned(NamedTuple):
    """Pictures brought onto the frame of others.

    `warped` [pair, px, px, channel] is what the first picture shows of the second's frame, `second`
    the second picture as blurred as that, `inside` [pair, px, px] where there is anything to
    compare, `windows` [pair, 4] the frame's place in the first picture: top, bottom, left and right
    as parts of its sides.
    """

    warped: Floats
    second: Floats
    inside: NDArray[np.bool_]
    windows: NDArray[np.float64]


def align(first: Floats, second: Floats, windows: NDArray[np.float64], luma: Floats) -> Aligned:
    """Find where the frame of `second` lies in `first` ([pair, px, px, channel], 0 to 255).

    `windows` [pair, 4] is where to begin. `luma` [channel] weighs the channels.
    """
    found = windows.copy()
    source, target = blur(first @ luma), blur(second @ luma)
    pairs, px, _ = source.shape
    away = np.zeros_like(target)
    toward_end = ((np.arange(px) + 0.5) / px).astype(np.float32)
    flat = target.reshape(pairs, -1, 1)
    for step in range(_STEPS):
        warped, inside = _warp(source, found)
        weights = inside.astype(np.float32)
        if step:
            weights /= 1 + (away / _OUTLIER) ** 2
        slopes = _slopes(warped, found, toward_end)
        slopes = slopes.reshape(pairs, _PARAMETERS, -1)
        weighed = slopes * weights.reshape(pairs, 1, -1)
        normal = (weighed @ slopes.transpose(0, 2, 1)).astype(np.float64) + _RIDGE
        solved = np.linalg.solve(normal, (weighed @ flat).astype(np.float64))[:, :, 0]
        gain = np.clip(solved[:, 4], 0.3, 3.0)
        found = _clip(found + np.clip(solved[:, :4] / gain[:, None], -_MOST_STEP, _MOST_STEP))
        away = target - (solved[:, 4:, None] * slopes[:, 4:]).sum(axis=1).reshape(target.shape)
    warped, inside = _warp(blur(first), found)
    return Aligned(warped, _match_blur(blur(second), found), inside, found)


# So that a picture without structure stays where it is instead of making the system singular.
_RIDGE = np.diag([1e3] * 4 + [1.0, 1e-3])


def blur(pictures: Floats) -> Floats:
    """A 1-2-1 blur over both sides of [pair, px, px, ...]: what is left can be interpolated."""
    for axis in (1, 2):
        padded = np.concatenate(
            [_take(pictures, axis, 0, 1), pictures, _take(pictures, axis, -1, None)], axis
        )
        px = pictures.shape[axis]
        before, here, after = (_take(padded, axis, i, i + px) for i in range(3))
        pictures = np.float32(0.25) * (before + after) + np.float32(0.5) * here
    return pictures


def _match_blur(pictures: Floats, windows: NDArray[np.float64]) -> Floats:
    """Blur `pictures` by as much as warping has blurred the others.

    A window is enlarged, and its blur with it; and between two pixels a linear interpolation blurs
    by a variance of f (1 - f). Without this a crop differs from its original along every edge.
    """
    px = pictures.shape[1]
    for axis in (1, 2):
        at, _ = _places(windows[:, 2 * axis - 2], windows[:, 2 * axis - 1], px)
        side = windows[:, 2 * axis - 1] - windows[:, 2 * axis - 2]
        between = at - np.floor(at)
        extra = _BLUR_VARIANCE * (1 / side[:, None] ** 2 - 1) + between * (1 - between)
        # A copy that was enlarged by less than nothing would need sharpening: leave it.
        half = np.maximum(extra / 2, 0).astype(np.float32)
        shape = [len(pictures)] + [1] * (pictures.ndim - 1)
        shape[axis] = px
        before = _take(pictures, axis, 0, -1)
        after = _take(pictures, axis, 1, None)
        step = after - before
        edge = np.zeros_like(_take(pictures, axis, 0, 1))
        curve = np.concatenate([step, edge], axis) - np.concatenate([edge, step], axis)
        pictures = pictures + half.reshape(shape) * curve
    return pictures


def _take(pictures: Floats, axis: int, start: int, stop: int | None) -> Floats:
    return pictures[(slice(None),) * axis + (slice(start, stop),)]


def _slopes(warped: Floats, windows: NDArray[np.float64], toward_end: Floats) -> Floats:
    """How the picture changes with each parameter: four edges, gain, offset."""
    px = warped.shape[1]
    sides = (windows[:, 1::2] - windows[:, ::2]).astype(np.float32)
    down = np.gradient(warped, axis=1) * (px / sides[:, 0, None, None])
    across = np.gradient(warped, axis=2) * (px / sides[:, 1, None, None])
    rows, columns = toward_end[None, :, None], toward_end[None, None, :]
    return np.stack(
        [
            down * (1 - rows), down * rows, across * (1 - columns), across * columns,
            warped, np.ones_like(warped),
        ],
        axis=1,
    )  # fmt: skip


def _clip(windows: NDArray[np.float64]) -> NDArray[np.float64]:
    starts = np.clip(windows[:, ::2], -_MOST_OUTSIDE, 1 - _LEAST_SIDE)
    ends = np.clip(windows[:, 1::2], _LEAST_SIDE, 1 + _MOST_OUTSIDE)
    clipped = np.empty_like(windows)
    clipped[:, ::2], clipped[:, 1::2] = starts, np.maximum(ends, starts + _LEAST_SIDE)
    return clipped


def _warp(pictures: Floats, windows: NDArray[np.float64]) -> tuple[Floats, NDArray[np.bool_]]:
    """Each picture's window at the size of the picture, and where it lies inside."""
    rows, rows_inside = _resample(pictures, windows[:, 0], windows[:, 1], 1)
    both, columns_inside = _resample(rows, windows[:, 2], windows[:, 3], 2)
    return both, rows_inside[:, :, None] & columns_inside[:, None, :]


def _resample(
    pictures: Floats, starts: NDArray[np.float64], ends: NDArray[np.float64], axis: int
) -> tuple[Floats, NDArray[np.bool_]]:
    px = pictures.shape[axis]
    at, inside = _places(starts, ends, px)
    before = np.minimum(at.astype(np.int64), px - 2)
    shape = [len(pictures)] + [1] * (pictures.ndim - 1)
    shape[axis] = px
    part = (at - before).astype(np.float32).reshape(shape)
    index = before.reshape(shape)
    low = np.take_along_axis(pictures, index, axis)
    high = np.take_along_axis(pictures, index + 1, axis)
    return low + (high - low) * part, inside


def _places(
    starts: NDArray[np.float64], ends: NDArray[np.float64], px: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Where each pixel of a window lies among the picture's pixels, and whether it does."""
    middle = (np.arange(px) + 0.5) / px
    at = (starts[:, None] + (ends - starts)[:, None] * middle) * px - 0.5
    return np.clip(at, 0, px - 1), (at > -0.6) & (at < px - 0.4)
