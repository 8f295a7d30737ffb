"""Thousands of malformed media through the whole of curate: a drop reason for each that cannot be
used, and nothing else: no traceback, no hang, no giant memory, no file that is not the pool's."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from curation_pools import picture
from fuzzed_media import fuzzed_media, write_odd_file
from fuzzing import run_watched

from coembed.config import load_config
from coembed.curation.engine import MANIFEST, curate
from coembed.files import sha256_tree
from coembed.pairs.pool import open_pool

# Filters that need no further column and no model. What decodes must pass through all of them.
FILTERS = (
    "readable", "audio_level", "audio_length", "audio_rate", "aspect_ratio", "image_size",
    "blank_image", "blurred_image", "caption_length", "caption_file_name", "caption_markup",
    "caption_symbols", "personal_data", "exact_duplicate", "near_duplicate", "repeated_caption",
)  # fmt: skip
NUM_GOOD = 40
SECONDS_PER_ITEM = 10
# A picture of 100 megapixels may be decoded, and takes 3 bytes a pixel, in two copies perhaps.
MAX_RSS_BYTES = 1_500_000_000
ODD_PATHS = (
    "../canary/secret.jpg", "/etc/hostname", "media/../../canary/secret.jpg", "media/\0.jpg",
    "media", "", ".", "media/" + "x" * 300 + ".jpg", "media/" + "y/" * 3000, "file:///etc/hostname",
    "media/\n", "http://localhost/x.jpg", "media//good0.jpg", "~/x.jpg", "\u202egpj.x",
    "media/lost.jpg",
)  # fmt: skip
ODD_CAPTIONS = (
    "", " ", "\0", "x\0y", "a" * 100_000, "<script>alert(1)</script>", "\x1b[2J", "\u202e",
    "💥" * 50, "=1+1", "a\r\nb", "{{7*7}}", "%s%n", "' OR 1=1 --", "\ufeff", "e" + "\u0301" * 2000,
)  # fmt: skip


def case(number: int, folder: Path) -> str:
    """Curate a pool of `number` modulo 100,000 fuzzed media."""
    rng = random.Random(number)
    num_fuzzed = number % 100_000
    pool = folder / "data"
    (pool / "media").mkdir(parents=True)
    (pool / "pairs").mkdir()
    rows = [_good_row(pool, i) for i in range(NUM_GOOD)]
    rows += [_bad_row(rng, pool, i, folder.parents[1] / "canary") for i in range(num_fuzzed)]
    rng.shuffle(rows)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (pool / "pairs" / "pairs.jsonl").write_text(lines)
    before = _files(pool)

    filters = "[" + ",".join(FILTERS) + "]"
    chosen = [f"curate.filters={filters}", "curate.split.group_by=[]", "curate.num_workers=2"]
    chosen.append(f"curate.seconds_per_item={SECONDS_PER_ITEM}")
    cfg = load_config(Path(__file__).parents[2] / "params.yaml", chosen)
    out, runs = folder / "out", folder / "runs"
    out.mkdir()
    summary = curate(open_pool(pool), out, cfg.curate, seed=1, root=folder, runs=runs)

    assert _files(pool) == before, "curate wrote into the pool"
    assert sorted(p.name for p in folder.iterdir()) == ["data", "out", "runs"]
    manifest = pq.read_table(out / MANIFEST).to_pylist()
    _check(manifest, rows, summary.dropped)
    shards = b"".join(path.read_bytes() for path in sorted(out.rglob("*.tar")))
    assert b"not to be read" not in shards, "a file outside the pool was packed"
    reasons = sorted({row["drop_reason"] for row in manifest if row["drop_reason"]})
    shutil.rmtree(folder)
    return ", ".join(reasons)


def _check(
    manifest: list[dict[str, Any]], rows: list[dict[str, Any]], dropped: dict[str, int]
) -> None:
    assert len(manifest) == len(rows)
    for kept in manifest:
        assert kept["kept"] == (kept["drop_reason"] is None), kept
        assert kept["kept"] or kept["drop_detail"] is not None, kept
    num_kept = sum(row["kept"] for row in manifest)
    assert num_kept + sum(dropped.values()) == len(rows)
    good = [row for row in manifest if row["path"].startswith("media/good")]
    lost = [row for row in good if not row["kept"] and row["drop_reason"] != "exact_duplicate"]
    # What is right must not suffer by what is wrong beside it.
    assert len(good) >= NUM_GOOD and not lost, lost[:3]


def _good_row(pool: Path, index: int) -> dict[str, Any]:
    name = f"media/good{index}.jpg"
    (pool / name).write_bytes(picture(index, size=(160, 120)))
    return {"path": name, "caption": f"a picture of thing number {index} on a table"}


def _bad_row(rng: random.Random, pool: Path, index: int, canary: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"caption": f"what is left of thing {index} on the floor"}
    dice = rng.random()
    if dice < 0.04:
        return row | {"path": rng.choice(ODD_PATHS)}
    if dice < 0.1:
        row["path"] = f"media/odd{index}.jpg"
        write_odd_file(rng, pool / row["path"], canary)
        return row
    ending, data = fuzzed_media(rng)
    row["path"] = f"media/{index}.{ending}"
    (pool / row["path"]).write_bytes(data)
    if rng.random() < 0.1:
        row["caption"] = rng.choice(ODD_CAPTIONS)
    if rng.random() < 0.1:
        row["modality"] = rng.choice(("image", "audio", "text", "smell", "IMAGE "))
    return row


def _files(pool: Path) -> tuple[str, list[str]]:
    listed = sorted(p.relative_to(pool).as_posix() for p in pool.rglob("*"))
    return sha256_tree(pool / "pairs"), listed


def _run(folder: Path, numbers: list[int], *, timeout_s: float) -> None:
    limit_s = int(timeout_s / len(numbers))
    outcome = run_watched(
        "test_fuzz_media", numbers, folder, timeout_s=timeout_s + 30, case_limit_s=limit_s
    )
    print(outcome)
    assert outcome.max_rss_bytes < MAX_RSS_BYTES, outcome
    (reasons,) = outcome.answers if len(numbers) == 1 else (", ".join(outcome.answers),)
    expected = (
        "unreadable", "truncated", "too_many_pixels", "missing_file", "empty_file", "not_a_file",
        "path_outside_pool",
    )  # fmt: skip
    assert all(reason in reasons for reason in expected), reasons


def test_hundreds_of_malformed_media(tmp_path: Path) -> None:
    _run(tmp_path / "work", [100_300], timeout_s=240)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands_of_malformed_media(tmp_path: Path) -> None:
    _run(tmp_path / "work", [201_500, 301_500, 401_700], timeout_s=2700)
