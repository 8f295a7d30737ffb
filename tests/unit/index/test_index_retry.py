"""The retry layer: how often, how long, and what is not tried again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coembed.index.retry import Backoff, TryAgain, call


class Flaky:
    def __init__(self, num_failures: int, error: type[Exception] = TimeoutError) -> None:
        self.left, self.error, self.calls = num_failures, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self.error(f"call {self.calls}")
        return "done"


def judge(error: Exception) -> TryAgain | None:
    return TryAgain() if isinstance(error, TimeoutError) else None


def test_passing_failures_are_tried_again_with_growing_pauses() -> None:
    pauses: list[float] = []
    flaky = Flaky(4)
    backoff = Backoff(6, 1.0, 5.0)
    assert (
        call(flaky, backoff=backoff, judge=judge, sleep=pauses.append, chance=lambda: 1.0) == "done"
    )
    assert flaky.calls == 5
    assert pauses == [1.0, 2.0, 4.0, 5.0]


def test_the_last_error_is_raised_when_the_tries_are_used_up() -> None:
    flaky = Flaky(9)
    with pytest.raises(TimeoutError, match="call 3"):
        call(flaky, backoff=Backoff(3, 0.1, 1.0), judge=judge, sleep=lambda _: None)
    assert flaky.calls == 3


def test_other_errors_are_not_tried_again() -> None:
    flaky = Flaky(1, ValueError)
    with pytest.raises(ValueError, match="call 1"):
        call(flaky, backoff=Backoff(3, 0.1, 1.0), judge=judge, sleep=lambda _: None)
    assert flaky.calls == 1


@given(
    st.integers(1, 60), st.floats(0.01, 10), st.floats(10, 100), st.floats(0, 0.999),
    st.none() | st.floats(0, 1000),
)  # fmt: skip
def test_pauses_are_bounded_and_never_shorter_than_asked(
    tries: int, first: float, longest: float, chance: float, asked: float | None
) -> None:
    pause = Backoff(60, first, longest).pause_s(tries, asked, chance)
    assert pause >= min(asked or 0, 300)
    assert first / 2 <= pause <= max(longest, min(asked or 0, 300))
