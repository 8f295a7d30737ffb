"""Does curation look at pictures as fast as they can be decoded, and faster than its peers?

Ours is the examination of a pool, whole: reading, SHA-256, the checks of the media (readable whole,
size, ratio, blank, blurred), the fingerprint for near duplicates, the part files, no cache. The
limit is a bare loop over the same files in as many processes that reads and decodes each to full
RGB (simplejpeg) and does nothing else; its processes are up before the clock starts, ours are not.
How long ours take to start does not depend on the pool, so "at work" is the rate by what the
workers themselves count as spent on the files: what a large pool comes to. The peers: whole runs of
imagededup (hashes and duplicates), cleanvision (all checks), fastdup and data-juicer, imports left
out, against our whole curation of the same files, duplicates and shards included.

    python benchmarks/curation_speed.py [--quick] [--peers] [--workers N]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import simplejpeg
from _peers import PeerFailed, run_peer
from _pictures import draw, with_comment
from _report import paired_ratio, report

from coembed.curation.engine import Timings, curate
from coembed.curation.settings import CurateSettings
from coembed.pairs.pool import open_pool

FILTERS = (
    "readable", "aspect_ratio", "image_size", "blank_image", "blurred_image", "exact_duplicate",
    "near_duplicate",
)  # fmt: skip
# Side in pixels: how many files.
SIZES = {128: 6144, 256: 4096, 640: 2048, 1600: 2048}
NUM_LARGE = 128  # of 1,600 px so many are drawn, and repeated with another comment in the file
PEER_SIZE = 640


def make_pool(folder: Path, side: int, num: int) -> None:
    """A pool of `num` different pictures."""
    (folder / "media").mkdir(parents=True)
    (folder / "pairs").mkdir()
    rows = []
    drawn = [draw(number, side) for number in range(min(num, NUM_LARGE if side > 1000 else num))]
    for number in range(num):
        path = f"media/{number:05d}.jpg"
        (folder / path).write_bytes(with_comment(drawn[number % len(drawn)], number))
        rows.append({"path": path, "caption": f"picture number {number}"})
    pd.DataFrame(rows).to_parquet(folder / "pairs" / "a.parquet")


def decode_all(paths: Sequence[str]) -> int:
    """The limit: read and decode, nothing else. Returns pixels."""
    num_pixels = 0
    for path in paths:
        image = simplejpeg.decode_jpeg(Path(path).read_bytes(), colorspace="RGB")
        num_pixels += image.shape[0] * image.shape[1]
    return num_pixels


def time_decode(pool: Path, num_workers: int) -> float:
    """Seconds of the bare loop."""
    paths = sorted(map(str, (pool / "media").iterdir()))
    tasks = [paths[at : at + 64] for at in range(0, len(paths), 64)]
    with multiprocessing.get_context("spawn").Pool(num_workers) as workers:
        workers.map(decode_all, [[]] * 8 * num_workers, chunksize=1)  # started, all imported
        begun = time.perf_counter()
        for _ in workers.imap_unordered(decode_all, tasks):
            pass
        return time.perf_counter() - begun


def time_ours(pool: Path, home: Path, num_workers: int) -> tuple[float, float, float]:
    """Seconds of the examination, of its workers' work on the files, and of the whole curation."""
    shutil.rmtree(home, ignore_errors=True)
    (home / "out").mkdir(parents=True)
    settings = CurateSettings.model_validate({"filters": FILTERS, "num_workers": num_workers})
    timings = Timings()
    begun = time.perf_counter()
    curate(
        open_pool(pool), home / "out", settings,
        seed=0, root=home, runs=home / "runs", timings=timings,
    )  # fmt: skip
    whole = time.perf_counter() - begun
    return timings.steps["examine"], sum(timings.examine.seconds.values()) / num_workers, whole


def time_peers(pool: Path) -> dict[str, float | str]:
    """Seconds of each peer on the pool's files, or why it did not run."""
    folder = pool / "media"
    table = pool / "pairs.jsonl"
    names = sorted(path.name for path in folder.iterdir())
    table.write_text("\n".join(json.dumps({"path": n, "caption": "a picture"}) for n in names))
    found: dict[str, float | str] = {}
    for name, script, arguments in (
        ("imagededup", "imagededup_phash", [str(folder), "10"]),
        ("cleanvision", "cleanvision_issues", [str(folder)]),
        ("fastdup", "fastdup_similarity", [str(folder), "0.9"]),
        ("data-juicer", "data_juicer_filters", [str(folder), str(table)]),
    ):
        try:
            found[name] = float(run_peer(name, script, arguments)["seconds"])
        except PeerFailed as error:
            found[name] = str(error)
    return found


def main() -> None:
    """Measure each size in turns, then the peers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the files; not saved")
    parser.add_argument("--peers", action="store_true", help="install and run the peers as well")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    rows, ratios = [], {}
    rates: dict[str, dict[str, float]] = {}
    peers: dict[str, float | str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        for side, whole in SIZES.items():
            num = max(128, whole // 16) if args.quick else whole
            pool = home / f"pool-{side}"
            make_pool(pool, side, num)
            time_decode(pool, args.workers)  # the files are in memory from here on
            times = [
                (time_decode(pool, args.workers), *time_ours(pool, home / "run", args.workers))
                for _ in range(1 if args.quick else 3)
            ]
            bare, ours, at_work, curation = zip(*times, strict=True)
            ratios[f"examine_over_decode_{side}_px"] = paired_ratio(bare, ours)
            ratios[f"examine_at_work_over_decode_{side}_px"] = paired_ratio(bare, at_work)
            rates[str(side)] = {
                "files": num,
                "decode_per_s": round(num / min(bare)),
                "examine_per_s": round(num / min(ours)),
                "curation_per_s": round(num / min(curation)),
            }
            rows.append(
                (
                    f"{side} px",
                    f"{num / min(bare):,.0f}",
                    f"{num / min(ours):,.0f}",
                    f"{paired_ratio(bare, ours):.2f}",
                    f"{paired_ratio(bare, at_work):.2f}",
                    f"{num / min(curation):,.0f}",
                )
            )
            if side == PEER_SIZE and args.peers:
                peers = time_peers(pool)
                for name, seconds in peers.items():
                    if isinstance(seconds, str):
                        rows.append((name, seconds[:40], "", "", "", ""))
                        continue
                    ratios[f"curation_over_{name}"] = seconds / min(curation)
                    rows.append((name, "", "", "", "", f"{num / seconds:,.0f}"))
            shutil.rmtree(pool)
    report(
        "curation_speed",
        question="Does curation look at pictures as fast as they can be decoded? (files/s)",
        columns=("files", "bare decode", "examine", "ratio (limit 0.8)", "at work", "whole tool"),
        rows=rows,
        ratios=ratios,
        counts={"workers": args.workers, "rates": rates, "peers_s": peers},
        packages=("simplejpeg", "numpy", "pillow", "duckdb"),
        save=not args.quick,
    )


if __name__ == "__main__":
    main()
