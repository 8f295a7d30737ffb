"""A picture's sketch: what is left of it in 95 bytes, to compare pictures by that are gone.

A hash alone proposes: among the demo shop's pictures, all drawn alike, one pair in thirty within
its radius is a copy. The thumbnails that decide take 2,352 bytes. A sketch keeps the amplitudes of
which the hash keeps the signs, and those of the colours: the 63 lowest frequencies of the
brightness and 16 of each of two colour differences, of the whole frame, in steps of two grey
levels. Compressed it takes about 35 bytes.

The picture that is asked about is at hand: its side of a comparison is exact, in whichever window
and orientation its hash came nearest. So a sketched picture is found that is a crop of the one at
hand, but not the other way about.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coembed.curation.lookalikes.perceptual import (
    LUMA,
    NUM_FREQUENCIES,
    THUMBNAIL_PX,
    TRANSFORM_SCALE,
    transform,
)

Sketches = NDArray[np.int8]
Windows = NDArray[np.int64]

_COLOUR_FREQUENCIES = 4
_NUM_LUMA = NUM_FREQUENCIES**2 - 1
_NUM_COLOUR = 2 * _COLOUR_FREQUENCIES**2
SKETCH_BYTES = _NUM_LUMA + _NUM_COLOUR

_STEP = 2.0  # grey levels
# What rounding to steps adds to a squared difference, a number.
_ROUNDING = _STEP**2 / 12
# Grey levels squared, over a whole sketch, that say nothing.
_LUMA_FLOOR, _COLOUR_FLOOR = 10.0, 30.0
# How much more or less contrast and colour a copy may have.
_CONTRAST = (0.6, 1.6)
_SATURATION = (0.4, 2.2)
# A picture with less structure (the variance of its brightness) is like every other one.
_LEAST_STRUCTURE = 40.0
_BATCH = 512


class Remainder(NamedTuple):
    """What a sketch says against two pictures' being copies: the part of the energy of the
    brightness and of the colours [pair] that is left when one is taken from the other, 0 to 1 for
    copies, any more for others."""

    luma: NDArray[np.float64]
    colour: NDArray[np.float64]


def sketch_thumbnails(thumbnails: NDArray[np.uint8]) -> Sketches:
    """Sketches [n, SKETCH_BYTES] of thumbnails [n, THUMBNAIL_PX, THUMBNAIL_PX, 3]."""
    sketches = np.empty((len(thumbnails), SKETCH_BYTES), np.int8)
    for start in range(0, len(thumbnails), _BATCH):
        part = thumbnails[start : start + _BATCH]
        here = np.zeros(len(part), np.int64)
        values = _values(part, here, here == 1)
        sketches[start : start + _BATCH] = np.clip(np.rint(values / _STEP), -127, 127)
    return sketches


def compare(
    thumbnails: NDArray[np.uint8],
    window: Windows,
    mirrored: NDArray[np.bool_],
    sketches: Sketches,
) -> Remainder:
    """Compare the `window` (mirrored where `mirrored`) of each of `thumbnails` [pair, ...] with the
    sketch at its place in `sketches` [pair, SKETCH_BYTES]."""
    luma, colour = np.empty(len(sketches)), np.empty(len(sketches))
    for start in range(0, len(sketches), _BATCH):
        part = slice(start, start + _BATCH)
        asked = _values(thumbnails[part], window[part], mirrored[part])
        known = sketches[part].astype(np.float64) * _STEP
        cut = _NUM_LUMA
        luma[part] = _remainder(asked[:, :cut], known[:, :cut], _CONTRAST, _LUMA_FLOOR)
        colour[part] = _remainder(asked[:, cut:], known[:, cut:], _SATURATION, _COLOUR_FLOOR)
    return Remainder(luma, colour)


def has_structure(sketches: Sketches) -> NDArray[np.bool_]:
    """Whether each of `sketches` [n, SKETCH_BYTES] shows enough to be told from others."""
    luma = sketches[:, :_NUM_LUMA].astype(np.float64) * _STEP
    return (luma * luma).sum(axis=1) >= _LEAST_STRUCTURE


def _values(
    thumbnails: NDArray[np.uint8], window: Windows, mirrored: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Amplitudes in grey levels, [n, SKETCH_BYTES]."""
    pictures = thumbnails.astype(np.float64)
    luma = pictures @ LUMA.astype(np.float64)  # in 256ths, as all that follows: whole numbers
    few = _COLOUR_FREQUENCIES
    parts = [_amplitudes(luma, window, mirrored).reshape(len(pictures), -1)[:, 1:]]
    for channel in (2, 0):
        difference = 256 * pictures[..., channel] - luma
        amplitudes = _amplitudes(difference, window, mirrored)[:, :few, :few]
        parts.append(amplitudes.reshape(len(pictures), -1))
    return np.concatenate(parts, axis=1)


def _amplitudes(
    values: NDArray[np.float64], window: Windows, mirrored: NDArray[np.bool_]
) -> NDArray[np.float64]:
    found = transform(values)[np.arange(len(values)), window]
    # Mirroring turns the sign of the odd horizontal frequencies.
    found = np.where(mirrored[:, None, None], found * _MIRRORING, found)
    return found * (_WEIGHTS / (256 * TRANSFORM_SCALE * THUMBNAIL_PX**2))


def _remainder(
    asked: NDArray[np.float64], known: NDArray[np.float64], gains: tuple[float, float], floor: float
) -> NDArray[np.float64]:
    """The energy of known - gain * asked, by that of `known`, for the best gain [pair]."""
    gain = (asked * known).sum(axis=1) / ((asked * asked).sum(axis=1) + 1e-6)
    away = known - np.clip(gain, *gains)[:, None] * asked
    left = (away * away).sum(axis=1) - _ROUNDING * asked.shape[1]
    remainder: NDArray[np.float64] = np.maximum(left, 0) / ((known * known).sum(axis=1) + floor)
    return remainder


_MIRRORING = np.where(np.arange(NUM_FREQUENCIES) % 2, -1.0, 1.0)
# So that the squares of amplitudes are variances: a cosine's own variance is a half.
_WEIGHTS = np.outer(*[np.where(np.arange(NUM_FREQUENCIES), np.sqrt(2), 1.0)] * 2)
