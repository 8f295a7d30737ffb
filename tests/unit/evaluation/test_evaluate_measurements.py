"""The further measurements in the evaluate stage: real shards, pictures, sounds, a real model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated_pairs import (
    THREE_TOWERS,
    catalogue,
    make_config,
    sounds,
    tree_bytes,
    write_model,
    write_pairs,
)

from coembed.errors import ConfigError, DataError
from coembed.evaluation.corruptions import add_typos, picture_corruptions
from coembed.evaluation.outcomes_file import read_outcomes
from coembed.evaluation.settings import PictureCorruptions
from coembed.models.encoder import load_encoder
from coembed.pairs.shards import read_samples
from coembed.stages import evaluate
from coembed.types import Sample

EVERYTHING: dict[str, Any] = {
    "zero_shot": [{"column": "shape"}, {"column": "noise", "modality": "audio"}],
    "compositional": {},
    "robustness": {"image": {"noise": 0.3}, "max_items": 25},
    "bootstrap": {"num_resamples": 200},
    "contact_sheet": {"num_queries": 0},
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    test = [*catalogue(40, seed=2), *sounds(12, seed=3)]
    # As they come from curation: in no order of modality.
    mixed = [test[place] for place in np.random.default_rng(0).permutation(len(test))]
    return write_pairs(tmp_path_factory.mktemp("measured") / "pairs", test=mixed)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("measured") / "model", settings=THREE_TOWERS)


def run(tmp_path: Path, model: Path, pairs: Path, **settings: Any) -> dict[str, Any]:
    cfg = make_config(evaluate={**EVERYTHING, **settings})
    evaluate.run(cfg, model=model, pairs=pairs, out=tmp_path / "out")
    found: dict[str, Any] = json.loads((tmp_path / "out" / "metrics.json").read_text())
    return found


def pictures(pairs: Path) -> list[Sample]:
    return [one for one in read_samples(pairs, "test") if one.modality == "image"]


def recall_at_5(
    queries: np.ndarray, candidates: np.ndarray, right: Sequence[Sequence[bool]]
) -> list[float]:
    """By the rank of the best positive, query by query."""
    found = []
    for query, positives in zip(queries, np.asarray(right), strict=True):
        scores = candidates @ query
        found.append(float((scores[~positives] > scores[positives].max()).sum() < 5))
    return found


def test_everything_is_measured_of_each_modality(tmp_path: Path, pairs: Path, model: Path) -> None:
    metrics = run(tmp_path, model, pairs)
    pictured, heard = ("blur", "crop", "jpeg", "noise"), ("noise", "gain", "lowpass", "crop")
    assert set(metrics["robustness"]) == {
        *(f"{name}_image_to_text" for name in pictured),
        *(f"{name}_zero_shot_shape" for name in pictured),
        *(f"{name}_audio_to_text" for name in heard),
        *(f"{name}_zero_shot_noise_audio" for name in heard),
        "typos_text_to_image",
        "typos_text_to_audio",
    }
    assert metrics["robustness"]["blur_image_to_text"]["num_queries"] == 25
    assert metrics["robustness"]["noise_audio_to_text"]["num_queries"] == 12
    assert {"swap_colour", "swap_shape", "swap_noise_audio", "swap_pitch_audio"} <= set(
        metrics["compositional"]
    )
    assert set(metrics["geometry"]) == {"image", "audio"}
    assert set(metrics["calibration"]) == {
        "text_to_image", "image_to_text", "text_to_audio", "audio_to_text", "zero_shot_shape",
        "zero_shot_noise_audio",
    }  # fmt: skip
    intervals = json.loads((tmp_path / "out" / "intervals.json").read_text())
    for path in (
        "compositional/swap_colour/accuracy", "robustness/blur_image_to_text/recall_at_5",
        "robustness/blur_image_to_text/recall_at_5_drop", "geometry/audio/gap",
        "robustness/crop_zero_shot_shape/top_1_drop", "calibration/zero_shot_shape/ece",
    ):  # fmt: skip
        assert path in intervals


def test_robustness_is_that_of_a_plain_computation(
    tmp_path: Path, pairs: Path, model: Path
) -> None:
    metrics = run(tmp_path, model, pairs, robustness={"image": {"noise": 0.3, "jpeg": 5}})
    outcomes = read_outcomes(tmp_path / "out" / "outcomes.parquet")
    encoder = load_encoder(model, device="cpu")
    samples = pictures(pairs)
    texts = list(dict.fromkeys(text for sample in samples for text in sample.captions))
    embedded = encoder.encode_texts(texts)
    right = [[text in sample.captions for text in texts] for sample in samples]
    for name, corrupt in picture_corruptions(PictureCorruptions(noise=0.3, jpeg=5)).items():
        files = [corrupt(sample.media, sample.item_id) for sample in samples]
        expected = recall_at_5(encoder.encode_images(files), embedded, right)
        task = outcomes.tasks[f"robustness/{name}_image_to_text"]
        assert list(task.queries) == [sample.item_id for sample in samples]
        assert task.values["recall_at_5"].tolist() == expected
        clean = metrics["retrieval"]["image_to_text"]["recall_at_5"]
        drop = metrics["robustness"][f"{name}_image_to_text"]["recall_at_5_drop"]
        assert drop == pytest.approx(clean - np.mean(expected), abs=2e-6)

    images = encoder.encode_images([sample.media for sample in samples])
    asked = [(sample, text) for sample in samples for text in sample.captions]
    typed = encoder.encode_texts([add_typos(text, rate=0.05) for _, text in asked])
    holders = [[text in sample.captions for sample in samples] for _, text in asked]
    task = outcomes.tasks["robustness/typos_text_to_image"]
    assert list(task.queries) == [f"{sample.item_id}: {text}" for sample, text in asked]
    assert task.values["recall_at_5"].tolist() == recall_at_5(typed, images, holders)


def test_zero_shot_of_corrupted_pictures_leaves_out_those_without_a_label(
    tmp_path: Path, model: Path
) -> None:
    samples = catalogue(30, seed=5)
    for place in range(0, 30, 3):
        rest = {name: value for name, value in samples[place].attributes.items() if name != "shape"}
        samples[place] = replace(samples[place], attributes=rest)
    own = write_pairs(tmp_path / "pairs", test=samples)
    run(tmp_path, model, own, zero_shot=[{"column": "shape"}])
    outcomes = read_outcomes(tmp_path / "out" / "outcomes.parquet").tasks
    asked = outcomes["robustness/blur_zero_shot_shape"]
    labelled = {one.item_id for one in samples if "shape" in one.attributes}
    again = outcomes["robustness/blur_image_to_text"]
    assert set(asked.queries) == labelled & set(again.queries)
    assert len(again.queries) == 25


def test_compositional_queries_are_the_altered_captions(
    tmp_path: Path, pairs: Path, model: Path
) -> None:
    run(tmp_path, model, pairs, robustness=None)
    encoder = load_encoder(model, device="cpu")
    samples = {sample.item_id: sample for sample in read_samples(pairs, "test")}
    task = read_outcomes(tmp_path / "out" / "outcomes.parquet").tasks["compositional/swap_colour"]
    for item_id, query, accuracy in zip(
        task.item_ids, task.queries, task.values["accuracy"], strict=True
    ):
        sample, altered = samples[item_id], query.removeprefix(f"{item_id}: ")
        colour = str(sample.attributes["colour"])
        original = [
            text
            for text in sample.captions
            if colour in text.split() and text.split(colour)[0] == altered[: text.index(colour)]
        ]
        assert altered not in sample.captions and original
        image = encoder.encode_images([sample.media])[0]
        true, other = encoder.encode_texts([original[0], altered]) @ image
        assert accuracy == float(true > other)


def test_measured_twice_in_other_batches_and_shards_alike(
    tmp_path: Path, pairs: Path, model: Path
) -> None:
    run(tmp_path, model, pairs)
    first = tree_bytes(tmp_path / "out")
    run(tmp_path, model, pairs)
    assert tree_bytes(tmp_path / "out") == first
    other = write_pairs(tmp_path / "other", test=list(read_samples(pairs, "test")), shard_items=9)
    once, again = json.loads(first["metrics.json"]), run(tmp_path, model, other, batch_size=4)
    assert once["robustness"] == again["robustness"]
    assert once["compositional"] == again["compositional"]


def test_what_is_null_is_left_out(tmp_path: Path, pairs: Path, model: Path) -> None:
    nothing = dict.fromkeys(("compositional", "robustness", "geometry", "calibration"))
    assert not set(nothing) & set(run(tmp_path, model, pairs, **nothing))
    part = {"robustness": {"audio": None, "text": None, "image": {"blur": None, "crop": None}}}
    found = run(tmp_path, model, pairs, **part)["robustness"]
    assert set(found) == {
        "jpeg_image_to_text", "noise_image_to_text", "jpeg_zero_shot_shape",
        "noise_zero_shot_shape",
    }  # fmt: skip


def test_the_temperature_is_the_models_own(tmp_path: Path, pairs: Path, model: Path) -> None:
    encoder = load_encoder(model, device="cpu")
    assert encoder.logit_bias is None
    assert encoder.logit_scale == pytest.approx(1 / 0.07, rel=1e-4)  # CLIP's, untrained
    metrics = run(tmp_path, model, pairs)
    samples = pictures(pairs)
    labels = [str(sample.attributes["shape"]) for sample in samples]
    classes = sorted(set(labels))
    cosines = (
        encoder.encode_images([one.media for one in samples]) @ encoder.encode_texts(classes).T
    )
    logits = encoder.logit_scale * cosines.astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = [-np.log(row[classes.index(label)]) for row, label in zip(shares, labels, strict=True)]
    assert metrics["calibration"]["zero_shot_shape"]["nll"] == pytest.approx(
        np.mean(loss), abs=1e-4
    )
    sigmoid = write_model(
        tmp_path / "sigmoid", settings={**THREE_TOWERS, "init_logit_scale": 2.5,
                                        "init_logit_bias": -10.0}
    )  # fmt: skip
    encoder = load_encoder(sigmoid, device="cpu")
    assert (encoder.logit_scale, encoder.logit_bias) == (pytest.approx(np.exp(2.5)), -10.0)


def test_columns_that_cannot_be_swapped(tmp_path: Path, pairs: Path, model: Path) -> None:
    with pytest.raises(
        DataError, match=r"evaluate\.compositional\.columns names the column 'brand'"
    ):
        run(tmp_path, model, pairs, compositional={"columns": ["brand"]})
    with pytest.raises(DataError, match=r"names 'composition', but no caption has a value of it"):
        run(tmp_path, model, pairs, compositional={"columns": ["colour", "composition"]})


def test_severities_have_limits() -> None:
    for wrong in ({"image": {"jpeg": 0}}, {"image": {"crop": 1}}, {"text": {"typos": 0}}):
        with pytest.raises(ConfigError, match="cannot be used"):
            make_config(evaluate={"robustness": wrong})
