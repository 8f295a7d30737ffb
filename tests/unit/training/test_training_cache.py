from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_pairs import make_samples

from coembed.errors import DataError
from coembed.modalities.image import Spec, decode_image, resize_crop, transform
from coembed.modalities.text import Spec as TextSpec
from coembed.modalities.text import Tokenizer
from coembed.training.cache import CachedSplit, open_cached_split

SPEC = Spec(px=20)
TOKENISE = Tokenizer(TextSpec(context_length=16, vocab_size=49408))


class Source:
    """Samples, and how often they were asked for."""

    def __init__(self, num: int = 10, **options: Any) -> None:
        self.samples = make_samples(num, seed=5, **options)
        self.reads = 0

    def __call__(self) -> Any:
        self.reads += 1
        yield from self.samples

    def open(self, folder: Path, **changes: Any) -> CachedSplit:
        options: dict[str, Any] = {
            "side": 20, "decode": lambda media: transform(media, SPEC), "tokenise": TOKENISE,
            "content": {"pairs": "abc"}, "label": "train",
        }  # fmt: skip
        return open_cached_split(folder, self, **{**options, **changes})


def test_holds_every_item_as_decoded_one_by_one(tmp_path: Path) -> None:
    source = Source()
    split = source.open(tmp_path)
    assert split.item_ids == tuple(s.item_id for s in source.samples)
    assert split.images.shape == (10, 20, 20, 3) and not split.images.flags.writeable
    for i, sample in enumerate(source.samples):
        expected = resize_crop(decode_image(sample.media), px=20)
        assert np.array_equal(split.images[i], expected)
        rows = split.caption_ids[split.offsets[i] : split.offsets[i + 1]]
        assert np.array_equal(split.tokens[rows], TOKENISE(sample.captions).numpy())


def test_equal_captions_share_a_row(tmp_path: Path) -> None:
    source = Source(40)
    split = source.open(tmp_path)
    captions = {c for s in source.samples for c in s.captions}
    assert len(split.tokens) == len(captions) < len(split.caption_ids) == 80


def test_is_made_once_and_anew_when_the_content_changes(tmp_path: Path) -> None:
    source = Source()
    source.open(tmp_path)
    source.open(tmp_path)
    assert source.reads == 1
    source.open(tmp_path, content={"pairs": "abd"})
    source.open(tmp_path, limit=4)
    assert source.reads == 3


def test_is_made_again_where_it_is_not_whole(tmp_path: Path) -> None:
    source = Source()
    before = source.open(tmp_path)
    expected = before.images.copy()
    (images,) = tmp_path.glob("*/images.u8")
    images.write_bytes(images.read_bytes()[:-1])
    again = source.open(tmp_path)
    assert source.reads == 2 and np.array_equal(again.images, expected)
    (receipt,) = tmp_path.glob("*/receipt.json")
    receipt.unlink()
    source.open(tmp_path)
    assert source.reads == 3


def test_limit_takes_the_first(tmp_path: Path) -> None:
    source = Source()
    split = source.open(tmp_path, limit=4)
    assert split.item_ids == tuple(s.item_id for s in source.samples[:4])


def test_names_the_item_that_cannot_be_decoded_and_leaves_nothing(tmp_path: Path) -> None:
    source = Source(broken=6)
    with pytest.raises(DataError, match=r"item 'media/5-6.jpg' .* cannot be decoded"):
        source.open(tmp_path)
    assert not list(tmp_path.glob("*/receipt.json"))


def test_refuses_an_empty_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train split holds no items"):
        Source(0).open(tmp_path)
