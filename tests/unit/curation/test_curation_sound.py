"""Sounds: facts, levels against a slow reference, damage, bombs, resampling."""

from __future__ import annotations

import io
import math
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from coembed.curation.media.media import DECODE_REASONS, Media, Undecodable
from coembed.curation.media.sound import FLOOR_DBFS, Sound
from coembed.modalities import _sound
from coembed.modalities._resample import resample
from coembed.modalities._sound_files import sniff_sound

RATE = 8000


def _tone(seconds: float = 1.5, channels: int = 2, rate: int = RATE) -> NDArray[np.float64]:
    at = np.arange(int(seconds * rate)) / rate
    waves = [
        0.4 * np.sin(2 * np.pi * (300 + 111 * c) * at * (1 + 0.2 * at)) for c in range(channels)
    ]
    return np.stack(waves, axis=1)


def _encode(samples: NDArray[np.float64], kind: str, subtype: str, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


KINDS = [
    ("WAV", "PCM_16"), ("WAV", "PCM_U8"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "ULAW"),
    ("WAVEX", "PCM_16"), ("RF64", "PCM_16"), ("AIFF", "PCM_16"), ("FLAC", "PCM_S8"),
    ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]  # fmt: skip
WHOLE = {f"{kind} {subtype}": _encode(_tone(), kind, subtype) for kind, subtype in KINDS}
LONG_MP3 = _encode(_tone(20), "MP3", "MPEG_LAYER_III")


def _media(data: bytes, max_audio_s: float = 60) -> Media:
    return Media(data, modality="audio", max_audio_s=max_audio_s)


def _judge(data: bytes, max_audio_s: float = 60) -> str:
    media = _media(data, max_audio_s)
    try:
        media.check()
    except Undecodable as finding:
        assert finding.detail and finding.reason in DECODE_REASONS
        assert media.facts().fault == finding.reason
        return finding.reason
    assert media.facts().fault is None
    return "fine"


@pytest.mark.parametrize("name", WHOLE)
def test_facts_and_levels_of_whole_sounds(name: str) -> None:
    media = _media(WHOLE[name])
    kind = name.split()[0]
    before = media.facts()
    assert before.format == {"WAVEX": "WAV"}.get(kind, kind) and before.fault is None
    assert (before.sample_rate_hz, before.num_channels) == (RATE, 2)
    assert before.duration_s == pytest.approx(1.5, abs=0.05)
    sound = media.sound
    assert media.facts().duration_s == sound.duration_s == pytest.approx(1.5, abs=0.05)
    # A sine's root mean square is its amplitude over the square root of 2. Opus at this rate
    # is far from transparent.
    abs_db = 6 if name == "OGG OPUS" else 0.4
    assert sound.rms_dbfs == pytest.approx(20 * math.log10(0.4 / math.sqrt(2)), abs=abs_db)
    assert sound.clipped_share == 0


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9, 0.98])
def test_cut_sounds_are_never_fine(name: str, share: float) -> None:
    # One missing frame of an MP3 passes: enough of them that 2 % are more than one.
    data = LONG_MP3 if name.startswith("MP3") else WHOLE[name]
    found = _judge(data[: int(len(data) * share)])
    assert found == "truncated" or (share == 0.01 and found == "unreadable")


@pytest.mark.parametrize("name", [n for n in WHOLE if n.startswith(("FLAC", "OGG"))])
def test_flipped_bits_are_found_where_the_format_has_checksums(name: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        data = bytearray(WHOLE[name])
        data[int(rng.integers(len(data) // 4, len(data)))] ^= 1 << int(rng.integers(8))
        assert _judge(bytes(data)) in ("unreadable", "truncated")


def test_a_flac_whose_samples_are_not_those_of_its_digest_is_unreadable() -> None:
    """A frame of another file: every checksum of the stream is right."""
    mine, other = (_encode(_tone(0.05) * level, "FLAC", "PCM_16") for level in (1, 0.5))
    mixed = mine[:42] + other[42:]
    media = _media(mixed)
    with pytest.raises(Undecodable, match="MD5"):
        media.check()
    unset = mixed[:26] + bytes(16) + mixed[42:]
    assert _judge(unset) == "fine"  # an encoder need not write it


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"<html>", "an HTML page, not a sound"),
        (b"\xff\xd8\xff\xe0" + bytes(20), "a JPG picture, not a sound"),
        (b"\0\0\0\x20ftypM4A " + bytes(20), "an ISO media file of brand 'M4A'"),
        (b"\0" * 50, "zero bytes"),
        (b"OggS" + bytes(40), "checksum of the Ogg page"),
        (b"fLaC" + bytes(40), ""),
        (b"RIFF\x10\0\0\0WAVE", "the file ends before its 'data' chunk"),
        (b"ID3\4\0\0\x7f\x7f\x7f\x7f", "no MPEG frame"),
        (b"x", "not a known sound format"),
    ],
)
def test_what_is_no_sound_is_said_to_be_what_it_is(data: bytes, detail: str) -> None:
    facts = _media(data).facts()
    assert facts.fault in ("unreadable", "truncated") and detail in facts.fault_detail
    assert facts.format is None and facts.num_bytes == len(data)


def _wav(channels: int, rate: int, bits: int, claimed: int, body: bytes) -> bytes:
    width = channels * bits // 8
    header = struct.pack("<IHHIIHH", 16, 1, channels, rate, 0, width & 0xFFFF, bits)
    return (
        b"RIFF" + struct.pack("<I", 36 + len(body)) + b"WAVEfmt " + header
        + b"data" + struct.pack("<I", claimed) + body
    )  # fmt: skip


def test_headers_that_claim_too_much_cost_nothing() -> None:
    flac = bytearray(_encode(_tone(1), "FLAC", "PCM_16"))
    flac[21] |= 0x0F
    flac[22:26] = b"\xff" * 4  # 2^36 - 1 frames
    silence = _encode(np.zeros((RATE * 600, 1)), "FLAC", "PCM_16")
    started = time.perf_counter()
    assert _judge(bytes(flac)) == "too_many_seconds"
    assert _judge(silence) == "too_many_seconds" and len(silence) < 30_000
    assert _judge(_wav(65_535, RATE, 16, 2**31 - 10_000, bytes(4000))) == "truncated"
    assert _judge(_wav(1, 1, 8, 4000, bytes(4000))) == "too_many_seconds"
    assert _judge(_wav(1, 4_000_000_000, 16, 4000, bytes(4000))) == "unreadable"
    assert _judge(_wav(0, RATE, 16, 4000, bytes(4000))) == "unreadable"
    assert time.perf_counter() - started < 2


def test_a_length_that_was_not_known_when_the_file_was_written_is_no_fault() -> None:
    flac = bytearray(_encode(_tone(1), "FLAC", "PCM_16"))
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)
    media = _media(bytes(flac))
    assert media.facts().duration_s is None
    assert media.sound.duration_s == 1 and media.facts().duration_s == 1
    assert _judge(_wav(1, RATE, 16, 0xFFFFFFFF, bytes(4000))) == "fine"
    # The limit holds while it is decoded.
    assert _judge(bytes(flac), max_audio_s=0.5) == "too_many_seconds"


def test_samples_that_are_no_numbers_are_unreadable() -> None:
    for wrong in (np.nan, np.inf, 1e30):
        samples = _tone(0.2)
        samples[100, 1] = wrong
        assert _judge(_encode(samples, "WAV", "FLOAT")) == "unreadable"


def _slowly(samples: NDArray[np.float64]) -> tuple[float, float]:
    """Root mean square without the constant part, and share of samples in runs at full scale."""
    rms = math.sqrt(float(((samples - samples.mean(axis=0)) ** 2).mean()))
    clipped = 0
    for channel in samples.T:
        run = 0
        for value in [*(abs(channel) >= 0.999), False]:
            if value:
                run += 1
            else:
                clipped += run if run >= 3 else 0
                run = 0
    return rms, clipped / samples.size


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 10_000])
def test_levels_are_those_of_a_slow_reference_whatever_the_blocks(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(block)
    samples = np.clip(rng.normal(0.1, 0.9, (3000, 2)).cumsum(axis=0) / 6, -1, 1)
    samples[-4:] = 1  # a run that ends with the sound
    samples[40:42] = -1  # too short to count, unless its neighbours are clipped, too
    monkeypatch.setattr(_sound, "_BLOCK_SAMPLES", 2 * block)
    for kind, subtype in (("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24")):
        found = _media(_encode(samples, kind, subtype)).sound
        rms, clipped = _slowly(samples)
        assert found.rms_dbfs == pytest.approx(20 * math.log10(rms), abs=0.01)
        assert found.clipped_share == pytest.approx(clipped) and clipped > 0.01
        assert found.peak_dbfs == pytest.approx(0, abs=0.01)


def test_silence_and_a_constant_have_no_level() -> None:
    for level in (0.0, 0.5):
        found = _media(_encode(np.full((RATE, 2), level), "WAV", "PCM_16")).sound
        assert found.rms_dbfs < -90
    assert _media(_encode(np.zeros((RATE, 1)), "WAV", "PCM_16")).sound == Sound(
        RATE, 1.0, FLOOR_DBFS, FLOOR_DBFS, 0.0
    )


def test_one_silent_channel_does_not_make_a_sound_silent() -> None:
    samples = _tone()
    samples[:, 1] = 0
    assert _media(_encode(samples, "WAV", "PCM_16")).sound.rms_dbfs > -20


def test_mp3_tags_and_padding_are_no_damage_and_lost_frames_are() -> None:
    data = WHOLE["MP3 MPEG_LAYER_III"]
    tag = b"ID3\4\0\0\0\0\1\0" + bytes(128)
    assert sniff_sound(tag + data) == "MP3"
    assert _judge(tag + data) == "fine"
    assert _judge(data[:-1]) == "fine"  # see _tagged_frames
    assert _judge(data[:-900]) == "truncated"
    assert _judge(data + b"TAG" + bytes(125)) == "fine"
    assert _judge(data + bytes(500)) == "fine"
    middle = len(data) // 2
    assert _judge(data[:middle] + b"junk" * 99 + data[middle:]) == "unreadable"


def test_a_file_that_is_not_what_it_begins_as_is_unreadable() -> None:
    data = b"ID3\4\0\0\0\0\0\0" + WHOLE["FLAC PCM_16"]
    assert _judge(data) == "unreadable"


def test_decoders_say_nothing_on_the_standard_error() -> None:
    """mpg123 and cffi's callbacks would. In a process of its own: file descriptor 2."""
    lines = [
        "import sys; from pathlib import Path",
        "from coembed.curation.media.media import Media",
        "data = bytearray(sys.stdin.buffer.read())",
        "data[len(data) // 2 : len(data) // 2 + 60] = bytes(range(60))",
        "for cut in (len(data), len(data) // 2, 900):",
        "    media = Media(bytes(data[:cut]), modality='audio')",
        "    try: media.check()",
        "    except Exception as error: print(type(error).__name__, error)",
    ]
    for name in ("MP3 MPEG_LAYER_III", "AIFF PCM_16"):
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)],
            input=WHOLE[name], capture_output=True, check=True,
        )  # fmt: skip
        assert done.stderr == b"" and b"Undecodable" in done.stdout


def test_mutated_sounds_never_raise_anything_else() -> None:
    rng = np.random.default_rng(3)
    seeds = [_encode(_tone(0.3), kind, subtype) for kind, subtype in KINDS]
    outcomes = {"fine": 0, "unreadable": 0, "truncated": 0, "too_many_seconds": 0}
    for _ in range(400):
        data = bytearray(seeds[rng.integers(len(seeds))])
        for _ in range(rng.integers(1, 8)):
            data[rng.integers(len(data) if rng.random() < 0.5 else min(len(data), 60))] = (
                rng.integers(256)
            )
        if rng.random() < 0.3:
            data = data[: rng.integers(len(data))]
        outcomes[_judge(bytes(data))] += 1
    assert min(outcomes["unreadable"], outcomes["truncated"], outcomes["fine"]) > 40


@pytest.mark.parametrize(
    ("rate_in", "rate_out"), [(44_100, 16_000), (8000, 48_000), (22_050, 44_100)]
)
def test_resampling_keeps_a_sine(rate_in: int, rate_out: int) -> None:
    seconds, hertz = 1.0, 997.0
    before = np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate_in)) / rate_in)
    after = resample(before.astype(np.float32), rate_in, rate_out)
    expected = np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate_out)) / rate_out)
    assert after.dtype == np.float32 and abs(len(after) - len(expected)) <= 1
    inner = slice(rate_out // 10, -rate_out // 10)  # away from the ends
    assert np.abs(after[inner] - expected[: len(after)][inner]).max() < 1e-3


def test_resampling_lets_nothing_fold_back() -> None:
    """10 kHz cannot be held at 16 kHz: it must go, not come back as 6 kHz."""
    at = np.arange(44_100) / 44_100
    high = np.stack([np.sin(2 * np.pi * 10_000 * at)] * 2, axis=1).astype(np.float32)
    low = resample(high, 44_100, 16_000)
    assert low.shape == (16_000, 2)
    assert np.abs(low[1600:-1600]).max() < 1e-3
    assert resample(high, 44_100, 44_100) is high
    with pytest.raises(ValueError, match="at least 1 Hz"):
        resample(high, 44_100, 0)
