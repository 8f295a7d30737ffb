"""The encoder: embeddings depend on the item and the model, and on nothing else."""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from coembed.errors import ConfigError, DataError, ModelError
from coembed.models.checkpoint import load_model
from coembed.models.encoder import Encoder, Precision, load_encoder
from coembed.models.export import export_open_clip


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return load_encoder(folder, device="cpu", batch_size=4, num_threads=2)


def test_embeddings_are_unit_float32(
    encoder: Encoder, images: list[bytes], texts: list[str]
) -> None:
    for embeddings in (encoder.encode_images(images), encoder.encode_texts(texts)):
        assert embeddings.shape == (11, 24) and embeddings.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-6)


def test_they_are_the_models(encoder: Encoder, folder: Path, images: list[bytes]) -> None:
    model, spec = load_model(folder)
    loader = spec.loader("image")
    with torch.no_grad():
        expected = model.embed("image", loader.to_inputs(loader.load(images)))
    np.testing.assert_allclose(encoder.encode_images(images), expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_company_does_not_matter(
    encoder: Encoder, folder: Path, images: list[bytes], texts: list[str], batch_size: int
) -> None:
    other = load_encoder(folder, device="cpu", batch_size=batch_size, num_threads=3)
    order = np.random.default_rng(0).permutation(11)
    for modality, items in (("image", images), ("text", texts)):
        expected = encoder.encode(modality, items)
        np.testing.assert_allclose(other.encode(modality, items), expected, atol=1e-5)
        shuffled = other.encode(modality, [items[i] for i in order])
        np.testing.assert_allclose(shuffled, expected[order], atol=1e-5)


def test_nothing_in_nothing_out(encoder: Encoder) -> None:
    for modality in ("image", "text"):
        assert encoder.encode(modality, []).shape == (0, 24)
        assert list(encoder.stream(modality, [])) == []


def test_a_stream_reads_no_further_ahead_than_it_says(encoder: Encoder, texts: list[str]) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield texts[taken % len(texts)]

    stream = encoder.stream("text", endless())
    assert next(stream).shape == (4, 24)
    assert taken <= 4 * 3
    stream.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("load-text")]


def test_an_image_that_cannot_be_read_is_named(encoder: Encoder, images: list[bytes]) -> None:
    with pytest.raises(DataError, match=r"^image 10: not a readable image"):
        # The third batch of four, and there the second half, which another thread loads.
        encoder.encode_images([*images[:10], b"nonsense", *images])
    # The encoder goes on as if nothing had been.
    assert encoder.encode_images(images).shape == (11, 24)


def test_a_modality_that_the_model_has_not_is_named(encoder: Encoder) -> None:
    with pytest.raises(ModelError, match="encodes image and text, not audio"):
        encoder.encode("audio", [b""])


def test_bf16_is_near_fp32(folder: Path, encoder: Encoder, texts: list[str]) -> None:
    near = load_encoder(folder, device="cpu", precision="bf16")
    embeddings = near.encode_texts(texts)
    assert embeddings.dtype == np.float32
    cosines = (embeddings * encoder.encode_texts(texts)).sum(axis=1)
    assert cosines.min() > 0.999
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-6)


def test_the_fingerprint_changes_with_what_changes_embeddings(
    folder: Path, encoder: Encoder, tmp_path: Path
) -> None:
    assert len(encoder.fingerprint) == 64 and int(encoder.fingerprint, 16)
    same = load_encoder(folder, device="cpu", batch_size=9, num_threads=1)
    assert same.fingerprint == encoder.fingerprint
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    assert load_encoder(moved, device="cpu").fingerprint == encoder.fingerprint
    assert load_encoder(folder, precision="bf16").fingerprint != encoder.fingerprint
    path = moved / "model.json"
    values = json.loads(path.read_text())
    values["inputs"]["image"]["interpolation"] = "bilinear"
    path.write_text(json.dumps(values))
    assert load_encoder(moved, device="cpu").fingerprint != encoder.fingerprint
    model, spec = load_model(folder)
    other = Encoder(model, spec, weights_sha256="0" * 64)
    assert other.fingerprint != encoder.fingerprint


def bulk(encoder: Encoder, modality: str, items: Mapping[int, Any]) -> dict[int, np.ndarray]:
    found: dict[int, np.ndarray] = {}
    for part in encoder.bulk(modality, list(items), items.__getitem__):
        assert not part.unreadable and part.vectors.dtype == np.float32
        assert len(part.keys) == len(part.vectors) and not found.keys() & set(part.keys)
        found.update(zip(part.keys, part.vectors, strict=True))
    assert found.keys() == items.keys()
    return found


def test_in_bulk_they_are_the_same(encoder: Encoder, images: list[bytes], texts: list[str]) -> None:
    for modality, items in (("image", images), ("text", texts)):
        found = bulk(encoder, modality, dict(enumerate(items)))
        expected = encoder.encode(modality, items)
        np.testing.assert_allclose([found[n] for n in range(11)], expected, atol=1e-5)
    assert bulk(encoder, "image", {}) == {}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("batch_size", [3, 4, 16])
def test_in_bulk_company_does_not_change_a_bit(
    folder: Path, images: list[bytes], texts: list[str], precision: Precision, batch_size: int
) -> None:
    """On this device, for these towers: what relies on it checks it again where it runs."""
    options: Any = {"device": "cpu", "batch_size": batch_size, "precision": precision}
    rng = np.random.default_rng(1)
    for modality, items in (("image", images), ("text", texts)):
        whole = bulk(load_encoder(folder, num_threads=2, **options), modality,
                     dict(enumerate(items)))  # fmt: skip
        other = load_encoder(folder, num_threads=1, **options)
        for num in (1, 5, 11):
            few = {int(place): items[place] for place in rng.permutation(11)[:num]}
            for place, vector in bulk(other, modality, few).items():
                assert vector.tobytes() == whole[place].tobytes()


def test_in_bulk_a_kind_of_item_has_one_shape(
    folder: Path, images: list[bytes], texts: list[str]
) -> None:
    encoder = load_encoder(folder, device="cpu", batch_size=4)
    shapes: dict[str, list[tuple[int, ...]]] = {"image": [], "text": []}
    for modality, tower in encoder._model.towers.items():
        tower.register_forward_pre_hook(
            lambda _, inputs, to=shapes[modality]: to.append(tuple(inputs[0].shape))  # type: ignore[misc]
        )
    bulk(encoder, "image", dict(enumerate(images)))
    bulk(encoder, "text", dict(enumerate(texts)))
    assert len(shapes["image"]) == 3 and len(set(shapes["image"])) == 1
    assert {rows for rows, *_ in shapes["text"]} == {4}
    # Short texts are not read as if they were as long as the longest.
    assert len({length for _, length in shapes["text"]}) > 1


def test_in_bulk_what_cannot_be_read_is_named_and_stops_nothing(
    encoder: Encoder, images: list[bytes]
) -> None:
    items = {**dict(enumerate(images)), 3: b"nonsense", 12: b"", 13: images[0]}
    lost: dict[int, str] = {}
    found: dict[int, np.ndarray] = {}
    for part in encoder.bulk("image", items, items.__getitem__):
        lost.update(part.unreadable)
        found.update(zip(part.keys, part.vectors, strict=True))
    assert lost.keys() == {3, 12} and lost[3].startswith("not a readable image")
    assert found.keys() == set(items) - {3, 12}
    assert found[13].tobytes() == found[0].tobytes()
    assert [part.unreadable for part in encoder.bulk("image", [3], items.__getitem__)] == [
        ((3, lost[3]),)
    ]


def test_in_bulk_an_error_of_another_kind_reaches_the_caller(
    encoder: Encoder, images: list[bytes]
) -> None:
    def fetch(key: int) -> bytes:
        if key == 9:
            raise DataError("shard 7 is damaged")
        return images[0]

    with pytest.raises(DataError, match="shard 7 is damaged"):
        list(encoder.bulk("image", range(40), fetch))
    with pytest.raises(ModelError, match="encodes image and text, not audio"):
        next(encoder.bulk("audio", [1], fetch))
    assert not [t for t in threading.enumerate() if t.name.startswith(("load-", "pack-"))]


def test_in_bulk_reading_runs_ahead_a_little(encoder: Encoder, images: list[bytes]) -> None:
    fetched = []

    def fetch(key: int) -> bytes:
        fetched.append(key)
        return images[key % len(images)]

    batches = encoder.bulk("image", iter(range(10**9)), fetch)
    assert len(next(batches).keys) == 4
    batches.close()
    assert len(fetched) < 100
    assert not [t for t in threading.enumerate() if t.name.startswith(("load-", "pack-"))]


def test_impossible_wishes_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="precision is 'fp16'"):
        load_encoder(folder, device="cpu", precision="fp16")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="batch_size is 0"):
        load_encoder(folder, device="cpu", batch_size=0)
    with pytest.raises(ConfigError, match="device is 'gpu'; expected auto, cpu, cuda or mps"):
        load_encoder(folder, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            load_encoder(folder, device="cuda")


def test_open_clip_gives_equal_embeddings(
    folder: Path, encoder: Encoder, images: list[bytes], texts: list[str], tmp_path: Path
) -> None:
    model, spec = load_model(folder)
    export_open_clip(model, spec, tmp_path)
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    theirs.eval()
    loader = spec.loader("image")
    pictures = [Image.open(io.BytesIO(data)) for data in images]
    with torch.no_grad():
        text = theirs.encode_text(tokenizer(texts), normalize=True).numpy()
        same_pixels = theirs.encode_image(loader.to_inputs(loader.load(images)), normalize=True)
        own_pixels = theirs.encode_image(
            torch.stack([transform(picture) for picture in pictures]), normalize=True
        )
    np.testing.assert_allclose(text, encoder.encode_texts(texts), atol=1e-5)
    mine = encoder.encode_images(images)
    np.testing.assert_allclose(same_pixels.numpy(), mine, atol=1e-5)
    # Its own transform resizes with Pillow: a rounding here and there.
    assert (own_pixels.numpy() * mine).sum(axis=1).min() > 0.9999
    torch.testing.assert_close(theirs.logit_scale.data, model.logit_scale.data)
    torch.testing.assert_close(theirs.logit_bias.data, model.logit_bias.data)
