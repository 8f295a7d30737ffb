"""faiss: exact search for the K best images of each text, and the other way round.

    python faiss_search.py FOLDER THREADS K

FOLDER holds texts.npy and images.npy, [num, dim]. Writes the numbers found, [num, K], to
text_to_image.npy and image_to_text.npy there. Prints JSON: seconds, processor seconds, extra MB.
"""

import json
import sys
from pathlib import Path

import faiss
import numpy as np

sys.path.append(str(Path(__file__).parents[1]))
from _cost import cost


def search(queries: np.ndarray, candidates: np.ndarray, k: int) -> np.ndarray:
    """Numbers of the k best candidates of each query, [num_queries, k]."""
    index = faiss.IndexFlatIP(candidates.shape[1])
    index.add(candidates)
    return index.search(queries, k)[1]


if __name__ == "__main__":
    folder, k = Path(sys.argv[1]), int(sys.argv[3])
    faiss.omp_set_num_threads(int(sys.argv[2]))
    texts, images = (np.load(folder / f"{name}.npy") for name in ("texts", "images"))
    search(texts[:1000], images[:1000], k)
    found, spent = cost(lambda: (search(texts, images, k), search(images, texts, k)))
    for way, numbers in zip(("text_to_image", "image_to_text"), found, strict=True):
        np.save(folder / f"{way}.npy", numbers)
    print(
        json.dumps(
            {
                "seconds": spent.wall_s,
                "cpu_seconds": spent.cpu_s,
                "extra_mb": spent.extra_mb,
            }
        )
    )
