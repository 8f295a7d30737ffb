"""The faults planted in the pool, each known to truth.parquet and to nobody else."""

import io
import random
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from coembed.pairs.shop.catalogue import Product
from coembed.pairs.shop.photo import Photo, jpeg, take
from coembed.pairs.shop.seeds import stream

# Rows of each fault per thousand rows; 80 in all.
SHARES: dict[str, int] = {
    "exact_duplicate": 12,
    "near_duplicate": 16,
    "corrupt": 5,
    "truncated": 5,
    "swapped_caption": 12,
    "empty_caption": 4,
    "boilerplate_caption": 8,
    "short_caption": 4,
    "tiny_image": 4,
    "extreme_ratio": 4,
    "straddling_product": 6,
}
# These come in twos: a swap has two captions, a straddle two splits.
_EVEN = frozenset({"swapped_caption", "straddling_product"})
_IMAGE_FAULTS = ("corrupt", "truncated", "tiny_image", "extreme_ratio")
_CAPTION_FAULTS = ("empty_caption", "boilerplate_caption", "short_caption")
_BOILERPLATE = (
    "Image may contain: product",
    "IMG_2041.JPG",
    "Buy now! Free shipping",
    "Click here for more details",
    "No description available",
)
_SHORT = ("a", "x", "-", "ok", "?", "..", "1")

Damage = Literal[
    "", "re-encoded", "resized", "cropped", "brightened", "recoloured", "watermarked", "flipped",
    "garbage", "html", "empty", "truncated", "tiny", "extreme",
]  # fmt: skip
_NEAR: tuple[Damage, ...] = (
    "re-encoded", "resized", "cropped", "brightened", "recoloured", "watermarked", "flipped",
)  # fmt: skip
_CORRUPT: tuple[Damage, ...] = ("garbage", "html", "empty")


@dataclass(slots=True)
class Item:
    """One file of the pool while it is being planned."""

    photo: Photo
    product: Product
    damage: Damage = ""
    number: int = -1

    @property
    def path(self) -> str:
        """Known once the items are numbered."""
        return f"media/{self.number // 100:02d}/{self.number:06d}.jpg"

    def media(self) -> bytes:
        """The bytes of the file."""
        return media(self.photo, self.damage)


@dataclass(slots=True)
class Row:
    """One pair of the pool while it is being planned, and its fault if it has one."""

    item: Item
    caption: str
    caption_number: int
    split: str | None
    fault: str = ""
    partner: "Row | None" = None
    detail: str = ""

    @property
    def pair_id(self) -> str:
        """Known once the items are numbered."""
        return f"shop-{self.item.number:06d}-{self.caption_number}"


def counts(num_pairs: int) -> dict[str, int]:
    """How many rows of each fault a pool of `num_pairs` rows has; at least one of each."""
    wanted = {fault: max(1, round(num_pairs * share / 1000)) for fault, share in SHARES.items()}
    return {
        fault: max(2, num - num % 2) if fault in _EVEN else num for fault, num in wanted.items()
    }


def plant(seed: int, rows: list[Row], num_pairs: int) -> list[Row]:
    """Plant the faults in `rows` and append the duplicates; the result has `num_pairs` rows.

    An image fault goes only to an item with one caption, so that each fault is one row; a row gets
    one fault at most, and what a duplicate repeats is sound.
    """
    rng = stream(seed, "faults")
    num = counts(num_pairs)
    captions_of: dict[int, int] = {}
    for row in rows:
        captions_of[id(row.item)] = captions_of.get(id(row.item), 0) + 1
    free = [row for row in rows if captions_of[id(row.item)] == 1]
    rng.shuffle(free)

    _straddle(rng, free, num["straddling_product"])
    _swap(rng, free, num["swapped_caption"])
    for fault in _IMAGE_FAULTS:
        for i in range(num[fault]):
            _break_image(free.pop(), fault, i)
    for fault in _CAPTION_FAULTS:
        for i in range(num[fault]):
            _break_caption(rng, free.pop(), fault, i)
    copies = [_copy(rng, free.pop(), "", i) for i in range(num["exact_duplicate"])]
    copies += [
        _copy(rng, free.pop(), _NEAR[i % len(_NEAR)], i) for i in range(num["near_duplicate"])
    ]
    return [*rows, *copies]


def _straddle(rng: random.Random, free: list[Row], num: int) -> None:
    by_product: dict[str, list[Row]] = {}
    for row in free:
        if not row.item.product.unseen:
            by_product.setdefault(row.item.product.product_id, []).append(row)
    several = [rows for rows in by_product.values() if len(rows) > 1]
    for rows in rng.sample(several, num // 2):
        one, other = rows[:2]
        one.split, other.split = "train", "test"
        for row, partner in ((one, other), (other, one)):
            row.fault, row.partner = "straddling_product", partner
            row.detail = f"{row.item.product.product_id} also in {partner.split}"
            free.remove(row)


def _swap(rng: random.Random, free: list[Row], num: int) -> None:
    # Both ends are seen combinations, or a swap would carry an unseen one into training.
    seen = [row for row in free if not row.item.product.unseen]
    for _ in range(num // 2):
        one = seen.pop()
        other = rng.choice([row for row in seen if row.item.product.kind != one.item.product.kind])
        seen.remove(other)
        one.caption, other.caption = other.caption, one.caption
        for row, partner in ((one, other), (other, one)):
            row.fault, row.partner, row.detail = "swapped_caption", partner, partner.caption
            free.remove(row)


def _break_image(row: Row, fault: str, index: int) -> None:
    row.fault = fault
    if fault == "corrupt":
        row.item.damage = _CORRUPT[index % len(_CORRUPT)]
    elif fault == "truncated":
        row.item.damage = "truncated"
    elif fault == "tiny_image":
        row.item.damage = "tiny"
    else:
        row.item.damage = "extreme"
    row.detail = row.item.damage


def _break_caption(rng: random.Random, row: Row, fault: str, index: int) -> None:
    row.fault, row.detail = fault, row.caption
    if fault == "empty_caption":
        row.caption = ("", " ")[index % 2]
    elif fault == "short_caption":
        row.caption = rng.choice(_SHORT)
    else:
        row.caption = _BOILERPLATE[index % len(_BOILERPLATE)]


def _copy(rng: random.Random, row: Row, damage: Damage, index: int) -> Row:
    item = Item(replace(row.item.photo), row.item.product, damage)
    fault = "near_duplicate" if damage else "exact_duplicate"
    caption = row.caption
    if index % 2:
        caption = rng.choice((f"{caption}, new", f"{caption} (second listing)", f"buy {caption}"))
    return Row(item, caption, 0, row.split, fault, row, damage or "same bytes")


def media(photo: Photo, damage: Damage) -> bytes:
    """The bytes of one file: the photograph, or what is left of it."""
    rng = stream(photo.photo_seed, "damage", damage)
    if damage == "garbage":
        return rng.randbytes(rng.randrange(600, 4000))
    if damage == "html":
        return b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>\n"
    if damage == "empty":
        return b""
    picture = take(photo)
    if damage == "":
        return jpeg(picture, photo.quality)
    if damage == "truncated":
        whole = jpeg(picture, photo.quality)
        return whole[: len(whole) * rng.randrange(40, 75) // 100]
    if damage == "tiny":
        side = rng.randrange(8, 31)
        return jpeg(picture.resize((side, side), Image.Resampling.BOX), photo.quality)
    if damage == "extreme":
        strip = picture.resize((400, 400), Image.Resampling.BILINEAR)
        at = rng.randrange(120, 260)
        strip = strip.crop((0, at, 400, at + 20))
        if rng.random() < 0.4:
            strip = strip.transpose(Image.Transpose.ROTATE_90)
        return jpeg(strip, photo.quality)
    published = Image.open(io.BytesIO(jpeg(picture, photo.quality))).convert("RGB")
    return jpeg(_near(rng, published, damage), 68 if damage == "re-encoded" else 88)


def _near(rng: random.Random, picture: Image.Image, damage: Damage) -> Image.Image:
    """A published photograph as someone else might post it again."""
    width, height = picture.size
    if damage == "resized":
        part = rng.choice((3, 5))
        return picture.resize((width * part // 4, height * part // 4), Image.Resampling.BILINEAR)
    if damage == "cropped":
        # A tenth of the width and height at most, all sides together.
        x, y = rng.randrange(2, max(3, width // 20)), rng.randrange(2, max(3, height // 20))
        return picture.crop((x, y, width - width // 20, height - height // 20)).resize(
            (width, height), Image.Resampling.BILINEAR
        )
    if damage == "brightened":
        return ImageEnhance.Brightness(picture).enhance(rng.choice((0.86, 1.14)))
    if damage == "recoloured":
        return ImageEnhance.Color(picture).enhance(rng.choice((0.78, 1.25)))
    if damage == "watermarked":
        mark = Image.new("L", picture.size)
        draw = ImageDraw.Draw(mark)
        font = ImageFont.load_default_imagefont()
        draw.text((width // 10, height * 17 // 20), "shop.example", fill=170, font=font)
        draw.line([(0, height), (width, 0)], fill=60, width=2)
        stamped = picture.copy()
        stamped.paste((255, 255, 255), (0, 0), mark)
        return stamped
    if damage == "flipped":
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return picture
