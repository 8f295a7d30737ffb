"""Data and lineage, as the report tells of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluated_pairs import catalogue, write_model, write_pairs
from training_pairs import SMALL_MODEL

from coembed.errors import DataError, ModelError
from coembed.evaluation.origins import Origins, SplitRow, read_origins
from coembed.files import sha256_file, write_json, write_receipt
from coembed.models.build import build_model
from coembed.models.checkpoint import read_card, save_model
from coembed.models.settings import ModelSettings


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs", train=catalogue(9, seed=1), test=catalogue(4, seed=2))


def read(model: Path, pairs: Path) -> Origins:
    return read_origins(
        model=model, pairs=pairs, split="test", evaluation_set="e" * 64, fingerprint="f" * 64
    )


def trained(tmp_path: Path, pairs: Path) -> Path:
    folder = tmp_path / "trained"
    folder.mkdir()
    model, spec = build_model(ModelSettings.model_validate(SMALL_MODEL), seed=1)
    identity = {"pairs": sha256_file(pairs / "receipt.json"), "code": "c" * 64, "seed": 3}
    save_model(folder, model, spec, identity)
    counts = {"image": 9, "audio": 2000}
    write_receipt(folder, {"num_items_by_modality": counts, "num_steps": 1200, "batch_size": 64})
    return folder


def test_what_is_known_is_told(tmp_path: Path, pairs: Path) -> None:
    write_json(
        pairs / "summary.json",
        {
            "num_pairs": 2000,
            "num_kept": 1900,
            "modalities": {
                "audio": {"num_pairs": 500, "num_kept": 450},
                "image": {"num_pairs": 1500, "num_kept": 1450},
            },
            "dropped": {"blank_image": 40, "truncated": 60, "near_duplicate": 0},
            "splits": {"train": {"num_items": 9, "num_captions": 18}},
        },
    )
    model = trained(tmp_path, pairs)
    origins = read(model, pairs)
    assert origins.sentences == (
        "The pool held 2,000 pairs; 1,900 of them were kept (1,450 of 1,500 with images and 450 of "
        "500 with sounds).",
        "Dropped most often for: truncated 60, blank image 40.",
        "The model was trained on 9 images and 2,000 sounds: 1,200 optimiser steps of 64 pairs.",
        "Its training pairs and the evaluated ones come from one and the same curation.",
    )
    assert origins.splits == (
        SplitRow("train", 9, 18, "training"),
        SplitRow("val", 0, None, "watching the training"),
        SplitRow("test", 4, None, "this evaluation"),
    )
    assert dict(origins.lineage) == {
        "embedding space (fingerprint)": "f" * 64,
        "weights (SHA-256)": read_card(model).weights_sha256,
        "evaluation set": "e" * 64,
        "training pairs (receipt)": sha256_file(pairs / "receipt.json"),
        "training code": "c" * 64,
        "seed": "3",
    }


def test_other_pairs_are_told_apart(tmp_path: Path, pairs: Path) -> None:
    model = trained(tmp_path, pairs)
    other = write_pairs(tmp_path / "other", test=catalogue(5, seed=9))
    assert read(model, other).sentences[-1] == (
        "Its training pairs come from another curation than the evaluated ones."
    )


def test_what_is_not_there_is_left_out(tmp_path: Path, pairs: Path) -> None:
    origins = read(write_model(tmp_path / "model"), pairs)
    assert origins.sentences == ()
    assert [label for label, _ in origins.lineage] == [
        "embedding space (fingerprint)", "weights (SHA-256)", "evaluation set",
    ]  # fmt: skip


def test_what_is_damaged_is_named(tmp_path: Path, pairs: Path) -> None:
    model = write_model(tmp_path / "model")
    (pairs / "summary.json").write_text("{")
    with pytest.raises(DataError, match=r"summary of the pairs at .*summary.json cannot be read"):
        read(model, pairs)
    (pairs / "summary.json").write_text(json.dumps({}))
    (model / "model.json").write_text("{}")
    with pytest.raises(ModelError, match="not the description of a coembed model"):
        read(model, pairs)
