"""Encoded sounds to samples, without torch: what decoding means everywhere in coembed.

libsndfile (through soundfile) decodes, block by block: memory does not depend on what the header
claims. The audio modality decodes whole sounds for towers; curation measures them as they pass.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from coembed.errors import DataError
from coembed.modalities._resample import Resampler
from coembed.modalities._sound_files import BrokenSound, SoundFormat, check_whole, sniff_sound

Samples = NDArray[np.int16]

MAX_AMPLITUDE = 1e6
"""Of floating-point files, where 1 is full scale: what is louder holds no amplitudes."""

_FULL_SCALE = 32768
_BLOCK_SAMPLES = 262_144
# One hour in stereo at 192 kHz: a bomb of a few bytes a second may claim 1,024 channels.
_MAX_SAMPLES_PER_S = 2 * 192_000
_UNKNOWN_FRAMES = 2**62
_MAX_SYNCS = 32
_NAMES = {"WAVEX": "WAV"}  # libsndfile's names of what is one format here


class SoundHeader(NamedTuple):
    """What a sound file says of itself. `num_frames` (samples a channel) and `duration_s` are None
    where it does not say."""

    format: SoundFormat
    sample_rate_hz: int
    num_channels: int
    num_frames: int | None
    duration_s: float | None


def decode_sound(data: bytes, *, sample_rate_hz: int, max_s: float) -> Samples:
    """An encoded sound (WAV, AIFF, FLAC, Ogg, MP3) as one channel at `sample_rate_hz`: [samples].

    The mean of the channels, resampled by `_resample.Resampler`; 32768 is full scale, and what is
    above it is clipped to ±32767. Memory is bounded by `max_s` at `sample_rate_hz`.

    Raises:
        DataError: not a sound of these formats, damaged, cut short, empty, holding values that are
            no amplitudes, or longer than `max_s`.
    """
    try:
        kind = sniff_sound(data)
        if kind is None:
            raise BrokenSound("unreadable", "not a WAV, AIFF, FLAC, Ogg or MP3 file")
        check_whole(kind, data)
        with opened(data, kind) as file:
            header = header_of(file, kind)
            check_length(header.num_frames or 0, header, max_s)
            samples = _decode(file, header, sample_rate_hz, max_s)
    except BrokenSound as error:
        if error.fault == "too_many_seconds":
            raise DataError(f"the sound is too long: {error}") from None
        raise DataError(f"not a readable sound: {error}") from None
    return samples


def _decode(file: Any, header: SoundHeader, sample_rate_hz: int, max_s: float) -> Samples:
    resampler = Resampler(header.sample_rate_hz, sample_rate_hz)
    parts, num_frames = [], 0
    for block in blocks(file):
        num_frames += len(block)
        check_length(num_frames, header, max_s)
        check_amplitudes(block)
        parts.append(_to_int16(resampler.push(block.mean(axis=1))))
    if not num_frames:
        raise BrokenSound("unreadable", "the sound holds no samples")
    check_complete(num_frames, header)
    parts.append(_to_int16(resampler.finish()))
    samples = np.concatenate(parts)
    if not len(samples):
        raise BrokenSound("unreadable", f"it is shorter than a sample at {sample_rate_hz:,} Hz")
    return samples


def _to_int16(samples: NDArray[np.float32]) -> Samples:
    """Never −32768, so that a 16-bit sound keeps its values and negation cannot overflow."""
    scaled = np.rint(samples * np.float32(_FULL_SCALE))
    return np.clip(scaled, 1 - _FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def header_of(file: Any, kind: SoundFormat) -> SoundHeader:
    """The header of an opened sound; no sample is decoded. Raises BrokenSound."""
    rate, channels, frames = int(file.samplerate), int(file.channels), int(file.frames)
    if rate < 1 or channels < 1:
        raise BrokenSound("unreadable", f"{channels} channels at {rate:,} Hz")
    known = 0 < frames < _UNKNOWN_FRAMES
    return SoundHeader(
        kind, rate, channels, frames if known else None, frames / rate if known else None
    )


def check_length(num_frames: int, header: SoundHeader, max_s: float) -> None:
    """Raise BrokenSound where so many frames are longer than `max_s` or more than can be meant."""
    seconds = num_frames / header.sample_rate_hz
    if seconds > max_s:
        raise BrokenSound("too_many_seconds", f"{seconds:,.0f} s > {max_s:,.0f} s")
    samples, limit = num_frames * header.num_channels, int(max_s * _MAX_SAMPLES_PER_S)
    if samples > limit:
        raise BrokenSound("too_many_seconds", f"{samples:,} samples > {limit:,} samples")


def check_complete(num_frames: int, header: SoundHeader) -> None:
    """Raise BrokenSound where fewer frames were there than the header says."""
    # Of an MP3 the container has been counted; its header's frames are mpg123's estimate.
    expected = header.num_frames if header.format != "MP3" else None
    if expected is not None and num_frames < expected:
        raise BrokenSound("truncated", f"{num_frames:,} of {expected:,} frames are there")


def check_amplitudes(block: NDArray[np.float32]) -> float:
    """The greatest magnitude in `block`. Raises BrokenSound where it holds no amplitudes."""
    peak = max(float(block.max()), -float(block.min()))
    if not peak <= MAX_AMPLITUDE:  # nor is a number that is none
        raise BrokenSound("unreadable", "samples that are no amplitudes")
    return peak


@contextmanager
def opened(data: bytes, kind: SoundFormat) -> Iterator[Any]:
    """A soundfile.SoundFile; what libsndfile raises, here or while it is read, is BrokenSound.

    Of an MP3 that passes `check_whole` and is damaged all the same, mpg123 complains on the
    standard error, and libsndfile has no way to stop it.
    """
    try:
        with _Stream(_Bytes(data)) as file:
            if _NAMES.get(file.format, file.format) != kind:
                raise BrokenSound("unreadable", f"begins as {kind}, holds {file.format}")
            yield file
    except soundfile.LibsndfileError as error:
        check_whole(kind, data)  # says better what is wrong, where it can
        if kind == "FLAC" and not _ends_with_flac_frame(data):
            raise BrokenSound("truncated", "the last FLAC frame is cut short") from None
        text = str(error.error_string).strip() or f"libsndfile error {error.code}"
        raise BrokenSound(None, text) from None
    except (RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise BrokenSound(None, str(error) or type(error).__name__) from None


def blocks(file: Any, dtype: type[np.generic] = np.float32) -> Iterator[NDArray[Any]]:
    """Samples [frames, channels] from the start to the end; each block reuses the last's memory."""
    buffer = np.empty((max(1, _BLOCK_SAMPLES // file.channels), file.channels), dtype)
    while len(block := file.read(out=buffer)):
        yield block


class _Bytes(io.BytesIO):
    """A damaged header makes libsndfile seek to where nothing is; what is raised in its callbacks
    would be printed."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return -1


class _Stream(soundfile.SoundFile):
    """Read from start to end: soundfile seeks after every block, which FLAC pays for dearly, and
    which fails where the header holds no length."""

    def seekable(self) -> bool:
        return False


def _ends_with_flac_frame(data: bytes) -> bool:
    """Whether the file ends where a frame does: its last two bytes are a frame's CRC-16."""
    tail = data[-(1 << 16) :]
    at = len(tail)
    for _ in range(_MAX_SYNCS):  # a hostile file may be full of them
        at = max(tail.rfind(sync, 0, at) for sync in (b"\xff\xf8", b"\xff\xf9"))
        if at < 0:
            return False
        if _crc16(tail[at:]) == 0:
            return True
    return False


def _crc16(data: bytes) -> int:
    """CRC-16 with polynomial 0x8005, most significant bit first, from 0 (RFC 9639, 9.3)."""
    value = 0
    for byte in data:
        value = (value << 8 & 0xFFFF) ^ _CRC16[value >> 8 ^ byte]
    return value


def _crc16_of_byte(byte: int) -> int:
    value = byte << 8
    for _ in range(8):
        value = (value << 1 ^ (0x8005 if value & 0x8000 else 0)) & 0xFFFF
    return value


_CRC16 = tuple(_crc16_of_byte(byte) for byte in range(256))
