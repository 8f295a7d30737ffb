"""What does the search for near duplicates cost as the pool grows?

Time and memory of the search by perceptual hash (`lookalikes.propose`, in one process) at 10
thousand, 100 thousand and 1 million pictures, sixteen window hashes each, a process a size. A
hash is the signs of mixtures of 24 random numbers, so that its bits hang together as those of
photographs do, and windows differ from their frame as crops do. One picture in fifty is another
one's copy, a few bits off; every one must be proposed. Beside it, comparing all windows with all
frames and their mirror images, which has the same outcome, measured where that takes seconds and
worked out from there by the square.

The ratio is the one search over the other at 1 million; the limit for growth is linear.

    python benchmarks/duplicates_scale.py [--quick] [--no-save]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _report import report
from numpy.typing import NDArray

from coembed.curation.lookalikes.hamming import plan_search
from coembed.curation.lookalikes.lookalikes import propose
from coembed.curation.lookalikes.perceptual import MIRROR, NUM_BITS, NUM_WINDOWS

RADIUS = 6
SIZES = (10_000, 100_000, 1_000_000)
QUICK_SIZES = (1_000, 10_000)
COPIES = 50  # one picture in so many is a copy
# Numbers that decide a hash: keys of 21 bits then tell apart as much as 16 to 17 independent bits
# would, as they do with photographs (measured on synthetic ones; on the demo shop it is 14).
LATENT = 24
PLAIN = 2_000  # pictures compared all with all


def draw(num: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes [num, NUM_WINDOWS], and the rows [copies, 2] that are copies of each other."""
    rng = np.random.default_rng(num)
    mixture = rng.normal(size=(LATENT, NUM_BITS)).astype(np.float32)
    frames = np.zeros(num, np.uint64)
    for start in range(0, num, 1 << 16):
        part = frames[start : start + (1 << 16)]
        signs = rng.normal(size=(len(part), LATENT)).astype(np.float32) @ mixture > 0
        for bit in range(NUM_BITS):
            part |= signs[:, bit].astype(np.uint64) << np.uint64(bit)
    copies = np.arange(0, num - 1, COPIES)
    frames[copies + 1] = frames[copies] ^ few_bits(rng, len(copies), RADIUS)
    windows = np.empty((num, NUM_WINDOWS), np.uint64)
    windows[:, 0] = frames
    for window in range(1, NUM_WINDOWS):
        windows[:, window] = frames ^ few_bits(rng, num, 12)
    return windows, np.stack([copies, copies + 1], axis=1)


def few_bits(rng: np.random.Generator, num: int, most: int) -> NDArray[np.uint64]:
    """Up to `most` bits each, all numbers of them equally often."""
    flipped = np.zeros(num, np.uint64)
    wanted = rng.integers(0, most + 1, num)
    for number in range(most):
        bit = rng.integers(0, NUM_BITS, num).astype(np.uint64)
        flipped |= np.where(number < wanted, np.uint64(1) << bit, np.uint64(0))
    return flipped


def search(num: int) -> dict[str, float]:
    """Search once and say what it took."""
    windows, copies = draw(num)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        start, cpu = time.monotonic(), time.process_time()
        found = propose(
            windows, np.ascontiguousarray(windows[:, 0]), np.arange(num),
            radius=RADIUS, folder=Path(folder), map_tasks=map,
        )  # fmt: skip
        wall, cpu = time.monotonic() - start, time.process_time() - cpu
    codes = found.asking * num + found.answering  # ascending
    wanted = copies[:, 0] * num + copies[:, 1]
    at = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
    plan = plan_search(windows.size, 2 * num, RADIUS)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "pictures": num,
        "tables": len(plan),
        "key_bits": plan[0].key_bits,
        "seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
        "peak_mib": after // 1024,
        "peak_mib_before": before // 1024,
        "pairs_proposed": len(codes),
        "copies": len(copies),
        "copies_found": int((codes[at] == wanted).sum()),
    }


def compare_all() -> float:
    """CPU seconds to compare the windows of PLAIN pictures with all frames."""
    windows, _ = draw(PLAIN)
    frames = np.concatenate([windows[:, 0], windows[:, 0] ^ MIRROR])
    start = time.process_time()
    for window in windows.reshape(-1):
        np.flatnonzero(np.bitwise_count(frames ^ window) <= RADIUS)
    return time.process_time() - start


def main() -> None:
    """Measure all sizes, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing saved")
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.size:
        print(json.dumps(search(options.size)))
        return
    runs = []
    for size in QUICK_SIZES if options.quick else SIZES:
        command = [sys.executable, __file__, "--size", str(size)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        runs.append(json.loads(done.stdout))
        assert runs[-1]["copies_found"] == runs[-1]["copies"], runs[-1]
    plain = compare_all()
    rows = []
    for run in runs:
        run["all_with_all_cpu_seconds"] = round(plain * (run["pictures"] / PLAIN) ** 2, 2)
        rows.append(
            [
                f"{run['pictures']:,}", f"{run['tables']} of {run['key_bits']} bits",
                f"{run['seconds']:,}", f"{run['cpu_seconds']:,}", f"{run['peak_mib']:,}",
                f"{run['copies_found']:,} of {run['copies']:,}",
                f"{run['all_with_all_cpu_seconds']:,}",
            ]
        )  # fmt: skip
    first, last = runs[0], runs[-1]
    growth = last["pictures"] / first["pictures"]
    report(
        "duplicates_scale",
        question="What does the search for near duplicates cost as the pool grows?",
        columns=["pictures", "tables", "s", "CPU s", "MiB", "copies found", "all with all, CPU s"],
        rows=rows,
        ratios={
            "all_with_all_over_search": last["all_with_all_cpu_seconds"] / last["cpu_seconds"],
            "linear_growth_over_growth": growth * first["cpu_seconds"] / last["cpu_seconds"],
        },
        counts={"radius_bits": RADIUS, "windows": NUM_WINDOWS, "runs": runs},
        packages=["numpy"],
        save=not (options.quick or options.no_save),
    )  # fmt: skip


if __name__ == "__main__":
    main()
