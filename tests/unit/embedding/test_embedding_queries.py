"""Queries and calibration: what is chosen, what is written, against a slow reference."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
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
from pydantic import ValidationError

from coembed.embedding import queries
from coembed.embedding.settings import EmbedSettings
from coembed.errors import ModelError
from coembed.models.encoder import load_encoder
from coembed.stages import embed
from coembed.types import Sample

CANARIES = [
    {"text": "red ring", "expect": {"colour": "red", "shape": "ring"}},
    {"text": "blue bar", "expect": {"shape": "bar"}},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("queries") / "model", settings=THREE_TOWERS)


def run(tmp_path: Path, model: Path, *, settings: dict[str, Any], **splits: list[Sample]) -> Path:
    pairs = write_pairs(tmp_path / "pairs", **splits)
    out = tmp_path / "out"
    cfg = make_config(embed=settings)
    embed.run(cfg, model=model, pairs=pairs, out=out, runs=tmp_path / "runs")
    return out


def rows_of(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / "queries.parquet").to_pylist()
    return rows


def calibration_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "calibration.json").read_text())
    return found


def queries_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "receipt.json").read_text())["queries"]
    return found


def test_samples_are_captions_of_the_val_split_and_canaries_follow(
    tmp_path: Path, model: Path
) -> None:
    val = [*catalogue(30, seed=2), *sounds(12, seed=3)]
    settings = {"num_queries": 20, "canaries": CANARIES}
    out = run(tmp_path, model, settings=settings, train=catalogue(20, seed=1), val=val)
    rows = rows_of(out)
    captions = {sample.item_id: sample.captions for sample in val}
    samples, canaries = rows[:20], rows[20:]
    assert all(row["text"] in captions[row["item_id"]] for row in samples)
    assert len({row["item_id"] for row in samples}) == 20
    assert {row["kind"] for row in samples} == {"sample"} and samples[0]["expect"] == "{}"
    assert [row["text"] for row in canaries] == ["red ring", "blue bar"]
    assert [json.loads(row["expect"]) for row in canaries] == [one["expect"] for one in CANARIES]
    assert [(row["item_id"], row["kind"]) for row in canaries] == [(None, "canary")] * 2
    assert {row["modality"] for row in rows} == {"text"}
    expected = load_encoder(model, device="cpu").encode_texts([row["text"] for row in rows])
    np.testing.assert_allclose([row["vector"] for row in rows], expected, atol=1e-5)
    field = pq.read_schema(out / "queries.parquet").field("vector")
    assert str(field.type) == "fixed_size_list<element: float>[32]"
    told = queries_of(out)
    assert (told["num_samples"], told["num_canaries"], told["split"]) == (20, 2, "val")


def test_most_queries_stay_when_the_corpus_grows(tmp_path: Path, model: Path) -> None:
    val = catalogue(60, seed=2)
    settings = {"num_queries": 20}
    before = rows_of(run(tmp_path / "a", model, settings=settings, val=val))
    more = [*catalogue(3, seed=9), *val]
    after = rows_of(run(tmp_path / "b", model, settings=settings, val=more))
    assert len({row["item_id"] for row in before} & {row["item_id"] for row in after}) >= 17


def test_calibration_is_that_of_a_full_reference(tmp_path: Path, model: Path) -> None:
    train, val = catalogue(50, seed=1), [*catalogue(30, seed=2), *sounds(12, seed=3)]
    out = run(tmp_path, model, settings={}, train=train, val=val)
    table = pq.read_table(sorted(out.glob("part-*.parquet"))).to_pylist()
    rows = rows_of(out)
    found = calibration_of(out)
    assert set(found) == {"version", "text", "image", "audio"} and found["version"] == 1
    vectors = {row["item_id"]: np.array(row["vector"], dtype=np.float64) for row in table}
    modality = {row["item_id"]: row["modality"] for row in table}
    for kind, num in (("image", 30), ("audio", 12)):
        own = [
            float(vectors[row["item_id"]] @ np.array(row["vector"], dtype=np.float64))
            for row in rows
            if modality[row["item_id"]] == kind
        ]
        assert found["text"][kind]["num"] == num == len(own)
        expected = np.percentile(own, range(101))
        np.testing.assert_allclose(found["text"][kind]["quantiles"], expected, atol=6e-5)
        nearest = [
            max(
                float(vectors[row["item_id"]] @ vectors[other])
                for other in vectors
                if other != row["item_id"] and modality[other] == kind
            )
            for row in table
            if row["split"] == "val" and row["modality"] == kind
        ]
        assert list(found[kind]) == [kind] and found[kind][kind]["num"] == num
        expected = np.percentile(nearest, range(101))
        np.testing.assert_allclose(found[kind][kind]["quantiles"], expected, atol=6e-5)


def test_a_corpus_larger_than_is_scanned(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "_NUM_SCANNED", 40)
    monkeypatch.setattr(queries, "_NUM_CALIBRATED", 10)
    train, val = catalogue(50, seed=1), catalogue(30, seed=2)
    out = run(tmp_path / "some", model, settings={"num_queries": 5}, train=train, val=val)
    some = calibration_of(out)["image"]["image"]
    assert some["num"] == 10 and len(rows_of(out)) == 5
    monkeypatch.setattr(queries, "_NUM_SCANNED", 1000)
    out = run(tmp_path / "all", model, settings={"num_queries": 5}, train=train, val=val)
    every = calibration_of(out)["image"]["image"]
    assert np.all(np.array(some["quantiles"]) <= np.array(every["quantiles"]))
    assert some != every


@pytest.mark.parametrize(("there", "split"), [({"test", "train"}, "test"), ({"train"}, "train")])
def test_without_a_val_split(tmp_path: Path, model: Path, there: set[str], split: str) -> None:
    splits = {name: catalogue(9, seed=len(name)) for name in there}
    out = run(tmp_path, model, settings={}, **splits)
    assert queries_of(out)["split"] == split and len(rows_of(out)) == 9
    assert calibration_of(out)["text"]["image"]["num"] == 9


def test_without_captions(tmp_path: Path, model: Path) -> None:
    silent = [replace(sample, captions=("", " ")) for sample in catalogue(9, seed=1)]
    silent[4] = replace(silent[4], captions=())
    out = run(tmp_path, model, settings={"canaries": CANARIES[:1]}, val=silent)
    assert [row["kind"] for row in rows_of(out)] == ["canary"]
    assert set(calibration_of(out)) == {"version", "image"}
    out = run(tmp_path / "none", model, settings={}, val=silent)
    assert rows_of(out) == []
    field = pq.read_schema(out / "queries.parquet").field("vector")
    assert str(field.type) == "fixed_size_list<element: float>[32]"


def test_one_item_alone_has_no_neighbour(tmp_path: Path, model: Path) -> None:
    out = run(tmp_path, model, settings={}, val=catalogue(1, seed=1))
    assert set(calibration_of(out)) == {"version", "text"}


def test_a_twin_is_a_neighbour_but_an_item_is_not_its_own(tmp_path: Path, model: Path) -> None:
    val = catalogue(6, seed=1)
    out = run(tmp_path, model, settings={}, val=val)
    assert calibration_of(out)["image"]["image"]["quantiles"][-1] < 1


def test_what_cannot_be_read_is_no_query(tmp_path: Path, model: Path) -> None:
    val = catalogue(12, seed=1)
    val[3] = replace(val[3], media=b"nonsense")
    out = run(tmp_path, model, settings={}, val=val)
    assert val[3].item_id not in {row["item_id"] for row in rows_of(out)}
    assert len(rows_of(out)) == 11


def test_a_model_without_a_text_tower(tmp_path: Path) -> None:
    architecture = dict(THREE_TOWERS["architecture"])
    del architecture["text_cfg"]
    deaf = write_model(tmp_path / "model", settings={"architecture": architecture})
    splits: Any = {"val": [*catalogue(5, seed=1), *sounds(5, seed=2)]}
    out = run(tmp_path / "a", deaf, settings={}, **splits)
    assert rows_of(out) == [] and set(calibration_of(out)) == {"version", "image", "audio"}
    with pytest.raises(ModelError, match=r"embed.canaries are texts, but .* no text tower"):
        run(tmp_path / "b", deaf, settings={"canaries": CANARIES}, **splits)


def test_they_are_the_same_bytes_whatever_waited(tmp_path: Path, model: Path) -> None:
    val = catalogue(40, seed=2)
    out = run(tmp_path, model, settings={}, val=val[:30])
    pairs = write_pairs(tmp_path / "later", val=val)
    cfg = make_config(embed={})
    for name in ("runs", "none"):
        embed.run(cfg, model=model, pairs=pairs, out=tmp_path / f"o-{name}", runs=tmp_path / name)
    assert tree_bytes(tmp_path / "o-runs") == tree_bytes(tmp_path / "o-none")
    assert rows_of(out) != rows_of(tmp_path / "o-runs")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_queries": -1}, "greater than or equal to 0"),
        ({"canaries": [{"text": "red", "expect": {}}]}, "at least 1 item"),
        ({"canaries": [{"text": " ", "expect": {"a": "b"}}]}, "is blank"),
        ({"canaries": [{"text": "red"}]}, "Field required"),
        ({"kept_models": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        EmbedSettings.model_validate(values)
    assert message in str(caught.value)
