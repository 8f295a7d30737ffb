"""What a model was trained on: the record in its directory, inherited ones, damaged ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from evaluated_pairs import write_pairs
from training_pairs import HEARING_MODEL, SMALL_MODEL, make_pairs, make_samples
from training_runs import settings_of

from coembed.curation.lookalikes.perceptual import (
    fingerprint,
    hash_thumbnails,
    unpack_thumbnails,
)
from coembed.curation.lookalikes.sketch import sketch_thumbnails
from coembed.curation.media.media import Media
from coembed.errors import ModelError
from coembed.files import read_json, sha256_file, write_json
from coembed.models.settings import ModelSettings
from coembed.pairs.shards import read_samples
from coembed.stages import train as stage
from coembed.stages import trained_on
from coembed.stages.trained_on import (
    TRAINED_ON,
    Ancestor,
    find_ancestors,
    read_trained_on,
    write_trained_on,
)

Rows = list[dict[str, Any]]


def go(
    pairs: Path,
    place: Path,
    name: str = "model",
    *,
    model: dict[str, Any] = SMALL_MODEL,
    **train: Any,
) -> Path:
    """A trained model directory."""
    cfg: Any = SimpleNamespace(
        seed=3, model=ModelSettings.model_validate(model), train=settings_of(steps=2, **train)
    )
    stage.run(cfg, root=place, pairs=pairs, out=place / name, runs=place / "runs")
    return place / name


def record(
    folder: Path, pairs: Path, *ancestors: Ancestor, num_val: int = 0, val_decides: bool = False
) -> Path:
    """A model directory with nothing but its record."""
    folder.mkdir(parents=True)
    write_trained_on(
        folder, pairs, num_val=num_val, val_decides=val_decides, ancestors=ancestors, num_threads=2
    )
    return folder


def rows_of(model: Path) -> Rows:
    rows: Rows = pq.read_table(model / TRAINED_ON).to_pylist()
    for row in rows:
        row["item_id"] = row["item_id"].hex()
    return rows


def uses(model: Path) -> dict[str, tuple[str, str]]:
    """item_id → (use, through); no item is there twice."""
    rows = rows_of(model)
    found = {row["item_id"]: (row["use"], row["through"]) for row in rows}
    assert len(found) == len(rows)
    return found


def ids(pairs: Path, split: Any) -> list[str]:
    return [sample.item_id for sample in read_samples(pairs, split)]


def test_training_notes_every_item_and_the_hash_of_every_picture(tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path / "pairs", sounds=(4, 2))
    model = go(pairs, tmp_path, model=HEARING_MODEL)
    rows = rows_of(model)
    assert [row["item_id"] for row in rows] == ids(pairs, "train") + ids(pairs, "val")
    assert [row["use"] for row in rows] == ["train"] * 52 + ["watch"] * 18
    assert {row["through"] for row in rows} == {""}
    samples = [*read_samples(pairs, "train"), *read_samples(pairs, "val")]
    for row, sample in zip(rows, samples, strict=True):
        assert row["modality"] == sample.modality
        if sample.modality == "audio":
            assert row["hash"] is None and row["sketch"] is None
            continue
        thumbnail = fingerprint(Media(sample.media, modality="image").thumbnail)
        pictures = unpack_thumbnails(thumbnail)
        assert row["hash"] == hash_thumbnails(pictures)[0, 0]
        assert row["sketch"] == sketch_thumbnails(pictures)[0].tobytes()
    receipt = read_json(model / "receipt.json", what="receipt")
    assert receipt["trained_on"] == sha256_file(model / TRAINED_ON)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"validate_every_epochs": None}, {}),
        ({"max_val_items": 5}, {"watch": 5}),
        ({"save_weights": "best"}, {"choose": 16}),
        ({"early_stopping": {"patience": 2}, "max_val_items": 5}, {"choose": 5}),
    ],
)
def test_val_items_count_where_they_chose_the_weights(
    tmp_path: Path, pairs: Path, settings: dict[str, Any], expected: dict[str, int]
) -> None:
    model = go(pairs, tmp_path, **settings)
    val = [row for row in rows_of(model) if row["use"] != "train"]
    assert [row["item_id"] for row in val] == ids(pairs, "val")[: len(val)]
    assert {use: sum(row["use"] == use for row in val) for use in expected} == expected
    assert len(val) == sum(expected.values())
    found = read_trained_on(model)
    assert found is not None
    assert len(found.learned()) == 48 + expected.get("choose", 0)


def test_the_same_bytes_with_any_number_of_threads(tmp_path: Path, pairs: Path) -> None:
    for threads in (1, 5):
        folder = tmp_path / str(threads)
        folder.mkdir()
        write_trained_on(
            folder, pairs, num_val=9, val_decides=True, ancestors=(), num_threads=threads
        )
    assert (tmp_path / "1" / TRAINED_ON).read_bytes() == (tmp_path / "5" / TRAINED_ON).read_bytes()


def test_sketches_are_found_by_row_in_any_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: Path
) -> None:
    monkeypatch.setattr(trained_on, "_GROUP_ROWS", 10)
    monkeypatch.setattr(trained_on, "_DECODED_AT_ONCE", 4)
    model = record(tmp_path / "model", pairs, num_val=16, val_decides=True)
    assert pq.ParquetFile(model / TRAINED_ON).num_row_groups > 4
    found = read_trained_on(model)
    assert found is not None
    wanted = np.array([0, 3, 11, 12, 30, 47, 48, 63])
    sketches = [row["sketch"] for row in rows_of(model)]
    assert [s.tobytes() for s in found.sketches(wanted)] == [sketches[at] for at in wanted]
    assert found.sketches(np.zeros(0, np.int64)).shape == (0, 95)


def test_a_picture_that_cannot_be_decoded_has_no_hash(tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path / "pairs", train=6, broken=2)
    model = record(tmp_path / "model", pairs)
    assert [row["hash"] is None for row in rows_of(model)] == [i == 2 for i in range(6)]
    found = read_trained_on(model)
    assert found is not None and found.learned().is_picture.sum() == 5


def test_a_model_inherits_what_its_checkpoint_was_trained_on(tmp_path: Path) -> None:
    own, older = make_samples(30, seed=1), make_samples(8, seed=2)
    watched = make_samples(4, seed=3)
    # A pool that grew: some items stayed in training, the others are in no split of it now.
    old = write_pairs(tmp_path / "old", train=[*own[:10], *older], val=watched)
    go(old, tmp_path, "first")
    new = write_pairs(tmp_path / "new", train=own)
    second = go(new, tmp_path, "second", model={**SMALL_MODEL, "pretrained": "first"})
    # What the first one only looked at has taught nobody.
    expected = {sample.item_id: ("train", "") for sample in own}
    expected |= {sample.item_id: ("train", "model.pretrained first") for sample in older}
    assert uses(second) == expected

    further = write_pairs(tmp_path / "further", train=make_samples(9, seed=4))
    third = go(further, tmp_path, "third", model={**SMALL_MODEL, "pretrained": "second"})
    expected = {sample.item_id: ("train", "") for sample in make_samples(9, seed=4)}
    expected |= {sample.item_id: ("train", "model.pretrained second") for sample in own}
    words = "model.pretrained second < model.pretrained first"
    expected |= {sample.item_id: ("train", words) for sample in older}
    assert uses(third) == expected


def test_a_student_inherits_from_its_teacher(tmp_path: Path, pairs: Path) -> None:
    samples = make_samples(12, seed=77)
    go(write_pairs(tmp_path / "other", train=samples), tmp_path, "teacher")
    loss = {"name": "distillation", "teacher": "teacher", "weight": 0.5}
    student = go(pairs, tmp_path, "student", loss=loss)
    found = uses(student)
    assert {found[sample.item_id] for sample in samples} == {
        ("train", "train.loss.teacher teacher")
    }
    inherited = [row for row in rows_of(student) if row["through"]]
    assert all(row["hash"] is not None and len(row["sketch"]) == 95 for row in inherited)


def test_what_taught_comes_before_what_chose_and_what_was_watched(tmp_path: Path) -> None:
    """Of an item that several had, the use that weighs most stands."""
    samples = make_samples(8, seed=5)
    a = write_pairs(tmp_path / "a", train=samples[:3], val=samples[3:5])
    elder = record(tmp_path / "elder", a, num_val=9, val_decides=True)
    watching = record(tmp_path / "watching", a, num_val=9)
    b = write_pairs(tmp_path / "b", train=samples[5:6], val=[*samples[2:4], *samples[6:]])

    def child(name: str, parent: Path, *, val_decides: bool) -> list[tuple[str, str]]:
        ancestor = Ancestor("parent", read_trained_on(parent))
        found = uses(record(tmp_path / name, b, ancestor, num_val=9, val_decides=val_decides))
        nothing = ("", "")
        return [found.get(sample.item_id, nothing) for sample in samples]

    taught, nothing = ("train", "parent"), ("", "")
    assert child("one", elder, val_decides=True) == [
        taught, taught, taught, ("choose", ""), ("choose", "parent"), ("train", ""),
        ("choose", ""), ("choose", ""),
    ]  # fmt: skip
    assert child("two", elder, val_decides=False) == [
        taught, taught, taught, ("choose", "parent"), ("choose", "parent"), ("train", ""),
        ("watch", ""), ("watch", ""),
    ]  # fmt: skip
    assert child("three", watching, val_decides=False) == [
        taught, taught, taught, ("watch", ""), nothing, ("train", ""), ("watch", ""), ("watch", ""),
    ]  # fmt: skip


def test_what_nobody_knows_is_named(tmp_path: Path, pairs: Path) -> None:
    older = go(pairs, tmp_path, "older")
    (older / TRAINED_ON).unlink()
    receipt = read_json(older / "receipt.json", what="receipt")
    del receipt["trained_on"]
    write_json(older / "receipt.json", receipt)
    assert read_trained_on(older) is None
    middle = go(pairs, tmp_path, "middle", model={**SMALL_MODEL, "pretrained": "older"})
    found = read_trained_on(middle)
    assert found is not None and found.unknown == ("model.pretrained older",)
    young = go(pairs, tmp_path, "young", model={**SMALL_MODEL, "pretrained": "middle"})
    found = read_trained_on(young)
    assert found is not None
    assert found.unknown == ("model.pretrained middle < model.pretrained older",)


def test_foreign_weights_are_named(tmp_path: Path) -> None:
    architecture = {
        **SMALL_MODEL["architecture"],
        "vision_cfg": {
            **SMALL_MODEL["architecture"]["vision_cfg"], "timm_model_pretrained": True,
        },
    }  # fmt: skip
    model = ModelSettings.model_validate(
        {"architecture": architecture, "pretrained": "laion2b_s34b_b79k"}
    )
    found = find_ancestors(model, teacher="ViT-B-32/openai", root=tmp_path)
    assert found == (
        Ancestor("model.pretrained laion2b_s34b_b79k", None),
        Ancestor("train.loss.teacher ViT-B-32/openai", None),
        Ancestor("vision_cfg: timm's weights of test_resnet", None),
    )
    assert (
        find_ancestors(ModelSettings.model_validate(SMALL_MODEL), teacher=None, root=tmp_path) == ()
    )


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _other_format(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"coembed": json.dumps({"format": 9})}), path)


def _other_columns(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns(["hash"]), path)


@pytest.mark.parametrize(
    ("damage", "with_receipt", "message"),
    [
        (Path.unlink, True, r"trained_on.parquet is missing, but the model's receipt names it"),
        (_cut, True, r"is not the record of the training data that the model's receipt names"),
        (_cut, False, r"trained_on.parquet is not a record of training data: "),
        (_other_format, False, r"has format 9; this coembed reads 1"),
        (_other_columns, False, r"is not a record of training data: its columns are item_id, mod"),
        (lambda path: path.write_bytes(b""), False, r"is not a record of training data: "),
    ],
)
def test_a_damaged_record_is_told(
    tmp_path: Path, pairs: Path, damage: Any, with_receipt: bool, message: str
) -> None:
    model = record(tmp_path / "model", pairs)
    if with_receipt:
        write_json(model / "receipt.json", {"trained_on": sha256_file(model / TRAINED_ON)})
    assert read_trained_on(model) is not None
    damage(model / TRAINED_ON)
    with pytest.raises(ModelError, match=message):
        read_trained_on(model)


def test_training_from_a_damaged_record_stops_before_it_starts(tmp_path: Path, pairs: Path) -> None:
    first = go(pairs, tmp_path, "first")
    _cut(first / TRAINED_ON)
    with pytest.raises(ModelError, match="that the model's receipt names"):
        go(pairs, tmp_path, "second", model={**SMALL_MODEL, "pretrained": "first"})
    assert not (tmp_path / "second").exists()


def test_a_model_without_a_record_is_unknown(tmp_path: Path) -> None:
    assert read_trained_on(tmp_path) is None
    shutil.rmtree(tmp_path)
    assert read_trained_on(tmp_path) is None
