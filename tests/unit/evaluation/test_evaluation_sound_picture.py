"""Sounds as pictures: where loud is bright, high is up and later is to the right."""

from __future__ import annotations

import numpy as np
import pytest
from evaluated_pairs import encode_sound

from coembed.errors import DataError
from coembed.evaluation.sound_picture import draw_samples, sound_picture

HZ = 16_000


def tone(hz: float, seconds: float = 1.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * HZ)) / HZ)


def brightness(samples: np.ndarray, *, width: int = 100, height: int = 100) -> np.ndarray:
    """Of the spectrogram alone, [72, width]: the waveform has the upper 28 rows."""
    picture = np.asarray(draw_samples(samples, width=width, height=height), dtype=np.float64)
    assert picture.shape == (height, width, 3)
    return picture[28:].sum(axis=2)


def test_a_higher_tone_lies_higher() -> None:
    rows = [int(brightness(tone(hz)).sum(axis=1).argmax()) for hz in (200, 800, 2000, 6000)]
    assert rows == sorted(rows, reverse=True)
    assert rows[0] > 60 and rows[-1] < 15  # of 72 rows, from the top


def test_time_runs_to_the_right() -> None:
    samples = np.concatenate([np.zeros(HZ), tone(1000)])
    found = brightness(samples)
    assert found[:, :45].max() == found.min()
    assert found[:, 55:95].max() > found.min() + 500
    wave = np.asarray(draw_samples(samples, width=100, height=100))[:28]
    inked = (wave != 255).any(axis=2).sum(axis=0)
    assert inked[:45].max() <= 2 and inked[55:].min() >= 24


@pytest.mark.parametrize("num", [1, 3, 50, 511, 513, 40_000, 2_000_000])
def test_any_length_fills_the_picture(num: int) -> None:
    rng = np.random.default_rng(num)
    for samples in (np.zeros(num), rng.normal(0, 0.2, num), np.ones(num)):
        assert draw_samples(samples, width=32, height=32).size == (32, 32)


def test_silence_is_dark_and_a_short_click_in_a_long_sound_is_seen() -> None:
    assert brightness(np.zeros(HZ)).max() <= 4 + 1
    samples = np.zeros(60 * HZ)
    samples[30 * HZ + 3 : 30 * HZ + 300] = 0.9
    assert brightness(samples)[:, 45:55].max() > 300


def test_what_is_no_sound_is_an_error() -> None:
    assert sound_picture(encode_sound(tone(440)), width=40, height=20).size == (40, 20)
    with pytest.raises(DataError, match="not a WAV"):
        sound_picture(b"nothing", width=40, height=20)
