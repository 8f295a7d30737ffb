"""The media bytes of one item, and what is decoded from them: lazily, and at most once.

    media = Media(data, modality="image", max_pixels=100_000_000)
    media.check()        # decodes everything; raises Undecodable
    media.thumbnail      # the picture, 64 to 127 px, from one scaled decode
    media.sound          # what one pass over all samples found
    media.facts()        # never raises

A fault is found once and raised again by every later access, and `facts()` names it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from coembed.curation.candidate import Facts
from coembed.curation.media.picture import MIN_SIDE_PX, Header, read_header, read_pixels
from coembed.curation.media.undecodable import DECODE_REASONS, Undecodable
from coembed.modalities._pixels import Pixels

if TYPE_CHECKING:
    from coembed.curation.media.sound import Sound, SoundHeader

__all__ = [
    "DECODE_REASONS",
    "MAX_AUDIO_S",
    "MAX_PIXELS",
    "MIN_SIDE_PX",
    "Header",
    "Media",
    "Pixels",
    "Undecodable",
]

MAX_PIXELS = 100_000_000
MAX_AUDIO_S = 3600.0


class Media:
    """The media bytes of one item. Costs nothing to make: everything is decoded when asked for.

    `modality` image and audio are decoded; other modalities have no `pixels` and no `sound`, and
    their facts are `num_bytes` alone. `max_pixels` is the most that a picture may hold, by its
    header, and `max_audio_s` the longest sound that is decoded: whatever is above is a fault.
    """

    __slots__ = (
        "_audio_header",
        "_fault",
        "_grey",
        "_header",
        "_luma",
        "_max_audio_s",
        "_max_pixels",
        "_orientation",
        "_pixels",
        "_sound",
        "_thumbnail",
        "data",
        "modality",
    )

    def __init__(
        self,
        data: bytes,
        *,
        modality: str,
        max_pixels: int = MAX_PIXELS,
        max_audio_s: float = MAX_AUDIO_S,
    ) -> None:
        self.data = data
        self.modality = modality
        self._max_pixels = max_pixels
        self._max_audio_s = max_audio_s
        self._fault: Undecodable | None = None
        self._header: Header | None = None
        self._orientation = 1
        self._pixels: Pixels | None = None
        self._thumbnail: Image.Image | None = None
        self._luma: Image.Image | None = None
        self._grey: Pixels | None = None
        self._audio_header: SoundHeader | None = None
        self._sound: Sound | None = None

    @property
    def is_image(self) -> bool:
        """Whether the modality is image: only then are there `header` and `pixels`."""
        return self.modality == "image"

    @property
    def is_audio(self) -> bool:
        """Whether the modality is audio: only then are there `audio_header` and `sound`."""
        return self.modality == "audio"

    @property
    def header(self) -> Header:
        """The picture's header; no pixel is decoded. Raises Undecodable."""
        if self._header is None:
            assert self.is_image
            self._stop_at_fault()
            try:
                self._header, self._orientation = read_header(self.data, self._max_pixels)
            except Undecodable as fault:
                self._fault = fault
                raise
        return self._header

    @property
    def thumbnail(self) -> Image.Image:
        """The picture scaled down, mode RGB; not to be changed. Upright (EXIF orientation applied),
        transparency laid on white, the first frame of an animation, any colour mode. Of a picture
        more than 16 times as long as wide, the middle.

        Scaled by a power of two as long as MIN_SIDE_PX of the shorter side remain: 64 to 127 px,
        less only where the picture is smaller. That is what the measures need, and a large JPEG is
        decoded faster so (libjpeg scales in the DCT; other formats are averaged over blocks once
        decoded). The whole file is read and checked all the same, at the decoders' strictest.
        `header` has the true size. Raises Undecodable.
        """
        if self._thumbnail is None:
            pixels = self.pixels
            size = pixels.shape[1], pixels.shape[0]
            self._thumbnail = Image.frombuffer("RGB", size, pixels, "raw", "RGB", 0, 1)
        return self._thumbnail

    @property
    def pixels(self) -> Pixels:
        """`thumbnail` as uint8 RGB [height, width, 3], read-only. Raises Undecodable."""
        if self._pixels is None:
            header = self.header
            self._stop_at_fault()
            try:
                self._pixels = read_pixels(self.data, header, self._orientation)
            except Undecodable as fault:
                self._fault = fault
                raise
        return self._pixels

    @property
    def luma(self) -> Image.Image:
        """The brightness (ITU-R 601-2 luma) of `thumbnail`, mode L; not to be changed. Raises
        Undecodable."""
        if self._luma is None:
            self._luma = self.thumbnail.convert("L")
        return self._luma

    @property
    def grey(self) -> Pixels:
        """`luma` as uint8 [height, width], read-only. Raises Undecodable."""
        if self._grey is None:
            luma = self.luma
            grey = np.frombuffer(luma.tobytes(), np.uint8)
            self._grey = grey.reshape(luma.height, luma.width)
        return self._grey

    @property
    def audio_header(self) -> SoundHeader:
        """What a sound file says of itself; no sample is decoded. Raises Undecodable."""
        if self._audio_header is None:
            assert self.is_audio
            self._stop_at_fault()
            from coembed.curation.media.sound import (
                read_header,  # soundfile only where it is needed
            )

            try:
                self._audio_header = read_header(self.data, self._max_audio_s)
            except Undecodable as fault:
                self._fault = fault
                raise
        return self._audio_header

    @property
    def sound(self) -> Sound:
        """What one pass over all samples found: length, rate, channels, levels. Raises
        Undecodable."""
        if self._sound is None:
            header = self.audio_header
            self._stop_at_fault()
            from coembed.curation.media.sound import measure

            try:
                self._sound = measure(self.data, header, self._max_audio_s)
            except Undecodable as fault:
                self._fault = fault
                raise
        return self._sound

    def check(self) -> None:
        """Decode everything. Raises Undecodable where a decoder, at its strictest, would have to
        guess: cut short, bits flipped, checksums wrong. Other modalities pass."""
        if self.is_image:
            _ = self.pixels
        elif self.is_audio:
            _ = self.sound

    def facts(self) -> Facts:
        """What is known of the item; never raises. The header is read for it. `fault` is set when
        the header cannot be read, or when somebody asked for `pixels`, `sound` or `check()` and
        the media could not be decoded."""
        if self._fault is None:
            try:
                if self.is_image:
                    _ = self.header
                elif self.is_audio:
                    _ = self.audio_header
            except Undecodable:
                pass  # kept in self._fault
        fault, picture, audio = self._fault, self._header, self._audio_header
        duration_s = audio.duration_s if audio else None
        if self._sound is not None:
            duration_s = self._sound.duration_s
        return Facts(
            num_bytes=len(self.data),
            fault=fault.reason if fault else None,
            fault_detail=fault.detail if fault else "",
            format=picture.format if picture else audio.format if audio else None,
            width_px=picture.width_px if picture else None,
            height_px=picture.height_px if picture else None,
            colour_mode=picture.colour_mode if picture else None,
            num_frames=picture.num_frames if picture else None,
            duration_s=duration_s,
            sample_rate_hz=audio.sample_rate_hz if audio else None,
            num_channels=audio.num_channels if audio else None,
        )

    def _stop_at_fault(self) -> None:
        if self._fault is not None:
            raise Undecodable(self._fault.reason, self._fault.detail)
