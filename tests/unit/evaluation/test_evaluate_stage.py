"""The evaluate stage on real shards with a real model."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated_pairs import catalogue, make_config, tree_bytes, write_model, write_pairs
from PIL import Image

from coembed.errors import DataError, ModelError
from coembed.models.encoder import load_encoder
from coembed.pairs.shards import read_samples
from coembed.stages import evaluate
from coembed.types import Sample

EVALUATE: dict[str, Any] = {
    "zero_shot": [{"column": "shape", "prompts": ["a {label}", "the {label}"]}],
    "attribute_queries": [{"template": "{colour} {shape}"}],
    "slices_in_metrics": ["composition"],
    "contact_sheet": {"num_queries": 8, "num_hits": 4, "thumbnail_px": 48},
    "min_slice": 5,
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "pairs"
    splits = {"train": catalogue(200, seed=1), "test": catalogue(70, seed=2)}
    return write_pairs(folder, **splits)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("evaluate") / "model")


def pairs_of(tmp_path: Path, test: list[Sample]) -> Path:
    return write_pairs(tmp_path / "pairs", test=test)


def run(tmp_path: Path, model: Path, pairs: Path, **settings: Any) -> dict[str, Any]:
    cfg = make_config(evaluate={**EVALUATE, **settings})
    evaluate.run(cfg, model=model, pairs=pairs, out=tmp_path / "out")
    return json.loads((tmp_path / "out" / "metrics.json").read_text())


def test_metrics_are_those_of_a_plain_computation(tmp_path: Path, pairs: Path, model: Path) -> None:
    metrics = run(tmp_path, model, pairs)
    samples = list(read_samples(pairs, "test"))
    encoder = load_encoder(model, device="cpu")
    images = encoder.encode_images([sample.media for sample in samples]).astype(np.float64)
    text_ranks, image_ranks = [], []
    texts = list(dict.fromkeys(text for sample in samples for text in sample.captions))
    embedded = encoder.encode_texts(texts).astype(np.float64)
    for sample, image in zip(samples, images, strict=True):
        for text in sample.captions:
            scores = images @ embedded[texts.index(text)]
            right = np.asarray([text in other.captions for other in samples])
            text_ranks.append(1 + (scores[~right] > scores[right].max()).sum())
        scores = embedded @ image
        right = np.asarray([text in sample.captions for text in texts])
        image_ranks.append(1 + (scores[~right] > scores[right].max()).sum())
    for task, expected in (("text_to_image", text_ranks), ("image_to_text", image_ranks)):
        found = metrics["retrieval"][task]
        ranks = np.asarray(expected)
        assert found["num_queries"] == len(ranks)
        for k in (1, 5, 10):
            assert found[f"recall_at_{k}"] == pytest.approx((ranks <= k).mean(), abs=1e-6)
        assert found["mrr"] == pytest.approx((1 / ranks).mean(), abs=1e-6)
        assert found["median_rank"] == np.median(ranks)
    assert metrics["num_items"] == 70


def test_a_trained_model_stands_far_above_chance(tmp_path: Path, pairs: Path) -> None:
    from coembed.stages import train

    settings = {"epochs": 24, "batch_size": 32, "lr": 3e-3, "device": "cpu", "precision": "fp32"}
    cfg = make_config(train={**settings, "augment": {"image": {"flip": False}}})
    train.run(cfg, root=tmp_path, pairs=pairs, out=tmp_path / "model", runs=tmp_path / "runs")
    metrics = run(tmp_path, tmp_path / "model", pairs)
    shape = metrics["zero_shot"]["shape"]
    assert shape["chance_top_1"] == 0.25
    assert shape["top_1"] > 0.6
    first = metrics["attribute_queries"]["colour_shape"]
    assert first["precision_at_1"] > 3 * first["chance_precision_at_1"]
    unseen = metrics["slices"]["composition"]["unseen"]
    assert 0 < unseen["text_to_image"]["num_queries"] < metrics["num_captions"]
    assert "Loss" in (tmp_path / "out" / "report.html").read_text()


def test_twice_gives_the_same_bytes_and_no_path(tmp_path: Path, pairs: Path, model: Path) -> None:
    run(tmp_path, model, pairs)
    first = tree_bytes(tmp_path / "out")
    run(tmp_path, model, pairs)
    assert tree_bytes(tmp_path / "out") == first
    assert set(first) == {
        "metrics.json", "slices.csv", "report.html", "receipt.json", "plots/recall_at_k.csv",
        "plots/recall_by_slice.csv", "plots/confusion_shape.csv",
    }  # fmt: skip
    for name, data in first.items():
        assert str(tmp_path).encode() not in data, name


def test_plots_and_slices_are_tables(tmp_path: Path, pairs: Path, model: Path) -> None:
    metrics = run(tmp_path, model, pairs)
    out = tmp_path / "out"
    with (out / "plots" / "confusion_shape.csv").open() as file:
        confusion = list(csv.DictReader(file))
    right = np.mean([row["actual"] == row["predicted"] for row in confusion])
    assert right == pytest.approx(metrics["zero_shot"]["shape"]["top_1"], abs=1e-6)
    with (out / "slices.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["column"] for row in rows} == {"colour", "shape", "composition"}
    assert {row["small"] for row in rows} <= {"true", "false"}
    tasks = {"text_to_image", "image_to_text", "zero_shot_shape", "attribute_queries_colour_shape"}
    assert {row["task"] for row in rows} == tasks
    assert metrics["slices"]["composition"]["unseen"]["text_to_image"][
        "recall_at_10"
    ] == pytest.approx(
        float(
            next(
                row["score"]
                for row in rows
                if (row["task"], row["value"], row["metric"])
                == ("text_to_image", "unseen", "recall_at_10")
            )
        )
    )


def test_contact_sheet_holds_pictures(tmp_path: Path, pairs: Path, model: Path) -> None:
    run(tmp_path, model, pairs)
    html = (tmp_path / "out" / "report.html").read_text()
    pictures = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", html)
    assert len(pictures) == 8 * 4 + 4  # attribute searches have no picture that is looked for
    with Image.open(io.BytesIO(base64.b64decode(pictures[0]))) as image:
        assert image.size == (48, 48)


def test_receipt_names_the_set_and_the_model(tmp_path: Path, pairs: Path, model: Path) -> None:
    run(tmp_path, model, pairs)
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert receipt["fingerprint"] == load_encoder(model, device="cpu").fingerprint
    other = write_pairs(tmp_path / "other", test=catalogue(70, seed=2), shard_items=7)
    run(tmp_path, model, other)
    again = json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert again["evaluation_set"] == receipt["evaluation_set"]  # however it is cut into shards
    changed = catalogue(70, seed=2)
    changed[3] = replace(changed[3], captions=("something else", "again"))
    run(tmp_path, model, write_pairs(tmp_path / "changed", test=changed))
    third = json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert third["evaluation_set"] != receipt["evaluation_set"]


def test_bare_settings_need_no_attributes(tmp_path: Path, model: Path) -> None:
    plain = [replace(sample, attributes={}) for sample in catalogue(20, seed=3)]
    pairs = pairs_of(tmp_path, plain)
    cfg = make_config()
    result = evaluate.run(cfg, model=model, pairs=pairs, out=tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(metrics) == {"num_items", "num_captions", "retrieval"}
    assert dict(result.rows)["images"] == "20"


def test_empty_split(tmp_path: Path, pairs: Path, model: Path) -> None:
    with pytest.raises(DataError) as caught:
        run(tmp_path, model, pairs, split="val")
    assert "the val split" in str(caught.value) and "curate.split" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_missing_column(tmp_path: Path, pairs: Path, model: Path) -> None:
    with pytest.raises(DataError, match=r"'kind'.*columns there are: colour, composition, price"):
        run(tmp_path, model, pairs, zero_shot=[{"column": "kind"}])
    with pytest.raises(DataError, match=r"evaluate\.attribute_queries names the column 'kind'"):
        run(tmp_path, model, pairs, attribute_queries=[{"template": "{colour} {kind}"}])
    with pytest.raises(DataError, match=r"evaluate\.slices names the column 'brand'"):
        run(tmp_path, model, pairs, slices=["brand", "composition"])


def test_a_column_of_one_value_tells_nothing_apart(tmp_path: Path, model: Path) -> None:
    same = [
        replace(sample, attributes={"shape": "disc", "colour": "red"})
        for sample in catalogue(5, seed=3)
    ]
    with pytest.raises(DataError, match="only the value 'disc'"):
        run(tmp_path, model, pairs_of(tmp_path, same), slices_in_metrics=[])


def test_damaged_item_is_named(tmp_path: Path, model: Path) -> None:
    samples = catalogue(40, seed=3)
    samples[33] = replace(samples[33], media=b"no picture")
    with pytest.raises(DataError) as caught:
        run(tmp_path, model, pairs_of(tmp_path, samples))
    assert f"item '{samples[33].path}' of the test split cannot be decoded" in str(caught.value)


def test_texts_as_items_are_refused(tmp_path: Path, model: Path) -> None:
    samples = catalogue(5, seed=3)
    samples[2] = replace(samples[2], modality="text")
    with pytest.raises(DataError, match=f"item '{samples[2].path}' .* is of modality text; only"):
        run(tmp_path, model, pairs_of(tmp_path, samples))


def test_modality_that_the_model_has_no_tower_for(tmp_path: Path, model: Path) -> None:
    sounds = [replace(sample, modality="audio") for sample in catalogue(5, seed=3)]
    with pytest.raises(ModelError, match="modality audio, but the model encodes image and text"):
        run(tmp_path, model, pairs_of(tmp_path, sounds))


def test_diverged_model(tmp_path: Path, pairs: Path) -> None:
    poisoned = write_model(tmp_path / "model", poison=True)
    with pytest.raises(ModelError, match="embeddings of 70 of 70 images are not finite"):
        run(tmp_path, poisoned, pairs)


def test_no_model(tmp_path: Path, pairs: Path) -> None:
    with pytest.raises(ModelError, match="no model at"):
        run(tmp_path, tmp_path / "nowhere", pairs)
