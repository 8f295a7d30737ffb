"""Does curation keep to 2 GiB of memory, whatever the pool's size?

A made-up pool: captions of a shop's kind, a few of them boilerplate, product ids, and small picture
files that really exist, each with up to fifty captions. The whole of `curate`, from the tables to
the shards and the manifest, runs in a process of its own with every filter that decodes no pixels;
its memory and that of its worker processes is sampled together. Shared pages count once.

    python benchmarks/curation_scale.py [--quick] [--rows N ...] [--folder PATH]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from _report import report

LIMIT_MIB = 2048
SIZES = (100_000, 1_000_000, 10_000_000)
MAX_FILES = 200_000
CAPTIONS_A_FILE = 5
FILES_A_FOLDER = 1000
BLOCK_ROWS = 100_000
FILTERS = (
    "aspect_ratio", "image_size", "caption_length", "caption_file_name", "caption_markup",
    "caption_symbols", "personal_data", "repeated_caption", "exact_duplicate",
)  # fmt: skip
COLOURS = ("red", "blue", "green", "black", "white", "pink", "yellow", "brown", "grey", "purple")
KINDS = ("mug", "chair", "lamp", "boots", "dress", "watch", "sofa", "teapot", "bottle", "guitar")
BOILERPLATE = ("no description available", "click here for more details")


def make_pool(folder: Path, num_rows: int) -> int:
    """Write the pool; returns the number of files."""
    num_files = max(1, min(MAX_FILES, num_rows // CAPTIONS_A_FILE))
    for first in range(0, num_files, FILES_A_FOLDER):
        (folder / "media" / f"{first // FILES_A_FOLDER:04}").mkdir(parents=True)
    # One picture, and a comment of its own in every file: other bytes, hence another item.
    media = simplejpeg.encode_jpeg(np.full((48, 64, 3), 200, np.uint8), quality=50)
    for number in range(num_files):
        comment = b"\xff\xfe\x00\x0a" + number.to_bytes(8, "big")
        (folder / _path(number)).write_bytes(media[:2] + comment + media[2:])
    (folder / "pairs").mkdir()
    schema = pa.schema(
        [(n, pa.string()) for n in ("pair_id", "path", "caption", "product_id", "kind", "colour")]
        + [("price", pa.float64())]
    )
    with pq.ParquetWriter(folder / "pairs" / "pool.parquet", schema) as writer:
        for table in _rows(num_rows, num_files, schema):
            writer.write_table(table)
    return num_files


def _path(number: int) -> str:
    return f"media/{number // FILES_A_FOLDER:04}/{number:07}.jpg"


def _rows(num_rows: int, num_files: int, schema: pa.Schema) -> Iterator[pa.Table]:
    rng = np.random.default_rng(0)
    for start in range(0, num_rows, BLOCK_ROWS):
        num = min(BLOCK_ROWS, num_rows - start)
        files = rng.integers(0, num_files, num)
        kind, colour = files % len(KINDS), files // len(KINDS) % len(COLOURS)
        serial = rng.integers(0, 10**6, num)
        plain, boilerplate = rng.random(num) < 0.05, rng.random(num) < 0.002
        captions = [
            BOILERPLATE[i % 2]
            if b
            else f"a {COLOURS[c]} {KINDS[k]}" + ("" if p else f" with the number {s}")
            for i, (b, c, k, p, s) in enumerate(
                zip(boilerplate, colour, kind, plain, serial, strict=True)
            )
        ]
        yield pa.table(
            [
                [f"pair-{start + i:09}" for i in range(num)],
                [_path(number) for number in files.tolist()],
                captions,
                [f"product-{number // 3:07}" for number in files.tolist()],
                [KINDS[k] for k in kind],
                [COLOURS[c] for c in colour],
                serial / 100,
            ],
            schema=schema,
        )


def child(pool: Path, out: Path, runs: Path) -> None:
    """Curate, and print what came of it as JSON."""
    from coembed.curation.engine import Timings, curate
    from coembed.curation.settings import CurateSettings
    from coembed.pairs.pool import open_pool

    settings = CurateSettings.model_validate(
        {"filters": FILTERS, "split": {"group_by": ["product_id"]}}
    )
    timings = Timings()
    start = time.monotonic()
    summary = curate(open_pool(pool), out, settings, seed=0, root=pool, runs=runs, timings=timings)
    counts = summary.as_dict()
    print(
        json.dumps(
            {
                "seconds": time.monotonic() - start,
                "steps_s": timings.as_dict()["steps_s"],
                "num_kept": counts["num_kept"],
                "num_items": counts["num_items"],
                "dropped": {name: num for name, num in counts["dropped"].items() if num},
            }
        )
    )


def measure(folder: Path, num_rows: int) -> dict[str, Any]:
    """Curate a pool of `num_rows` in a child process; its counts, seconds and peak memory."""
    num_files = make_pool(folder / "pool", num_rows)
    (folder / "out").mkdir()
    command = [sys.executable, __file__, "--child", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak, peak_private = 0, 0
        while process.poll() is None:
            total, private = _memory(psutil.Process(process.pid))
            peak, peak_private = max(peak, total), max(peak_private, private)
            time.sleep(0.25)
        assert process.stdout is not None
        output = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"curating {num_rows:,} rows failed")
    found = json.loads(output.splitlines()[-1])
    return {
        **found,
        "num_files": num_files,
        "peak_mib": peak / 2**20,
        "peak_private_mib": peak_private / 2**20,
        "runs_mib": _size(folder / "runs") / 2**20,
    }


def _memory(parent: psutil.Process) -> tuple[int, int]:
    """Bytes in memory of a process and its children: all, shared pages divided among those that
    share them, and without the pages that belong to files."""
    total = private = 0
    try:
        processes = [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return 0, 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except (psutil.Error, OSError):
            continue
        (anonymous,) = (line for line in rollup.splitlines() if line.startswith("Anonymous:"))
        private += int(anonymous.split()[1]) * 1024
    return total, private


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20,000 rows; not written to results")
    parser.add_argument("--rows", type=int, nargs="+", help=f"sizes, {SIZES} if not said")
    parser.add_argument("--folder", type=Path, help="where to work, if the usual place is small")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child / "pool", options.child / "out", options.child / "runs")
        return
    rows: list[list[str]] = []
    counts: dict[str, Any] = {"limit_mib": LIMIT_MIB}
    ratios: dict[str, float] = {}
    sizes = options.rows or ([20_000] if options.quick else SIZES)
    for num_rows in sizes:
        folder = Path(tempfile.mkdtemp(prefix="curation-scale-", dir=options.folder))
        try:
            found = measure(folder, num_rows)
        finally:
            shutil.rmtree(folder)
        rows.append([
            f"{num_rows:,}", f"{found['num_files']:,}", f"{num_rows / found['seconds']:,.0f}",
            f"{found['peak_mib']:,.0f}", f"{found['peak_private_mib']:,.0f}",
            ", ".join(f"{step} {s:,.0f}" for step, s in found["steps_s"].items() if s >= 1),
        ])  # fmt: skip
        ratios[f"limit_over_peak_{num_rows}"] = LIMIT_MIB / found["peak_mib"]
        counts[str(num_rows)] = {
            key: round(value, 1) if isinstance(value, float) else value
            for key, value in found.items()
        }
    report(
        "curation_scale",
        question="memory of curation, all processes, against 2 GiB",
        columns=["pairs", "files", "pairs/s", "peak MiB", "without files' pages", "seconds"],
        rows=rows,
        ratios=ratios,
        counts=counts,
        packages=["duckdb", "pyarrow", "numpy", "simplejpeg"],
        save=not options.quick,
    )


if __name__ == "__main__":
    main()
