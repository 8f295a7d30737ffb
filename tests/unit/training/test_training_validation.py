from __future__ import annotations

import pytest
import torch
from training_runs import Run

from coembed.training.validation import _recall, recall_at


def slow_recall(scores: torch.Tensor, relevant: torch.Tensor, k: int) -> float:
    """Sort every row; a tie goes to the item that is not relevant."""
    hits = 0
    for row, good in zip(scores.tolist(), relevant.tolist(), strict=True):
        ranked = sorted(range(len(row)), key=lambda i: (-row[i], good[i]))
        hits += any(good[i] for i in ranked[:k])
    return hits / len(scores)


def test_recall_agrees_with_sorting() -> None:
    generator = torch.Generator().manual_seed(1)
    for k in (1, 3, 10):
        queries = torch.randn(30, 4, generator=generator).round()  # rounded, so that there are ties
        items = torch.randn(20, 4, generator=generator).round()
        relevant = torch.rand(30, 20, generator=generator) < 0.15
        relevant[:, 0] = True
        expected = slow_recall(queries @ items.T, relevant, k)
        assert _recall(queries, items, relevant, k) == pytest.approx(expected)


def test_a_collapsed_model_finds_nothing(run: Run) -> None:
    model, spec = run.model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.train()
    (stream,) = run.streams(spec, "val")
    assert recall_at(1, model, spec, stream, device=torch.device("cpu"), precision="fp32") == 0.0
    assert model.training


def test_recall_of_everything_is_one(run: Run) -> None:
    model, spec = run.model()
    (stream,) = run.streams(spec, "val")
    recall = recall_at(
        len(stream.items), model, spec, stream, device=torch.device("cpu"), precision="bf16"
    )
    assert recall == 1.0


def test_what_is_not_a_number_is_not_found() -> None:
    items = torch.eye(4)
    items[0] = torch.nan
    relevant = torch.eye(4, dtype=torch.bool)
    assert _recall(torch.eye(4), items, relevant, 1) == 0.0
