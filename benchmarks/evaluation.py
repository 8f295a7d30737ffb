"""Do exact retrieval metrics need one chunk of the scores, and no more time than all at once?

Texts and images, 512 numbers each, two positives a query: ranks, Recall@1/5/10, mAP@10, MRR and the
median rank, both ways, from `coembed.evaluation.retrieval`, in one pass a direction. Beside it

- the full matrix: one product, torch's topk and one comparison of all scores with the best
  positive's, the whole matrix in memory; a product a direction, which is faster than reading the
  first one's columns;
- with --peers CLIP_benchmark's own `recall_at_k` (Recall@k alone) and faiss's exact search (the
  first ten alone: no MRR, no median rank).

Each has a process of its own, ours and the full matrix take turns, and what they find is compared.
The full matrix and CLIP_benchmark run at 20,000 x 20,000: at 50,000 x 50,000 they need 13 GB.

    python benchmarks/evaluation.py [--quick] [--peers] [--rounds N] [--threads N]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from _cost import cost
from _peers import PeerFailed, run_peer
from _report import paired_ratio, report
from numpy.typing import NDArray

from coembed.evaluation.retrieval import Positives, rank_outcomes, rankings, summarise

KS = (1, 5, 10)
DIM = 512
SIZE, FULL_SIZE = 50_000, 20_000
QUICK_SIZE, QUICK_FULL_SIZE = 6_000, 3_000
WAYS = ("text_to_image", "image_to_text")
# Two scores closer than the tolerance are a tie to us and an order to the others.
ALLOWED = 1e-3
Floats = NDArray[np.float32]
Figures = dict[str, float]


def draw(num: int, folder: Path) -> None:
    """Write texts.npy and images.npy [num, DIM]: two texts and two images around each centre."""
    rng = np.random.default_rng(num)
    centres = np.repeat(rng.standard_normal((num // 2, DIM), dtype=np.float32), 2, axis=0)
    for name in ("texts", "images"):
        drawn = centres + 2.5 * rng.standard_normal((num, DIM), dtype=np.float32)
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        np.save(folder / f"{name}.npy", drawn)


def ours(queries: Floats, candidates: Floats) -> Figures:
    """All metrics of one direction."""
    num = len(queries)
    positives = Positives.from_lists([sorted((number, number ^ 1)) for number in range(num)])
    found = rankings(queries, candidates, positives, 10)
    return summarise(rank_outcomes("retrieval", found, num, positives, KS))


def full_matrix(queries: Floats, candidates: Floats) -> Figures:
    """The same from the matrix of all scores."""
    scores = torch.from_numpy(queries) @ torch.from_numpy(candidates).T
    top = scores.topk(10, dim=1).indices.numpy()
    table, numbers = scores.numpy(), np.arange(len(queries))
    best = np.maximum(table[numbers, numbers], table[numbers, numbers ^ 1])
    table[numbers, numbers] = table[numbers, numbers ^ 1] = -np.inf
    ranks = 1 + (table > best[:, None]).sum(axis=1)
    return {
        **of_first_ten(top),
        "mrr": float((1 / ranks).mean()),
        "median_rank": float(np.median(ranks)),
    }


def of_first_ten(top: NDArray[np.int64]) -> Figures:
    """Recall@k and mAP@10 from the numbers of the ten best of each query, [num, 10]."""
    right = top // 2 == np.arange(len(top))[:, None] // 2
    precision = right.cumsum(axis=1) / np.arange(1, 11)
    return {
        **{f"recall_at_{k}": float(right[:, :k].any(axis=1).mean()) for k in KS},
        "map_at_10": float((precision * right).sum(axis=1).mean() / 2),
    }


METHODS: dict[str, Callable[[Floats, Floats], Figures]] = {
    "ours": ours, "full_matrix": full_matrix,
}  # fmt: skip


def measure_here(who: str, folder: Path) -> None:
    """In a process of its own: both directions, and print what they took and found."""
    texts, images = (np.load(folder / f"{name}.npy") for name in ("texts", "images"))
    method = METHODS[who]
    method(texts[:1000], images[:1000])

    def both() -> dict[str, Figures]:
        pairs = ((texts, images), (images, texts))
        return {way: method(*pair) for way, pair in zip(WAYS, pairs, strict=True)}

    found, spent = cost(both)
    print(json.dumps({**asdict(spent), "found": found}))


def measure(who: str, folder: Path, threads: int) -> dict[str, Any]:
    """One measurement in a child process."""
    command = [sys.executable, __file__, "--child", who, str(folder), str(threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def measure_peer(name: str, folder: Path, threads: int) -> dict[str, Any]:
    """The same of a peer. Raises PeerFailed."""
    script, ks = {
        "clip_benchmark": ("clip_benchmark_recall", KS),
        "faiss": ("faiss_search", (10,)),
    }[name]
    answer = run_peer(name, script, [str(folder), str(threads), *map(str, ks)])
    if name == "faiss":
        answer["found"] = {way: of_first_ten(np.load(folder / f"{way}.npy")) for way in WAYS}
    return {
        "wall_s": answer["seconds"], "cpu_s": answer["cpu_seconds"],
        "extra_mb": answer["extra_mb"], "found": answer["found"],
    }  # fmt: skip


def apart(ours: Mapping[str, Figures], theirs: Mapping[str, Figures]) -> float:
    """The largest difference of the figures that both have, but for the median rank."""
    return max(
        abs(ours[way][metric] - value)
        for way, figures in theirs.items()
        for metric, value in figures.items()
        if metric != "median_rank"
    )


def main() -> None:
    """Measure, compare, print, write."""
    if sys.argv[1:2] == ["--child"]:
        who, folder, threads = sys.argv[2:]
        torch.set_num_threads(int(threads))
        measure_here(who, Path(folder))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller; not written to results")
    parser.add_argument("--peers", action="store_true", help="install and run the peers as well")
    parser.add_argument("--rounds", type=int, default=3, help="measurements at the smaller size")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    size, full_size = (QUICK_SIZE, QUICK_FULL_SIZE) if options.quick else (SIZE, FULL_SIZE)

    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    failed: dict[str, str] = {}
    for num, rounds, beside, peer in (
        (full_size, options.rounds, ("full_matrix",), "clip_benchmark"),
        (size, 1, (), "faiss"),
    ):
        with tempfile.TemporaryDirectory() as home:
            folder = Path(home)
            draw(num, folder)
            tasks = {who: partial(measure, who) for who in ("ours", *beside)}
            found: dict[str, list[dict[str, Any]]] = {who: [] for who in tasks}
            for turn in range(rounds):
                # Turn about, so that neither always comes first.
                for who in sorted(tasks, reverse=bool(turn % 2)):
                    found[who].append(tasks[who](folder, options.threads))
            if options.peers:
                try:
                    found[peer] = [measure_peer(peer, folder, options.threads)]
                except PeerFailed as failure:
                    failed[peer] = str(failure)
        runs[str(num)] = found

    rows, ratios, counts = [], {}, {}
    for size_text, found in runs.items():
        num, own = int(size_text), found["ours"]
        matrix_mb = num * num * 4 / 1e6
        ratios[f"matrix_over_our_memory_{num}"] = matrix_mb / max(run["extra_mb"] for run in own)
        counts[size_text] = {"matrix_mb": round(matrix_mb)}
        for who, measured in found.items():
            spent = {
                key: median(run[key] for run in measured) for key in ("wall_s", "cpu_s", "extra_mb")
            }
            difference = apart(own[0]["found"], measured[0]["found"])
            assert difference < ALLOWED, (who, difference)
            counts[size_text][who] = {
                **{key: round(value, 2) for key, value in spent.items()},
                "largest_difference": float(f"{difference:.1e}"),
            }
            if who != "ours":
                for key, name in (("wall_s", "time"), ("cpu_s", "processor_time")):
                    theirs, mine = ([run[key] for run in of] for of in (measured, own))
                    ratios[f"{who}_{name}"] = paired_ratio(theirs, mine[: len(theirs)])
                ratios[f"{who}_memory"] = spent["extra_mb"] / counts[size_text]["ours"]["extra_mb"]
            rows.append([
                f"{num:,}", who.replace("_", " "), f"{spent['wall_s']:.1f}",
                f"{spent['cpu_s']:.1f}", f"{spent['extra_mb']:,.0f}", f"{difference:.0e}",
            ])  # fmt: skip
    rows += [["", who, why, "", "", ""] for who, why in failed.items()]
    counts["found"] = runs[str(size)]["ours"][0]["found"]
    report(
        "evaluation",
        question="Exact retrieval metrics both ways: one chunk of the scores at a time, or all?",
        columns=["texts and images", "way", "s", "CPU s", "extra MB", "apart from ours"],
        rows=rows,
        ratios=ratios,
        counts={
            "dim": DIM, "threads": options.threads, "rounds": options.rounds, **counts,
            "failed": failed,
        },
        packages=["torch", "numpy"],
        save=not options.quick,
    )  # fmt: skip


if __name__ == "__main__":
    main()
