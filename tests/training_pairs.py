"""Small curated pairs for the tests of training: coloured shapes with their names, in shards."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import simplejpeg

from coembed.files import write_receipt
from coembed.pairs.shards import ShardWriter
from coembed.types import Sample

COLOURS = {"red": (220, 30, 40), "green": (40, 170, 60), "blue": (40, 70, 210), "grey": (120,) * 3}
SHAPES = ("square", "disc", "bar", "ring")

# A convnet and a text transformer that train in milliseconds a step.
SMALL_MODEL = {
    "architecture": {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 32,
            "timm_model_name": "test_resnet",
            "timm_pool": "avg",
            "timm_proj": "linear",
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 1,
        },
    }
}


def draw(colour: str, shape: str, rng: np.random.Generator) -> np.ndarray:
    """A 48 x 48 picture of one shape on a light ground."""
    rows, columns = np.mgrid[0:48, 0:48]
    y, x = rows - rng.integers(18, 30), columns - rng.integers(18, 30)
    r = rng.integers(9, 15)
    inside = {
        "square": (abs(x) < r) & (abs(y) < r),
        "disc": x * x + y * y < r * r,
        "bar": (abs(x) < 4) & (abs(y) < r),
        "ring": (x * x + y * y < r * r) & (x * x + y * y > (r - 5) ** 2),
    }[shape]
    picture = np.full((48, 48, 3), 235, dtype=np.float64)
    picture[inside] = COLOURS[colour]
    picture += rng.normal(0, 6, picture.shape)
    return picture.clip(0, 255).astype(np.uint8)


def make_samples(num: int, *, seed: int, broken: int | None = None) -> list[Sample]:
    """`num` items with two captions each. Item number `broken` holds no image."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(num):
        colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
        media = simplejpeg.encode_jpeg(draw(colour, shape, rng), quality=90)
        if i == broken:
            media = b"not an image"
        samples.append(
            Sample(
                item_id=hashlib.sha256(media).hexdigest(),
                modality="image",
                path=f"media/{seed}-{i}.jpg",
                media=media,
                extension="jpg",
                captions=(f"a {colour} {shape}", f"{shape}, {colour}"),
                pair_ids=(f"{seed}-{i}-a", f"{seed}-{i}-b"),
                attributes={"colour": str(colour), "shape": str(shape)},
            )
        )
    return samples


def make_pairs(folder: Path, *, train: int = 48, val: int = 16, broken: int | None = None) -> Path:
    """Curated pairs as the curate stage leaves them."""
    folder.mkdir(parents=True)
    splits = {}
    for seed, (split, num) in enumerate({"train": train, "val": val, "test": 0}.items()):
        with ShardWriter(folder, split, max_samples=20, max_bytes=1 << 30) as writer:
            for sample in make_samples(num, seed=seed, broken=broken if not seed else None):
                writer.write(sample)
        shards = [shard.as_dict() for shard in writer.shards]
        splits[split] = {"num_items": num, "shards": shards}
    write_receipt(folder, {"splits": splits})
    return folder
