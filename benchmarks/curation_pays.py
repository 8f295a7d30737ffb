"""Does curation pay? Recall on held-out products of a model trained with it, and without.

The same shop, model, settings and seeds; both models are tested on the curated test split, whose
products neither has seen. "Without" takes every pair whose picture can be decoded and that has a
caption: less would not train.

    python benchmarks/curation_pays.py [--quick] [--seeds N] [--shop-seed N]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from _report import report

from coembed.config import Config, load_config
from coembed.pairs.shop import draw_pool
from coembed.stages import curate, evaluate, train

ROOT = Path(__file__).parents[1]
METRICS = {
    "text to image, Recall@10": ("retrieval", "text_to_image", "recall_at_10"),
    "image to text, Recall@10": ("retrieval", "image_to_text", "recall_at_10"),
    "zero-shot kind": ("zero_shot", "kind", "top_1"),
    "first hit of 'colour kind'": ("attribute_queries", "colour_kind", "precision_at_1"),
}
WITHOUT = (
    'curate.filters=["readable", {"name": "caption_length", "min_chars": 1, "min_letters": 0}]'
)


def run_arm(cfg: Config, home: Path, name: str, pool: Path, test_pairs: Path | None) -> Path:
    """Curate and train into `home/name`; evaluate on `test_pairs`, or on the arm's own test split.
    Returns the curated pairs."""
    pairs, model = home / name / "pairs", home / name / "model"
    if not pairs.exists():
        curate.run(
            cfg, root=home, pool=pool, out=pairs, runs=home / "runs", overrides=None
        )  # fmt: skip
    train.run(cfg, root=home, pairs=pairs, out=model, runs=home / "runs")
    evaluate.run(cfg, model=model, pairs=test_pairs or pairs, out=home / name / "evaluation")
    return pairs


def read_metrics(folder: Path) -> dict[str, float]:
    """The figures of METRICS that an evaluation has."""
    whole = json.loads((folder / "metrics.json").read_text())
    found: dict[str, float] = {}
    for label, keys in METRICS.items():
        node: Any = whole
        for key in keys:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, float | int):
            found[label] = float(node)
    return found


def main() -> None:
    """Train both arms for each seed and print the difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small shop; nothing is saved")
    parser.add_argument("--seeds", type=int, default=3, help="of the training")
    parser.add_argument("--shop-seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="more collapse on a busy machine")
    args = parser.parse_args()
    few = [f"train.num_threads={args.threads}", *(["train.epochs=2"] if args.quick else [])]
    figures: dict[str, dict[str, list[float]]] = {"with": {}, "without": {}}
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        pool = home / "data"
        draw_pool(pool, seed=args.shop_seed, num_pairs=1500 if args.quick else 6000)
        for seed in range(1 if args.quick else args.seeds):
            # The seed of the splits stays: only training varies.
            cfg = load_config(ROOT / "params.yaml", few)
            plain = load_config(ROOT / "params.yaml", [*few, WITHOUT])
            clean = run_arm(_seeded(cfg, seed), home, "with", pool, None)
            run_arm(_seeded(plain, seed), home, "without", pool, clean)
            for arm, found in figures.items():
                for label, value in read_metrics(home / arm / "evaluation").items():
                    found.setdefault(label, []).append(value)
    rows, ratios = [], {}
    for label, values in figures["with"].items():
        others = figures["without"][label]
        gains = [a - b for a, b in zip(values, others, strict=True)]
        ratios[label] = statistics.mean(values) / statistics.mean(others)
        rows.append(
            (
                label,
                f"{statistics.mean(others):.1%}",
                f"{statistics.mean(values):.1%}",
                f"{statistics.mean(gains):+.1%}",
                " ".join(f"{gain:+.1%}" for gain in gains),
            )
        )
    report(
        "curation_pays",
        question="What does a model gain by curation, on held-out products?",
        columns=("metric", "without", "with", "gain", "by seed"),
        rows=rows,
        ratios=ratios,
        counts={"figures": figures, "seeds": args.seeds, "shop_seed": args.shop_seed},
        packages=("torch", "open_clip_torch", "timm"),
        save=not args.quick,
    )


def _seeded(cfg: Config, seed: int) -> Config:
    return cfg.model_copy(update={"seed": cfg.seed + 1000 * seed})


if __name__ == "__main__":
    main()
