"""Sounds to another sample rate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def resample(samples: NDArray[np.float32], rate_in: int, rate_out: int) -> NDArray[np.float32]:
    """`samples` [frames] or [frames, channels] at `rate_in` Hz, brought to `rate_out` Hz.

    Band-limited (libsoxr, quality HQ: 20 bits, linear phase), so that nothing above the new Nyquist
    frequency folds back. The length is round(frames · rate_out / rate_in).

    Raises:
        ValueError: a rate below 1 Hz.
    """
    if rate_in < 1 or rate_out < 1:
        raise ValueError(f"sample rates must be at least 1 Hz; got {rate_in} and {rate_out}")
    if rate_in == rate_out:
        return samples
    import soxr  # loaded only where a sound needs it

    resampled: NDArray[np.float32] = soxr.resample(samples, rate_in, rate_out, quality="HQ")
    return resampled
