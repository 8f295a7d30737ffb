"""Decoding and resampling sounds: every format to the same samples, and every bad file refused."""

from __future__ import annotations

import io
import random
import struct

import numpy as np
import pytest
import soundfile
from fuzzed_media import fuzzed_media
from hypothesis import given, settings
from hypothesis import strategies as st

from coembed.errors import DataError
from coembed.modalities import _sound
from coembed.modalities._resample import Resampler, resample
from coembed.modalities._sound import decode_sound


def _tone(rate: int, seconds: float = 0.5, hz: float = 440.0, channels: int = 1) -> np.ndarray:
    at = np.arange(round(rate * seconds)) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * hz * at)] * channels, axis=1)


def _encode(samples: np.ndarray, rate: int, kind: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def _decode(data: bytes, rate: int = 8000, max_s: float = 60.0) -> np.ndarray:
    return decode_sound(data, sample_rate_hz=rate, max_s=max_s)


def test_sixteen_bits_at_the_same_rate_come_out_as_they_went_in() -> None:
    samples = np.arange(-32767, 32768, dtype=np.int16)
    for kind in ("WAV", "FLAC", "AIFF"):
        np.testing.assert_array_equal(_decode(_encode(samples, 8000, kind)), samples)
    lowest = np.array([-32768, 0], dtype=np.int16)
    assert _decode(_encode(lowest, 8000)).tolist() == [-32767, 0]


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000])
@pytest.mark.parametrize(
    ("kind", "subtype", "near"),
    [
        ("WAV", "PCM_U8", 0.02),
        ("WAV", "PCM_24", 0.002),
        ("WAV", "FLOAT", 0.002),
        ("WAVEX", "PCM_16", 0.002),
        ("RF64", "PCM_16", 0.002),
        ("FLAC", "PCM_24", 0.002),
        ("OGG", "VORBIS", 0.05),
        ("OGG", "OPUS", 0.1),
        ("MP3", None, 0.1),
    ],
)
def test_every_format_and_rate_gives_the_same_tone(
    kind: str, subtype: str | None, near: float, rate: int
) -> None:
    if subtype == "OPUS" and rate % 8000:
        rate = 48000  # of its own few rates
    expected = _tone(8000)[:, 0] * 32768
    found = _decode(_encode(_tone(rate, channels=2), rate, kind, subtype)).astype(np.float64)
    if kind != "MP3":  # whose encoder adds a frame of silence at the ends
        assert abs(len(found) - len(expected)) <= 1
    middle = slice(1000, 3000)  # codecs and filters ring at the ends
    if kind == "MP3" or subtype == "OPUS":  # and these may come a little late
        spectrum = np.abs(np.fft.rfft(found[middle]))
        assert spectrum.argmax() == 440 * 2000 // 8000
        assert np.abs(found[middle]).max() == pytest.approx(16384, rel=near)
    else:
        assert np.abs(found[middle] - expected[middle]).max() < near * 32768


def test_channels_are_averaged() -> None:
    left, right = _tone(8000, hz=300)[:, 0], _tone(8000, hz=500)[:, 0]
    found = _decode(_encode(np.stack([left, right, 0 * left], axis=1), 8000, subtype="FLOAT"))
    np.testing.assert_allclose(found, (left + right) / 3 * 32768, atol=0.51)


def test_what_is_above_full_scale_is_clipped() -> None:
    found = _decode(_encode(np.array([3.0, -3.0, 0.25, 1.0, -1.0]), 8000, subtype="FLOAT"))
    assert found.tolist() == [32767, -32767, 8192, 32767, -32767]


@given(
    rates=st.tuples(*[st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000])] * 2),
    blocks=st.lists(st.integers(1, 3000), min_size=1, max_size=6),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_blocks_are_resampled_as_the_whole_is(rates: tuple[int, int], blocks: list[int]) -> None:
    samples = np.random.default_rng(sum(blocks)).normal(0, 0.2, sum(blocks)).astype(np.float32)
    resampler = Resampler(*rates)
    parts = [resampler.push(part) for part in np.split(samples, np.cumsum(blocks)[:-1])]
    found = np.concatenate([*parts, resampler.finish()])
    expected = resample(samples, *rates)
    assert len(found) == len(expected)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_nothing_above_the_new_nyquist_frequency_folds_back() -> None:
    high = _decode(_encode(_tone(48000, hz=6000), 48000))
    assert np.abs(high[500:-500]).max() < 16384 * 1e-3
    assert np.abs(_decode(_encode(_tone(48000, hz=3000), 48000))).max() > 16000


def _bomb(seconds: int, *, channels: int = 1, rate: int = 8000) -> bytes:
    """A WAV of a few bytes whose header claims so many seconds, its length known elsewhere."""
    size = seconds * rate * channels * 2
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2, channels * 2, 16)
    chunks = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", size + 36) + chunks + bytes(64)


def _flac_bomb(seconds: int) -> bytes:
    """A FLAC whose description claims so many seconds."""
    data = bytearray(_encode(_tone(8000), 8000, "FLAC"))
    (packed,) = struct.unpack_from(">Q", data, 18)
    struct.pack_into(">Q", data, 18, (packed >> 36 << 36) | seconds * 8000)
    return bytes(data)


def _cut(data: bytes, share: float = 0.6) -> bytes:
    return data[: int(len(data) * share)]


NAN = np.array([0.1, np.nan, 0.2])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a WAV, AIFF, FLAC, Ogg or MP3 file"),
        (b"no sound at all", "not a WAV, AIFF, FLAC, Ogg or MP3 file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a WAV"),
        (b"RIFF\x00\x00\x00\x00WAVE", "the file ends before its 'data' chunk"),
        (b"fLaC" + bytes(60), "not a readable sound"),
        (b"OggS" + bytes(60), "not a readable sound"),
        (b"ID3\x04" + bytes(60), "no MPEG frame"),
        (_encode(np.zeros((0, 1)), 8000), "holds no samples"),
        (_encode(np.ones(1) / 2, 48000), "shorter than a sample at 8,000 Hz"),
        (_encode(NAN, 8000, subtype="FLOAT"), "samples that are no amplitudes"),
        (_encode(NAN, 44100, subtype="DOUBLE"), "samples that are no amplitudes"),
        (_encode(np.array([np.inf, 0.0]), 8000, subtype="FLOAT"), "no amplitudes"),
        (_encode(np.array([1e9, 0.0]), 8000, subtype="FLOAT"), "no amplitudes"),
        (_cut(_encode(_tone(8000), 8000)), "bytes of samples are there"),
        (_cut(_encode(_tone(8000), 8000, "FLAC")), "cut short|not a readable sound"),
        (_cut(_encode(_tone(8000), 8000, "OGG")), "cut short|no last page|checksum"),
        (_cut(_encode(_tone(8000), 8000, "MP3")), "MPEG frames are there"),
        (_encode(_tone(8000, seconds=61), 8000), "the sound is too long: 61 s > 60 s"),
        (_encode(_tone(8000, seconds=61), 8000, "OGG"), "the sound is too long"),
        (_bomb(3 * 3600), "bytes of samples are there"),
        (_flac_bomb(3 * 3600), "the sound is too long: 10,800 s > 60 s"),
        (_flac_bomb(30), "cut short|of 240,000 frames are there|not a readable"),
    ],
)
def test_bad_sounds_are_refused(data: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of what a header claims to be too long, nothing may be decoded.
    if "10,800" in message:
        monkeypatch.setattr(_sound, "blocks", None)
    with pytest.raises(DataError, match=message):
        _decode(data)


def test_a_header_of_many_channels_is_refused() -> None:
    data = bytearray(_encode(np.zeros((1000, 1)), 8000))
    channels = 1000
    struct.pack_into("<HIIH", data, 22, channels, 1, 2 * channels, 2 * channels)
    struct.pack_into("<I", data, 40, len(data) - 44)
    # One frame of 1,000 channels a second: no bomb, and one second long.
    assert len(_decode(bytes(data))) == 8000
    with pytest.raises(DataError, match="too long"):
        _decode(bytes(data), max_s=0.5)


def test_the_size_of_the_blocks_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _encode(_tone(44100, channels=2), 44100, "FLAC")
    whole = _decode(data)
    monkeypatch.setattr(_sound, "_BLOCK_SAMPLES", 1000)
    in_blocks = _decode(data)
    assert len(in_blocks) == len(whole)
    assert np.abs(in_blocks.astype(int) - whole).max() <= 1


def test_hostile_bytes_give_samples_or_one_clear_error() -> None:
    num_decoded = 0
    for number in range(120):
        _, data = fuzzed_media(random.Random(number))
        try:
            samples = _decode(data, max_s=600.0)
        except DataError as error:
            assert error.message.startswith(("not a readable sound: ", "the sound is too long: "))
        else:
            num_decoded += 1
            assert samples.dtype == np.int16 and samples.ndim == 1
            assert 0 < len(samples) <= 600 * 8000 and samples.min() > -32768
    assert num_decoded > 3
