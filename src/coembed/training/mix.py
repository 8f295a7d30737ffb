"""Which modality's pairs a step trains on, where there are several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from coembed.errors import ConfigError
from coembed.types import Modality


def shares_of_steps(
    steps_per_pass: Mapping[Modality, int], mix: Mapping[Modality, float] | None
) -> dict[Modality, float]:
    """Each modality's share of the steps, adding up to 1.

    `steps_per_pass` says how many batches a modality's items make. Without `mix` every item is seen
    equally often. Raises ConfigError where `mix` does not name the modalities that there are.
    """
    weights: dict[Modality, float]
    weights = dict(mix) if mix is not None else {m: float(n) for m, n in steps_per_pass.items()}
    if set(weights) != set(steps_per_pass):
        raise ConfigError(
            f"train.mix names {', '.join(sorted(weights))}; the train split has pairs of "
            f"{', '.join(sorted(steps_per_pass))}",
            hint="name each of these once, or leave train.mix null",
        )
    whole = sum(weights.values())
    return {modality: weights[modality] / whole for modality in steps_per_pass}


def steps_per_epoch(
    steps_per_pass: Mapping[Modality, int], shares: Mapping[Modality, float]
) -> int:
    """Steps in which every modality's items have been seen at least once."""
    # A share that is a quotient of whole numbers must not lose a step to rounding.
    return max(int(np.ceil(n / shares[m] - 1e-9)) for m, n in steps_per_pass.items())


def schedule(shares: Sequence[float], num_steps: int) -> NDArray[np.uint8]:
    """The stream that each step belongs to, uint8 [num_steps].

    A step goes to the stream that is furthest behind its share, so the streams are mixed as evenly
    as can be and a stream's steps up to any point are within one of its share.
    """
    if len(shares) == 1:
        return np.zeros(num_steps, np.uint8)
    found = np.empty(num_steps, np.uint8)
    behind = [0.0] * len(shares)
    for step in range(num_steps):
        behind = [lag + share for lag, share in zip(behind, shares, strict=True)]
        # Rounded, so that sums that are equal but for their last bit go to the first stream.
        chosen = max(range(len(shares)), key=lambda i: (round(behind[i], 9), -i))
        behind[chosen] -= 1.0
        found[step] = chosen
    return found
