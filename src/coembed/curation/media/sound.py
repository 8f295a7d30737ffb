"""Sounds: what a file says of itself, and what one pass over its samples finds.

Decoded block by block, so memory does not depend on the length of the sound. The module is imported
only when a pool holds sounds.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coembed.curation.media.quiet import quiet_stderr
from coembed.curation.media.undecodable import Undecodable, describe, from_decoder
from coembed.modalities._sound import (
    SoundHeader,
    blocks,
    check_amplitudes,
    check_complete,
    check_length,
    header_of,
    opened,
)
from coembed.modalities._sound_files import BrokenSound, SoundFormat, check_whole, sniff_sound

__all__ = ["FLOOR_DBFS", "Sound", "SoundHeader", "measure", "read_header"]

FLOOR_DBFS = -120.0
"""What digital silence is given, instead of minus infinity."""

_FULL_SCALE = 0.999
_MIN_RUN = 3  # two neighbours at full scale can be a sound that was brought up to full scale


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
    kind = sniff_sound(data)
    if kind is None:
        raise Undecodable("unreadable", describe(data, "sound"))
    with _findings():
        with _quiet(kind), opened(data, kind) as file:
            header = header_of(file, kind)
        check_length(header.num_frames or 0, header, max_audio_s)
    return header


def measure(data: bytes, header: SoundHeader, max_audio_s: float) -> Sound:
    """Decode every sample of the sound whose `header` was read. Raises Undecodable where it is cut
    short or damaged, as far as the format tells: lengths, checksums, FLAC's MD5 of the samples."""
    kind = header.format
    with _findings():
        check_whole(kind, data)
        digest = _FlacDigest(data) if kind == "FLAC" else None
        levels = _Levels(header.num_channels)
        with _quiet(kind), opened(data, kind) as file:
            for block in blocks(file, digest.dtype if digest else np.float32):
                if digest:
                    digest.update(block)
                    full_scale = np.float32(2.0 ** (8 * block.itemsize - 1))
                    levels.add(block.astype(np.float32) / full_scale)
                else:
                    levels.add(block)
                check_length(levels.num_frames, header, max_audio_s)
        check_complete(levels.num_frames, header)
    if digest:
        digest.check()
    if not levels.num_frames:
        raise Undecodable("unreadable", "the sound holds no samples")
    return levels.sound(header.sample_rate_hz)


def _quiet(kind: SoundFormat) -> AbstractContextManager[None]:
    """mpg123 writes to the standard error what it thinks of a damaged MP3."""
    return quiet_stderr() if kind == "MP3" else nullcontext()


@contextmanager
def _findings() -> Iterator[None]:
    """Turn BrokenSound into Undecodable."""
    try:
        yield
    except BrokenSound as error:
        if error.fault is None:
            raise from_decoder(error) from None
        raise Undecodable(error.fault, error.detail) from None


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
        peak = check_amplitudes(block)
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
