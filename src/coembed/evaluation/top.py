"""The first page of each search: its best candidates, in bounded memory."""

from __future__ import annotations

import numpy as np
import torch

from coembed.evaluation.retrieval import Embeddings, Ints
from coembed.evaluation.scores import CANDIDATE_BLOCK, QUERY_BLOCK, BestScores, score_blocks


def top_candidates(
    queries: Embeddings,
    candidates: Embeddings,
    k: int,
    *,
    device: str = "cpu",
    query_block: int = QUERY_BLOCK,
    candidate_block: int = CANDIDATE_BLOCK,
) -> tuple[Ints, Embeddings]:
    """Numbers and scores of each query's `k` best candidates, best first, ties by number.

    `queries` [num_queries, dim] and `candidates` [num_candidates, dim] are float32; the score is
    their dot product. Both results are [num_queries, k], with fewer columns where there are fewer
    candidates. At most `query_block` x `candidate_block` scores exist at one time.
    """
    k = min(k, len(candidates))
    numbers = np.empty((len(queries), k), dtype=np.int64)
    scores = np.empty((len(queries), k), dtype=np.float32)
    on_device = torch.from_numpy(np.ascontiguousarray(candidates, dtype=np.float32)).to(device)
    for start in range(0, len(queries), query_block):
        some = np.ascontiguousarray(queries[start : start + query_block], dtype=np.float32)
        best = BestScores(len(some), k, on_device.device)
        block = torch.from_numpy(some).to(device)
        for first, found in score_blocks(block, on_device, candidate_block):
            best.see(found, first)
        numbers[start : start + query_block] = best.numbers.cpu().numpy()
        scores[start : start + query_block] = best.scores.cpu().numpy()
    return numbers, scores
