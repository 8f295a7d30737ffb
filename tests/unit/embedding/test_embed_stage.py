"""The embed stage on real shards with a real model, killed in real processes."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from os import link as os_link
from pathlib import Path
from typing import Any

import grimp
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from evaluated_pairs import (
    THREE_TOWERS,
    catalogue,
    encode_sound,
    make_config,
    make_noise,
    sounds,
    tree_bytes,
    write_model,
    write_pairs,
)

from coembed.cli import app
from coembed.code import code_hash
from coembed.embedding.settings import read_share
from coembed.errors import DataError, ModelError, ServiceError, UserError
from coembed.files import sha256_bytes, sha256_file
from coembed.models.encoder import Encoder, load_encoder
from coembed.pairs.shards import read_samples
from coembed.stages import embed
from coembed.stages.result import Result
from coembed.types import Sample

CANARIES = [{"text": "red ring", "expect": {"colour": "red", "shape": "ring"}}]
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


def long_sounds(num: int, *, seed: int) -> list[Sample]:
    """Sounds of a quarter of a second to some seconds."""
    rng = np.random.default_rng(seed)
    samples = []
    for place, sample in enumerate(sounds(num, seed=seed)):
        noise = [make_noise("beep", "low", rng) for _ in range(1 + place % 4)]
        media = encode_sound(np.concatenate(noise))
        samples.append(replace(sample, media=media, item_id=sha256_bytes(media)))
    return samples


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
    for part in [*receipt["parts"], receipt["queries"], receipt["calibration"]]:
        assert sha256_file(tmp_path / "out" / part["file"]) == part["sha256"]
    # What waits for the next run is the corpus and no more.
    (waiting,) = (tmp_path / "runs" / "embed").iterdir()
    assert {path.name for path in waiting.iterdir()} == {"corpus", "lock"}
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
    plain = Encoder.bulk
    refused = []

    def second(self: Encoder, *args: Any, **options: Any) -> Any:
        if not refused:
            refused.append(None)
            with pytest.raises(ServiceError, match="another process is embedding with this very"):
                run(tmp_path, model, pairs)
        return plain(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "bulk", second)
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


def test_the_key_covers_the_code_that_makes_a_vector() -> None:
    """Vectors that wait are another code's where one of these changes."""
    made_by = grimp.build_graph("coembed").find_upstream_modules("coembed.models.encoder")
    rooms = {module.replace(".", "/").removeprefix("coembed/") for module in made_by}
    named = {room for room in rooms if room.startswith(("models/", "modalities/"))}
    covered = set(embed.ENCODER_CODE)
    assert {room for room in named if room.startswith("models/")} | {"models/encoder"} == {
        room for room in covered if room.startswith("models/")
    }
    assert "modalities" in covered
    assert code_hash(*embed.ENCODER_CODE) != code_hash(*embed.ENCODER_CODE[:-1])


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

plain = Encoder._start
def slow(*args):
    time.sleep(0.05)  # or it is over before it can be killed
    return plain(*args)
Encoder._start = slow
model, pairs, out, runs = map(Path, sys.argv[2:6])
embed.run(make_config(embed={}), model=model, pairs=pairs, out=out, runs=runs)
"""


def start(model: Path, pairs: Path, out: Path, runs: Path) -> subprocess.Popen[bytes]:
    paths = [str(path) for path in (model, pairs, out, runs)]
    return subprocess.Popen([sys.executable, "-c", _CHILD, _TESTS, *paths])


def num_forwards(run_it: Callable[[], Any]) -> int:
    """How many batches went through a tower."""
    plain, num = Encoder._start, 0

    def counted(self: Encoder, modality: str, batch: Any, *room: Any) -> Any:
        nonlocal num
        num += batch is not None
        return plain(self, modality, batch, *room)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "_start", counted)
        run_it()
    return num


def test_killed_at_random_it_ends_in_the_same_bytes(
    tmp_path: Path, pairs: Path, model: Path
) -> None:
    whole = num_forwards(lambda: run(tmp_path / "whole", model, pairs))
    out, runs = tmp_path / "killed" / "out", tmp_path / "killed" / "runs"
    chance = random.Random(time.time_ns())
    num_blocks, moment = chance.randint(1, 6), chance.uniform(0, 0.1)
    child = start(model, pairs, out, runs)
    while len(list(runs.glob("embed/*/block-*.parquet"))) < num_blocks:
        assert child.poll() is None
        time.sleep(0.005)
    time.sleep(moment)
    child.kill()
    assert child.wait() == -9, "was over before it was killed"
    assert not out.exists()
    cfg = make_config(embed={})
    again = num_forwards(lambda: embed.run(cfg, model=model, pairs=pairs, out=out, runs=runs))
    # A block of 16 is two batches; a batch more makes sure that what was there can be relied on.
    assert again <= whole - 2 * num_blocks + 1
    said = f"killed {moment:.3f} s after block {num_blocks}"
    assert tree_bytes(out) == tree_bytes(tmp_path / "whole" / "out"), said
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["out", "runs"]
    (waiting,) = (runs / "embed").iterdir()
    assert {path.name for path in waiting.iterdir()} == {"corpus", "lock", "proven-image"}


def test_killed_while_it_writes_out_and_while_it_keeps(
    tmp_path: Path, pairs: Path, model: Path
) -> None:
    """At each file operation of the end: whatever is there then, the next run ends the same."""
    run(tmp_path / "whole", model, pairs)
    expected = tree_bytes(tmp_path / "whole" / "out")
    for stop_at in (0, 1, 4, 8, 9, 12):  # among nine parts, then among the nine that are kept
        here = tmp_path / str(stop_at)
        calls = count()

        def stop(calls: Iterator[int] = calls, stop_at: int = stop_at) -> None:
            if next(calls) == stop_at:
                raise KeyboardInterrupt

        def link(source: Path, target: Path, stop: Callable[[], None] = stop) -> None:
            stop()
            os_link(source, target)

        def sha256(file: Path, stop: Callable[[], None] = stop) -> str:
            stop()
            return sha256_file(file)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("coembed.embedding.store.os.link", link)
            patch.setattr("coembed.embedding.parts.sha256_file", sha256)
            with pytest.raises(KeyboardInterrupt):
                run(here, model, pairs)
        assert (here / "out").exists() == (stop_at >= 9)
        again = num_forwards(lambda here=here: run(here, model, pairs))  # type: ignore[misc]
        assert again == 1  # only what makes sure
        assert tree_bytes(here / "out") == expected


def change(samples: list[Sample]) -> list[Sample]:
    """Two removed, one with other captions, one with other attributes, three new in between."""
    kept = [sample for place, sample in enumerate(samples) if place not in (3, 40)]
    kept[10] = replace(kept[10], captions=("something else", "and more"))
    kept[20] = replace(kept[20], attributes={**kept[20].attributes, "colour": "none"})
    new = catalogue(3, seed=77)
    return [*kept[:5], new[0], *kept[5:60], new[1], *kept[60:], new[2]]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_changed_corpus_costs_what_changed_and_ends_in_the_bytes_of_a_run_from_nothing(
    tmp_path: Path, model: Path, precision: str
) -> None:
    first = catalogue(90, seed=1)
    held_out = catalogue(40, seed=2)
    old = write_pairs(tmp_path / "old", train=first, val=held_out)
    new = write_pairs(tmp_path / "new", train=change(first), val=held_out)
    cfg = make_config(embed={"precision": precision, "canaries": CANARIES})

    def embed_at(name: str, pairs: Path) -> Result:
        here = tmp_path / name
        return embed.run(cfg, model=model, pairs=pairs, out=here / "out", runs=here / "runs")

    embed_at("one", old)
    shutil.rmtree(tmp_path / "one" / "out")  # as DVC does before a stage runs
    results: list[Result] = []
    # Three new ones and eight that make sure are two batches of eight.
    assert num_forwards(lambda: results.append(embed_at("one", new))) == 2
    (result,) = results
    rows = dict(result.rows)
    assert (rows["items"], rows["embedded in this run"]) == ("131", "3")
    assert rows["  new"] == "3" and rows["  unchanged"] == "126"
    assert rows["  changed captions or attributes only"] == "2"
    assert rows["  removed since the last corpus"] == "2"
    changes = {"new": 3, "unchanged": 126, "changed": 2, "removed": 2, "embedded": 3}
    assert result.receipt["changes"] == changes
    embed_at("two", new)
    assert tree_bytes(tmp_path / "one" / "out") == tree_bytes(tmp_path / "two" / "out")
    # And back: what was removed is embedded again, and everything is as it was.
    embed_at("one", old)
    embed_at("three", old)
    assert tree_bytes(tmp_path / "one" / "out") == tree_bytes(tmp_path / "three" / "out")
    # Nothing new, and what was kept was proven: no batch at all.
    assert num_forwards(lambda: embed_at("one", old)) == 0


def test_a_changed_corpus_of_pictures_and_sounds(tmp_path: Path) -> None:
    """Sounds of a quarter to eight quarters of a second, so of one to four windows."""
    model = write_model(tmp_path / "model", settings=THREE_TOWERS)
    heard = long_sounds(30, seed=4)
    old = write_pairs(tmp_path / "old", train=[*catalogue(20, seed=3), *heard])
    new = write_pairs(
        tmp_path / "new", train=[*catalogue(20, seed=3), *heard[7:], *long_sounds(5, seed=5)]
    )
    cfg = make_config(embed={})
    for name, pairs in (("one", old), ("one", new), ("two", new)):
        here = tmp_path / name
        result = embed.run(cfg, model=model, pairs=pairs, out=here / "out", runs=here / "runs")
        if name == "one":
            embedded = dict(result.rows)["embedded in this run"]
    assert embedded == "5"
    assert tree_bytes(tmp_path / "one" / "out") == tree_bytes(tmp_path / "two" / "out")


def test_killed_in_an_incremental_run(tmp_path: Path, model: Path) -> None:
    first = catalogue(40, seed=1)
    old = write_pairs(tmp_path / "old", train=first)
    new = write_pairs(tmp_path / "new", train=[*first[5:], *catalogue(120, seed=2)])
    out, runs = tmp_path / "out", tmp_path / "runs"
    cfg = make_config(embed={})
    embed.run(cfg, model=model, pairs=old, out=out, runs=runs)
    child = start(model, new, out, runs)
    while len(list(runs.glob("embed/*/block-*.parquet"))) < 2:
        assert child.poll() is None
        time.sleep(0.005)
    child.kill()
    assert child.wait() == -9, "was over before it was killed"
    result = embed.run(cfg, model=model, pairs=new, out=out, runs=runs)
    assert result.receipt["changes"]["new"] == 120 and result.receipt["changes"]["removed"] == 5
    assert result.receipt["changes"]["embedded"] <= 120 - 2 * 16
    run(tmp_path / "whole", model, new)
    assert tree_bytes(out) == tree_bytes(tmp_path / "whole" / "out")


def test_vectors_that_would_come_out_otherwise_now_are_not_relied_on(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other kernels, or a tower whose bits depend on the batch: everything is embedded again."""
    first = catalogue(40, seed=1)
    old = write_pairs(tmp_path / "old", train=first)
    new = write_pairs(tmp_path / "new", train=[*first, *catalogue(4, seed=2)])
    plain = Encoder._start

    def otherwise(*args: Any) -> Any:
        found = plain(*args)
        return None if found is None else torch.nextafter(found, torch.tensor(2.0))

    run(tmp_path, model, old)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "_start", otherwise)
        run(tmp_path, model, new)
        assert "another vector now; everything is embedded again" in capsys.readouterr().err
        run(tmp_path / "whole", model, new)
    assert tree_bytes(tmp_path / "out") == tree_bytes(tmp_path / "whole" / "out")


def test_a_damaged_store_is_embedded_again(
    tmp_path: Path, pairs: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, model, pairs)
    expected = tree_bytes(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    (part,) = (tmp_path / "runs").glob("embed/*/corpus/part-00003.parquet")
    data = bytearray(part.read_bytes())
    column = pq.ParquetFile(part).metadata.row_group(0).column(1)
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    part.write_bytes(data)
    run(tmp_path, model, pairs)
    assert "is damaged" in capsys.readouterr().err
    assert tree_bytes(tmp_path / "out") == expected


def test_vectors_of_a_few_models_wait(tmp_path: Path, model: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", train=catalogue(10, seed=1))
    models = [model, *(write_model(tmp_path / f"m{seed}", seed=seed) for seed in (1, 2, 3))]
    waiting: list[set[str]] = []
    for one in models:
        run(tmp_path, one, pairs)
        waiting.append({path.name for path in (tmp_path / "runs" / "embed").iterdir()})
    assert [len(names) for names in waiting] == [1, 2, 2, 2]
    assert waiting[1] & waiting[2] == waiting[1] - waiting[0]  # the oldest went
    run(tmp_path, models[3], pairs, kept_models=1)
    (only,) = (tmp_path / "runs" / "embed").iterdir()
    assert only.name in waiting[3] - waiting[2]


def test_shares_of_the_work_make_up_the_whole(tmp_path: Path, pairs: Path, model: Path) -> None:
    run(tmp_path / "whole", model, pairs)
    cfg, out, runs = make_config(embed={}), tmp_path / "out", tmp_path / "runs"

    def embed_share(*share: int) -> Result:
        return embed.run(cfg, model=model, pairs=pairs, out=out, runs=runs, share=share)  # type: ignore[arg-type]

    results = [embed_share(number, 3) for number in (3, 1, 2)]
    # Nine parts of 16, the last of two.
    assert [one.receipt["embedded"] for one in results] == [48 - 14, 48, 48]
    assert results[0].title == "Embedded share 3 of 3" and not out.exists()
    last: list[Result] = []
    # One batch of captions, for the queries.
    assert num_forwards(
        lambda: last.append(embed.run(cfg, model=model, pairs=pairs, out=out, runs=runs))
    ) == 1  # fmt: skip
    assert last[0].receipt["changes"]["embedded"] == 0
    assert tree_bytes(out) == tree_bytes(tmp_path / "whole" / "out")


def test_a_share_is_written_k_of_n() -> None:
    assert read_share("2/8") == (2, 8)
    for wrong in ("2", "2/", "/8", "a/8", "-1/8", "²/8"):
        with pytest.raises(UserError, match="expected K/N, such as 2/8"):
            read_share(wrong)
    for wrong in ("0/8", "9/8"):
        with pytest.raises(UserError, match="with K from 1 to N"):
            read_share(wrong)


def test_the_verb_embeds_a_share(
    tmp_path: Path, pairs: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = make_config(embed={}).model_dump(mode="json", by_alias=True)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    shutil.copytree(pairs, tmp_path / "artifacts" / "pairs")
    shutil.copytree(model, tmp_path / "artifacts" / "model")
    for command in (["--share", "1/2"], ["--share", "2/2"], []):
        app(["embed", "--project", str(tmp_path), "--json", *command], standalone_mode=False)
        said = json.loads(capsys.readouterr().out)
        assert (tmp_path / "artifacts" / "embeddings").exists() == (not command)
    assert said["num_items"] == 130 and said["changes"]["embedded"] == 0
