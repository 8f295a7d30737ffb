from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from coembed.training.optim import learning_rate, warmup_steps
from coembed.training.settings import TrainSettings


def test_defaults_are_valid_and_name_a_loss() -> None:
    settings = TrainSettings()
    assert settings.loss.name == "softmax"
    assert TrainSettings.model_validate(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": 100}, "set one of them"),
        ({"epochs": None}, "set one of them"),
        ({"warmup": 1.5}, "whole number of steps, or a share below 1"),
        ({"epochs": None, "steps": 100, "warmup": 100}, "nothing is left"),
        ({"batch_size": 1}, "greater than or equal to 2"),
        ({"loss": "hinge"}, "expected one of"),
        ({"momentum": 0.9}, "Extra inputs"),
        ({"augment": {"hue": 0.1}}, "Extra inputs"),
    ],
)
def test_refuses_what_cannot_be(values: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TrainSettings.model_validate(values)


def test_warmup_is_steps_or_a_share() -> None:
    assert warmup_steps(TrainSettings(warmup=0.1), 200) == 20
    assert warmup_steps(TrainSettings(warmup=7), 200) == 7
    assert warmup_steps(TrainSettings(warmup=0), 200) == 0


def test_learning_rate_rises_peaks_and_falls_to_the_floor() -> None:
    settings = TrainSettings(lr=1e-3, warmup=10, lr_floor=0.1)
    rates = [learning_rate(step, 110, settings) for step in range(110)]
    assert rates[0] == pytest.approx(1e-4) and rates[9] == rates[10] == 1e-3
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[60] == pytest.approx(1e-3 * (0.1 + 0.9 / 2))
    last = 1e-3 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.99)))
    assert rates[-1] == pytest.approx(last)


def test_learning_rate_without_warmup_starts_at_the_top() -> None:
    assert learning_rate(0, 10, TrainSettings(lr=1e-3, warmup=0)) == 1e-3
