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
from coembed.evaluation.comparison import compare
from coembed.evaluation.outcomes_file import read_hits, read_outcomes
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


def average_precision_at_10(scores: np.ndarray, right: np.ndarray) -> float:
    """Of one query, with `right` where positives are."""
    hits = right[np.argsort(-scores)][:10]
    return float((hits * hits.cumsum() / np.arange(1, len(hits) + 1)).sum() / min(right.sum(), 10))


def test_metrics_are_those_of_a_plain_computation(tmp_path: Path, pairs: Path, model: Path) -> None:
    metrics = run(tmp_path, model, pairs)
    samples = list(read_samples(pairs, "test"))
    encoder = load_encoder(model, device="cpu")
    images = encoder.encode_images([sample.media for sample in samples]).astype(np.float64)
    text_ranks, image_ranks = [], []
    text_precision, image_precision = [], []
    texts = list(dict.fromkeys(text for sample in samples for text in sample.captions))
    embedded = encoder.encode_texts(texts).astype(np.float64)
    for sample, image in zip(samples, images, strict=True):
        for text in sample.captions:
            scores = images @ embedded[texts.index(text)]
            right = np.asarray([text in other.captions for other in samples])
            text_ranks.append(1 + (scores[~right] > scores[right].max()).sum())
            text_precision.append(average_precision_at_10(scores, right))
        scores = embedded @ image
        right = np.asarray([text in sample.captions for text in texts])
        image_ranks.append(1 + (scores[~right] > scores[right].max()).sum())
        image_precision.append(average_precision_at_10(scores, right))
    for task, expected, precision in (
        ("text_to_image", text_ranks, text_precision),
        ("image_to_text", image_ranks, image_precision),
    ):
        found = metrics["retrieval"][task]
        ranks = np.asarray(expected)
        assert found["num_queries"] == len(ranks)
        for k in (1, 5, 10):
            assert found[f"recall_at_{k}"] == pytest.approx((ranks <= k).mean(), abs=1e-6)
        assert found["map_at_10"] == pytest.approx(np.mean(precision), abs=1e-6)
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
        "metrics.json", "intervals.json", "slices.csv", "outcomes.parquet", "hits.parquet",
        "report.html", "receipt.json", "plots/recall_at_k.csv", "plots/recall_by_slice.csv",
        "plots/confusion_shape.csv", "plots/figures.csv", "plots/reliability_text_to_image.csv",
        "plots/reliability_image_to_text.csv", "plots/reliability_zero_shot_shape.csv",
    }  # fmt: skip
    for name, data in first.items():
        assert str(tmp_path).encode() not in data, name


def test_plots_hold_figures_costs_and_reliability(tmp_path: Path, pairs: Path, model: Path) -> None:
    metrics = run(tmp_path, model, pairs, robustness={})
    intervals = json.loads((tmp_path / "out" / "intervals.json").read_text())
    plots = tmp_path / "out" / "plots"

    def read(name: str) -> list[dict[str, str]]:
        with (plots / name).open() as file:
            return list(csv.DictReader(file))

    recall = next(row for row in read("figures.csv") if row["task"] == "text_to_image")
    path = "retrieval/text_to_image/recall_at_10"
    assert recall["metric"] == "recall_at_10"
    assert [float(recall[name]) for name in ("low", "high")] == intervals[path]
    assert float(recall["score"]) == metrics["retrieval"]["text_to_image"]["recall_at_10"]

    blur = next(row for row in read("robustness.csv") if row["task"] == "blur_image_to_text")
    found = metrics["robustness"]["blur_image_to_text"]
    assert float(blur["corrupted"]) == found["recall_at_10"]
    assert float(blur["drop"]) == found["recall_at_10_drop"]
    clean = metrics["retrieval"]["image_to_text"]["recall_at_10"]  # all items were corrupted
    assert float(blur["clean"]) == pytest.approx(clean, abs=1e-6)
    assert float(blur["low"]) <= float(blur["drop"]) <= float(blur["high"])

    bins = read("reliability_text_to_image.csv")
    num = sum(int(row["num_queries"]) for row in bins)
    assert num == metrics["retrieval"]["text_to_image"]["num_queries"]
    right = sum(float(row["share_right"]) * int(row["num_queries"]) for row in bins) / num
    assert right == pytest.approx(metrics["retrieval"]["text_to_image"]["recall_at_1"], abs=1e-5)
    run(tmp_path, model, pairs, calibration=None)
    assert not (plots / "robustness.csv").exists()
    assert not list(plots.glob("reliability_*"))


def test_plots_and_slices_are_tables(tmp_path: Path, pairs: Path, model: Path) -> None:
    metrics = run(tmp_path, model, pairs)
    out = tmp_path / "out"
    with (out / "plots" / "confusion_shape.csv").open() as file:
        confusion = list(csv.DictReader(file))
    right = np.mean([row["actual"] == row["predicted"] for row in confusion])
    assert right == pytest.approx(metrics["zero_shot"]["shape"]["top_1"], abs=1e-6)
    with (out / "slices.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["column"] for row in rows} == {"colour", "shape", "composition", "price"}
    prices = {row["value"] for row in rows if row["column"] == "price"}
    assert prices == {"0 to 25.5", "27 to 51", "52.5 to 78", "79.5 to 103.5"}  # quartiles
    for row in rows:
        assert float(row["low"]) <= float(row["score"]) <= float(row["high"])
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


def flat(tree: dict[str, Any], above: str = "") -> dict[str, float]:
    """Numbers of metrics.json by their paths."""
    found: dict[str, float] = {}
    for name, value in tree.items():
        path = f"{above}{name}"
        found |= flat(value, f"{path}/") if isinstance(value, dict) else {path: value}
    return found


def test_every_figure_has_an_interval(tmp_path: Path, pairs: Path, model: Path) -> None:
    metrics = flat(run(tmp_path, model, pairs))
    intervals = json.loads((tmp_path / "out" / "intervals.json").read_text())
    known = ("num_", "chance_", "best_")  # counted or computed, not measured
    assert set(intervals) == {
        path for path in metrics if not path.rpartition("/")[2].startswith(known)
    }
    assert "zero_shot/shape/macro_top_1" in intervals
    assert "retrieval/text_to_image/median_rank" in intervals
    assert "slices/composition/unseen/text_to_image/recall_at_10" in intervals
    for path, (low, high) in intervals.items():
        assert low < high, path
        if path.startswith(("retrieval", "zero_shot", "slices")):
            assert low <= metrics[path] <= high, path


def test_outcomes_are_what_the_metrics_are_means_of(
    tmp_path: Path, pairs: Path, model: Path
) -> None:
    metrics = flat(run(tmp_path, model, pairs))
    found = read_outcomes(tmp_path / "out" / "outcomes.parquet")
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert found.evaluation_set == receipt["evaluation_set"]
    for task in found.tasks.values():
        assert len(task.queries) == metrics[task.path("num_queries")]
        for metric, values in task.values.items():
            assert values.mean() == pytest.approx(metrics[task.path(metric)], abs=1e-6)
    samples = {sample.item_id: sample for sample in read_samples(pairs, "test")}
    captions = found.tasks["retrieval/text_to_image"]
    for query, item_id, colour in zip(
        captions.queries, captions.item_ids, captions.labels["colour"], strict=True
    ):
        name, _, caption = query.partition(": ")
        assert name == item_id and caption in samples[item_id].captions
        assert colour == samples[item_id].attributes["colour"]
    assert set(found.tasks["attribute_queries/colour_shape"].item_ids) == {""}


def test_hits_are_the_nearest_items(tmp_path: Path, pairs: Path, model: Path) -> None:
    samples = list(read_samples(pairs, "test"))
    encoder = load_encoder(model, device="cpu")
    images = encoder.encode_images([sample.media for sample in samples])
    caption = samples[5].captions[1]
    wanted = {
        "retrieval/text_to_image": [f"{samples[5].item_id}: {caption}"],
        "attribute_queries/colour_shape": ["red ring"],
    }
    for map_k in (10, 3):  # the ten best are there whatever the metrics need
        run(tmp_path, model, pairs, map_k=map_k)
        found = read_hits(tmp_path / "out" / "hits.parquet", wanted)
        for (task, [query]), text in zip(wanted.items(), (caption, "red ring"), strict=True):
            scores = images @ encoder.encode_texts([text])[0]
            best = np.argsort(-scores, kind="stable")[:10]
            hits = found[task][query]
            assert [hit.item_id for hit in hits] == [samples[item].item_id for item in best]
            assert [hit.score for hit in hits] == pytest.approx(scores[best].tolist(), abs=1e-6)


def test_two_models_are_compared_from_their_files(tmp_path: Path, pairs: Path, model: Path) -> None:
    other = write_model(tmp_path / "model", seed=3)
    outcomes = []
    for number, chosen in enumerate((model, other)):
        metrics = flat(run(tmp_path / str(number), chosen, pairs))
        outcomes.append(read_outcomes(tmp_path / str(number) / "out" / "outcomes.parquet"))
    headline = "retrieval/text_to_image/recall_at_10"
    settings: dict[str, Any] = {
        "headline": headline, "bootstrap": make_config().evaluate.bootstrap, "min_slice": 5,
    }  # fmt: skip
    same = compare(outcomes[0], outcomes[0], **settings)
    assert {row.difference for row in (*same.overall, *same.slices)} == {0}
    assert not any(row.significant for row in (*same.overall, *same.slices))
    assert (same.left_out, same.broken, same.mended) == ((), (), ())
    found = compare(*outcomes, **settings)
    row = found.difference(headline)
    assert row is not None and row.challenger == pytest.approx(metrics[headline], abs=1e-6)
    assert found.num_mended - found.num_broken == round(row.difference * row.num_queries)


def test_table_shows_intervals(tmp_path: Path, pairs: Path, model: Path) -> None:
    cfg = make_config(evaluate=EVALUATE)
    rows = dict(evaluate.run(cfg, model=model, pairs=pairs, out=tmp_path / "out").rows)
    shown = rows["Text → image, Recall@10"]
    assert re.fullmatch(r"[\d.]+ % \[[\d.]+, [\d.]+\] \(guessing: [\d.]+ %\)", shown)


def test_receipt_says_how_it_was_measured(tmp_path: Path, pairs: Path, model: Path) -> None:
    def measured(**settings: Any) -> str:
        run(tmp_path, model, pairs, **settings)
        found: str = json.loads((tmp_path / "out" / "receipt.json").read_text())["measured"]
        return found

    first = measured()
    assert first == measured(
        batch_size=7, min_slice=9, slices=["composition"], bootstrap={"seed": 1}
    )
    assert measured(ks=[1, 5]) != first


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
    assert set(metrics) == {
        "num_items", "num_captions", "retrieval", "geometry", "calibration",
    }  # fmt: skip
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


def test_items_of_one_caption_have_no_negatives(tmp_path: Path, model: Path) -> None:
    same = [replace(sample, captions=("A shoe", "a  shoe")) for sample in catalogue(5, seed=3)]
    with pytest.raises(DataError, match="all 5 evaluated images have the same caption 'A shoe'"):
        run(tmp_path, model, pairs_of(tmp_path, same), slices_in_metrics=[])


def test_an_item_without_a_caption_has_no_positive(tmp_path: Path, model: Path) -> None:
    samples = catalogue(8, seed=3)
    samples[5] = replace(samples[5], captions=())
    with pytest.raises(DataError) as caught:
        run(tmp_path, model, pairs_of(tmp_path, samples))
    assert f"item '{samples[5].path}' of the test split has no caption" in str(caught.value)
    assert "run `coembed curate` again" in str(caught.value)
    assert not (tmp_path / "out").exists()


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
