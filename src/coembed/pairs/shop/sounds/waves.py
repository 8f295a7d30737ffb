"""What sounds are made of: filtered noise, decaying partials, plucked strings, echoes.

Signals are float64 arrays [samples], full scale at 1.

The bytes of a pool must not depend on the machine. numpy's sine and exponential differ in the last
bit between processors (its AVX-512 code is not its AVX2 code), which moves a sample by some 1e-11
of a quantisation step. Everything here is continuous in such errors (no threshold, no comparison of
computed samples), so that rounding to 16 bits hides them: over a whole pool of some 2e7 samples,
one would change with a chance of about one in a thousand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[np.float64]


def band(signal: Signal, rate_hz: int, low_hz: float, high_hz: float) -> Signal:
    """What `signal` has between two frequencies; the edges fall as a fourth-order Butterworth's.

    Zero phase, and circular: the padding is that to the next power of two.
    """
    size = 1 << max(6, (len(signal) - 1).bit_length())
    hz = np.fft.rfftfreq(size, 1 / rate_hz)
    hz[0] = 1e-3
    gain = 1 / np.sqrt((1 + (low_hz / hz) ** 8) * (1 + (hz / high_hz) ** 8))
    found: Signal = np.fft.irfft(np.fft.rfft(signal, size) * gain, size)[: len(signal)]
    return found


def reverberated(signal: Signal, rate_hz: int, noise: Signal, echo_s: float, mix: float) -> Signal:
    """`signal` in a room: echoes that fade by 60 dB in `echo_s` seconds, with the share `mix`.

    `noise` are the room's reflections, as many samples as are used of them.
    """
    tail = noise * fade(len(noise), rate_hz, echo_s / np.log(1000))
    tail /= np.sqrt(float(np.square(tail).sum()))
    size = 1 << (len(signal) + len(tail) - 1).bit_length()
    wet = np.fft.irfft(np.fft.rfft(signal, size) * np.fft.rfft(tail, size), size)[: len(signal)]
    mixed: Signal = (1 - mix) * signal + mix * wet
    return mixed


def fade(num: int, rate_hz: int, seconds: float) -> Signal:
    """An exponential decay by a factor of e in `seconds`."""
    faded: Signal = np.exp(np.arange(num) / (-seconds * rate_hz))
    return faded


def burst(num: int, rate_hz: int, attack_s: float, decay_s: float) -> Signal:
    """An envelope that rises within `attack_s` and then decays with the time constant `decay_s`."""
    rise = np.minimum(np.arange(num) / (attack_s * rate_hz + 1), 1.0)
    shaped: Signal = rise * fade(num, rate_hz, decay_s)
    return shaped


def curve(num: int, points: Sequence[tuple[float, float]]) -> Signal:
    """Straight lines through (place from 0 to 1, value)."""
    places, values = zip(*points, strict=True)
    drawn: Signal = np.interp(np.arange(num) / max(1, num - 1), places, values)
    return drawn


def glide(hz: Signal | float, rate_hz: int, num: int, partials: Sequence[float] = (1.0,)) -> Signal:
    """A tone whose frequency may change, with harmonics of the amplitudes `partials`.

    Harmonics above 0.45 of the sample rate are left out.
    """
    steps = np.broadcast_to(np.asarray(hz, np.float64), (num,))
    top = float(steps.max())
    phase = np.cumsum(steps) * (2 * np.pi / rate_hz)
    tone: Signal = np.zeros(num)
    for place, amplitude in enumerate(partials, start=1):
        if place * top < 0.45 * rate_hz:
            tone += amplitude * np.sin(place * phase)
    return tone


def ring(num: int, rate_hz: int, hz: float, modes: Sequence[tuple[float, float, float]]) -> Signal:
    """A struck body: modes of (multiple of `hz`, amplitude, decay in seconds)."""
    time = np.arange(num) / rate_hz
    struck: Signal = np.zeros(num)
    for multiple, amplitude, decay_s in modes:
        if multiple * hz < 0.45 * rate_hz:
            struck += amplitude * np.exp(time / -decay_s) * np.sin(2 * np.pi * multiple * hz * time)
    return struck


def pluck(num: int, rate_hz: int, hz: float, noise: Signal, damping: float) -> Signal:
    """A plucked string (Karplus and Strong 1983): noise circles in a delay line and is smoothed.

    `noise` has at least one period of samples, `damping` is the loss each round. The pitch is that
    of a whole number of samples.
    """
    period = max(2, round(rate_hz / hz))
    rounds = -(-num // period)
    line = noise[:period] - noise[:period].mean()
    string = np.empty((rounds, period))
    before = 0.0
    for place in range(rounds):
        string[place] = line
        last = line[-1]
        line = (1 - damping) * 0.5 * (line + np.concatenate(([before], line[:-1])))
        before = last
    plucked: Signal = string.ravel()[:num]
    return plucked


def add(out: Signal, start: int, part: Signal, gain: float = 1.0) -> None:
    """Mix `part` into `out` from sample `start` on, as far as it fits."""
    if start < len(out):
        fitting = part[: len(out) - start]
        out[start : start + len(fitting)] += gain * fitting
