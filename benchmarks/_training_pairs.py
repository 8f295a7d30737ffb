"""Curated pairs for the benchmarks of training, as the curate stage leaves them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from _pictures import draw, with_comment

from coembed.files import write_receipt
from coembed.pairs.shards import ShardWriter
from coembed.types import Sample

# Drawing costs more than it is worth: so many different pictures, repeated with another comment in
# the file. All have to be read and decoded.
_NUM_DRAWN = 256
_NUM_SHARDS = 8
# Conceptual Captions' lengths (Sharma et al. 2018, table 2): 10.3 words on average, standard
# deviation 4.5. A gamma distribution has such a tail.
_WORDS_MEAN, _WORDS_SD = 10.3, 4.5
_WORDS = (
    "a", "the", "red", "blue", "striped", "plain", "wooden", "mug", "chair", "lamp", "boots", "on",
    "table", "beside", "window", "under", "old", "new", "tall", "small", "photo", "of", "woman",
    "man", "dog", "street", "at", "night", "with", "green", "leaves", "in", "front", "house",
)  # fmt: skip


def captions(num: int, *, long_every: int | None = None) -> list[str]:
    """`num` different captions of everyday words, most short and a few long.

    With `long_every` each so many-th has 40 words, so that all large batches have the same longest
    caption: a compiled tower is then compiled for one length.
    """
    rng = np.random.default_rng(num)
    shape = (_WORDS_MEAN / _WORDS_SD) ** 2
    lengths = rng.gamma(shape, _WORDS_MEAN / shape, num).round().clip(3, 40).astype(int)
    if long_every is not None:
        lengths[::long_every] = 40
    return [f"{' '.join(rng.choice(_WORDS, n - 1))} {i}" for i, n in enumerate(lengths)]


def samples(num: int, sides: tuple[int, int], *, long_every: int | None = None) -> Iterator[Sample]:
    """`num` items with a caption each; a picture is `sides[0]` to `sides[1]` wide."""
    least, most = sides
    num_drawn = min(num, _NUM_DRAWN)
    drawn = [draw(i, least + (most - least) * i // max(1, num_drawn - 1)) for i in range(num_drawn)]
    for i, caption in enumerate(captions(num, long_every=long_every)):
        media = with_comment(drawn[i % num_drawn], i)
        yield Sample(
            item_id=hashlib.sha256(media).hexdigest(), modality="image", path=f"{i:06d}.jpg",
            media=media, extension="jpg", captions=(caption,), pair_ids=(str(i),),
        )  # fmt: skip


def write_pairs(
    folder: Path, num: int, sides: tuple[int, int], *, long_every: int | None = None
) -> Path:
    """Shards and receipt of `num` training items; the other splits are empty."""
    folder.mkdir(parents=True)
    size = -(-num // _NUM_SHARDS)
    with ShardWriter(folder, "train", max_samples=size, max_bytes=1 << 34) as writer:
        for sample in samples(num, sides, long_every=long_every):
            writer.write(sample)
    shards = [shard.as_dict() for shard in writer.shards]
    empty = {"num_items": 0, "shards": []}
    splits = {"train": {"num_items": num, "shards": shards}, "val": empty, "test": empty}
    write_receipt(folder, {"splits": splits})
    return folder
