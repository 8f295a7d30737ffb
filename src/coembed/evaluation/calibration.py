"""Is a score to be believed? How often the best hit is right, beside how sure the model is of it.

A model's logits are exp(logit_scale) · cosine, as its loss had them in training. One that was
trained with the softmax loss says which of several candidates it is: its confidence is the best
one's share of the softmax over all. One with a logit bias (the sigmoid loss, SigLIP) says of each
pair by itself whether it belongs together: its confidence is the sigmoid of the best logit. Where
several candidates are right, a softmax shares itself out among them, and so is modest.

Figures, lower is better:

- ece: expected calibration error, the mean distance between confidence and share of right hits over
  bins with equally many queries (Naeini et al. 2015; equal mass: Nixon et al. 2019, arXiv
  1904.01685). Queries of equal confidence share a bin.
- brier: mean squared distance between the confidence and 1 for a right hit, 0 for a wrong one.
- nll: of a softmax, the mean of -log of what the right candidates get together; of a sigmoid, the
  log loss of the best hit's being right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from coembed.evaluation.answered import Answered
from coembed.evaluation.parts import Part, Recognition
from coembed.evaluation.retrieval import (
    Embeddings,
    Floats,
    Ints,
    Outcomes,
    Positives,
    PositiveSource,
)
from coembed.evaluation.scores import CANDIDATE_BLOCK, QUERY_BLOCK, score_blocks
from coembed.evaluation.selection import positives_of, select
from coembed.evaluation.settings import CalibrationSettings
from coembed.evaluation.statistics import ClusterSums, Figure, Resamples, Weigh, estimate

Kind = Literal["softmax", "sigmoid"]

# No probability is closer to 0 or 1 in the log loss: float32 cannot say more.
_EPSILON = 1e-7


@dataclass(frozen=True, slots=True)
class Logits:
    """How cosines become logits: `scale` (not its log) times the cosine, plus `bias`."""

    scale: float
    bias: float | None = None

    @property
    def kind(self) -> Kind:
        """What the logits are made for."""
        return "softmax" if self.bias is None else "sigmoid"


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Queries of like confidence: its mean, the share whose best hit is right, and how many."""

    confidence: float
    share_right: float
    num_queries: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """Confidence of one task's queries in their best hits.

    `confidence`, `right` (1 or 0), `nll` and `clusters` are [num_queries], `bins` too: the number
    of each query's bin. `kind` says how the confidence came about.
    """

    kind: Kind
    confidence: Floats
    right: Floats
    nll: Floats
    clusters: Ints
    bins: Ints

    @property
    def reliability(self) -> tuple[ReliabilityBin, ...]:
        """The bins that hold queries, by rising confidence."""
        return tuple(
            ReliabilityBin(
                float(self.confidence[inside].mean()),
                float(self.right[inside].mean()),
                int(inside.sum()),
            )
            for number in np.unique(self.bins)
            for inside in (self.bins == number,)
        )

    def figures(self, path: str, resample: Callable[[int], Resamples]) -> list[Figure]:
        """ece, brier and nll with their intervals; `path` is put before the names.

        `resample` draws so many clusters. Bins stay as they are in all resamples. Resampled errors
        are rather too large (chance adds to each bin's), so the interval of a small ece may lie
        above it.
        """
        members, clusters = np.unique(self.clusters, return_inverse=True)
        errors = _ErrorByBin.of(self, clusters, len(members))
        squared = (self.confidence - self.right) ** 2
        means = ClusterSums.of(np.stack([squared, self.nll], axis=1), clusters)
        figures: dict[str, Weigh] = {
            f"{path}/ece": errors.weigh,
            f"{path}/brier": lambda weights: means.weigh(weights)[:, 0],
            f"{path}/nll": lambda weights: means.weigh(weights)[:, 1],
        }
        return estimate(figures, resample(len(members)))


@dataclass(frozen=True, slots=True)
class _ErrorByBin:
    """Expected calibration error as a function of weights. `sums` [num_clusters, num_bins] are of
    confidence minus right, `counts` [num_clusters] of queries."""

    sums: Floats
    counts: Floats

    @classmethod
    def of(cls, found: Calibration, clusters: Ints, num_clusters: int) -> _ErrorByBin:
        sums = np.zeros((num_clusters, int(found.bins.max()) + 1))
        np.add.at(sums, (clusters, found.bins), found.confidence - found.right)
        counts = np.bincount(clusters, minlength=num_clusters).astype(np.float64)
        return cls(sums, counts)

    def weigh(self, weights: Floats) -> Floats:
        total = weights @ self.counts
        errors = np.abs(weights @ self.sums).sum(axis=1)
        return np.divide(errors, total, out=np.full_like(total, np.nan), where=total > 0)


def calibrations(
    parts: Sequence[Part],
    zero_shot: Sequence[Recognition],
    tasks: Mapping[str, Answered],
    logits: Logits,
    asked: CalibrationSettings,
    *,
    device: str = "cpu",
) -> dict[str, Calibration]:
    """By task: both directions between the items of each part and their captions, and each
    classification. `tasks` hold them by their names."""
    # Of each task: embeddings, which of them are its queries, candidates, positives, and whether
    # the best candidate is one.
    ways: list[tuple[Outcomes, Embeddings, Ints, Embeddings, PositiveSource, Floats]] = []
    for part in parts:
        every = np.arange(len(part.items), dtype=np.int64)
        for way, queries, numbers, candidates in (
            (part.text_to_item, part.texts, part.data.query_texts, part.items),
            (part.item_to_text, part.items, every, part.texts),
        ):
            right = (way.ranks <= 1).astype(np.float64)
            ways.append((way.outcomes, queries, numbers, candidates, way.positives, right))
    for one in zero_shot:
        result = one.result
        classes = Positives(np.arange(len(result.items) + 1, dtype=np.int64), result.actual)
        right = result.outcomes.values["top_1"]
        ways.append((result.outcomes, one.part.items, result.items, one.classes, classes, right))
    found = {}
    for outcomes, queries, numbers, candidates, positives, right in ways:
        answered = tasks[outcomes.task]
        chosen = select(answered.queries, asked.max_queries, "calibration")
        found[outcomes.task] = calibrate(
            queries[numbers[chosen]],
            candidates,
            positives_of(positives, chosen),
            right[chosen],
            answered.clusters[chosen],
            logits,
            num_bins=asked.num_bins,
            device=device,
        )
    return found


def calibrate(
    queries: Embeddings,
    candidates: Embeddings,
    positives: Positives,
    right: Floats,
    clusters: Ints,
    logits: Logits,
    *,
    num_bins: int,
    device: str = "cpu",
) -> Calibration:
    """Confidence of each query in its best candidate.

    `queries` [num_queries, dim] and `candidates` [num_candidates, dim] are unit vectors; `right`
    [num_queries] says whether the best candidate is a positive (1 or 0), `clusters` as long. Holds
    the scores of one block of both at a time.
    """
    confidence = np.empty(len(queries), dtype=np.float64)
    nll = np.empty(len(queries), dtype=np.float64)
    on_device = torch.from_numpy(np.ascontiguousarray(candidates)).to(device)
    for start in range(0, len(queries), QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, len(queries))
        block = torch.from_numpy(np.ascontiguousarray(queries[start:stop])).to(device)
        best, total, of_right = _log_sums(
            block, on_device, positives.block(start, stop), logits.scale
        )
        if logits.bias is None:
            confidence[start:stop] = (best - total).exp().cpu().numpy()
            nll[start:stop] = (total - of_right).cpu().numpy()
        else:
            sure = torch.sigmoid(best + logits.bias).cpu().numpy()
            confidence[start:stop] = sure
            nll[start:stop] = _log_loss(sure, right[start:stop])
    return Calibration(
        logits.kind, confidence, right, nll, clusters, equal_mass_bins(confidence, num_bins)
    )


def equal_mass_bins(confidence: Floats, num_bins: int) -> Ints:
    """The number of each query's bin, [num_queries]: edges are quantiles of the confidence."""
    edges = np.quantile(confidence, np.arange(1, num_bins) / num_bins)
    return np.searchsorted(edges, confidence).astype(np.int64)


def _log_sums(
    queries: Tensor, candidates: Tensor, positives: Positives, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each query's logits, bias aside: the best, the log of the sum of exponentials of all, and
    of the positives', [num_queries] each in float64."""
    num = len(queries)
    rows = torch.from_numpy(np.repeat(np.arange(num), positives.counts)).to(queries.device)
    columns = torch.from_numpy(positives.candidates).to(queries.device)
    of_right = torch.empty(len(rows), dtype=torch.float64, device=queries.device)
    best = torch.full((num,), -torch.inf, dtype=torch.float64, device=queries.device)
    total = best.clone()
    for start, scores in score_blocks(queries, candidates, CANDIDATE_BLOCK):
        inside = (columns >= start) & (columns < start + scores.shape[1])
        of_right[inside] = scores[rows[inside], columns[inside] - start].double() * scale
        highest = scores.max(dim=1, keepdim=True).values
        # Below the block's best, so that no exponential overflows; in place: it is one block's.
        spread = scores.sub_(highest).mul_(scale).exp_().sum(dim=1, dtype=torch.float64)
        highest = highest[:, 0].double() * scale
        total = torch.logaddexp(total, highest + spread.log())
        best = torch.maximum(best, highest)
    shifted = (of_right - best[rows]).exp()
    share = torch.zeros_like(best).scatter_add_(0, rows, shifted)
    # Where nothing is left of the right ones, they are as far below as float64 can tell.
    return best, total, best + share.clamp_min(torch.finfo(torch.float64).tiny).log()


def _log_loss(confidence: Floats, right: Floats) -> Floats:
    sure = np.clip(confidence.astype(np.float64), _EPSILON, 1 - _EPSILON)
    loss: Floats = -(right * np.log(sure) + (1 - right) * np.log1p(-sure))
    return loss
