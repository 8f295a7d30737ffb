"""The whole curation: faults found, nothing lost, the same bytes whatever the workers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from curation_pools import faulty_pool, picture, sound

from coembed.curation import database, engine, pack, rows_table
from coembed.curation.engine import curate
from coembed.curation.settings import CurateSettings
from coembed.curation.split import hash_fraction
from coembed.curation.summary import Summary
from coembed.errors import DataError
from coembed.files import read_json, sha256_tree
from coembed.pairs.pool import open_pool
from coembed.pairs.shards import read_shard
from coembed.types import Sample


def _curate(pool: Path, out: Path, seed: int = 0, **settings: Any) -> Summary:
    """`out`'s neighbours `runs` and `overrides.csv` are the project's."""
    out.mkdir()
    return curate(
        open_pool(pool), out, CurateSettings.model_validate({"filters": FILTERS, **settings}),
        seed=seed, root=out.parent, runs=out.parent / "runs",
    )  # fmt: skip


FILTERS = [
    "readable", "aspect_ratio", "image_size", "caption_length", "repeated_caption",
    "exact_duplicate",
]  # fmt: skip


def _samples(out: Path) -> dict[str, Sample]:
    shards = sorted(out.glob("*.tar"))
    return {s.path: s for shard in shards for s in read_shard(shard, verify=True)}


def _pool(folder: Path, rows: list[dict[str, Any]], media: dict[str, bytes]) -> Path:
    for path, data in media.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    (folder / "pairs").mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(folder / "pairs" / "a.parquet")
    return folder


def test_every_fault_is_dropped_for_its_reason_and_nothing_else_is(tmp_path: Path) -> None:
    faults = faulty_pool(tmp_path / "pool")
    summary = _curate(tmp_path / "pool", tmp_path / "out")
    manifest = pd.read_parquet(tmp_path / "out" / "manifest.parquet")
    assert len(manifest) == summary.num_pairs == 53
    dropped = manifest[~manifest["kept"]]
    assert dict(zip(dropped["path"], dropped["drop_reason"], strict=True)) == faults
    assert (dropped["drop_detail"].str.len() > 0).all()
    assert manifest[manifest["kept"]]["drop_reason"].isna().all()
    assert summary.num_kept == 40 and sum(summary.dropped.values()) == 13
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.suffix != ".tar") == [
        "manifest.parquet",
        "summary.json",
    ]


def test_the_manifest_says_all_it_knows(tmp_path: Path) -> None:
    faulty_pool(tmp_path / "pool")
    _curate(tmp_path / "pool", tmp_path / "out")
    manifest = pd.read_parquet(tmp_path / "out" / "manifest.parquet").set_index("path")
    assert list(manifest.reset_index().columns) == [
        "path", "pair_id", "caption", "modality", "item_id", "kept", "drop_reason", "drop_detail",
        "duplicate_of", "decided_by", "split", "split_reason", "doubt", "doubt_by", "num_bytes",
        "format", "width_px", "height_px", "colour_mode", "num_frames", "duration_s",
        "sample_rate_hz", "num_channels", "caption_num_items", "repeated_caption_doubt", "shop",
        "price",
    ]  # fmt: skip
    copy = manifest.loc["media/zcopy.jpg"]
    assert copy["duplicate_of"] == manifest.loc["media/good0.jpg", "pair_id"]
    assert copy["item_id"] == manifest.loc["media/good0.jpg", "item_id"]
    assert "same bytes as media/good0.jpg" in copy["drop_detail"]
    assert manifest.loc["media/tiny.png", ["width_px", "height_px"]].tolist() == [12, 40]
    assert manifest.loc["media/tiny.png", "drop_detail"] == "width 12 px < 32 px"
    assert pd.isna(manifest.loc["media/lost.jpg", "item_id"])
    assert pd.isna(manifest.loc["media/lost.jpg", "num_bytes"])
    assert manifest.loc["media/good8.jpg", "price"] == 2.0


def test_items_get_all_their_captions_and_attributes(tmp_path: Path) -> None:
    faulty_pool(tmp_path / "pool")
    summary = _curate(tmp_path / "pool", tmp_path / "out")
    manifest = pd.read_parquet(tmp_path / "out" / "manifest.parquet")
    samples = _samples(tmp_path / "out")
    assert len(samples) == summary.num_items == 40
    assert samples["media/good0.jpg"].captions == ("caption of good0.jpg",)
    both = samples["media/good1.jpg"]
    assert both.captions == ("caption of good1.jpg", "the other caption")
    ids = manifest.set_index("pair_id")["path"]
    assert [ids[i] for i in both.pair_ids] == ["media/good1.jpg", "media/zother.jpg"]
    assert both.attributes == {"shop": 1.0, "price": 0.25}
    assert both.extension == "jpg" and both.media == picture(1)
    assert summary.num_captions == 41 and summary.num_captions_joined == 1


def test_outputs_do_not_depend_on_workers_or_on_a_second_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty_pool(tmp_path / "pool")
    monkeypatch.setattr(engine, "_FEW_ROWS", 0)

    def run(name: str, seed: int = 0, **settings: Any) -> str:
        _curate(tmp_path / "pool", tmp_path / name, seed, shards={"max_samples": 6}, **settings)
        return sha256_tree(tmp_path / name)

    one = run("one", num_workers=1)
    assert len(list((tmp_path / "one").glob("train-*.tar"))) > 3
    shutil.rmtree(tmp_path / "runs")
    assert run("two", num_workers=2) == one
    # With what the last run left in runs/; with lots of rows and database batches of other sizes
    # than a pool of 53 rows would ever meet.
    for module, name in ((rows_table, "BATCH_ROWS"), (database, "BATCH_ROWS")):
        monkeypatch.setattr(module, name, 7)
    monkeypatch.setattr(pack, "_CHUNK", 11)
    assert run("three") == one
    assert run("four", seed=1) != one


def test_what_filters_say_of_the_pool_is_printed_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faulty_pool(tmp_path / "pool")
    filters = ["readable", "mismatched_pair"]
    said: list[dict[str, list[str]]] = []
    for name, num_workers in (("one", 1), ("two", 2)):  # the second with the first one's caches
        summary = _curate(
            tmp_path / "pool", tmp_path / name, filters=filters, num_workers=num_workers
        )
        kept = read_json(tmp_path / name / "summary.json", what="summary")
        assert isinstance(kept, dict)
        said.append(kept["notes"])
        ((only, (note,)),) = summary.notes.items()
        assert only == "mismatched_pair" and "are too few to learn from" in note
        assert f"mismatched_pair: {note}\n" in capsys.readouterr().err
        assert kept["notes"] == {only: [note]}
    assert said[0] == said[1]


def test_row_groups_of_the_manifest_fit_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty_pool(tmp_path / "pool")
    _curate(tmp_path / "pool", tmp_path / "one")
    monkeypatch.setattr("coembed.curation.manifest.group_rows", lambda _: 10)
    monkeypatch.setattr(database, "BATCH_ROWS", 3)
    _curate(tmp_path / "pool", tmp_path / "two")
    one, two = (pd.read_parquet(tmp_path / n / "manifest.parquet") for n in ("one", "two"))
    pd.testing.assert_frame_equal(one, two)
    assert pq.ParquetFile(tmp_path / "two" / "manifest.parquet").num_row_groups == 6


def test_nothing_is_lost_between_pool_manifest_and_shards(tmp_path: Path) -> None:
    faulty_pool(tmp_path / "pool")
    summary = _curate(tmp_path / "pool", tmp_path / "out", split={"group_by": ["shop"]})
    manifest = pd.read_parquet(tmp_path / "out" / "manifest.parquet")
    in_shards = [i for s in _samples(tmp_path / "out").values() for i in s.pair_ids]
    assert len(set(in_shards)) == len(in_shards) == summary.num_captions
    assert set(in_shards) == set(manifest[manifest["split"].notna()]["pair_id"])
    kept = manifest[manifest["kept"]]
    assert set(kept["pair_id"]) <= set(in_shards)
    # No shop is in two splits.
    assert (kept.groupby("shop")["split"].nunique() == 1).all()
    counts = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert counts["num_dropped"] + counts["num_kept"] == counts["num_pairs"]
    assert counts["num_dropped"] == sum(counts["dropped"].values())
    assert sum(s["num_captions"] for s in counts["splits"].values()) == counts["num_captions"]


def test_a_picture_in_train_and_test_is_tested_only(tmp_path: Path) -> None:
    media = {f"media/{i}.jpg": picture(i) for i in range(12)} | {"media/copy.jpg": picture(3)}
    rows = [{"path": p, "caption": f"a caption {i}", "split": "train"} for i, p in enumerate(media)]
    rows[-1]["split"] = "test"
    _pool(tmp_path / "pool", rows, media)
    _curate(tmp_path / "pool", tmp_path / "out")
    manifest = pd.read_parquet(tmp_path / "out" / "manifest.parquet").set_index("path")
    for path, reason in (("media/3.jpg", "group"), ("media/copy.jpg", "given")):
        assert manifest.loc[path, ["split", "split_reason"]].tolist() == ["test", reason]
    assert (manifest["split"] == "train").sum() == 11


def test_several_captions_of_one_file_are_one_item_in_order(tmp_path: Path) -> None:
    media = {f"media/{i}.jpg": picture(i) for i in range(4)}
    rows = [{"path": p, "caption": f"caption {c} of {p}"} for c in range(5) for p in media]
    _pool(tmp_path / "pool", rows, media)
    summary = _curate(tmp_path / "pool", tmp_path / "out")
    assert (summary.num_kept, summary.num_items) == (20, 4)
    for path, sample in _samples(tmp_path / "out").items():
        assert sample.captions == tuple(f"caption {c} of {path}" for c in range(5))


def test_audio_passes_through(tmp_path: Path) -> None:
    media = {f"media/{i}.wav": sound(i) for i in range(12)}
    rows = [{"path": p, "caption": f"the sound {i}"} for i, p in enumerate(media)]
    _pool(tmp_path / "pool", rows, media)
    summary = _curate(tmp_path / "pool", tmp_path / "out")
    assert summary.num_kept == 12
    table = pd.read_parquet(tmp_path / "out" / "manifest.parquet")
    facts = table[["format", "duration_s", "sample_rate_hz", "num_channels"]]
    assert facts.drop_duplicates().to_numpy().tolist() == [["WAV", 0.5, 8000, 1]]
    sample = _samples(tmp_path / "out")["media/3.wav"]
    assert (sample.modality, sample.extension, sample.media) == (
        "audio",
        "wav",
        media["media/3.wav"],
    )


def test_odd_rows_are_dropped_not_fatal(tmp_path: Path) -> None:
    media = {f"media/{i}.jpg": picture(i) for i in range(12)}
    rows: list[dict[str, Any]] = [
        {"path": p, "caption": f"caption {i}", "pair_id": f"id{i}", "modality": None}
        for i, p in enumerate(media)
    ]
    rows[4]["pair_id"] = "id3"
    rows[5]["path"] = None
    rows[6]["modality"] = "smell"
    rows[7]["path"] = "/etc/passwd"
    rows[8]["path"] = "media"
    rows[9]["path"] = "media/0.jpg/x"
    rows[10]["path"] = "media/" + "x" * 300
    _pool(tmp_path / "pool", rows, media)
    _curate(tmp_path / "pool", tmp_path / "out", min_pairs=3, max_media_bytes=10**6)
    manifest = pd.read_parquet(tmp_path / "out" / "manifest.parquet")
    assert manifest["drop_reason"].fillna("-").tolist() == [
        "-", "-", "-", "-", "repeated_pair_id", "missing_path", "unknown_modality",
        "path_outside_pool", "not_a_file", "missing_file", "unreadable_file", "-",
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"file_too_large dropped \d+, first media/"):
        _curate(tmp_path / "pool", tmp_path / "tight", max_media_bytes=100, min_pairs=1)


def test_columns_called_like_the_manifests_own_are_renamed(tmp_path: Path) -> None:
    media = {f"media/{i}.jpg": picture(i) for i in range(12)}
    rows = [
        {"path": p, "caption": f"caption {i}", "kept": "by us", "pool_kept": i}
        for i, p in enumerate(media)
    ]
    _pool(tmp_path / "pool", rows, media)
    _curate(tmp_path / "pool", tmp_path / "out")
    manifest = pd.read_parquet(tmp_path / "out" / "manifest.parquet")
    assert manifest["kept"].all() and (manifest["pool_kept"] == "by us").all()
    assert manifest["pool_pool_kept"].tolist() == list(range(12))


def test_columns_that_sql_cannot_tell_apart_stay_apart(tmp_path: Path) -> None:
    media = {f"media/{i}.jpg": picture(i) for i in range(40)}
    hostile = 'x"; DROP TABLE rows; --'
    rows = [
        {
            "path": p, "caption": f"caption {i}", "Maker": f"m{i % 4}", "maker": f"own {i}",
            "row": i, hostile: i % 2 == 0, "a0": float("inf") if i == 3 else i / 2,
        }
        for i, p in enumerate(media)
    ]  # fmt: skip
    _pool(tmp_path / "pool", rows, media)
    split = {"group_by": ["Maker", "maker"], "val": 0.3, "test": 0.3}
    _curate(tmp_path / "pool", tmp_path / "out", split=split)
    table = pd.read_parquet(tmp_path / "out" / "manifest.parquet")
    assert table.columns.tolist()[-5:] == ["Maker", "maker", "row", hostile, "a0"]
    assert (table.groupby("Maker")["split"].nunique() == 1).all() and table["kept"].all()
    keys = {m: hash_fraction(0, f"Maker={m}") for m in table["Maker"].unique()}
    places = {m: "test" if u < 0.3 else "val" if u < 0.6 else "train" for m, u in keys.items()}
    assert dict(zip(table["Maker"], table["split"], strict=True)) == places
    sample = _samples(tmp_path / "out")["media/3.jpg"]
    assert sample.attributes == {"Maker": "m3", "maker": "own 3", "row": 3, hostile: False}


def test_too_little_left_says_what_took_most(tmp_path: Path) -> None:
    media = {f"media/{i}.jpg": b"<html>" for i in range(8)}
    rows = [{"path": p, "caption": f"caption of {p}"} for p in media]
    _pool(tmp_path / "pool", rows, media)
    with pytest.raises(DataError) as caught:
        _curate(tmp_path / "pool", tmp_path / "out")
    text = str(caught.value)
    assert "of 8 pairs 0 are kept, fewer than 10" in text
    assert "unreadable dropped 8, first media/0.jpg: an HTML page, not a picture" in text
    assert "curate.min_pairs" in text


def test_no_training_pair_is_an_error(tmp_path: Path) -> None:
    media = {f"media/{i}.jpg": picture(i) for i in range(12)}
    rows = [{"path": p, "caption": f"caption of {p}", "split": "test"} for p in media]
    _pool(tmp_path / "pool", rows, media)
    with pytest.raises(DataError, match="none of the 12 kept pairs is in the train split"):
        _curate(tmp_path / "pool", tmp_path / "out")


def test_an_unknown_group_column_is_an_error(tmp_path: Path) -> None:
    faulty_pool(tmp_path / "pool")
    with pytest.raises(DataError, match="names 'product', but the pool has 'shop', 'price'"):
        _curate(tmp_path / "pool", tmp_path / "out", split={"group_by": ["product"]})


def test_a_file_that_changes_under_way_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty_pool(tmp_path / "pool")
    plan = engine.plan_shards

    def changed(*arguments: Any, **further: Any) -> Any:
        (tmp_path / "pool" / "media" / "good7.jpg").write_bytes(picture(999))
        return plan(*arguments, **further)

    monkeypatch.setattr(engine, "plan_shards", changed)
    with pytest.raises(DataError, match=r"good7\.jpg changed while the pool was being curated"):
        _curate(tmp_path / "pool", tmp_path / "out")


def test_repeated_captions_are_dropped(tmp_path: Path) -> None:
    media = {f"media/{i}.jpg": picture(i) for i in range(40)}
    rows = [
        {"path": p, "caption": "Image may contain: product" if i % 4 == 0 else f"mug {i} red"}
        for i, p in enumerate(media)
    ]
    _pool(tmp_path / "pool", rows, media)
    filters = [
        "readable",
        {"name": "repeated_caption", "max_items": 5, "max_pool_share": 1},
        "exact_duplicate",
    ]
    summary = _curate(tmp_path / "pool", tmp_path / "out", filters=filters)
    assert summary.dropped["repeated_caption"] == 10 and summary.num_kept == 30


def test_an_item_outlives_the_drop_of_the_pair_its_copies_pointed_to(tmp_path: Path) -> None:
    """exact_duplicate listed before a filter that drops the owner: another pair takes over."""
    media = {f"media/{i}.jpg": picture(i) for i in range(30)} | {"media/z.jpg": picture(0)}
    rows = [
        {"path": p, "caption": "boilerplate text" if i < 12 else f"mug {i}"}
        for i, p in enumerate(media)
    ]
    rows.insert(1, {"path": "media/0.jpg", "caption": "my own words"})
    _pool(tmp_path / "pool", rows, media)
    filters = ["exact_duplicate", {"name": "repeated_caption", "max_items": 5, "max_pool_share": 1}]
    _curate(tmp_path / "pool", tmp_path / "out", filters=filters)
    assert _samples(tmp_path / "out")["media/0.jpg"].captions == ("my own words", "mug 30")
