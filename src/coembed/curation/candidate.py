"""A pair under examination: its row, and what was measured of its media."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coembed.types import Pair


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an item whatever the filters. None where it is unknown or does not apply.

    `fault` is a drop reason (unreadable, truncated, too_many_pixels, ...) when the media cannot be
    decoded, and `fault_detail` what was found. `format` is the container's usual name in capitals
    (JPEG, PNG, WAV). Width and height are as shown, after the EXIF orientation. `colour_mode` is
    Pillow's name for what the file holds (RGB, L, CMYK, P, I;16).
    """

    num_bytes: int
    fault: str | None = None
    fault_detail: str = ""
    format: str | None = None
    width_px: int | None = None
    height_px: int | None = None
    colour_mode: str | None = None
    num_frames: int | None = None
    duration_s: float | None = None
    sample_rate_hz: int | None = None
    num_channels: int | None = None


@dataclass(slots=True)
class Candidate:
    """A pair, its caption as rewritten so far, and what is known of its media.

    `columns` holds what the filters measured and judged so far.
    """

    pair: Pair
    caption: str
    facts: Facts
    columns: Mapping[str, int | float | str | bytes] = field(default_factory=dict)

    @property
    def is_image(self) -> bool:
        """Whether the pair's modality is image."""
        return self.pair.modality == "image"

    @property
    def is_audio(self) -> bool:
        """Whether the pair's modality is audio."""
        return self.pair.modality == "audio"
