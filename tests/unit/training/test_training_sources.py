"""Splits as training opens them: items, captions, and media from the cache or the shards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from training_pairs import SMALL_MODEL, make_pairs, make_samples
from training_runs import open_source

from coembed.errors import DataError, ModelError
from coembed.files import read_receipt, write_receipt
from coembed.modalities.image import decode_image, resize_crop
from coembed.models.build import build_model
from coembed.models.encoder import Encoder
from coembed.models.settings import ModelSettings
from coembed.models.spec import ModelSpec
from coembed.pairs.shards import ShardWriter, read_samples
from coembed.training.data import Stream
from coembed.training.media import Decoded, Embedded, FromShards
from coembed.training.settings import CacheSettings
from coembed.training.sources import open_stream

_, SPEC = build_model(ModelSettings.model_validate(SMALL_MODEL), seed=0)


def opened(
    pairs: Path, cache: Path, *, mode: str = "decoded", spec: ModelSpec = SPEC, **changes: Any
) -> tuple[Stream, str]:
    options: dict[str, Any] = {
        "augment": None, "cache": CacheSettings(mode=mode), "passes": 2.0,  # type: ignore[arg-type]
        "hard_negatives": None, "device": torch.device("cpu"), "frozen": {}, "teacher": None,
    }  # fmt: skip
    source = open_source(pairs, cache, spec, "train")
    return open_stream(source, "image", **{**options, **changes})


def seen(stream: Stream, rows: list[int]) -> NDArray[Any]:
    chosen = np.array(rows)
    return stream.media.fetch(chosen, stream.items.keys[chosen], seed=1, epoch=0)


def test_holds_every_item_as_decoded_one_by_one(pairs: Path, tmp_path: Path) -> None:
    stream, words = opened(pairs, tmp_path)
    samples = list(read_samples(pairs, "train"))
    assert stream.items.item_ids(range(48)) == [sample.item_id for sample in samples]
    tokenise = SPEC.loader("text").load
    pictures = seen(stream, list(range(48)))
    for i, sample in enumerate(samples):
        assert np.array_equal(pictures[i], resize_crop(decode_image(sample.media), px=32))
        own = stream.items.caption_ids[stream.items.offsets[i] : stream.items.offsets[i + 1]]
        assert np.array_equal(stream.items.tokens[own], tokenise(sample.captions).numpy())
    assert isinstance(stream.media, Decoded) and "decoded once" in words


def test_equal_captions_share_a_row(pairs: Path, tmp_path: Path) -> None:
    stream, _ = opened(pairs, tmp_path)
    captions = {c for s in read_samples(pairs, "train") for c in s.captions}
    assert len(stream.items.tokens) == len(captions) < len(stream.items.caption_ids) == 96


def test_nothing_is_decoded_twice(pairs: Path, tmp_path: Path) -> None:
    opened(pairs, tmp_path)
    made = {
        path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*") if "json" not in path.name
    }
    opened(pairs, tmp_path)
    assert made == {path: path.stat().st_mtime_ns for path in made} and made


def test_what_is_seen_once_comes_from_the_shards(pairs: Path, tmp_path: Path) -> None:
    stream, words = opened(pairs, tmp_path, mode="auto", passes=1.0)
    assert isinstance(stream.media, FromShards) and "each is seen once" in words
    stream, _ = opened(pairs, tmp_path, mode="auto", passes=1.5)
    assert isinstance(stream.media, Decoded)


def test_what_does_not_fit_the_cache_comes_from_the_shards(pairs: Path, tmp_path: Path) -> None:
    source = open_source(pairs, tmp_path, SPEC, "train")
    small = type(source.cache)(tmp_path, max_bytes=60_000)
    source = type(source)(pairs, "train", SPEC, small, {})
    options: dict[str, Any] = {
        "augment": None, "passes": 9.0, "hard_negatives": None, "device": torch.device("cpu"),
        "frozen": {}, "teacher": None,
    }  # fmt: skip
    stream, words = open_stream(source, "image", cache=CacheSettings(mode="auto"), **options)
    assert isinstance(stream.media, FromShards) and "decoded they would take" in words
    with pytest.raises(DataError, match="do not fit the cache"):
        open_stream(source, "image", cache=CacheSettings(mode="decoded"), **options)


def test_a_shard_that_changes_under_a_run_is_noticed(tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path / "pairs", train=10, val=0)
    stream, _ = opened(pairs, tmp_path / "cache", mode="shards")
    (shard,) = pairs.glob("train-*.tar")
    place = stream.items.places[3]
    data = bytearray(shard.read_bytes())
    data[int(place[1]) + 40] ^= 1
    shard.write_bytes(data)
    seen(stream, [2])
    with pytest.raises(DataError, match="changed"):
        seen(stream, [3])


@pytest.mark.parametrize("mode", ["decoded", "shards"])
def test_names_what_cannot_be_decoded(tmp_path: Path, mode: str) -> None:
    pairs = make_pairs(tmp_path / "pairs", train=70, val=0, broken=66)
    if mode == "decoded":
        with pytest.raises(DataError, match=r"media/0-66\.jpg"):
            opened(pairs, tmp_path / "cache")
    else:
        stream, _ = opened(pairs, tmp_path / "cache", mode=mode)
        (item_id,) = stream.items.item_ids([66])
        with pytest.raises(DataError, match=item_id[:12]):
            seen(stream, [66])


def test_hard_negatives_come_from_their_column(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs"
    make_pairs(pairs, train=1, val=0)
    (old,) = pairs.glob("train-*.tar")
    old.unlink()
    samples = [
        replace(s, attributes={"not": f"no {s.captions[0]}"} if i % 2 else {})
        for i, s in enumerate(make_samples(12, seed=4))
    ]
    with ShardWriter(pairs, "train", max_samples=5, max_bytes=1 << 30) as writer:
        for sample in samples:
            writer.write(sample)
    receipt = read_receipt(pairs, what="pairs", made_by="")
    receipt["splits"]["train"] = {
        "num_items": 12, "shards": [shard.as_dict() for shard in writer.shards],
    }  # fmt: skip
    write_receipt(pairs, receipt)
    stream, _ = opened(pairs, tmp_path / "cache", hard_negatives="not")
    items = stream.items
    assert [row < 0 for row in items.negatives] == [i % 2 == 0 for i in range(12)]
    expected = SPEC.loader("text").load([f"no {samples[3].captions[0]}"]).numpy()[0]
    assert np.array_equal(items.tokens[items.negatives[3]], expected)


def test_a_tower_that_never_learns_embeds_everything_once(pairs: Path, tmp_path: Path) -> None:
    model, spec = build_model(ModelSettings.model_validate(SMALL_MODEL), seed=5)
    encoder = Encoder(model, spec, weights_sha256="x", num_threads=1)
    frozen = {"image": encoder, "text": encoder}
    stream, words = opened(pairs, tmp_path, frozen=frozen, teacher=encoder)
    samples = list(read_samples(pairs, "train"))
    expected = encoder.encode_images([sample.media for sample in samples])
    assert isinstance(stream.media, Embedded) and "once by the frozen tower" in words
    assert np.allclose(seen(stream, [5, 2]), expected[[5, 2]], atol=1e-6)
    assert stream.texts is not None and stream.teacher is not None
    own = stream.items.caption_ids[stream.items.offsets[7]]
    caption = encoder.encode_texts([samples[7].captions[0]])[0]
    assert np.allclose(stream.texts[own], caption, atol=1e-6)
    assert np.array_equal(stream.teacher[0], seen(stream, list(range(48))))


def test_a_modality_without_a_tower_is_named(tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path / "pairs", train=2, val=0)
    with ShardWriter(pairs, "train", max_samples=5, max_bytes=1 << 30, first=7) as writer:
        sample = make_samples(1, seed=9)[0]
        writer.write(replace(sample, modality="audio", extension="wav"))
    receipt = read_receipt(pairs, what="pairs", made_by="")
    receipt["splits"]["train"]["shards"] += [shard.as_dict() for shard in writer.shards]
    write_receipt(pairs, receipt)
    source = open_source(pairs, tmp_path / "cache", SPEC, "train")
    with pytest.raises(ModelError, match="audio, for which the model has no tower"):
        _ = source.modalities
