"""From a recording to the bytes of its file."""

from __future__ import annotations

import io

import numpy as np
import soundfile
from numpy.typing import NDArray

from coembed.pairs.shop.sounds.kinds import KINDS
from coembed.pairs.shop.sounds.recording import Ending, Recording, Session
from coembed.pairs.shop.sounds.waves import Signal, reverberated

Samples = NDArray[np.int16]
_FULL_SCALE = 32767


def render(recording: Recording) -> Samples:
    """Play it, in its place, with its background: [samples, channels]."""
    return quantised(_rendered(recording))


def clipped(recording: Recording, share: float) -> Samples:
    """The same, recorded so loud that about `share` of the samples are at full scale."""
    signal = _rendered(recording)
    limit = float(np.quantile(np.abs(signal), 1 - share))
    return quantised(np.clip(signal / limit, -1, 1))


def quantised(signal: Signal) -> Samples:
    """16-bit samples of [samples, channels] within -1 and 1."""
    samples: Samples = np.rint(signal * _FULL_SCALE).astype(np.int16)
    return samples


def encoded(samples: Samples, rate_hz: int, ending: Ending) -> bytes:
    """The file. FLAC at level 0, which predicts with whole numbers only: from level 3 on the
    encoder computes in floating point, otherwise on every kind of processor, and the same samples
    would be other bytes."""
    out = io.BytesIO()
    if ending == "flac":
        soundfile.write(
            out, samples, rate_hz, format="FLAC", subtype="PCM_16", compression_level=0.0
        )
    else:
        soundfile.write(out, samples, rate_hz, format="WAV", subtype="PCM_16")
    return out.getvalue()


def _rendered(recording: Recording) -> Signal:
    """[samples, channels]; the loudest is at the recording's peak."""
    s = Session(recording)
    signal = KINDS[recording.kind].play(s)
    signal = signal / float(np.abs(signal).max())
    # A fade at both ends: a recording is cut where it is quiet.
    edge = min(s.samples(0.01), s.num // 4)
    ramp = np.arange(edge) / edge
    signal[:edge] *= ramp
    signal[-edge:] *= ramp[::-1]
    if recording.place == "room":
        noise = s.noise(s.samples(0.35))
        signal = reverberated(signal, s.rate_hz, noise, s.source.uniform(0.2, 0.35), 0.25)
    elif recording.place == "hall":
        noise = s.noise(s.samples(1.8))
        signal = reverberated(signal, s.rate_hz, noise, s.source.uniform(1.2, 2.2), 0.45)
    background = s.hiss(30, 900) + 0.25 * s.hiss(900, 6000)
    background *= 10 ** (-recording.snr_db / 20) / float(np.abs(background).max())
    signal = signal / float(np.abs(signal).max()) + background
    channels = signal[:, None]
    if recording.num_channels == 2:
        # Beside the middle: later and softer in the far channel, which has a background of its own.
        lag = s.play.randrange(2, 12)
        far = np.concatenate([np.zeros(lag), signal[:-lag]]) * s.play.uniform(0.6, 0.9)
        pair = (signal, far) if s.play.random() < 0.5 else (far, signal)
        channels = np.stack(pair, axis=1)
    peak = 10 ** (recording.peak_dbfs / 20) / float(np.abs(channels).max())
    levelled: Signal = channels * peak
    return levelled
