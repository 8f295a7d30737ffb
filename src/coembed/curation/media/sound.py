"""Sounds: what a file says of itself, and what one pass over its samples finds.

libsndfile (through soundfile) decodes, block by block: memory does not depend on the length of the
sound, nor on what the header claims. The module is imported only when a pool holds sounds.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from coembed.curation.media.quiet import quiet_stderr
from coembed.curation.media.sound_files import SoundFormat, check_whole, sniff_sound
from coembed.curation.media.undecodable import Undecodable, describe, from_decoder

FLOOR_DBFS = -120.0
"""What digital silence is given, instead of minus infinity."""

_BLOCK_SAMPLES = 262_144
# One hour in stereo at 192 kHz: a bomb of a few bytes a second may claim 1,024 channels.
_MAX_SAMPLES_PER_S = 2 * 192_000
_FULL_SCALE = 0.999
_MAX_AMPLITUDE = 1e6  # of floating-point files; 1 is full scale
_MIN_RUN = 3  # two neighbours at full scale can be a sound that was brought up to full scale
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


class Sound(NamedTuple):
    """What one pass over all samples found.

    rms_dbfs: root mean square over all channels without its constant part; 0 dBFS is that of a
    full-scale square wave (a full-scale sine has -3.01), FLOOR_DBFS is silence.
    peak_dbfs: of the greatest magnitude. clipped_share: share of the samples that stand in runs of
    at least 3 at full scale, channel by channel.
    """

    num_frames: int
    duration_s: float
    rms_dbfs: float
    peak_dbfs: float
    clipped_share: float


def read_header(data: bytes, max_audio_s: float) -> SoundHeader:
    """The header of an encoded sound; no sample is decoded.

    Raises Undecodable: no sound, a damaged header, longer than `max_audio_s`.
    """
    kind = _kind(data)
    with _opened(data, kind) as file:
        header = _header_of(file, kind)
    _check_length(header.num_frames or 0, header, max_audio_s)
    return header


def measure(data: bytes, header: SoundHeader, max_audio_s: float) -> Sound:
    """Decode every sample of the sound whose `header` was read. Raises Undecodable where it is cut
    short or damaged, as far as the format tells: lengths, checksums, FLAC's MD5 of the samples."""
    kind = header.format
    check_whole(kind, data)
    digest = _FlacDigest(data) if kind == "FLAC" else None
    levels = _Levels(header.num_channels)
    with _opened(data, kind) as file:
        for block in _blocks(file, digest.dtype if digest else np.float32):
            if digest:
                digest.update(block)
                full_scale = np.float32(2.0 ** (8 * block.itemsize - 1))
                levels.add(block.astype(np.float32) / full_scale)
            else:
                levels.add(block)
            _check_length(levels.num_frames, header, max_audio_s)
    # Of an MP3 the container has been counted; its header's frames are mpg123's estimate.
    expected = header.num_frames if kind != "MP3" else None
    if expected is not None and levels.num_frames < expected:
        raise Undecodable("truncated", f"{levels.num_frames:,} of {expected:,} frames are there")
    if digest:
        digest.check()
    if not levels.num_frames:
        raise Undecodable("unreadable", "the sound holds no samples")
    return levels.sound(header.sample_rate_hz)


def _kind(data: bytes) -> SoundFormat:
    kind = sniff_sound(data)
    if kind is None:
        raise Undecodable("unreadable", describe(data, "sound"))
    return kind


def _header_of(file: Any, kind: SoundFormat) -> SoundHeader:
    rate, channels, frames = int(file.samplerate), int(file.channels), int(file.frames)
    if rate < 1 or channels < 1:
        raise Undecodable("unreadable", f"{channels} channels at {rate:,} Hz")
    known = 0 < frames < _UNKNOWN_FRAMES
    return SoundHeader(
        kind, rate, channels, frames if known else None, frames / rate if known else None
    )


def _check_length(num_frames: int, header: SoundHeader, max_audio_s: float) -> None:
    seconds = num_frames / header.sample_rate_hz
    if seconds > max_audio_s:
        raise Undecodable("too_many_seconds", f"{seconds:,.0f} s > {max_audio_s:,.0f} s")
    samples, limit = num_frames * header.num_channels, int(max_audio_s * _MAX_SAMPLES_PER_S)
    if samples > limit:
        raise Undecodable("too_many_seconds", f"{samples:,} samples > {limit:,} samples")


@contextmanager
def _opened(data: bytes, kind: SoundFormat) -> Iterator[Any]:
    """A soundfile.SoundFile; what libsndfile raises, here or while it is read, is Undecodable."""
    with quiet_stderr() if kind == "MP3" else nullcontext():
        try:
            with _Stream(_Bytes(data)) as file:
                if _NAMES.get(file.format, file.format) != kind:
                    raise Undecodable("unreadable", f"begins as {kind}, holds {file.format}")
                yield file
        except soundfile.LibsndfileError as error:
            check_whole(kind, data)  # says better what is wrong, where it can
            if kind == "FLAC" and not _ends_with_flac_frame(data):
                raise Undecodable("truncated", "the last FLAC frame is cut short") from None
            text = str(error.error_string).strip() or f"libsndfile error {error.code}"
            raise from_decoder(ValueError(text)) from None
        except (RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
            raise from_decoder(error) from None


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


def _blocks(file: Any, dtype: type[np.generic]) -> Iterator[NDArray[Any]]:
    """Samples [frames, channels] from the start to the end; each block reuses the last's memory."""
    buffer = np.empty((max(1, _BLOCK_SAMPLES // file.channels), file.channels), dtype)
    while len(block := file.read(out=buffer)):
        yield block


class _Levels:
    """Sums over blocks of float32 samples [frames, channels]."""

    def __init__(self, num_channels: int) -> None:
        self.num_frames = 0
        self._sum = np.zeros(num_channels)
        self._sum_squares = 0.0
        self._peak = 0.0
        self._clipped = 0
        self._open_runs = np.zeros(num_channels, np.int64)  # full-scale samples up to the block

    def add(self, block: NDArray[np.float32]) -> None:
        self.num_frames += len(block)
        peak = max(float(block.max()), -float(block.min()))
        if not peak <= _MAX_AMPLITUDE:  # nor is a number that is none
            raise Undecodable("unreadable", "samples that are no amplitudes")
        self._sum += np.ones(len(block), np.float32) @ block
        flat = block.ravel()
        self._sum_squares += float(flat @ flat)
        self._peak = max(self._peak, peak)
        if peak >= _FULL_SCALE or self._open_runs.any():
            for channel in range(block.shape[1]):
                self._count_runs(np.abs(block[:, channel]) >= _FULL_SCALE, channel)

    def _count_runs(self, full: NDArray[np.bool_], channel: int) -> None:
        edges = np.flatnonzero(np.diff(full, prepend=False, append=False))
        starts, lengths = edges[::2], edges[1::2] - edges[::2]
        carried = int(self._open_runs[channel])
        if carried and not (len(starts) and starts[0] == 0):
            self._clipped += carried if carried >= _MIN_RUN else 0
        elif carried:
            lengths[0] += carried
        self._open_runs[channel] = 0
        if len(starts) and full[-1]:
            # The last run may go on in the next block.
            self._open_runs[channel] = lengths[-1]
            lengths = lengths[:-1]
        self._clipped += int(lengths[lengths >= _MIN_RUN].sum())

    def sound(self, rate_hz: int) -> Sound:
        num = self.num_frames
        ends = self._open_runs[self._open_runs >= _MIN_RUN]
        num_channels = len(self._sum)
        variance = self._sum_squares / (num * num_channels) - ((self._sum / num) ** 2).mean()
        return Sound(
            num,
            num / rate_hz,
            _dbfs(math.sqrt(max(0.0, float(variance)))),
            _dbfs(self._peak),
            (self._clipped + int(ends.sum())) / (num * num_channels),
        )


def _dbfs(amplitude: float) -> float:
    return max(FLOOR_DBFS, 20 * math.log10(amplitude)) if amplitude > 0 else FLOOR_DBFS


class _FlacDigest:
    """The MD5 of a FLAC's samples, which its first block holds (RFC 9639, section 8.2)."""

    def __init__(self, data: bytes) -> None:
        if len(data) < 42 or data[4] & 0x7F:
            raise Undecodable("unreadable", "the FLAC does not begin with its stream's description")
        (packed,) = struct.unpack_from(">Q", data, 18)
        self._bits = (packed >> 36 & 0x1F) + 1
        self.dtype: type[np.int16] | type[np.int32] = np.int16 if self._bits <= 16 else np.int32
        self._expected = data[26:42]
        self._hash = hashlib.md5(usedforsecurity=False)

    def update(self, block: NDArray[Any]) -> None:
        """`block` has its samples in the upper bits of `dtype`, as libsndfile gives them."""
        width = 8 * block.itemsize
        num_bytes = -(-self._bits // 8)
        values = block >> (width - self._bits) if self._bits < width else block
        octets = np.ascontiguousarray(values, f"<i{block.itemsize}").view(np.uint8)
        if num_bytes < block.itemsize:
            octets = np.ascontiguousarray(octets.reshape(-1, block.itemsize)[:, :num_bytes])
        self._hash.update(octets.data)

    def check(self) -> None:
        if self._expected != bytes(16) and self._hash.digest() != self._expected:
            raise Undecodable("unreadable", "the samples differ from the FLAC's own MD5")


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
