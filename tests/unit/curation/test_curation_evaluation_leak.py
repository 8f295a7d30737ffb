"""What is in an outside evaluation set goes, with the file's name in the detail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lookalike_pictures import copy_of, jpeg, photograph
from pydantic import ValidationError

from coembed.curation.engine import curate
from coembed.curation.filters.evaluation_leak import Settings
from coembed.curation.lookalikes.references import read_references
from coembed.curation.settings import CurateSettings
from coembed.errors import DataError
from coembed.pairs.pool import open_pool

Row = dict[str, Any]


def _write_pool(folder: Path, rows: Sequence[tuple[str, bytes, str]]) -> None:
    (folder / "media").mkdir(parents=True)
    (folder / "pairs").mkdir()
    for name, data, _ in rows:
        (folder / "media" / name).write_bytes(data)
    table = pa.table(
        {
            "pair_id": [name.partition(".")[0] for name, _, _ in rows],
            "path": [f"media/{name}" for name, _, _ in rows],
            "caption": [caption for _, _, caption in rows],
        }
    )
    pq.write_table(table, folder / "pairs" / "all.parquet")


def _curated(project: Path, *filters: str | dict[str, Any]) -> dict[str, Row]:
    out = project / f"out-{len(list(project.iterdir()))}"
    out.mkdir()
    chosen = CurateSettings.model_validate(
        {"filters": list(filters), "num_workers": 1, "min_pairs": 1}
    )
    curate(
        open_pool(project / "data"), out, chosen,
        seed=1, root=project, runs=project / "runs",
    )  # fmt: skip
    rows = pq.read_table(out / "manifest.parquet").to_pylist()
    return {row["pair_id"]: row for row in rows}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A pool of twelve pictures; the evaluation sets hold some of them, changed or not."""
    rows = [(f"p{seed}.jpg", jpeg(photograph(seed), 92), f"Picture {seed}") for seed in range(12)]
    rows.append(("sound.wav", b"RIFF0000WAVEnot really", "a sound"))
    _write_pool(tmp_path / "data", rows)
    outside = tmp_path / "data" / "evaluation"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "same.jpg").write_bytes(rows[0][1])
    (outside / "flipped.jpg").write_bytes(copy_of(photograph(1), "flipped", 0))
    (outside / "cropped.jpg").write_bytes(copy_of(photograph(2), "cropped", 0))
    (outside / "unlike.jpg").write_bytes(jpeg(photograph(3, thing=77)))
    (outside / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (outside / "notes.txt").write_text("not media")
    return tmp_path


def test_drops_equal_bytes_and_near_duplicates(project: Path) -> None:
    manifest = _curated(project, {"name": "evaluation_leak", "against": ["evaluation"]})
    dropped = {name: row["drop_detail"] for name, row in manifest.items() if not row["kept"]}
    assert set(dropped) >= {"p0", "p1", "p2"}
    assert set(dropped) <= {"p0", "p1", "p2", "sound"}
    assert dropped["p0"] == "same bytes as evaluation/deep/same.jpg"
    assert dropped["p1"].startswith("the picture of evaluation/flipped.jpg again: likeness 0.9")
    assert "evaluation/cropped.jpg" in dropped["p2"]
    assert {manifest[name]["drop_reason"] for name in ("p0", "p1", "p2")} == {"in_evaluation_set"}
    assert manifest["p1"]["evaluation_leak_score"] > 0.9
    assert manifest["p1"]["duplicate_of"] is None


def test_works_beside_near_duplicate(project: Path) -> None:
    alone = _curated(project, {"name": "evaluation_leak", "against": ["evaluation"]})
    both = _curated(
        project, {"name": "evaluation_leak", "against": ["evaluation"]}, "near_duplicate"
    )
    assert {n: r["drop_detail"] for n, r in alone.items()} == {
        n: r["drop_detail"] for n, r in both.items()
    }


def test_the_whole_picture_is_found_where_the_pool_has_the_crop(project: Path) -> None:
    whole = project / "heldout"
    whole.mkdir()
    (whole / "whole.jpg").write_bytes(jpeg(photograph(20)))
    crop = copy_of(photograph(20), "cropped", 3)
    (project / "data" / "media" / "p5.jpg").write_bytes(crop)
    # Relative to the project's folder, because the pool has none of that name.
    manifest = _curated(project, {"name": "evaluation_leak", "against": ["heldout"]})
    assert [n for n, row in manifest.items() if row["drop_reason"] == "in_evaluation_set"] == ["p5"]


def test_a_pool_with_captions(project: Path) -> None:
    rows = [
        ("x.jpg", jpeg(photograph(30)), "picture   4"),
        ("y.jpg", jpeg(photograph(6), 92), "something else"),
        ("z.jpg", jpeg(photograph(31)), ""),
    ]
    _write_pool(project / "data" / "benchmark", rows)
    setting = {"name": "evaluation_leak", "against": ["benchmark"]}
    plain = _curated(project, setting)
    assert [n for n, row in plain.items() if row["drop_reason"] == "in_evaluation_set"] == ["p6"]
    told = _curated(project, {**setting, "captions": True})
    dropped = {
        n: row["drop_detail"]
        for n, row in told.items()
        if row["drop_reason"] == "in_evaluation_set"
    }
    assert dropped == {
        "p4": "the caption of pair x of benchmark",
        "p6": "same bytes as benchmark/media/y.jpg",
    }


def test_what_is_not_there_is_said(project: Path) -> None:
    bases = (project / "data", project)
    with pytest.raises(DataError, match=r"no folder 'evaluations' in .*data or "):
        read_references(("evaluations",), bases, map)
    (project / "data" / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no media files"):
        read_references(("empty",), bases, map)
    _write_pool(project / "data" / "gone", [("x.jpg", jpeg(photograph(1)), "x")])
    (project / "data" / "gone" / "media" / "x.jpg").unlink()
    with pytest.raises(DataError, match=r"gone/media/x.jpg cannot be read"):
        read_references(("gone",), bases, map)


def test_a_folder_must_be_named() -> None:
    for wrong in ({}, {"against": []}):
        with pytest.raises(ValidationError, match="against"):
            Settings.model_validate(wrong)
