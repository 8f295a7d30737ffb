"""The evaluate stage on pictures and sounds in one split, with a real model of three towers."""

from __future__ import annotations

import base64
import csv
import json
import re
from dataclasses import replace
from itertools import zip_longest
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

from coembed.errors import DataError, ModelError
from coembed.models.encoder import load_encoder
from coembed.stages import evaluate, train
from coembed.types import Sample

PICTURES, SOUNDS = catalogue(40, seed=2), sounds(24, seed=3)
# One sound goes by a picture's caption, whichever way it is written.
SOUNDS[5] = replace(SOUNDS[5], captions=(f" {PICTURES[0].captions[0].upper()}",))
# Mixed as a pool's rows may be, a sound first.
MIXED = [
    sample
    for pair in zip_longest(SOUNDS, PICTURES)
    for sample in pair
    if sample is not None
]  # fmt: skip
EVALUATE: dict[str, Any] = {
    "meets_on": "shape",
    "zero_shot": [{"column": "shape"}, {"column": "noise", "modality": "audio"}],
    "attribute_queries": [
        {"template": "{colour} {shape}"},
        {"template": "{pitch} {noise}", "modality": "audio"},
    ],
    "slices_in_metrics": ["shape", "composition"],
    "contact_sheet": {"num_queries": 4, "num_hits": 3, "thumbnail_px": 48},
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("mixed") / "pairs", test=MIXED, shard_items=20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("mixed") / "model", settings=THREE_TOWERS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, pairs: Path, model: Path) -> Path:
    out = tmp_path_factory.mktemp("mixed") / "out"
    run(out, model, pairs)
    return out


def run(out: Path, model: Path, pairs: Path, **settings: Any) -> dict[str, str]:
    cfg = make_config(evaluate={**EVALUATE, **settings})
    return dict(evaluate.run(cfg, model=model, pairs=pairs, out=out).rows)


def metrics_of(out: Path) -> dict[str, Any]:
    metrics = json.loads((out / "metrics.json").read_text())
    assert isinstance(metrics, dict)
    return metrics


def recalls(queries: np.ndarray, candidates: np.ndarray, right: np.ndarray) -> dict[int, float]:
    """Recall@k by the full matrix of scores; `right` is [queries, candidates]."""
    scores = queries.astype(np.float64) @ candidates.astype(np.float64).T
    best = np.where(right, scores, -np.inf).max(axis=1)
    ranks = 1 + ((scores > best[:, None]) & ~right).sum(axis=1)
    return {k: float((ranks <= k).mean()) for k in (1, 5, 10)}


def test_every_direction_is_that_of_a_plain_computation(made: Path, model: Path) -> None:
    encoder = load_encoder(model, device="cpu")
    embedded = {
        "image": encoder.encode("image", [one.media for one in PICTURES]),
        "audio": encoder.encode("audio", [one.media for one in SOUNDS]),
    }
    items: dict[str, list[Sample]] = {"image": PICTURES, "audio": SOUNDS}
    found = metrics_of(made)["retrieval"]
    for modality, own in items.items():
        texts = [text for one in own for text in one.captions]
        right = np.asarray([[text in one.captions for one in own] for text in texts])
        vectors = encoder.encode_texts(texts)
        expected = recalls(vectors, embedded[modality], right)
        task = found[f"text_to_{modality}"]
        assert task["num_candidates"] == len(own)
        for k, value in expected.items():
            assert task[f"recall_at_{k}"] == pytest.approx(value, abs=1e-6)

    def alike(one: Sample, other: Sample) -> bool:
        words = {text.strip().lower() for text in one.captions}
        return one.attributes["shape"] == other.attributes["shape"] or bool(
            words & {text.strip().lower() for text in other.captions}
        )

    meets = np.asarray([[alike(one, other) for other in SOUNDS] for one in PICTURES])
    for source, target, right in (("image", "audio", meets), ("audio", "image", meets.T)):
        asked = right.any(axis=1)
        expected = recalls(embedded[source][asked], embedded[target], right[asked])
        task = found[f"{source}_to_{target}"]
        assert (task["num_queries"], task["num_not_asked"]) == (asked.sum(), (~asked).sum())
        for k, value in expected.items():
            assert task[f"recall_at_{k}"] == pytest.approx(value, abs=1e-6)


def test_images_measure_the_same_with_sounds_beside_them(
    tmp_path: Path, made: Path, model: Path
) -> None:
    settings = {
        "zero_shot": EVALUATE["zero_shot"][:1],
        "attribute_queries": EVALUATE["attribute_queries"][:1],
    }
    run(tmp_path / "out", model, write_pairs(tmp_path / "pairs", test=PICTURES), **settings)
    alone, mixed = metrics_of(tmp_path / "out"), metrics_of(made)
    assert set(mixed) - set(alone) == {"num_images", "num_sounds"}
    assert (mixed["num_items"], mixed["num_images"], mixed["num_sounds"]) == (64, 40, 24)
    for task, values in alone["retrieval"].items():
        assert mixed["retrieval"][task] == values
    assert mixed["zero_shot"]["shape"] == alone["zero_shot"]["shape"]
    both = mixed["attribute_queries"]
    assert both["colour_shape"] == alone["attribute_queries"]["colour_shape"]
    assert both["pitch_noise_audio"]["num_queries"] == 6
    plots = tmp_path / "out" / "plots"
    for name in ("recall_at_k.csv", "recall_by_slice.csv", "confusion_shape.csv"):
        assert (made / "plots" / name).read_bytes() == (plots / name).read_bytes()


def test_slices_and_plots_know_the_modality(made: Path) -> None:
    with (made / "slices.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns: dict[str, set[str]] = {}
    for row in rows:
        columns.setdefault(row["task"], set()).add(row["column"])
    assert columns["text_to_image"] == {"colour", "composition", "price", "shape"}
    assert columns["text_to_audio"] == columns["zero_shot_noise_audio"] == {
        "noise", "pitch", "shape",
    }  # fmt: skip
    assert columns["audio_to_image"] == columns["text_to_audio"]
    header = (made / "plots" / "recall_at_k_between.csv").read_text().splitlines()[0]
    assert header == "k,image_to_audio,audio_to_image"
    assert (made / "plots" / "recall_at_k_audio.csv").read_text().startswith("k,text_to_audio,")
    assert (made / "plots" / "confusion_noise_audio.csv").is_file()


def test_sounds_are_drawn_and_can_be_played(made: Path) -> None:
    html = (made / "report.html").read_text()
    played = {base64.b64decode(data) for data in re.findall(r"audio/wav;base64,([^\"]+)", html)}
    assert played and played <= {sample.media for sample in SOUNDS}
    assert "media-src data:" in html
    for heading in (
        "What a person at the search box sees: sounds", "Captions as searches: images",
        "Sounds found by images", "Images found by sounds", "Recognising noise of sounds by words",
    ):  # fmt: skip
        assert f"<h2>{heading}" in html, heading
    assert "images were not asked, for no sound has the same caption or shape." in html


def test_only_so_many_sounds_are_embedded(tmp_path: Path, model: Path, pairs: Path) -> None:
    sheet = {**EVALUATE["contact_sheet"], "max_sounds_bytes": 60_000}
    run(tmp_path / "out", model, pairs, contact_sheet=sheet)
    html = (tmp_path / "out" / "report.html").read_text()
    played = [len(base64.b64decode(data)) for data in re.findall(r"wav;base64,([^\"]+)", html)]
    assert 0 < sum(played) <= 60_000
    assert "cannot be played here" in html
    run(tmp_path / "none", model, pairs, contact_sheet={**sheet, "max_sound_bytes": 0})
    assert "<audio" not in (tmp_path / "none" / "report.html").read_text()


def test_twice_gives_the_same_bytes(tmp_path: Path, made: Path, model: Path, pairs: Path) -> None:
    run(tmp_path / "out", model, pairs)
    assert tree_bytes(tmp_path / "out") == tree_bytes(made)


def test_what_shares_nothing_is_not_measured_and_the_report_says_so(
    tmp_path: Path, model: Path
) -> None:
    pairs = write_pairs(tmp_path / "pairs", test=[*PICTURES[:6], *SOUNDS[6:12]])
    rows = run(
        tmp_path / "out", model, pairs, meets_on=None, attribute_queries=[], slices_in_metrics=[]
    )
    assert rows["Image → audio"].startswith("not measured")
    assert "image_to_audio" not in metrics_of(tmp_path / "out")["retrieval"]
    html = (tmp_path / "out" / "report.html").read_text()
    assert "Image → audio was not measured: no image has the same caption as any sound." in html
    assert not (tmp_path / "out" / "plots" / "recall_at_k_between.csv").exists()


def test_a_model_that_cannot_hear_is_measured_on_what_it_sees(
    tmp_path: Path, made: Path, pairs: Path
) -> None:
    rows = run(tmp_path / "out", write_model(tmp_path / "two"), pairs)
    assert rows["images"] == "40"
    assert rows["sounds not measured"] == "24 (the model has no audio tower)"
    metrics = metrics_of(tmp_path / "out")
    assert set(metrics["retrieval"]) == {"text_to_image", "image_to_text"}
    assert (metrics["num_items"], list(metrics["zero_shot"])) == (40, ["shape"])
    assert "24 sounds were not measured" in (tmp_path / "out" / "report.html").read_text()
    # So that two models, of which one can hear, are compared on one set.
    sets = [json.loads((out / "receipt.json").read_text()) for out in (tmp_path / "out", made)]
    assert sets[0]["evaluation_set"] == sets[1]["evaluation_set"]


def test_sounds_alone(tmp_path: Path, made: Path, model: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", test=SOUNDS)
    rows = run(tmp_path / "out", model, pairs, zero_shot=[{"column": "noise"}],
               attribute_queries=[], slices_in_metrics=[])  # fmt: skip
    assert rows["sounds"] == "24"
    metrics, mixed = metrics_of(tmp_path / "out"), metrics_of(made)
    assert set(metrics) == {
        "num_items", "num_captions", "retrieval", "zero_shot", "geometry", "calibration",
    }  # fmt: skip
    assert metrics["retrieval"]["text_to_audio"] == mixed["retrieval"]["text_to_audio"]
    assert metrics["zero_shot"]["noise"] == mixed["zero_shot"]["noise_audio"]
    deaf = write_model(tmp_path / "two")
    with pytest.raises(ModelError, match="of modality audio, but the model encodes image and text"):
        run(tmp_path / "deaf", deaf, pairs, zero_shot=[], attribute_queries=[])


def test_a_damaged_sound_is_named(tmp_path: Path, model: Path) -> None:
    broken = [replace(SOUNDS[3], media=SOUNDS[3].media[:-900]), *PICTURES[:3], *SOUNDS[4:6]]
    pairs = write_pairs(tmp_path / "pairs", test=broken)
    with pytest.raises(DataError, match=f"item '{SOUNDS[3].path}' of the test split cannot be dec"):
        run(tmp_path / "out", model, pairs)


@pytest.mark.slow
def test_pictures_and_sounds_meet_through_words(tmp_path: Path) -> None:
    def of_things(samples: list[Sample]) -> list[Sample]:
        """Captions that say of a sound what those of pictures say: which shape it is of."""
        return [
            replace(one, captions=(f"a {one.attributes['pitch']} {one.attributes['shape']}",))
            for one in samples
        ]

    splits = {
        split: [*catalogue(num, seed=seed), *of_things(sounds(num, seed=seed))]
        for split, num, seed in (("train", 200, 1), ("test", 60, 4))
    }
    pairs = write_pairs(tmp_path / "pairs", **splits)
    training = {
        "epochs": 16, "batch_size": 32, "lr": 3e-3, "device": "cpu", "precision": "fp32",
        "augment": {"image": {"flip": False}},
    }  # fmt: skip
    cfg = make_config(model=THREE_TOWERS, train=training, evaluate={"meets_on": "shape"})
    model = tmp_path / "model"
    train.run(cfg, root=tmp_path, pairs=pairs, out=model, runs=tmp_path / "runs")
    evaluate.run(cfg, model=model, pairs=pairs, out=tmp_path / "out")
    # No pair of a picture and a sound was ever seen.
    for task in ("image_to_audio", "audio_to_image"):
        found = metrics_of(tmp_path / "out")["retrieval"][task]
        assert found["recall_at_1"] > 1.5 * found["chance_recall_at_1"], task
