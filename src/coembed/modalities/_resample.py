"""Sounds to another sample rate: band-limited (libsoxr, quality HQ: 20 bits, linear phase), so that
nothing above the new Nyquist frequency folds back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_QUALITY = "HQ"


def resample(samples: NDArray[np.float32], rate_in: int, rate_out: int) -> NDArray[np.float32]:
    """`samples` [frames] or [frames, channels] at `rate_in` Hz, brought to `rate_out` Hz.

    The length is round(frames · rate_out / rate_in).

    Raises:
        ValueError: a rate below 1 Hz.
    """
    _check_rates(rate_in, rate_out)
    if rate_in == rate_out:
        return samples
    import soxr  # loaded only where a sound needs it

    resampled: NDArray[np.float32] = soxr.resample(samples, rate_in, rate_out, quality=_QUALITY)
    return resampled


class Resampler:
    """`resample` for one channel that comes block by block; the result is the same samples."""

    def __init__(self, rate_in: int, rate_out: int) -> None:
        _check_rates(rate_in, rate_out)
        self._stream: Any = None
        if rate_in != rate_out:
            import soxr

            self._stream = soxr.ResampleStream(
                rate_in, rate_out, num_channels=1, dtype="float32", quality=_QUALITY
            )

    def push(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """The next samples, [any number], once `block` [frames] is known, too."""
        if self._stream is None:
            return block
        resampled: NDArray[np.float32] = self._stream.resample_chunk(block)
        return resampled

    def finish(self) -> NDArray[np.float32]:
        """The last samples."""
        nothing = np.empty(0, dtype=np.float32)
        if self._stream is None:
            return nothing
        resampled: NDArray[np.float32] = self._stream.resample_chunk(nothing, last=True)
        return resampled


def _check_rates(rate_in: int, rate_out: int) -> None:
    if rate_in < 1 or rate_out < 1:
        raise ValueError(f"sample rates must be at least 1 Hz; got {rate_in} and {rate_out}")
