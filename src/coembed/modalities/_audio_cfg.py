"""The audio tower's section of an architecture, `audio_cfg`. Imports no torch, so that params.yaml
is read and checked quickly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from coembed.errors import ModelError
from coembed.settings import Settings


class AudioCfg(Settings):
    """A timm CNN or ViT on the log-mel spectrogram of a window of sound.

    timm_model_name: any timm model that takes pictures of one channel. A ViT is built for the
        spectrogram's size, num_mels by the window's frames.
    timm_model_pretrained: start from timm's own weights (ImageNet's: AST, Gong et al. 2021, section
        2.2, finds that they help on spectrograms, too); they are downloaded unless they are cached.
    timm_drop, timm_drop_path: dropout before the projection, and stochastic depth (null: the
        model's own).
    sample_rate_hz: sounds are brought to this rate. clip_s: length of the window that the tower
        hears at once; 10 s as in AudioSet, AST and CLAP (Wu et al. 2023).
    max_windows: of a longer sound, at most so many windows, evenly spaced over all of it, are heard
        and their features averaged.
    frame_s, hop_s, num_mels: a spectrum of each frame_s every hop_s, in num_mels bands. 25 ms every
        10 ms is Kaldi's and AST's choice; 64 bands are PANNs' (Kong et al. 2020) and CLAP's.
    f_min_hz, f_max_hz: edges of the lowest and highest band; null is half the sample rate. 50 Hz is
        PANNs' and CLAP's.
    """

    model_config = ConfigDict(strict=True)

    timm_model_name: str
    timm_model_pretrained: bool = False
    timm_drop: float = Field(default=0.0, ge=0.0, lt=1.0)
    timm_drop_path: float | None = Field(default=None, ge=0.0, lt=1.0)
    sample_rate_hz: int = Field(default=16000, ge=1000, le=192_000)
    clip_s: float = Field(default=10.0, gt=0.0, le=120.0)
    max_windows: int = Field(default=6, ge=1, le=1000)
    frame_s: float = Field(default=0.025, gt=0.0, le=0.5)
    hop_s: float = Field(default=0.010, gt=0.0, le=0.5)
    num_mels: int = Field(default=64, ge=8, le=512)
    f_min_hz: float = Field(default=50.0, ge=0.0)
    f_max_hz: float | None = Field(default=None, gt=0.0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        nyquist = self.sample_rate_hz / 2
        top = nyquist if self.f_max_hz is None else self.f_max_hz
        if top > nyquist:
            raise ValueError(
                f"f_max_hz is {top:g}, above half of sample_rate_hz ({nyquist:g} Hz): there is "
                "nothing to hear"
            )
        if self.f_min_hz >= top:
            raise ValueError(f"f_min_hz is {self.f_min_hz:g}, not below f_max_hz ({top:g} Hz)")
        if self.hop_s > self.frame_s:
            raise ValueError(
                f"hop_s {self.hop_s:g} is above frame_s {self.frame_s:g}: the samples between two "
                "frames would never be heard"
            )
        if self.frame_s > self.clip_s:
            raise ValueError(f"frame_s {self.frame_s:g} is longer than clip_s {self.clip_s:g}")
        return self

    @property
    def window_samples(self) -> int:
        """Samples of a window."""
        return round(self.clip_s * self.sample_rate_hz)

    @property
    def frame_samples(self) -> int:
        """Samples of a frame."""
        return max(2, round(self.frame_s * self.sample_rate_hz))

    @property
    def hop_samples(self) -> int:
        """Samples from one frame's start to the next one's."""
        return max(1, round(self.hop_s * self.sample_rate_hz))

    @property
    def num_frames(self) -> int:
        """Frames of a window."""
        return 1 + (self.window_samples - self.frame_samples) // self.hop_samples


def read_audio_cfg(section: Mapping[str, Any], where: str = "audio_cfg") -> AudioCfg:
    """The section checked; `where` names it in errors. Raises ModelError."""
    known = AudioCfg.model_fields
    unknown = sorted(map(str, set(section) - set(known)))
    if unknown:
        raise ModelError(
            f"{where} has unknown keys: {', '.join(unknown)}",
            hint=f"known: {', '.join(sorted(known))}",
        )
    if not section.get("timm_model_name"):
        raise ModelError(
            f"{where} names no timm_model_name",
            hint="any timm model: resnet18, convnext_atto, efficientvit_b0, vit_tiny_patch16_224",
        )
    try:
        return AudioCfg.model_validate(dict(section))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        text = first["msg"].removeprefix("Value error, ")
        found = f"{key} in {where} is {first['input']!r}: {text}" if key else f"{where}: {text}"
        raise ModelError(found) from None
