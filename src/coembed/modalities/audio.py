"""Sounds: decoding, windows, the tower.

One way of decoding, resampling and cutting serves the training cache, evaluation and search: a
model hears the same samples everywhere. `Spec.version` names that way and the spectrogram's; it
changes when the values would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import timm
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from coembed import draws
from coembed.errors import DataError, ModelError
from coembed.modalities import base
from coembed.modalities._audio_cfg import AudioCfg, read_audio_cfg
from coembed.modalities._augment import AudioAugment
from coembed.modalities._mel import LogMel
from coembed.modalities._sound import Samples, decode_sound

SECTION = "audio_cfg"
OPEN_CLIP = "audio"
"""open_clip has no audio tower; its export refuses one."""

_ABSENT = -32768
"""All samples of a window that is not there; decoding gives no sample this value."""

_FULL_SCALE = 32768.0
# Of a longer clip than max_windows such stretches, training keeps so many, evenly spaced.
_STRETCH_WINDOWS = 2
# In evaluation so many windows (or one an item, if that is more) are in work at once.
_MIN_WINDOWS_AT_ONCE = 32


class Spec(base.InputSpec):
    """The audio tower's inputs.

    sample_rate_hz: of its waveforms, which have one channel. window_samples: what it hears at once.
    max_windows: heard of a longer sound. version: of decoding, resampling, windows and spectrogram.
    """

    sample_rate_hz: int = Field(ge=1)
    window_samples: int = Field(ge=2)
    max_windows: int = Field(ge=1)
    version: Literal[1] = 1


def windows_of(samples: Samples, spec: Spec) -> NDArray[np.int16]:
    """The windows in which a sound is embedded: [num_windows, window_samples].

    A sound of up to one window stands in the middle of silence. A longer one is heard in as many
    windows as cover it, at most max_windows, evenly spaced from its start to its end.
    """
    size, num = spec.window_samples, len(samples)
    if num <= size:
        before = (size - num) // 2
        return np.pad(samples, (before, size - num - before))[None]
    return _stretches(samples, size, min(spec.max_windows, -(-num // size)))


def _stretches(samples: Samples, size: int, num: int) -> NDArray[np.int16]:
    """`num` stretches evenly spaced from start to end; one is the middle: [num, size]."""
    spare = len(samples) - size
    starts = [spare * place // (num - 1) for place in range(num)] if num > 1 else [spare // 2]
    return np.stack([samples[start : start + size] for start in starts])


class Loader(base.Loader):
    """Encoded sounds to windows [batch, windows, window_samples] int16, and on to waveforms.

    An item with fewer windows than its neighbours has absent ones, all −32768; as an input they are
    NaN, and the tower leaves them out.
    """

    dtype: ClassVar[torch.dtype] = torch.int16

    def __init__(
        self, spec: Spec, *, files: Path | None = None, max_audio_s: float = base.MAX_AUDIO_S
    ) -> None:
        del files
        self._spec, self._max_audio_s = spec, max_audio_s

    def load(self, items: Sequence[bytes], *, first: int = 0) -> Tensor:
        """See base.Loader."""
        spec = self._spec
        windows = []
        for place, data in enumerate(items):
            try:
                samples = decode_sound(
                    data, sample_rate_hz=spec.sample_rate_hz, max_s=self._max_audio_s
                )
            except DataError as error:
                raise DataError(f"audio {first + place}: {error.message}") from error
            windows.append(windows_of(samples, spec))
        return torch.from_numpy(_pad_windows(windows, spec.window_samples))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """See base.Loader: to as many windows as the longest sound of all parts has."""
        most = max(part.shape[1] for part in parts)
        padded = [
            nn.functional.pad(part, (0, 0, 0, most - part.shape[1]), value=_ABSENT)
            for part in parts
        ]
        return torch.cat(padded)

    def to_inputs(self, batch: Tensor) -> Float[Tensor, "batch windows samples"]:
        """See base.Loader: 1 is full scale."""
        absent = batch[:, :, :1] == _ABSENT
        return batch.to(torch.float32).div_(_FULL_SCALE).masked_fill_(absent, torch.nan)

    def example(self) -> Tensor:
        """See base.Loader."""
        return torch.zeros((1, 1, self._spec.window_samples), dtype=torch.int16)

    def max_item_bytes(self) -> int:
        """See base.Loader."""
        return self._spec.max_windows * self._spec.window_samples * 2

    def identity(self) -> Mapping[str, Any]:
        """See base.Loader. The spec says it all."""
        return {}


def _pad_windows(windows: Sequence[NDArray[np.int16]], size: int) -> NDArray[np.int16]:
    """Each item's windows [num_windows, size], with absent ones: [items, most windows, size]."""
    most = max((len(one) for one in windows), default=1)
    out = np.full((len(windows), most, size), _ABSENT, dtype=np.int16)
    for place, one in enumerate(windows):
        out[place, : len(one)] = one
    return out


class View(base.View):
    """The samples of a clip; a step hears a random window of them, louder or quieter, or a short
    clip at a random place in silence.

    Of a very long clip, stretches of two windows are kept, as many as the tower hears windows and
    evenly spaced, so that the whole clip can be met and what is kept stays small. Without `augment`
    the windows themselves are kept.
    """

    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.int16)

    def __init__(self, spec: Spec, augment: AudioAugment | None) -> None:
        self._spec, self._augment = spec, augment
        self._stretch = spec.window_samples * (1 if augment is None else _STRETCH_WINDOWS)

    def keep(self, media: bytes) -> Samples:
        """See base.View: int16 [samples]."""
        spec = self._spec
        samples = decode_sound(media, sample_rate_hz=spec.sample_rate_hz, max_s=base.MAX_AUDIO_S)
        if self._augment is None:
            # A short clip as it is: the silence around it need not be kept.
            return windows_of(samples, spec).reshape(-1) if self._is_long(samples) else samples
        if len(samples) > spec.max_windows * self._stretch:
            return _stretches(samples, self._stretch, spec.max_windows).reshape(-1)
        return samples

    def shape(self, size: int) -> tuple[int, ...]:
        """See base.View."""
        return (size,)

    def see(
        self, kept: Sequence[Samples], keys: draws.Keys, *, seed: int, epoch: int
    ) -> NDArray[np.int16]:
        """See base.View: int16 [batch, windows, window_samples]; one window with `augment`."""
        size = self._spec.window_samples
        if self._augment is None:
            windows = [
                one.reshape(-1, size) if self._is_long(one) else windows_of(one, self._spec)
                for one in kept
            ]
            return _pad_windows(windows, size)
        lengths = np.array([len(one) for one in kept], dtype=np.int64)
        chosen = draws.below(seed, "window", epoch, keys, self._num_places(lengths))
        out = np.zeros((len(kept), 1, size), dtype=np.int16)
        for place, (one, choice) in enumerate(zip(kept, chosen.tolist(), strict=True)):
            if self._is_long(one):
                start = self._start(len(one), choice)
                out[place, 0] = one[start : start + size]
            else:
                out[place, 0, choice : choice + len(one)] = one
        if self._augment.gain_db:
            spread = 2 * draws.uniform(seed, "gain", epoch, keys) - 1
            gain = (10 ** (self._augment.gain_db * spread / 20)).astype(np.float32)[:, None, None]
            np.clip(np.rint(out * gain), -32767, 32767, out=out, casting="unsafe")
        return out

    def join(self, parts: Sequence[NDArray[np.int16]]) -> NDArray[np.int16]:
        """See base.View: to as many windows as the longest sound of all parts has."""
        return _pad_windows([one for part in parts for one in part], self._spec.window_samples)

    def identity(self) -> Mapping[str, Any]:
        """See base.View."""
        return {**self._spec.model_dump(mode="json"), "stretch_samples": self._stretch}

    def _is_long(self, samples: Samples) -> bool:
        return len(samples) > self._spec.window_samples

    def _is_cut(self, lengths: Any) -> Any:
        """Whether what is kept is stretches (or a clip of just that length, for all it matters)."""
        return lengths == self._spec.max_windows * self._stretch

    def _num_places(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """In how many places a window can lie in a clip, or a short clip in the window."""
        size = self._spec.window_samples
        within = self._spec.max_windows * (self._stretch - size + 1)
        return np.where(self._is_cut(lengths), within, np.abs(lengths - size) + 1)

    def _start(self, length: int, choice: int) -> int:
        """Where in a long clip the window of that choice begins: never across two stretches."""
        if not self._is_cut(length):
            return choice
        stretch, offset = divmod(choice, self._stretch - self._spec.window_samples + 1)
        return stretch * self._stretch + offset


class AudioTower(nn.Module):
    """A timm model on log-mel spectrograms, and a projection.

    Waveforms [batch, samples] or [batch, windows, samples], in which absent windows are NaN →
    features [batch, embed_dim]: the mean of the features of an item's windows. Only windows that
    are there go through the model, so an item's features do not depend on its neighbours.
    """

    def __init__(self, embed_dim: int, cfg: AudioCfg) -> None:
        super().__init__()
        self.trunk = _make_trunk(cfg)
        multiple = 1
        if hasattr(self.trunk, "set_input_size"):  # a ViT, which is built for one size
            multiple = _frames_a_patch(self.trunk, cfg)
        self.log_mel = LogMel(cfg, multiple=multiple)
        if hasattr(self.trunk, "set_input_size"):
            self.trunk.set_input_size((cfg.num_mels, self.log_mel.num_frames))
        width = getattr(self.trunk, "head_hidden_size", None) or self.trunk.num_features
        self.drop = nn.Dropout(cfg.timm_drop)
        self.proj = nn.Linear(width, embed_dim, bias=False)

    def forward(self, waveforms: Tensor) -> Float[Tensor, "batch dim"]:
        """Features before normalisation."""
        if waveforms.ndim == 3 and waveforms.shape[1] == 1:
            waveforms = waveforms[:, 0]  # an item has at least one window
        if waveforms.ndim == 2:
            return self._features(waveforms)
        present = ~waveforms[:, :, 0].isnan()
        features = self._in_parts(waveforms[present], at_once=len(waveforms)).float()
        spread = features.new_zeros((*present.shape, features.shape[-1]))
        spread[present] = features  # no sum by index: on a GPU its order would be left to chance
        return spread.sum(dim=1) / present.sum(dim=1, keepdim=True)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.trunk.set_grad_checkpointing(enable)

    def _features(self, waveforms: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch dim"]:
        return self.proj(self.drop(self.trunk(self.log_mel(waveforms))))

    def _in_parts(
        self, windows: Float[Tensor, "windows samples"], *, at_once: int
    ) -> Float[Tensor, "windows dim"]:
        """Features of many windows; in evaluation in parts, as memory goes by the part."""
        if self.training or torch.is_grad_enabled():  # norms and dropout see the batch as one
            return self._features(windows)
        parts = torch.split(windows, max(at_once, _MIN_WINDOWS_AT_ONCE))
        return torch.cat([self._features(part) for part in parts])


def _make_trunk(cfg: AudioCfg) -> Any:
    path = {} if cfg.timm_drop_path is None else {"drop_path_rate": cfg.timm_drop_path}
    try:
        return timm.create_model(
            cfg.timm_model_name,
            pretrained=cfg.timm_model_pretrained,
            in_chans=1,
            num_classes=0,
            **path,
        )
    except Exception as error:  # timm's models raise nearly everything
        raise ModelError(
            f"timm cannot build the audio tower {cfg.timm_model_name!r}: "
            f"{type(error).__name__}: {error}",
            hint="check model.architecture.audio_cfg in params.yaml; timm.list_models() has names",
        ) from error


def _frames_a_patch(trunk: Any, cfg: AudioCfg) -> int:
    """Width of a ViT's patches; 1 where it has none. Raises ModelError where its height is not a
    divisor of num_mels."""
    size = getattr(getattr(trunk, "patch_embed", None), "patch_size", None)
    if size is None:
        return 1
    if cfg.num_mels % size[0]:
        raise ModelError(
            f"num_mels {cfg.num_mels} in audio_cfg is not a multiple of the {size[0]} bands that a "
            f"patch of {cfg.timm_model_name} covers: the highest would never be heard",
            hint=f"set num_mels to {size[0] * max(1, round(cfg.num_mels / size[0]))}",
        )
    return int(size[1])


def describe(section: Mapping[str, Any], preprocess: Mapping[str, Any]) -> Spec:  # noqa: ARG001
    """See base.ModalityModule. No checkpoint of open_clip's says anything of sounds."""
    cfg = read_audio_cfg(section)
    return Spec(
        sample_rate_hz=cfg.sample_rate_hz,
        window_samples=cfg.window_samples,
        max_windows=cfg.max_windows,
    )


def build_tower(embed_dim: int, section: Mapping[str, Any], *, quick_gelu: bool) -> AudioTower:  # noqa: ARG001
    """Waveforms [batch, samples] or [batch, windows, samples] → features [batch, embed_dim].

    `quick_gelu` is of open_clip's own transformers; timm's models know their activation.

    Raises:
        ModelError: an unknown key or timm model, or sizes that do not fit.
    """
    cfg = read_audio_cfg(section)
    try:
        return AudioTower(embed_dim, cfg)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"timm cannot build {cfg.timm_model_name} for {cfg.num_mels} bands by "
            f"{cfg.num_frames} frames: {type(error).__name__}: {error}",
            hint="a plain CNN or ViT takes any size; check num_mels and clip_s in audio_cfg",
        ) from error
