"""How alike two pictures are, by their thumbnails: the check that disposes of what hashes propose.

A pair goes through three gates, each cheaper than the next one is:

1. block means of the window that the hash found, against the other's block means: correlation of
   brightness and of colour;
2. alignment (`alignment`), then brightness and saturation are fitted, because copies are
   brightened, recoloured and stamped on; what colour fit is believed is bounded, because the same
   shape in another colour is another product;
3. what then remains, block by block, against each block's own contrast. The score is 1 minus the
   remainder that 80 % of the picture's structure stays below: a watermark or a logo may do what it
   likes to the other 20 %, within a looser limit for half of that; another product in the same
   place is more than that.

Thresholds inside were set on copies of the demo shop's pictures (seeds 7 and 8) and of synthetic
photographs, and held on the copies planted in shops of other seeds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coembed.curation.lookalikes.alignment import Floats, align
from coembed.curation.lookalikes.perceptual import LUMA, THUMBNAIL_PX, WINDOWS

_WEIGHTS = (LUMA / 256).astype(np.float32)
_THIRDS = np.full(3, 1 / 3, np.float32)
_BATCH = 256

# Gate 1. Sound copies stay above .93 and .8, and eight of nine look-alikes do not get through.
_COARSE_BLOCKS = 7
_LEAST_LUMA_CORRELATION = 0.92
_LEAST_COLOUR_CORRELATION = 0.6
_NOISE = 9.0  # variance, in grey levels squared, that counts for nothing

# Gate 2. Copies recoloured by a factor of 0.55 to 1.5 were fitted within these.
_SATURATION = (0.45, 2.2)
_GAIN = (0.5, 2.0)
_MOST_TINT = 32.0  # grey levels
_GREYISH = 4.0  # grey levels: a picture whose colours vary by less has no saturation to compare
_CLIPPED = 247.0  # a thumbnail pixel that holds blown-out pixels
_FIT_OUTLIER = 10.0
_FIT_STEPS = 3
_MOST_TINT_SLOPE = 0.08
_CURVE_RIDGE = (0.01, 1.0, 200.0)

# Gate 3.
_BLOCK_PX = 4
_FLOOR = 4.0  # grey levels of residual that say nothing in a block without contrast
_FLAT_WEIGHT, _MOST_WEIGHT = 2.0, 22.0
_MOST, _NEARLY_ALL = 0.8, 0.9
_LOOSER = 2.8

Pairs = NDArray[np.int64]


class Proposal(NamedTuple):
    """Pairs of pictures, and how a hash says that one lies in the other.

    `first`, `second` [pair]: which thumbnails; `window` [pair]: the window of `first` (a row of
    `WINDOWS`) that is like the whole of `second`; `mirrored` [pair]: once `second` is mirrored.
    """

    first: Pairs
    second: Pairs
    window: Pairs
    mirrored: NDArray[np.bool_]

    def part(self, pairs: slice) -> Proposal:
        """Some of the pairs."""
        return Proposal(
            self.first[pairs], self.second[pairs], self.window[pairs], self.mirrored[pairs]
        )


def resemblance(thumbnails: NDArray[np.uint8], proposal: Proposal) -> NDArray[np.float64]:
    """Scores [pair]: 1 for a pair that is one picture, 0 for one that is nothing like it.

    `thumbnails` is uint8 [n, px, px, 3]. Thumbnails of THUMBNAIL_PX go through all three gates;
    larger ones, for a second and closer look, through the last two.
    """
    scores = np.zeros(len(proposal.first))
    for start in range(0, len(scores), _BATCH):
        part = slice(start, start + _BATCH)
        scores[part] = _compare(thumbnails, proposal.part(part))
    return scores


def _compare(thumbnails: NDArray[np.uint8], pairs: Proposal) -> NDArray[np.float64]:
    first = thumbnails[pairs.first].astype(np.float32)
    second = thumbnails[pairs.second].astype(np.float32)
    second[pairs.mirrored] = second[pairs.mirrored][:, :, ::-1]
    scores = np.zeros(len(first))
    if first.shape[1] == THUMBNAIL_PX:
        alike = np.flatnonzero(_coarsely_alike(first, second, pairs.window))
    else:
        alike = np.arange(len(first))
    if len(alike) == 0:
        return scores
    aligned = align(first[alike], second[alike], WINDOWS[pairs.window[alike]], _WEIGHTS)
    scores[alike] = _score(aligned.warped, aligned.second, aligned.inside)
    return scores


def _coarsely_alike(first: Floats, second: Floats, window: Pairs) -> NDArray[np.bool_]:
    num, px, blocks = len(first), THUMBNAIL_PX, _COARSE_BLOCKS
    rows, columns = _WINDOW_MEANS[window, 0], _WINDOW_MEANS[window, 1]
    one = (rows @ first.reshape(num, px, -1)).reshape(num, blocks, px, 3)
    one = (columns[:, None] @ one).reshape(num, -1, 3)
    other = _BLOCK_MEANS @ second.reshape(num, px, -1)
    other = (_BLOCK_MEANS @ other.reshape(num, blocks, px, 3)).reshape(num, -1, 3)
    luma = _correlation(one @ _WEIGHTS, other @ _WEIGHTS, 0.0)
    colour = _correlation(_chroma(one), _chroma(other), _NOISE)
    return (luma > _LEAST_LUMA_CORRELATION) & (colour > _LEAST_COLOUR_CORRELATION)


def _chroma(pictures: Floats) -> Floats:
    """Colour without brightness and without its mean, [pair, place * channel]."""
    chroma = pictures - (pictures @ _WEIGHTS)[..., None]
    return (chroma - chroma.mean(axis=1, keepdims=True)).reshape(len(pictures), -1)


def _correlation(one: Floats, other: Floats, noise: float) -> Floats:
    one = one - one.mean(axis=1, keepdims=True)
    other = other - other.mean(axis=1, keepdims=True)
    both = (one * other).mean(axis=1) + noise
    size = np.sqrt((one * one).mean(axis=1) * (other * other).mean(axis=1))
    correlation: Floats = both / (size + noise + 1e-3)
    return correlation


def _score(one: Floats, other: Floats, inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Scores of pictures on one frame, [pair, px, px, 3]."""
    # The more colourful one predicts the other: grey cannot be made colourful.
    swap = _spread(one, inside) < _spread(other, inside)
    source = np.where(swap[:, None, None, None], other, one)
    target = np.where(swap[:, None, None, None], one, other)
    fitted, believable = _fit(source, target, inside)
    away = target - np.minimum(fitted, 255)
    # Where a copy was brightened until it was blown out, the other may be anything brighter.
    blown = (target >= _CLIPPED) & (fitted >= target) | (source >= _CLIPPED) & (target >= fitted)
    away[blown] = 0
    remainder = _remainder((away * away) @ _THIRDS, target, inside)
    return np.where(believable, np.clip(1 - remainder, 0, 1), 0.0)


def _spread(pictures: Floats, inside: NDArray[np.bool_]) -> Floats:
    """How much the colours vary, in grey levels."""
    num = len(pictures)
    chroma = (pictures - (pictures @ _WEIGHTS)[..., None]).reshape(num, -1, 3)
    weights = inside.reshape(num, 1, -1).astype(np.float32)
    total = weights.sum(axis=2)
    mean, square = (weights @ chroma)[:, 0] / total, (weights @ (chroma * chroma))[:, 0] / total
    spread: Floats = np.sqrt(np.maximum(square - mean * mean, 0).mean(axis=1))
    return spread


def _fit(
    source: Floats, target: Floats, inside: NDArray[np.bool_]
) -> tuple[Floats, NDArray[np.bool_]]:
    """`source` with the brightness, contrast, saturation and tint of `target`, and whether the
    change is one that a copy may have been through."""
    num = len(source)
    clear = inside & (source.max(axis=3) < _CLIPPED) & (target.max(axis=3) < _CLIPPED)
    enough = clear.reshape(num, -1).mean(axis=1) > 0.15  # else even clipped pixels must do
    clear = np.where(enough[:, None, None], clear, inside).reshape(num, -1)
    luma = (source @ _WEIGHTS).reshape(num, -1)
    goal = (target @ _WEIGHTS).reshape(num, -1)
    bright, gain, weights = _fit_brightness(luma, goal, clear)

    rows = weights[:, None, :]
    total = rows.sum(axis=2)[:, :, None] + 1e-6
    c = source.reshape(num, -1, 3) - luma[:, :, None]
    d = target.reshape(num, -1, 3) - goal[:, :, None]
    c_mean, d_mean = rows @ c / total, rows @ d / total
    c, d = c - c_mean, d - d_mean
    noise = total[:, 0, 0] * _NOISE
    of_source = (rows @ (c * c)).sum(axis=(1, 2))
    chroma_gain = ((rows @ (c * d)).sum(axis=(1, 2)) + gain * noise) / (of_source + noise)
    # Another white balance tints what is bright more than what is dark.
    centred = luma - (rows @ luma[:, :, None] / total)[:, :, 0]
    rest = d - chroma_gain[:, None, None] * c
    slope = (rows * centred[:, None, :]) @ rest
    slope /= (rows @ (centred * centred)[:, :, None]) + noise[:, None, None]
    slope = np.clip(slope, -_MOST_TINT_SLOPE, _MOST_TINT_SLOPE)
    fitted = bright[:, :, None] + chroma_gain[:, None, None] * c + d_mean
    fitted += slope * centred[:, :, None]

    saturation = chroma_gain / np.maximum(gain, 1e-3)
    grey = of_source / (3 * total[:, 0, 0]) < _GREYISH**2
    tint = np.abs(d_mean - gain[:, None, None] * c_mean).max(axis=(1, 2))
    believable = (gain > _GAIN[0]) & (gain < _GAIN[1]) & (tint < _MOST_TINT)
    believable &= grey | (saturation > _SATURATION[0]) & (saturation < _SATURATION[1])
    return fitted.reshape(target.shape), believable


def _fit_brightness(
    luma: Floats, goal: Floats, clear: NDArray[np.bool_]
) -> tuple[Floats, Floats, Floats]:
    """A curve through (luma, goal) [pair, pixel], a parabola because of gamma, that outliers do not
    bend: the curve's values, its slope in the middle greys [pair], the weights it came to."""
    scaled = (luma - 128) / 64
    terms = np.stack([np.ones_like(scaled), scaled, scaled * scaled], axis=1)
    weights = clear.astype(np.float32)
    for _ in range(_FIT_STEPS):
        weighed = terms * weights[:, None, :]
        normal = (weighed @ terms.transpose(0, 2, 1)).astype(np.float64) + np.diag(_CURVE_RIDGE)
        right = (weighed @ goal[:, :, None]).astype(np.float64)
        right[:, 1, 0] += _CURVE_RIDGE[1] * 64  # toward a gain of 1
        curve: Floats = np.linalg.solve(normal, right).astype(np.float32)
        bright = np.asarray(curve.transpose(0, 2, 1) @ terms, np.float32)[:, 0]
        weights = clear / (1 + ((goal - bright) / _FIT_OUTLIER) ** 2)
    slope: Floats = curve[:, 1, 0] / np.float32(64)
    return bright, slope, weights


def _remainder(away: Floats, target: Floats, inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """What the fit does not explain, [pair], from squared residuals [pair, px, px]."""
    weights = inside.astype(np.float32)
    count = np.maximum(_block_sums(weights), 1e-6)
    residual = np.sqrt(_block_sums(away * weights) / count)
    variance = np.zeros_like(residual)
    for channel in range(3):
        values = target[..., channel]
        mean = _block_sums(values * weights) / count
        variance += np.maximum(_block_sums(values * values * weights) / count - mean * mean, 0)
    contrast = np.sqrt(variance / 3)
    ratio = (residual / (contrast + _FLOOR)).astype(np.float64)
    importance = np.minimum(contrast + _FLAT_WEIGHT, _MOST_WEIGHT).astype(np.float64)
    importance[count < _BLOCK_PX * _BLOCK_PX / 2] = 0
    order = np.argsort(ratio, axis=1, kind="stable")
    share = np.cumsum(np.take_along_axis(importance, order, axis=1), axis=1)
    share /= np.maximum(share[:, -1:], 1e-9)
    at = [
        np.take_along_axis(order, np.argmax(share >= part - 1e-9, axis=1)[:, None], axis=1)
        for part in (_MOST, _NEARLY_ALL)
    ]
    most, nearly_all = (np.take_along_axis(ratio, index, axis=1)[:, 0] for index in at)
    return np.maximum(most, nearly_all / _LOOSER)


def _block_sums(pictures: Floats) -> Floats:
    ones = np.eye(pictures.shape[1] // _BLOCK_PX).repeat(_BLOCK_PX, axis=0).astype(np.float32)
    return np.asarray(ones.T @ pictures @ ones, np.float32).reshape(len(pictures), -1)


def _window_means() -> Floats:
    """Averages over the blocks of each window, [window, (rows, columns), block, thumbnail
    pixel]."""
    fine = 32
    at = (np.arange(THUMBNAIL_PX * fine) + 0.5) / (THUMBNAIL_PX * fine)
    means = np.empty((len(WINDOWS), 2, _COARSE_BLOCKS, THUMBNAIL_PX))
    for window, edges in enumerate(WINDOWS):
        for axis, (start, end) in enumerate((edges[:2], edges[2:])):
            block = np.floor((at - start) / (end - start) * _COARSE_BLOCKS)
            belongs = block == np.arange(_COARSE_BLOCKS)[:, None]
            share = belongs.reshape(_COARSE_BLOCKS, THUMBNAIL_PX, fine).mean(axis=2)
            means[window, axis] = share / share.sum(axis=1, keepdims=True)
    return means.astype(np.float32)


_WINDOW_MEANS = _window_means()
_BLOCK_MEANS = _WINDOW_MEANS[0, 0]  # of the whole frame
