"""Settings of the random changes that training makes to what it shows. Imports no torch, so that
params.yaml is read quickly; what they do stands in each modality's file.
"""

from __future__ import annotations

from pydantic import Field

from coembed.settings import Settings


class ImageAugment(Settings):
    """Hue is never touched: captions name colours.

    crop_area: the least share of the image's area that a random square crop keeps (1: no crop).
    flip: mirror half of the images. Switch it off where captions say left and right, or for text.
    brightness: the pixel values are multiplied by 1 ± up to this much.
    """

    crop_area: float = Field(default=0.8, gt=0.1, le=1.0)
    flip: bool = True
    brightness: float = Field(default=0.0, ge=0.0, le=0.5)


class AudioAugment(Settings):
    """Of a clip longer than the tower's window, a random window is heard; a shorter one stands at a
    random place in silence.

    gain_db: the level is changed by up to so many decibels, up or down.
    """

    gain_db: float = Field(default=6.0, ge=0.0, le=40.0)
