"""Log-mel spectrograms as a module: plain matrix products, so that they export to ONNX and give the
same values on every device and in every run.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from coembed.modalities._audio_cfg import AudioCfg

# Kaldi's floor of a band's energy, the epsilon of float32 (feature-fbank.cc), which AST takes over.
_FLOOR = 1.1920929e-07
# Mean and standard deviation of AudioSet's log-mel energies, which AST brings to mean 0 and
# standard deviation 0.5 (Gong et al. 2021, section 3.1; ast/src/run.py). Theirs has Kaldi's
# pre-emphasis and this has not, so it is a rough standardisation here. It is fixed: a quiet sound
# stays a quiet one, and silence around a short one does not change it.
_MEAN, _SPREAD = -4.2677, 2 * 4.5690


class LogMel(nn.Module):
    """Waveforms [batch, samples] (1 is full scale) to pictures [batch, 1, num_mels, num_frames].

    Frames of frame_samples every hop_samples, none beyond the ends; a periodic Hann window; the
    squared magnitude of the DFT, zero-padded to a power of two; triangular bands on HTK's mel scale
    with peaks of 1; the natural log above Kaldi's floor; standardised by constants of AudioSet. All
    of it in float32, under autocast, too. `multiple`: frames of silence are added at the end until
    their number is a multiple of it (whole patches of a ViT).
    """

    basis: Tensor
    bands: Tensor

    def __init__(self, cfg: AudioCfg, *, multiple: int = 1) -> None:
        super().__init__()
        self._frame, self._hop = cfg.frame_samples, cfg.hop_samples
        self.num_frames = -(-cfg.num_frames // multiple) * multiple
        self._num_added = self.num_frames - cfg.num_frames
        num_fft = 2 ** math.ceil(math.log2(self._frame))
        # Not in the state: they follow from the architecture.
        self.register_buffer("basis", torch.from_numpy(_dft(self._frame, num_fft)), False)
        bands = mel_bands(
            num_fft,
            cfg.sample_rate_hz,
            cfg.num_mels,
            f_min_hz=cfg.f_min_hz,
            f_max_hz=cfg.sample_rate_hz / 2 if cfg.f_max_hz is None else cfg.f_max_hz,
        )
        self.register_buffer("bands", torch.from_numpy(bands), False)

    def forward(
        self, waveforms: Float[Tensor, "batch samples"]
    ) -> Float[Tensor, "batch 1 mels frames"]:
        """See the class."""
        # In bf16 what is 50 dB below its neighbour would be lost.
        with torch.autocast(waveforms.device.type, enabled=False):
            frames = waveforms.float().unfold(-1, self._frame, self._hop)
            real, imaginary = (frames @ self.basis).chunk(2, dim=-1)
            energies = (real.square() + imaginary.square()) @ self.bands
            values = (energies.clamp(min=_FLOOR).log() - _MEAN) / _SPREAD
            values = values.transpose(1, 2).unsqueeze(1)
            silence = (math.log(_FLOOR) - _MEAN) / _SPREAD
            return nn.functional.pad(values, (0, self._num_added), value=silence)


def mel_bands(
    num_fft: int, sample_rate_hz: int, num_mels: int, *, f_min_hz: float, f_max_hz: float
) -> NDArray[np.float32]:
    """Weights [num_fft / 2 + 1, num_mels] of a spectrum's bins in triangular bands.

    The bands' centres are evenly spaced on HTK's mel scale, 2595 · log10(1 + Hz / 700); a band
    rises from the centre before it to a peak of 1 and falls to the next one, linearly in Hz (the
    filters of torchaudio's melscale_fbanks with its defaults). A low band that is narrower than a
    bin would get nothing: it is given the nearest bin.
    """
    low, high = (2595 * math.log10(1 + hz / 700) for hz in (f_min_hz, f_max_hz))
    edges = 700 * (10 ** (np.linspace(low, high, num_mels + 2) / 2595) - 1)
    hz = np.linspace(0, sample_rate_hz / 2, num_fft // 2 + 1)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    weights = np.minimum((hz - left) / (centre - left), (right - hz) / (right - centre)).clip(0)
    empty = np.flatnonzero(weights.max(axis=0) == 0)
    weights[np.abs(hz - centre[empty]).argmin(axis=0), empty] = 1
    return weights.astype(np.float32)


def _dft(num_samples: int, num_fft: int) -> NDArray[np.float32]:
    """[num_samples, num_fft + 2]: cosines and sines of a DFT, times a periodic Hann window."""
    at = np.arange(num_samples)[:, None]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * at / num_samples)
    # The phase modulo a turn first: exact, where the angle itself would lose digits.
    angle = 2 * np.pi * (at * np.arange(num_fft // 2 + 1) % num_fft) / num_fft
    return (hann * np.concatenate([np.cos(angle), -np.sin(angle)], axis=1)).astype(np.float32)
