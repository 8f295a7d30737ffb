"""Images: decoding, the transform, the tower.

One way of decoding and resizing serves the training cache, evaluation and search: a model meets the
same pixels everywhere. `Spec.version` names that way; it changes when the pixels would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from pydantic import Field
from torch import Tensor, nn

from coembed import draws
from coembed.errors import DataError, ModelError
from coembed.modalities import _pixels, base
from coembed.modalities._augment import ImageAugment
from coembed.modalities._pixels import Pixels

SECTION = "vision_cfg"
OPEN_CLIP = "visual"

Triple = tuple[float, float, float]


class Spec(base.InputSpec):
    """The image tower's inputs.

    px: side of the square input, in pixels. mean, std: per RGB channel, of values in 0 to 1.
    resize: `shortest` brings the shorter side to px and cuts the middle out; `squash` brings both
    sides to px. interpolation: antialiased, of 8-bit values. version: of decoding and resizing.
    """

    px: int = Field(ge=1)
    mean: Triple = OPENAI_DATASET_MEAN
    std: Triple = OPENAI_DATASET_STD
    resize: Literal["shortest", "squash"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    version: Literal[1] = 1


def decode_image(data: bytes, *, max_pixels: int = base.MAX_PIXELS) -> Pixels:
    """RGB pixels [height, width, 3] of an encoded image.

    The EXIF orientation is applied, transparency laid on white, 16-bit values brought to 8, and an
    animation gives its first frame. Colour profiles are not applied. The size is read from the
    header and checked before anything is decoded.

    Raises:
        DataError: not an image of a known format, damaged, cut short, or above `max_pixels`.
    """
    return _pixels.decode_image(data, max_pixels=max_pixels)


def resize_crop(
    image: Pixels,
    *,
    px: int,
    resize: str = "shortest",
    interpolation: str = "bicubic",
) -> Pixels:
    """Pixels [px, px, 3], antialiased: the shorter side to `px` and the middle of the longer, or
    both sides to `px` (`squash`).

    Torch's 8-bit resize rounds otherwise than Pillow's (now and then by one or two of 255 levels)
    and is several times faster; sizes and offsets are those of open_clip's evaluation transform.
    """
    height, width = image.shape[:2]
    if resize == "shortest":
        image = _cut_to_aspect(image, _pixels.MAX_ASPECT)
        height, width = image.shape[:2]
        short = min(height, width)
        # The longer side is rounded down and the crop's offset to the nearest, as torchvision does.
        height, width = px * height // short, px * width // short
    else:
        height, width = px, px
    image = _resize(image, height, width, interpolation)
    top, left = round((height - px) / 2), round((width - px) / 2)
    return np.ascontiguousarray(image[top : top + px, left : left + px])


def transform(data: bytes, spec: Spec, *, max_pixels: int = base.MAX_PIXELS) -> Pixels:
    """Decode and resize as `spec` says: pixels [px, px, 3]. Raises DataError."""
    image = decode_image(data, max_pixels=max_pixels)
    return resize_crop(image, px=spec.px, resize=spec.resize, interpolation=spec.interpolation)


def normalise(
    batch: UInt8[Tensor, "batch height width 3"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "batch 3 height width"]:
    """(pixels / 255 − mean) / std per channel, float32, channels last in memory."""
    values = batch.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    # Whole lines of pixels at a time: channel by channel the loops would be three steps long.
    width = batch.shape[2]
    shift = torch.tensor(mean, dtype=torch.float32, device=batch.device).repeat(width)
    scale = torch.tensor(std, dtype=torch.float32, device=batch.device).repeat(width)
    values.flatten(2).sub_(shift).div_(scale)
    return values.permute(0, 3, 1, 2)


class Loader(base.Loader):
    """Encoded images to pixels [batch, px, px, 3] uint8, and on to float inputs."""

    dtype: ClassVar[torch.dtype] = torch.uint8

    def __init__(
        self, spec: Spec, *, files: Path | None = None, max_pixels: int = base.MAX_PIXELS
    ) -> None:
        del files
        self._spec, self._max_pixels = spec, max_pixels

    def load(self, items: Sequence[bytes], *, first: int = 0) -> Tensor:
        """See base.Loader."""
        spec = self._spec
        pixels = np.empty((len(items), spec.px, spec.px, 3), dtype=np.uint8)
        for place, data in enumerate(items):
            try:
                pixels[place] = transform(data, spec, max_pixels=self._max_pixels)
            except DataError as error:
                raise DataError(f"image {first + place}: {error.message}") from error
        return torch.from_numpy(pixels)

    def to_inputs(self, batch: Tensor) -> Tensor:
        """See base.Loader."""
        return normalise(batch, self._spec.mean, self._spec.std)

    def example(self) -> Tensor:
        """See base.Loader."""
        return torch.zeros((1, self._spec.px, self._spec.px, 3), dtype=torch.uint8)

    def identity(self) -> Mapping[str, Any]:
        """See base.Loader. The spec says it all."""
        return {}


class View(base.View):
    """Pixels [side, side, 3], a little larger than the input; a step sees a random square of them,
    perhaps mirrored, brighter or darker."""

    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.uint8)

    def __init__(self, spec: Spec, augment: ImageAugment | None) -> None:
        self._px, self._augment = spec.px, augment
        self._spec = spec.model_copy(update={"px": _kept_side(spec.px, augment)})

    def keep(self, media: bytes) -> Pixels:
        """See base.View."""
        return transform(media, self._spec)

    def shape(self, size: int) -> tuple[int, ...]:
        """See base.View."""
        side = self._spec.px
        assert size == 3 * side * side
        return side, side, 3

    def see(
        self, kept: Sequence[Pixels], keys: draws.Keys, *, seed: int, epoch: int
    ) -> NDArray[np.uint8]:
        """See base.View: uint8 [batch, px, px, 3]."""
        if self._augment is None:
            return np.stack(kept)
        return crop_images(kept, keys, self._augment, px=self._px, seed=seed, epoch=epoch)

    def identity(self) -> Mapping[str, Any]:
        """See base.View."""
        return self._spec.model_dump(mode="json")


def _kept_side(px: int, augment: ImageAugment | None) -> int:
    """Side in which images are kept, so that crops of average area are seen at about `px`."""
    return px if augment is None else math.ceil(px * (1 + (1 - augment.crop_area) / 2))


def crop_images(
    images: Sequence[Pixels],
    keys: draws.Keys,
    augment: ImageAugment,
    *,
    px: int,
    seed: int,
    epoch: int,
) -> NDArray[np.uint8]:
    """Cut a random square out of each image and bring it to `px`; perhaps mirror and dim it.

    Each of `images` is uint8 [side, side, 3]; returns uint8 [batch, px, px, 3]. The square's area
    is uniform between `augment.crop_area` and 1 of the image's, its place uniform.
    """
    side = images[0].shape[0]
    area = 1 - (1 - augment.crop_area) * draws.uniform(seed, "area", epoch, keys)
    window = np.rint(side * np.sqrt(area)).astype(np.int64)
    top = draws.below(seed, "top", epoch, keys, side - window + 1)
    left = draws.below(seed, "left", epoch, keys, side - window + 1)
    flip = draws.uniform(seed, "flip", epoch, keys) < (0.5 if augment.flip else 0.0)
    spread = 2 * draws.uniform(seed, "brightness", epoch, keys) - 1
    out = np.empty((len(images), px, px, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        square = image[top[i] : top[i] + window[i], left[i] : left[i] + window[i]]
        out[i] = square if window[i] == px else _resize_square(square, px)
        if flip[i]:
            out[i] = out[i, :, ::-1].copy()
    if augment.brightness:
        factor = (1 + augment.brightness * spread).astype(np.float32)[:, None, None, None]
        np.clip(np.rint(out * factor), 0, 255, out=out, casting="unsafe")
    return out


def _resize_square(square: Pixels, px: int) -> Pixels:
    """Antialiased bilinear resize of uint8 [side, side, 3] to [px, px, 3]."""
    tensor = torch.from_numpy(square.copy()).permute(2, 0, 1)[None]
    resized = F.interpolate(tensor, size=(px, px), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def describe(section: Mapping[str, Any], preprocess: Mapping[str, Any]) -> Spec:
    """See base.ModalityModule."""
    size = section.get("image_size", 224)
    known = {
        "mean": preprocess.get("mean"),
        "std": preprocess.get("std"),
        "resize": preprocess.get("resize_mode"),
        "interpolation": preprocess.get("interpolation"),
    }
    given = {key: value for key, value in known.items() if value is not None}
    for key, allowed in (
        ("resize", ("shortest", "squash")),
        ("interpolation", ("bicubic", "bilinear")),
    ):
        if key in given and given[key] not in allowed:
            raise ModelError(
                f"the checkpoint's preprocessing has {key} {given[key]!r}; expected one of "
                f"{', '.join(allowed)}"
            )
    return Spec(px=size[0] if isinstance(size, list | tuple) else size, **given)


def build_tower(embed_dim: int, section: Mapping[str, Any], *, quick_gelu: bool) -> nn.Module:
    """open_clip's image tower: inputs [batch, 3, px, px] → features [batch, embed_dim].

    Raises:
        ModelError: an unknown key or timm model, or sizes that do not fit.
    """
    settings = dict(section)
    size = settings.get("image_size", 224)
    px = settings["image_size"] = size[0] if isinstance(size, list | tuple) else size
    settings["output_tokens"] = False
    known = CLIPVisionCfg.__dataclass_fields__
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ModelError(
            f"vision_cfg has unknown keys: {', '.join(unknown)}",
            hint=f"known: {', '.join(sorted(known))}",
        )
    try:
        tower: Any = _build_vision_tower(embed_dim, settings, quick_gelu)
    except Exception as error:
        raise ModelError(
            f"open_clip cannot build the image tower: {type(error).__name__}: {error}",
            hint="check model.architecture.vision_cfg in params.yaml",
        ) from error
    if hasattr(getattr(tower, "trunk", None), "set_input_size"):
        # open_clip tells timm no image size, so a ViT comes out at the size of its name.
        tower.set_input_size(px)
    assert isinstance(tower, nn.Module)
    return tower


def _cut_to_aspect(image: Pixels, aspect: int) -> Pixels:
    """The middle of an image that is more than `aspect` times longer than wide."""
    height, width = image.shape[:2]
    keep = aspect * min(height, width)
    top, left = max(0, (height - keep) // 2), max(0, (width - keep) // 2)
    return image[top : top + keep, left : left + keep]


def _resize(image: Pixels, height: int, width: int, interpolation: str) -> Pixels:
    if image.shape[:2] == (height, width):
        return image
    # A batch of one, so that torch sees that channels come last, and leaves them there.
    batch = torch.from_numpy(np.require(image, requirements=["C", "W"])[None])
    resized = F.interpolate(
        batch.permute(0, 3, 1, 2), size=(height, width), mode=interpolation, antialias=True
    )
    return resized[0].permute(1, 2, 0).numpy()
