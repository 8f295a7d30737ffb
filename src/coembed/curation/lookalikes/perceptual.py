"""A picture's fingerprint: a small thumbnail, and the perceptual hashes that are worked out from
it.

The hash is a pHash in the manner of Krawetz (hackerfactor.com, "Looks like it", 2011): the signs of
the lowest frequencies of the picture's cosine transform. Two things are different here. There is
one hash for the whole frame and one for each of a few crop windows, so that a cropped copy's
whole-frame hash is close to one of the windows' hashes of its original. And a bit is the sign of
its coefficient, not its comparison with the median: the mirrored picture's hash is then known
without another transform, because mirroring turns the sign of the odd horizontal frequencies
(`MIRROR`).

All arithmetic is on whole numbers below 2^53, so that a hash does not depend on the machine.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Hashes = NDArray[np.uint64]

THUMBNAIL_PX = 28
"""Side of the square thumbnail, whatever the picture's shape: 2,352 bytes in RGB."""
THUMBNAIL_BYTES = THUMBNAIL_PX * THUMBNAIL_PX * 3
NUM_BITS = 63
"""Bits of a hash: the 8 by 8 lowest frequencies without the constant."""

NUM_FREQUENCIES = 8
"""Of each side, the constant included."""
# From and to, as parts of a side: the whole side and three crops of it. Chosen by measurement: a
# crop of up to 10 % of each side lies near enough to one of these for its low frequencies to keep
# their signs. 81 windows of a regular grid find 0.3 % more and cost five times the search.
_SPANS = ((0.0, 1.0), (0.01, 0.94), (0.06, 0.99), (0.05, 0.95))
WINDOWS: NDArray[np.float64] = np.array([(*y, *x) for y in _SPANS for x in _SPANS])
"""The windows of the hashes, [window, (top, bottom, left, right)]; the first is the whole frame."""
NUM_WINDOWS = len(WINDOWS)

# ITU-R BT.601, in 256ths.
LUMA = np.array([77, 150, 29])
_SCALE = 1024
TRANSFORM_SCALE = _SCALE**2
_BATCH = 512


def fingerprint(picture: Image.Image) -> bytes:
    """The thumbnail of a picture of mode RGB: THUMBNAIL_BYTES bytes, row by row.

    The triangle filter lets little through that the thumbnail cannot hold, so that a crop's
    thumbnail can be laid over its original's at a fraction of a pixel.
    """
    side = (THUMBNAIL_PX, THUMBNAIL_PX)
    return picture.resize(side, Image.Resampling.BILINEAR).tobytes()


def unpack_thumbnails(data: bytes | memoryview) -> NDArray[np.uint8]:
    """Thumbnails that lie one after another in `data`, uint8 [n, THUMBNAIL_PX, THUMBNAIL_PX, 3]."""
    return np.frombuffer(data, np.uint8).reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX, 3)


def hash_thumbnails(thumbnails: NDArray[np.uint8]) -> Hashes:
    """Hashes [n, NUM_WINDOWS] of thumbnails [n, THUMBNAIL_PX, THUMBNAIL_PX, 3]."""
    hashes = np.empty((len(thumbnails), NUM_WINDOWS), np.uint64)
    for start in range(0, len(thumbnails), _BATCH):
        hashes[start : start + _BATCH] = _hash_batch(thumbnails[start : start + _BATCH])
    return hashes


def transform(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lowest frequencies of every window, [n, NUM_WINDOWS, 8, 8], of whole numbers [n,
    THUMBNAIL_PX, THUMBNAIL_PX]: a sum over the pixels, in TRANSFORM_SCALE-ths, exact."""
    num, spans = len(values), len(_SPANS)
    left = (values @ _BASES.T).reshape(num, THUMBNAIL_PX, spans * NUM_FREQUENCIES)
    both = (_BASES @ left).reshape(num, spans, NUM_FREQUENCIES, spans, NUM_FREQUENCIES)
    windows = both.transpose(0, 1, 3, 2, 4)
    return windows.reshape(num, NUM_WINDOWS, NUM_FREQUENCIES, NUM_FREQUENCIES)


def _hash_batch(thumbnails: NDArray[np.uint8]) -> Hashes:
    windows = transform(thumbnails.astype(np.float64) @ LUMA)
    bits = windows.reshape(len(windows), NUM_WINDOWS, -1)[:, :, 1:] > 0
    # Big-endian bytes, the first bit of 64 always 0.
    packed = np.packbits(np.pad(bits, ((0, 0), (0, 0), (1, 0))), axis=2)
    return cast("Hashes", packed.view(">u8")[:, :, 0].astype(np.uint64))


def _bases() -> NDArray[np.float64]:
    """Cosines over each span, [span * frequency, thumbnail pixel], in whole numbers."""
    fine = 32  # steps a pixel: spans begin and end within pixels
    rows = []
    for start, end in _SPANS:
        at = (np.arange(THUMBNAIL_PX * fine) + 0.5) / (THUMBNAIL_PX * fine)
        t = (at - start) / (end - start)
        inside = (t >= 0) & (t <= 1)
        for frequency in range(NUM_FREQUENCIES):
            wave = np.where(inside, np.cos(np.pi * frequency * t), 0.0) / (end - start)
            rows.append(wave.reshape(THUMBNAIL_PX, fine).mean(axis=1))
    return np.rint(np.array(rows) * _SCALE)


_BASES = _bases()


def _mirror() -> np.uint64:
    odd = [place % NUM_FREQUENCIES % 2 for place in range(1, NUM_FREQUENCIES**2)]
    return np.uint64(int("".join(map(str, odd)), 2))


MIRROR: np.uint64 = _mirror()
"""XOR a whole-frame hash with this for the hash of the mirrored picture."""
