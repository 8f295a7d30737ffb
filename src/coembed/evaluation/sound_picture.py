"""A sound as a picture: its waveform above its spectrogram, drawn from the samples.

For people: to see at a glance whether a sound is a beep, a hiss or a rhythm. Time runs from left to
right. The spectrogram's rows are mel bands, low ones at the bottom, in decibels below its loudest.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coembed.modalities._sound import decode_sound
from coembed.modalities.base import MAX_AUDIO_S

# What a picture of a few hundred pixels can show; above 8 kHz is mostly hiss.
_SAMPLE_RATE_HZ = 16_000
_WINDOW = 512  # 32 ms
_MAX_WINDOWS = 16  # a column
_FLOOR_DB = 70.0
_WAVE_SHARE = 0.28
_LOWEST_HZ = 50.0
_PAPER = (255, 255, 255)
_WAVE = (47, 95, 208)
# Anchors of the colours from silent to loud (those of matplotlib's "magma", every fifth of it).
_COLOURS = (
    (0, 0, 4), (59, 15, 112), (140, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191),
)  # fmt: skip

Floats = NDArray[np.float64]


def sound_picture(data: bytes, *, width: int, height: int) -> Image.Image:
    """The encoded sound `data` as an RGB picture of `width` x `height` pixels.

    Raises DataError where it cannot be decoded, or is longer than `MAX_AUDIO_S`.
    """
    samples = decode_sound(data, sample_rate_hz=_SAMPLE_RATE_HZ, max_s=MAX_AUDIO_S)
    return draw_samples(samples.astype(np.float64) / 32768, width=width, height=height)


def draw_samples(samples: Floats, *, width: int, height: int) -> Image.Image:
    """`samples` [num_samples] of one channel at 16 kHz, full scale ±1, as a picture."""
    wave_height = max(round(height * _WAVE_SHARE), 3)
    picture = np.empty((height, width, 3), dtype=np.uint8)
    picture[:wave_height] = _waveform(samples, width, wave_height)
    picture[wave_height:] = _coloured(_spectrogram(samples, width, height - wave_height))
    return Image.fromarray(picture)


def _waveform(samples: Floats, width: int, height: int) -> NDArray[np.uint8]:
    """Lowest to highest value of each column; the loudest fills the height."""
    edges = np.linspace(0, len(samples), width + 1).astype(np.int64)
    starts = np.minimum(edges[:-1], len(samples) - 1)
    lowest = np.minimum.reduceat(samples, starts)
    highest = np.maximum.reduceat(samples, starts)
    scale = (height / 2 - 1) / max(float(np.abs(samples).max()), 1e-3)
    middle = (height - 1) / 2
    rows = np.arange(height)[:, None]
    inside = (rows >= np.floor(middle - highest * scale)) & (
        rows <= np.ceil(middle - lowest * scale)
    )
    return np.where(inside[..., None], _WAVE, _PAPER).astype(np.uint8)


def _spectrogram(samples: Floats, width: int, height: int) -> Floats:
    """Loudness from 0 to 1 of `height` mel bands at `width` moments, [height, width], low bands
    last."""
    padded = np.pad(samples, _WINDOW // 2)
    # A column of a long sound is the mean of several windows, or short events would fall between.
    per_column = min(max(len(samples) // (width * _WINDOW), 1), _MAX_WINDOWS)
    starts = np.linspace(0, len(padded) - _WINDOW, width * per_column).astype(np.int64)
    frames = padded[starts[:, None] + np.arange(_WINDOW)] * np.hanning(_WINDOW)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    power = power.reshape(width, per_column, -1).mean(axis=1)
    decibels = 10 * np.log10(power @ _mel_bands(height).T + 1e-10)
    above_floor = decibels - (max(float(decibels.max()), -30.0) - _FLOOR_DB)
    loudness: Floats = np.clip(above_floor / _FLOOR_DB, 0, 1).T[::-1]
    return loudness


@cache
def _mel_bands(num: int) -> Floats:
    """Weights of the frequencies in each of `num` mel bands, [num, frequencies].

    Triangles with even spacing in mel, 2595 log10(1 + f / 700), that sum to 1; where they are
    narrower than the distance of two frequencies, these are interpolated.
    """
    nyquist = _SAMPLE_RATE_HZ / 2
    frequencies = np.linspace(0, nyquist, _WINDOW // 2 + 1)
    lowest, highest = (2595 * np.log10(1 + hz / 700) for hz in (_LOWEST_HZ, nyquist))
    edges = 700 * (10 ** (np.linspace(lowest, highest, num + 2) / 2595) - 1)
    step = frequencies[1]
    left = np.maximum(np.diff(edges)[:-1], step)[:, None]
    right = np.maximum(np.diff(edges)[1:], step)[:, None]
    distance = frequencies[None] - edges[1:-1, None]
    weights = np.clip(np.minimum(1 + distance / left, 1 - distance / right), 0, None)
    bands: Floats = weights / weights.sum(axis=1, keepdims=True)
    return bands


def _coloured(values: Floats) -> NDArray[np.uint8]:
    """RGB of values from 0 to 1, [height, width] → [height, width, 3]."""
    anchors = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(values, anchors, channel) for channel in zip(*_COLOURS, strict=True)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
