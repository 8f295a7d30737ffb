"""Near-identical texts: shingles, their exact Jaccard similarity, and MinHash bands that propose.

Two texts whose sets of shingles have Jaccard similarity s have a MinHash in common with probability
s (Broder 1997), so all ROWS of a band with s^ROWS, and at least one of BANDS bands with
1 - (1 - s^ROWS)^BANDS: 0.98 at s = 0.7, 0.65 at 0.5, 0.12 at 0.3. Proposals cost; what is proposed
is verified on the shingles themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SHINGLE_CHARS = 3
BANDS = 16
ROWS = 4
_SEED = 0x5EED
_MAX_CHARS = 1024
# Odd constants of MurmurHash3 and SplitMix64, which mix well.
_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_MIX, _SPREAD = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def shingles(text: str) -> frozenset[str]:
    """The runs of SHINGLE_CHARS characters of `text`, with a space before and behind it, so that
    the first and the last word count like the others. Long texts are judged by their beginning."""
    padded = _padded(text)
    return frozenset(
        padded[at : at + SHINGLE_CHARS] for at in range(len(padded) - SHINGLE_CHARS + 1)
    )


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Shingles in both over shingles in either: 0 to 1."""
    num_both = len(one & other)
    return num_both / (len(one) + len(other) - num_both)


def band_keys(texts: Sequence[str]) -> NDArray[np.uint64]:
    """[texts, BANDS]: texts that share a key in some column are worth comparing.

    A function of each text alone. The MinHashes are rensa's.
    """
    from rensa import RMinHash

    if not texts:
        return np.zeros((0, BANDS), np.uint64)
    hashes, offsets = _shingle_hashes(texts)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, BANDS * ROWS, _SEED)
    digests = np.array(matrix.to_rows(), dtype=np.uint64).reshape(len(texts), BANDS, ROWS)
    keys = np.zeros((len(texts), BANDS), np.uint64)
    for row in range(ROWS):
        keys = (keys ^ digests[:, :, row]) * _SPREAD
        keys ^= keys >> np.uint64(31)
    return keys


def _shingle_hashes(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Hashes of all shingles of all texts, and where each text's begin, and the end."""
    encoded = [_padded(text).encode("utf-32-le", "surrogatepass") for text in texts]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded)) // 4
    chars = np.frombuffer(b"".join(encoded), np.uint32).astype(np.uint64)
    hashes = (chars[:-2] * _FIRST + chars[1:-1]) * _SECOND + chars[2:]
    hashes = (hashes ^ (hashes >> np.uint64(29))) * _MIX
    hashes ^= hashes >> np.uint64(32)
    # The last two places of each text would run into the next one.
    inside = np.ones(len(chars), np.bool_)
    ends = np.cumsum(lengths)
    inside[ends - 1] = inside[ends - 2] = False
    offsets = np.concatenate([[0], np.cumsum(lengths - 2)]).astype(np.uint64)
    return hashes[inside[:-2]], offsets


def _padded(text: str) -> str:
    # At least SHINGLE_CHARS long, so that every text has a shingle.
    return f" {text[:_MAX_CHARS]} " if text else "   "
