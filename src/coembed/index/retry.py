"""Trying again: bounded, with a growing and jittered pause, and only where it can help."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

# A server may ask for any pause; longer than this is an outage that a person should hear of.
_LONGEST_ASKED_S = 300.0


@dataclass(frozen=True, slots=True)
class TryAgain:
    """A failure that may pass. `after_s` is the pause that the server asked for, if it did."""

    after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Backoff:
    """At most `num_tries` tries; the pause starts at `first_s` and doubles up to `longest_s`."""

    num_tries: int
    first_s: float
    longest_s: float

    def pause_s(self, tries: int, asked_s: float | None, chance: float) -> float:
        """Seconds to wait after `tries` failures; `chance` in [0, 1) is the jitter.

        The pause is spread over the upper half of its range, so that clients which failed together
        do not come back together; a pause that the server asked for is never cut short.
        """
        own = min(self.longest_s, self.first_s * 2.0 ** min(tries - 1, 30)) * (0.5 + chance / 2)
        return max(own, min(asked_s or 0.0, _LONGEST_ASKED_S))


def call(
    function: Callable[[], T],
    *,
    backoff: Backoff,
    judge: Callable[[Exception], TryAgain | None],
    sleep: Callable[[float], object] = time.sleep,
    chance: Callable[[], float] = random.random,
) -> T:
    """Call `function`; where it raises what `judge` thinks may pass, pause and try again.

    Raises the last error when the tries are used up, and any other error at once.
    """
    for tries in range(1, backoff.num_tries + 1):
        try:
            return function()
        except Exception as error:
            verdict = judge(error)
            if verdict is None or tries == backoff.num_tries:
                raise
            pause_s = backoff.pause_s(tries, verdict.after_s, chance())
        sleep(pause_s)
    raise AssertionError("num_tries is at least 1")
