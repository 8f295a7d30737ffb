"""Examine a run of pool rows: read the media, run the filters. What a worker process does."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from coembed.curation.candidate import Candidate, Undecodable
from coembed.curation.filters.base import Filter, Score, Verdict
from coembed.curation.spool import Spool
from coembed.types import MODALITIES

# What the engine itself refuses, before any filter is asked.
INTAKE_REASONS = (
    "missing_path",
    "path_outside_pool",
    "unknown_modality",
    "missing_file",
    "not_a_file",
    "empty_file",
    "file_too_large",
    "unreadable_file",
)
# What a picture's header may bring up, whichever filter looks first.
DECODE_REASONS = ("unreadable", "truncated", "too_many_pixels")


class FilterBuilder(Protocol):
    """The Settings of a filter."""

    def build(self) -> Filter:
        """Make the filter."""


@dataclass(frozen=True)
class Examination:
    """What all tasks share: where the rows and media are, and the filters in order."""

    spool: Path
    pool: Path
    filters: tuple[FilterBuilder, ...]
    max_pixels: int
    max_media_bytes: int


@dataclass
class Findings:
    """What was found of rows `start` onwards; arrays have one element a row.

    `items` [rows, 32] and `pair_ids`, `paths`, `captions` [rows, 16] are digests as uint8; all zero
    for an item whose media were not read. Sizes are 0 where unknown. `drops` holds row, reason and
    detail.
    """

    start: int
    items: NDArray[np.uint8]
    pair_ids: NDArray[np.uint8]
    paths: NDArray[np.uint8]
    captions: NDArray[np.uint8]
    num_bytes: NDArray[np.int64]
    width_px: NDArray[np.int32]
    height_px: NDArray[np.int32]
    drops: list[tuple[int, str, str]] = field(default_factory=list)
    scores: dict[str, dict[int, Score]] = field(default_factory=dict)


@dataclass(frozen=True)
class Examiner:
    """Picklable function from (start, stop) to the Findings of those rows."""

    job: Examination

    def __call__(self, rows: tuple[int, int]) -> Findings:
        """Examine pool rows `rows[0]` to `rows[1]` (exclusive)."""
        start, stop = rows
        num = stop - start
        filters = [settings.build() for settings in self.job.filters]
        findings = Findings(
            start=start,
            items=np.zeros((num, 32), np.uint8),
            pair_ids=np.zeros((num, 16), np.uint8),
            paths=np.zeros((num, 16), np.uint8),
            captions=np.zeros((num, 16), np.uint8),
            num_bytes=np.zeros(num, np.int64),
            width_px=np.zeros(num, np.int32),
            height_px=np.zeros(num, np.int32),
        )
        pairs = list(Spool(self.job.spool).pairs(start, stop))
        # Rows of one file are examined together, so that it is read and decoded once.
        by_path: dict[str, list[int]] = {}
        for index, pair in enumerate(pairs):
            findings.pair_ids[index] = _digest(pair.pair_id)
            findings.paths[index] = _digest(pair.path)
            findings.captions[index] = _digest(normal_caption(pair.caption))
            by_path.setdefault(pair.path, []).append(index)
        for path, indices in by_path.items():
            media, reason, detail = read_media(self.job.pool, path, self.job.max_media_bytes)
            item = np.frombuffer(hashlib.sha256(media).digest(), np.uint8) if media else None
            candidate: Candidate | None = None
            for index in indices:
                pair = pairs[index]
                if pair.modality not in MODALITIES:
                    known = ", ".join(MODALITIES)
                    found = f"modality {pair.modality!r}; expected {known}"
                    findings.drops.append((start + index, "unknown_modality", found))
                    continue
                if item is None:
                    findings.drops.append((start + index, reason, detail))
                    continue
                findings.items[index] = item
                findings.num_bytes[index] = len(media)
                candidate = Candidate(pair, media, max_pixels=self.job.max_pixels, like=candidate)
                self._judge(candidate, filters, findings, index)
        return findings

    def _judge(
        self, candidate: Candidate, filters: list[Filter], findings: Findings, index: int
    ) -> None:
        """Ask the filters in order until one drops the pair."""
        row = findings.start + index
        for chosen in filters:
            try:
                verdict = chosen.check(candidate)
            except Undecodable as finding:
                verdict = Verdict(finding.reason, finding.detail)
            for name, score in verdict.scores.items():
                findings.scores.setdefault(name, {})[row] = score
            if verdict.reason is not None:
                findings.drops.append((row, verdict.reason, verdict.detail))
                break
        if candidate.known_header is not None:
            findings.width_px[index] = candidate.known_header.width_px
            findings.height_px[index] = candidate.known_header.height_px


def normal_caption(caption: str) -> str:
    """`caption` in one case and with single spaces: what counts as the same caption."""
    return " ".join(caption.casefold().split())


def read_media(pool: Path, path: str, max_bytes: int) -> tuple[bytes, str, str]:
    """The bytes of `path` in `pool`, or b"" with the reason and detail of why not."""
    if not path:
        return b"", "missing_path", "the row names no file"
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\0" in path:
        return b"", "path_outside_pool", f"{path!r} is not a path inside the pool"
    try:
        # Not blocking, and looked at before it is read: a pipe would wait for ever.
        descriptor = os.open(pool / path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (FileNotFoundError, NotADirectoryError):
        return b"", "missing_file", "no such file"
    except OSError as error:
        return b"", "unreadable_file", error.strerror or type(error).__name__
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return b"", "not_a_file", "a folder, device or pipe, not a file"
        if status.st_size > max_bytes:
            return b"", "file_too_large", f"{status.st_size:,} bytes > {max_bytes:,} bytes"
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        return b"", "unreadable_file", error.strerror or type(error).__name__
    finally:
        os.close(descriptor)
    return (data, "", "") if data else (b"", "empty_file", "0 bytes")


def _digest(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), np.uint8)


def declared_reasons(filters: Mapping[str, Filter]) -> list[str]:
    """Every drop reason that can occur, the engine's own first."""
    own = [*INTAKE_REASONS, "repeated_pair_id", *DECODE_REASONS]
    given = [reason for chosen in filters.values() for reason in chosen.reasons]
    return list(dict.fromkeys([*own, *given]))
