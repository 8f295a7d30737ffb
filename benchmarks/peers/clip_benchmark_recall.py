"""CLIP_benchmark: Recall@k between texts and images whose embeddings are given.

    python clip_benchmark_recall.py FOLDER THREADS K [K ...]

FOLDER holds texts.npy and images.npy, [num, dim]; text i and image j belong together where they
have the same i // 2. The matrices are put together as `evaluate` of its module does once it has the
embeddings, and its own `batchify` and `recall_at_k` do the rest, with its default batch of 64.
Prints JSON: seconds, processor seconds, extra MB, and Recall@k by direction.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k

sys.path.append(str(Path(__file__).parents[1]))
from _cost import cost


def recalls(
    texts: torch.Tensor, images: torch.Tensor, ks: list[int]
) -> dict[str, dict[str, float]]:
    """The share of queries with a positive among the first k, by direction."""
    scores = texts @ images.t()
    positives = torch.zeros_like(scores, dtype=torch.bool)
    numbers = torch.arange(len(texts))
    positives[numbers, numbers] = True
    positives[numbers, numbers ^ 1] = True
    found: dict[str, dict[str, float]] = {"text_to_image": {}, "image_to_text": {}}
    for k in ks:
        for way, table, right in (
            ("text_to_image", scores, positives),
            ("image_to_text", scores.T, positives.T),
        ):
            share = batchify(recall_at_k, table, right, 64, "cpu", k=k)
            found[way][f"recall_at_{k}"] = (share > 0).float().mean().item()
    return found


if __name__ == "__main__":
    folder, ks = Path(sys.argv[1]), [int(k) for k in sys.argv[3:]]
    torch.set_num_threads(int(sys.argv[2]))
    texts, images = (torch.from_numpy(np.load(folder / f"{n}.npy")) for n in ("texts", "images"))
    recalls(texts[:256], images[:256], ks)
    found, spent = cost(lambda: recalls(texts, images, ks))
    print(
        json.dumps(
            {
                "seconds": spent.wall_s,
                "cpu_seconds": spent.cpu_s,
                "extra_mb": spent.extra_mb,
                "found": found,
            }
        )
    )
