"""Windows, spectrograms, the tower and what training hears, against slow references."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import soundfile
import timm
import torch
from torch import Tensor

from coembed import draws
from coembed.errors import DataError, ModelError
from coembed.modalities import audio
from coembed.modalities._audio_cfg import AudioCfg, read_audio_cfg
from coembed.modalities._augment import AudioAugment
from coembed.modalities._mel import LogMel, mel_bands
from coembed.modalities.audio import Loader, Spec, View, build_tower, describe, windows_of

TINY: dict[str, Any] = {
    "timm_model_name": "test_resnet",
    "clip_s": 1.0,
    "sample_rate_hz": 8000,
    "num_mels": 32,
}
SPEC = Spec(sample_rate_hz=1000, window_samples=100, max_windows=4)


def _wav(samples: np.ndarray, rate: int = 1000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def _ramp(num: int) -> np.ndarray:
    """1, 2, 3, ...: every sample says where it stood."""
    return np.arange(1, num + 1, dtype=np.int16)


def _sounds(num: int, seconds: float = 0.7, rate: int = 8000) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [_wav(rng.normal(0, 0.1, round(rate * seconds * (1 + n))), rate) for n in range(num)]


# Windows


def test_the_spec_follows_from_the_section() -> None:
    spec = describe({**TINY, "clip_s": 2.5, "max_windows": 3}, {"mean": [0.5]})
    assert spec == Spec(sample_rate_hz=8000, window_samples=20000, max_windows=3)


def test_a_short_sound_stands_in_the_middle_of_silence() -> None:
    (window,) = windows_of(_ramp(31), SPEC)
    np.testing.assert_array_equal(window[34:65], _ramp(31))
    assert not window[:34].any() and not window[65:].any()


@pytest.mark.parametrize("num", [100, 101, 199, 200, 201, 300, 399, 400, 401, 5000])
def test_windows_cover_a_long_sound_from_start_to_end(num: int) -> None:
    windows = windows_of(_ramp(num), SPEC)
    starts = windows[:, 0].astype(int) - 1
    np.testing.assert_array_equal(
        windows - windows[:, :1], np.tile(np.arange(100), (len(windows), 1))
    )
    assert len(windows) == min(4, math.ceil(num / 100))
    assert starts[0] == 0 and windows[-1, -1] == num
    if len(windows) > 1:
        assert np.ptp(np.diff(starts)) <= 1
    if num <= 400:
        assert (np.diff(starts) <= 100).all()  # nothing is left out


def test_one_window_of_a_long_sound_is_its_middle() -> None:
    (window,) = windows_of(_ramp(300), SPEC.model_copy(update={"max_windows": 1}))
    np.testing.assert_array_equal(window, _ramp(300)[100:200])


def test_absent_windows_are_flagged_and_become_nan() -> None:
    loader = Loader(SPEC)
    batch = loader.load([_wav(_ramp(50)), _wav(_ramp(250))])
    assert batch.shape == (2, 3, 100) and batch.dtype == torch.int16
    assert (batch[0, 1:] == -32768).all() and (batch[1] > -32768).all()
    inputs = loader.to_inputs(batch)
    assert inputs.dtype == torch.float32
    assert inputs[0, 1:].isnan().all() and not inputs[0, 0].isnan().any()
    torch.testing.assert_close(inputs[1], batch[1] / 32768)


def test_the_loudest_sample_is_no_absent_one() -> None:
    loader = Loader(SPEC)
    batch = loader.load([_wav(np.full(100, -32768, dtype=np.int16))])
    assert not loader.to_inputs(batch).isnan().any()


def test_parts_of_different_lengths_are_joined() -> None:
    loader = Loader(SPEC)
    sounds = [_wav(_ramp(num)) for num in (50, 250, 120, 1000)]
    parts = [loader.load(sounds[:1]), loader.load([]), loader.load(sounds[1:])]
    assert torch.equal(loader.join(parts), loader.load(sounds))


def test_a_bad_sound_is_named_by_its_place() -> None:
    with pytest.raises(DataError, match=r"^audio 12: not a readable sound: not a WAV, AIFF, FLAC"):
        Loader(SPEC).load([_wav(_ramp(50)), b"nonsense"], first=11)
    with pytest.raises(DataError, match=r"^audio 0: the sound is too long: 3 s > 2 s"):
        Loader(SPEC, max_audio_s=2.0).load([_wav(_ramp(3000))])


# Spectrograms


def _slow_bands(num_fft: int, rate: int, num_mels: int, low: float, high: float) -> np.ndarray:
    """Triangles drawn bin by bin."""

    def mel(hz: float) -> float:
        return 2595 * math.log10(1 + hz / 700)

    step = (mel(high) - mel(low)) / (num_mels + 1)
    edges = [700 * (10 ** ((mel(low) + step * place) / 2595) - 1) for place in range(num_mels + 2)]
    weights = np.zeros((num_fft // 2 + 1, num_mels))
    for band in range(num_mels):
        left, centre, right = edges[band : band + 3]
        for place in range(num_fft // 2 + 1):
            hz = place * rate / num_fft
            if left < hz <= centre:
                weights[place, band] = (hz - left) / (centre - left)
            elif centre < hz < right:
                weights[place, band] = (right - hz) / (right - centre)
    return weights


@pytest.mark.parametrize(("num_fft", "rate", "num_mels"), [(512, 16000, 64), (1024, 32000, 64)])
def test_the_bands_are_htks_triangles(num_fft: int, rate: int, num_mels: int) -> None:
    found = mel_bands(num_fft, rate, num_mels, f_min_hz=50, f_max_hz=rate / 2)
    expected = _slow_bands(num_fft, rate, num_mels, 50, rate / 2)
    heard = expected.max(axis=0) > 0
    np.testing.assert_allclose(found[:, heard], expected[:, heard], atol=1e-6)


def test_no_band_is_deaf() -> None:
    found = mel_bands(256, 16000, 128, f_min_hz=20, f_max_hz=8000)
    assert (found.max(axis=0) > 0).all()
    # The peaks go up: a band that falls between two bins takes the nearer one.
    assert (np.diff(found.argmax(axis=0)) >= 0).all()


def _reference(waveforms: Tensor, cfg: AudioCfg) -> Tensor:
    """torch.stft, which puts a short frame into the middle of its FFT."""
    frame = cfg.frame_samples
    num_fft = 2 ** math.ceil(math.log2(frame))
    around = (num_fft - frame) // 2
    spectrum = torch.stft(
        torch.nn.functional.pad(waveforms.double(), (around, num_fft - frame - around)),
        num_fft, cfg.hop_samples, frame, torch.hann_window(frame, dtype=torch.float64),
        center=False, return_complex=True,
    )  # fmt: skip
    top = cfg.sample_rate_hz / 2 if cfg.f_max_hz is None else cfg.f_max_hz
    bands = mel_bands(
        num_fft, cfg.sample_rate_hz, cfg.num_mels, f_min_hz=cfg.f_min_hz, f_max_hz=top
    )
    energies = torch.from_numpy(bands).double().T @ spectrum.abs().square()
    return (energies.clamp(min=1.1920929e-07).log() + 4.2677) / (2 * 4.5690)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sample_rate_hz": 16000, "num_mels": 64, "clip_s": 2.0},
        {"frame_s": 0.032, "hop_s": 0.016, "f_min_hz": 0.0, "f_max_hz": 3000.0},
        {"frame_s": 0.0201, "hop_s": 0.0099},
    ],
)
def test_log_mels_are_those_of_torchs_stft(changes: dict[str, Any]) -> None:
    cfg = read_audio_cfg({**TINY, **changes})
    rng = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(2, cfg.window_samples, generator=rng)
    at = torch.arange(cfg.window_samples) / cfg.sample_rate_hz
    # A pure tone would leave other bands nothing but float32's rounding.
    tone = 0.9 * torch.sin(2 * torch.pi * 700 * at) + 0.01 * noise[0]
    waveforms = torch.cat([noise, tone[None], torch.zeros(1, len(at))])
    found = LogMel(cfg)(waveforms)
    expected = _reference(waveforms, cfg)
    assert found.shape == (4, 1, cfg.num_mels, cfg.num_frames)
    torch.testing.assert_close(found[:, 0].double(), expected, atol=1e-4, rtol=0)


def test_autocast_does_not_touch_the_spectrogram() -> None:
    log_mel = LogMel(read_audio_cfg(TINY))
    waveforms = 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(log_mel(waveforms), log_mel(waveforms.float()))
        found = log_mel(waveforms)
    assert found.dtype == torch.float32 and torch.equal(found, log_mel(waveforms))


def test_a_louder_sound_is_a_louder_picture_and_silence_the_floor() -> None:
    log_mel = LogMel(read_audio_cfg(TINY))
    waveform = 0.01 * torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    step = log_mel(10 * waveform) - log_mel(waveform)
    torch.testing.assert_close(step, torch.full_like(step, math.log(100) / (2 * 4.5690)))
    assert log_mel(torch.zeros(1, 8000)).unique().numel() == 1


def test_frames_of_silence_are_added_up_to_a_multiple() -> None:
    cfg = read_audio_cfg(TINY)
    plain, padded = LogMel(cfg), LogMel(cfg, multiple=16)
    waveform = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    assert (plain.num_frames, padded.num_frames) == (98, 112)
    assert torch.equal(padded(waveform)[..., :98], plain(waveform))
    assert torch.equal(padded(waveform)[..., 98:], padded(torch.zeros(1, 8000))[..., 98:])


# The tower


@pytest.fixture(scope="module", params=["test_resnet", "test_vit"])
def tower(request: pytest.FixtureRequest) -> audio.AudioTower:
    torch.manual_seed(0)
    return build_tower(24, {**TINY, "timm_model_name": request.param}, quick_gelu=False).eval()


def _waveforms(*shape: int) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_features_are_the_mean_over_the_windows_that_are_there(tower: audio.AudioTower) -> None:
    waveforms = _waveforms(3, 4, 8000)
    waveforms[0, 1:] = waveforms[1, 3:] = torch.nan
    expected = torch.stack(
        [
            tower(waveforms[0, :1])[0],
            tower(waveforms[1, :3]).mean(dim=0),
            tower(waveforms[2]).mean(dim=0),
        ]
    )
    torch.testing.assert_close(tower(waveforms), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(tower(waveforms[:1, :1]), tower(waveforms[0, :1]))


@torch.inference_mode()
def test_many_windows_go_through_in_parts(
    tower: audio.AudioTower, monkeypatch: pytest.MonkeyPatch
) -> None:
    waveforms = _waveforms(2, 5, 8000)
    expected = tower(waveforms)
    monkeypatch.setattr(audio, "_MIN_WINDOWS_AT_ONCE", 3)
    torch.testing.assert_close(tower(waveforms), expected, atol=1e-5, rtol=0)


def test_gradients_reach_every_parameter_with_and_without_recomputing() -> None:
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        built = build_tower(24, {**TINY, "timm_model_name": "test_vit"}, quick_gelu=False).train()
        built.set_grad_checkpointing(recompute)
        waveforms = _waveforms(2, 3, 8000)
        waveforms[0, 1:] = torch.nan
        built(waveforms).square().sum().backward()
        gradients.append({name: p.grad for name, p in built.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None and torch.isfinite(gradient).all(), name
        torch.testing.assert_close(gradients[1][name], gradient)


def test_the_spectrogram_adds_nothing_to_the_weights(tower: audio.AudioTower) -> None:
    assert {name.split(".")[0] for name in tower.state_dict()} == {"trunk", "proj"}


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "efficientvit_b0", "test_vit4"])
def test_timm_models_of_many_kinds_train(name: str) -> None:
    built = build_tower(16, {**TINY, "timm_model_name": name, "timm_drop": 0.1}, quick_gelu=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = built.train()(_waveforms(2, 8000))
    features.float().sum().backward()
    assert features.shape == (2, 16)
    assert all(p.grad is not None for p in built.parameters())


def test_timms_settings_are_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    create = timm.create_model

    def listen(name: str, **options: Any) -> Any:
        asked.update(options)
        return create(name, **{**options, "pretrained": False})

    monkeypatch.setattr(timm, "create_model", listen)
    section = {**TINY, "timm_model_pretrained": True, "timm_drop": 0.25, "timm_drop_path": 0.1}
    built = build_tower(8, section, quick_gelu=False)
    assert asked["pretrained"] is True and asked["drop_path_rate"] == 0.1
    assert built.drop.p == 0.25


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        (
            {"timm_model_name": "resnet999"},
            "cannot build the audio tower 'resnet999'",
            "list_model",
        ),
        (
            {"timm_model_name": "test_vit", "num_mels": 40},
            "40 .* not a multiple of the 16",
            "to 32",
        ),
        ({"hop": 3}, "audio_cfg has unknown keys: hop", "hop_s"),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        build_tower(8, {**TINY, **changes}, quick_gelu=False)
    assert caught.value.hint is not None and hint in caught.value.hint


# What training hears


def _view(augment: AudioAugment | None, **changes: Any) -> View:
    return View(SPEC.model_copy(update=changes), augment)


def _keys(num: int) -> draws.Keys:
    return np.arange(num, dtype=np.uint64)


STILL = AudioAugment(gain_db=0.0)


def test_of_a_long_clip_every_window_can_be_heard() -> None:
    view = _view(STILL)
    kept = view.keep(_wav(_ramp(103)))
    seen = view.see([kept] * 200, _keys(200), seed=0, epoch=0)
    assert seen.shape == (200, 1, 100)
    assert set(seen[:, 0, 0].tolist()) == {1, 2, 3, 4}
    assert (np.diff(seen[:, 0], axis=1) == 1).all()


def test_a_short_clip_stands_anywhere_in_silence() -> None:
    view = _view(STILL)
    kept = view.keep(_wav(_ramp(98)))
    seen = view.see([kept] * 100, _keys(100), seed=0, epoch=0)[:, 0]
    assert set(seen.argmax(axis=1).tolist()) == {97, 98, 99}
    assert (seen.sum(axis=1) == sum(range(99))).all()
    whole = view.see([_ramp(100)], _keys(1), seed=0, epoch=0)
    np.testing.assert_array_equal(whole[0, 0], _ramp(100))


def test_of_a_very_long_clip_stretches_are_kept() -> None:
    view = _view(STILL)
    num = 5000
    kept = view.keep(_wav(_ramp(num)))
    assert kept.size == 4 * 200 and kept[0] == 1 and kept[-1] == num
    seen = view.see([kept] * 500, _keys(500), seed=0, epoch=0)[:, 0].astype(int)
    assert (np.diff(seen, axis=1) == 1).all()  # no window reaches across two stretches
    stretches = kept.reshape(4, 200)
    heard = [((seen[:, 0] >= one[0]) & (seen[:, -1] <= one[-1])).sum() for one in stretches]
    assert sum(heard) == 500 and min(heard) > 80
    assert view.keep(_wav(_ramp(799))).size == 799


def test_the_gain_stays_within_its_limits_and_clips() -> None:
    view = _view(AudioAugment(gain_db=6.0))
    kept = np.full(100, 8000, dtype=np.int16)
    seen = view.see([kept] * 300, _keys(300), seed=0, epoch=0)[:, 0]
    assert (seen == seen[:, :1]).all()
    gain_db = 20 * np.log10(seen[:, 0] / 8000)
    assert -6.01 < gain_db.min() < -5 and 5 < gain_db.max() < 6.01
    loud = np.full(100, -30000, dtype=np.int16)
    assert view.see([loud] * 300, _keys(300), seed=0, epoch=0).min() == -32767


def test_without_augmentation_little_is_kept_of_a_long_clip() -> None:
    view = _view(None)
    assert view.keep(_wav(_ramp(5000))).size == 400
    assert view.keep(_wav(_ramp(31))).size == 31
    one = _view(None, max_windows=1)
    assert one.keep(_wav(_ramp(5000))).size == 100


@pytest.mark.parametrize("num", [1, 50, 99, 100, 101, 399, 400, 401, 5000])
@pytest.mark.parametrize("max_windows", [1, 4])
def test_without_augmentation_it_is_what_a_query_hears(num: int, max_windows: int) -> None:
    view = _view(None, max_windows=max_windows)
    loader = Loader(SPEC.model_copy(update={"max_windows": max_windows}))
    sounds = [_wav(_ramp(num)), _wav(_ramp(30))]
    seen = view.see([view.keep(one) for one in sounds], _keys(2), seed=0, epoch=0)
    np.testing.assert_array_equal(seen, loader.load(sounds).numpy())


# The section


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timm_model_name": ""}, "names no timm_model_name"),
        ({"sample_rate_hz": "8000"}, "sample_rate_hz in audio_cfg is '8000'"),
        ({"num_mels": 2}, "num_mels in audio_cfg is 2: .*greater than or equal to 8"),
        ({"f_max_hz": 5000.0}, r"f_max_hz is 5000, above half of sample_rate_hz \(4000 Hz\)"),
        ({"f_min_hz": 4000.0}, r"f_min_hz is 4000, not below f_max_hz \(4000 Hz\)"),
        ({"hop_s": 0.05}, "hop_s 0.05 is above frame_s 0.025"),
        ({"clip_s": 0.02}, "frame_s 0.025 is longer than clip_s 0.02"),
        ({"timm_drop": 1.0}, "timm_drop in audio_cfg is 1.0: .*less than 1"),
    ],
)
def test_impossible_sections_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_audio_cfg({**TINY, **changes})
