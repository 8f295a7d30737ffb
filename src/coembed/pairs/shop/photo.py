"""One photograph: a product, drawn, lit and set before a background."""

import io
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from coembed.pairs.shop import carry, home, kitchen, wear
from coembed.pairs.shop.backdrops import FLAT, draw_backdrop
from coembed.pairs.shop.brush import SUPERSAMPLE, Brush, Frame
from coembed.pairs.shop.palette import COLOURS, mix_paints
from coembed.pairs.shop.seeds import stream

_DRAWINGS = {
    "sneakers": wear.sneakers,
    "boots": wear.boots,
    "dress": wear.dress,
    "t-shirt": wear.t_shirt,
    "hat": wear.hat,
    "backpack": carry.backpack,
    "handbag": carry.handbag,
    "umbrella": carry.umbrella,
    "watch": carry.watch,
    "mug": kitchen.mug,
    "teapot": kitchen.teapot,
    "bottle": kitchen.bottle,
    "lamp": home.lamp,
    "chair": home.chair,
    "sofa": home.sofa,
    "guitar": home.guitar,
}
# These hang on a wall or lie flat; the others stand, and keep their feet down.
_HANGING = frozenset({"dress", "t-shirt", "watch", "umbrella"})


@dataclass(frozen=True, slots=True)
class Photo:
    """All that decides a picture; two equal photos are the same bytes."""

    product_seed: str
    photo_seed: str
    kind: str
    style: str
    colour: str
    tone: int
    pattern: str
    background: str
    width: int
    height: int
    quality: int


def take(photo: Photo) -> Image.Image:
    """Draw the photograph."""
    look = stream(photo.product_seed)
    paints = mix_paints(look, photo.colour, COLOURS[photo.colour][photo.tone])
    rng = stream(photo.photo_seed)
    hanging = photo.kind in _HANGING
    from_left = rng.random() < 0.5
    sway = 9.0 if hanging else 3.5
    frame = Frame(
        (photo.width * SUPERSAMPLE, photo.height * SUPERSAMPLE),
        centre=(
            0.5 + rng.uniform(-0.03, 0.03),
            (0.5 if hanging else 0.52) + rng.uniform(-0.02, 0.02),
        ),
        scale=rng.uniform(0.4, 0.47),
        turn=rng.uniform(-sway, sway),
        lean=rng.uniform(-0.07, 0.07),
        taper=rng.uniform(-0.06, 0.06),
        mirror=rng.random() < 0.5,
    )
    brush = Brush(frame, light_from_left=from_left, pattern=photo.pattern, rng=look)
    _DRAWINGS[photo.kind](brush, paints, photo.style)
    backdrop = draw_backdrop(photo.background, rng, photo.width, photo.height)
    flat = photo.background in FLAT or hanging
    return _lit(brush, backdrop, rng, from_left=from_left, flat=flat)


def jpeg(picture: Image.Image, quality: int) -> bytes:
    """The picture as JPEG, every encoder setting given."""
    out = io.BytesIO()
    picture.save(
        out, "JPEG", quality=quality, subsampling="4:2:0", optimize=False, progressive=False
    )
    return out.getvalue()


def _lit(
    brush: Brush,
    backdrop: NDArray[np.float32],
    rng: random.Random,
    *,
    from_left: bool,
    flat: bool,
) -> Image.Image:
    rgb = np.asarray(brush.rgb.reduce(SUPERSAMPLE), dtype=np.float32)
    alpha = brush.alpha.reduce(SUPERSAMPLE)
    cover = (np.asarray(alpha, dtype=np.float32) / np.float32(255))[:, :, None]
    px = min(alpha.size)
    side = 1 if from_left else -1
    # Light wraps around the silhouette: its far edge darkens, its near edge catches light.
    soft = alpha.filter(ImageFilter.BoxBlur(px // 30)).filter(ImageFilter.BoxBlur(px // 30))
    reach = px // 22
    far = _moved(soft, -side * reach, -reach)
    near = _moved(soft, side * reach, reach)
    rgb = rgb * (np.float32(0.8) + np.float32(0.2) * far)
    rgb = rgb + np.float32(26) * cover * (np.float32(1) - near)
    strength = np.float32(rng.uniform(0.38, 0.55))
    if flat:
        shadow = soft.filter(ImageFilter.BoxBlur(max(1, px // 48)))
        ground = np.minimum(_moved(shadow, side * px // 26, px // 22), np.float32(1))
    else:
        ground = _floor_shadow(alpha, side, rng.uniform(0.1, 0.45))
    picture = backdrop * (np.float32(1) - strength * ground) * (np.float32(1) - cover) + rgb
    warm = np.float32(rng.uniform(-0.045, 0.045))
    exposure = np.float32(rng.uniform(0.93, 1.05))
    tint = np.array([1, 1, 1], dtype=np.float32) + np.array([1, 0.15, -1], dtype=np.float32) * warm
    picture = picture * (tint * exposure)
    return Image.fromarray(np.clip(picture, np.float32(0), np.float32(255)).astype(np.uint8))


def _moved(mask: Image.Image, dx: int, dy: int) -> NDArray[np.float32]:
    out = Image.new("L", mask.size)
    out.paste(mask, (dx, dy))
    return (np.asarray(out, dtype=np.float32) / np.float32(255))[:, :, None]


def _floor_shadow(alpha: Image.Image, side: int, slant: float) -> NDArray[np.float32]:
    """A dark line of contact under the feet, and the silhouette thrown along the ground."""
    width, height = alpha.size
    x0, y0, x1, y1 = alpha.getbbox() or (0, 0, width, height)
    px = min(width, height)
    out = Image.new("L", alpha.size)
    low = alpha.crop((x0, y0, x1, y1)).resize(
        (x1 - x0, max(2, (y1 - y0) * 3 // 10)), Image.Resampling.BILINEAR
    )
    wide, tall = low.size
    reach = int(tall * slant * 3)
    thrown = low.transform(
        (wide + reach, tall),
        Image.Transform.AFFINE,
        (1, slant * 3, -slant * 3 * tall, 0, 1, 0)
        if side > 0
        else (1, -slant * 3, slant * 3 * tall - reach, 0, 1, 0),
        Image.Resampling.BILINEAR,
    )
    out.paste(
        thrown.point([v * 7 // 10 for v in range(256)]),
        (x0 if side > 0 else x0 - reach, y1 - tall + px // 40),
    )
    out = out.filter(ImageFilter.BoxBlur(max(1, px // 40)))
    contact = Image.new("L", alpha.size)
    feet = alpha.crop((0, max(0, y1 - px // 12), width, y1)).getbbox()
    fx0, fx1 = (feet[0], feet[2]) if feet else (x0, x1)
    ImageDraw.Draw(contact).ellipse(
        [fx0 - px // 60, y1 - px // 18, fx1 + px // 60, y1 + px // 40], fill=255
    )
    contact = contact.filter(ImageFilter.BoxBlur(max(1, px // 42))).filter(
        ImageFilter.BoxBlur(max(1, px // 60))
    )
    both: NDArray[np.float32] = np.maximum(
        np.asarray(out, dtype=np.float32), np.asarray(contact, dtype=np.float32)
    )
    ground: NDArray[np.float32] = (both / np.float32(255))[:, :, None]
    return ground
