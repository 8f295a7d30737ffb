"""The embed stage on real shards with a real model, killed in real processes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
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

from coembed.errors import DataError, ModelError, ServiceError
from coembed.files import sha256_file
from coembed.models.encoder import Encoder, load_encoder
from coembed.pairs.shards import read_samples
from coembed.stages import embed

_TESTS = str(Path(__file__).resolve().parents[2])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embed") / "pairs"
    splits = {"train": catalogue(90, seed=1), "val": [], "test": catalogue(40, seed=2)}
    return write_pairs(folder, **splits)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("embed") / "model")


def run(tmp_path: Path, model: Path, pairs: Path, **settings: Any) -> dict[str, Any]:
    cfg = make_config(embed=settings)
    out, runs = tmp_path / "out", tmp_path / "runs"
    embed.run(cfg, model=model, pairs=pairs, out=out, runs=runs)
    return json.loads((out / "receipt.json").read_text())


def test_embeddings_are_the_encoder_s(tmp_path: Path, pairs: Path, model: Path) -> None:
    receipt = run(tmp_path, model, pairs)
    tables = [pq.read_table(tmp_path / "out" / part["file"]) for part in receipt["parts"]]
    vectors = np.concatenate(
        [t["vector"].combine_chunks().flatten().to_numpy().reshape(-1, 32) for t in tables]
    )
    samples = [sample for split in ("train", "test") for sample in read_samples(pairs, split)]
    ids = [item for table in tables for item in table["item_id"].to_pylist()]
    assert ids == [sample.item_id for sample in samples]
    encoder = load_encoder(model, device="cpu", batch_size=1)
    expected = encoder.encode_images([sample.media for sample in samples])
    assert vectors == pytest.approx(expected, abs=1e-5)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    splits = [split for table in tables for split in table["split"].to_pylist()]
    assert splits == ["train"] * 90 + ["test"] * 40


def test_receipt_and_what_is_left_behind(tmp_path: Path, pairs: Path, model: Path) -> None:
    receipt = run(tmp_path, model, pairs)
    assert receipt["num_items"] == 130 and receipt["dim"] == 32 and receipt["unreadable"] == []
    assert receipt["fingerprint"] == load_encoder(model, device="cpu").fingerprint
    assert [part["num_items"] for part in receipt["parts"]] == [16] * 8 + [2]
    for part in receipt["parts"]:
        assert sha256_file(tmp_path / "out" / part["file"]) == part["sha256"]
    assert list((tmp_path / "runs" / "embed").iterdir()) == []
    for name, data in tree_bytes(tmp_path / "out").items():
        assert str(tmp_path).encode() not in data, name


def test_only_the_splits_that_are_asked_for(tmp_path: Path, pairs: Path, model: Path) -> None:
    assert run(tmp_path, model, pairs, splits=["test"])["num_items"] == 40


def test_unreadable_items_are_in_the_receipt(tmp_path: Path, model: Path) -> None:
    samples = catalogue(20, seed=3)
    samples[7] = replace(samples[7], media=samples[7].media[: len(samples[7].media) // 2])
    receipt = run(tmp_path, model, write_pairs(tmp_path / "pairs", train=samples))
    assert receipt["num_items"] == 19
    (lost,) = receipt["unreadable"]
    assert (lost["item_id"], lost["path"]) == (samples[7].item_id, samples[7].path)
    assert "cut short" in lost["reason"] and "image 0" not in lost["reason"]


def test_nothing_to_embed(tmp_path: Path, pairs: Path, model: Path) -> None:
    with pytest.raises(DataError, match="no corpus"):
        run(tmp_path, model, pairs, splits=["val"])
    damaged = [replace(sample, media=b"none") for sample in catalogue(3, seed=3)]
    with pytest.raises(DataError, match=f"none of the 3 items.*{damaged[0].path}"):
        run(tmp_path, model, write_pairs(tmp_path / "pairs", train=damaged))
    unheard = [replace(sample, modality="audio") for sample in catalogue(3, seed=3)]
    with pytest.raises(DataError, match="is of modality image, all are of audio: no corpus"):
        run(tmp_path, model, write_pairs(tmp_path / "sounds", train=unheard))
    assert not (tmp_path / "out").exists()


def test_two_at_once_are_refused(tmp_path: Path, pairs: Path, model: Path) -> None:
    plain = Encoder.encode
    refused = []

    def second(self: Encoder, modality: str, items: Sequence[bytes]) -> np.ndarray:
        if not refused:
            refused.append(None)
            with pytest.raises(ServiceError, match="another process is embedding this very corpus"):
                run(tmp_path, model, pairs)
        return plain(self, modality, items)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "encode", second)
        assert run(tmp_path, model, pairs)["num_items"] == 130
    assert refused


def test_what_the_model_has_no_tower_for_is_left_out_and_said(tmp_path: Path, model: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", train=[*catalogue(5, seed=3), *sounds(2, seed=4)])
    cfg = make_config(embed={})
    result = embed.run(cfg, model=model, pairs=pairs, out=tmp_path / "o", runs=tmp_path / "r")
    rows = dict(result.rows)
    assert rows["items"] == "5"
    assert rows["  audio, left out"] == "2 (the model has no audio tower)"
    with pytest.raises(ModelError, match="names audio, but the model encodes image and text only"):
        run(tmp_path, model, pairs, modalities=["image", "audio"])


def test_pictures_and_sounds_go_through_their_own_towers(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", settings=THREE_TOWERS)
    pictures, heard = catalogue(20, seed=3), sounds(20, seed=4)
    heard[7] = replace(heard[7], media=heard[7].media[:-50])
    mixed = [sample for pair in zip(heard, pictures, strict=True) for sample in pair]
    pairs = write_pairs(tmp_path / "pairs", train=mixed)
    cfg = make_config(embed={})
    out, runs = tmp_path / "out", tmp_path / "runs"
    result = embed.run(cfg, model=model, pairs=pairs, out=out, runs=runs)
    rows = dict(result.rows)
    assert (rows["items"], rows["  image"], rows["  audio"]) == ("39", "20", "19")
    (lost,) = result.receipt["unreadable"]
    assert lost["path"] == heard[7].path and lost["reason"].startswith("not a readable sound")
    table = pq.read_table(sorted(out.glob("part-*.parquet")))
    readable = [sample for sample in mixed if sample is not heard[7]]
    assert table["item_id"].to_pylist() == [sample.item_id for sample in readable]
    assert table["modality"].to_pylist() == [sample.modality for sample in readable]
    encoder = load_encoder(model, device="cpu", batch_size=1)
    for row, sample in zip(table["vector"].to_pylist(), readable, strict=True):
        assert row == pytest.approx(encoder.encode(sample.modality, [sample.media])[0], abs=1e-5)
    cfg = make_config(embed={"modalities": ["audio"]})
    result = embed.run(cfg, model=model, pairs=pairs, out=tmp_path / "sounds", runs=runs)
    rows = dict(result.rows)
    assert (rows["items"], rows["  image, left out"]) == ("19", "20 (embed.modalities)")


def test_diverged_model(tmp_path: Path, pairs: Path) -> None:
    with pytest.raises(ModelError, match="not finite"):
        run(tmp_path, write_model(tmp_path / "model", poison=True), pairs)


_CHILD = """
import sys
import time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from evaluated_pairs import make_config
from coembed.models.encoder import Encoder
from coembed.stages import embed

plain = Encoder.encode
def slow(self, modality, items):
    time.sleep(0.1)  # or it is over before it can be killed
    return plain(self, modality, items)
Encoder.encode = slow
model, pairs, out, runs = map(Path, sys.argv[2:6])
embed.run(make_config(embed={}), model=model, pairs=pairs, out=out, runs=runs)
"""


def test_killed_at_random_it_ends_in_the_same_bytes(
    tmp_path: Path, pairs: Path, model: Path
) -> None:
    run(tmp_path / "whole", model, pairs)
    out, runs = tmp_path / "killed" / "out", tmp_path / "killed" / "runs"
    paths = [str(path) for path in (model, pairs, out, runs)]
    chance = random.Random(time.time_ns())
    num_parts, moment = chance.randint(1, 6), chance.uniform(0, 0.15)
    child = subprocess.Popen([sys.executable, "-c", _CHILD, _TESTS, *paths])
    while len(list(runs.glob("embed/*/part-*.parquet"))) < num_parts:
        assert child.poll() is None
        time.sleep(0.005)
    time.sleep(moment)
    child.kill()
    assert child.wait() == -9, "was over before it was killed"
    assert not out.exists()
    cfg = make_config(embed={})
    result = embed.run(cfg, model=model, pairs=pairs, out=out, runs=runs)
    resumed = int(dict(result.rows)["parts"].split("(")[1].split()[0])
    assert num_parts <= resumed + 1  # its receipt may have been missing yet
    said = f"killed {moment:.3f} s after part {num_parts}"
    assert tree_bytes(out) == tree_bytes(tmp_path / "whole" / "out"), said
    assert list((runs / "embed").iterdir()) == []
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["out", "runs"]
