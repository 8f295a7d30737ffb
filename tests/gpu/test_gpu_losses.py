"""The losses on a CUDA device: those of the CPU, repeatable, and small."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from loss_cases import CASES, build, make_batch, same, some_positives, with_gradients

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
every_loss = pytest.mark.parametrize("case", CASES)


def on_gpu(batch: dict[str, Any]) -> dict[str, Any]:
    teacher = batch["teacher"]
    moved = replace(teacher, za=teacher.za.cuda(), zb=teacher.zb.cuda())
    return {**{k: v.cuda() for k, v in batch.items() if k != "teacher"}, "teacher": moved}


@every_loss
@pytest.mark.parametrize("share", [None, (100, 250)])
def test_losses_and_gradients_are_those_of_the_cpu(
    case: str, share: tuple[int, int] | None
) -> None:
    loss = build(case)
    batch = make_batch(256, 64, hard=33, scale=3.0, bias=-5.0, dtype=torch.float32)
    positives = some_positives(256, 289)
    expected = with_gradients(loss, batch, positives, share=share)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = with_gradients(loss, on_gpu(batch), positives.cuda(), share=share)
    same({k: v.cpu() for k, v in found.items()}, expected, atol=2e-6, rtol=1e-4)


@every_loss
def test_it_repeats_itself(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    loss, batch = build(case), on_gpu(make_batch(1024, 64, hard=9, dtype=torch.float32))
    positives = some_positives(1024, 1033).cuda()
    torch.use_deterministic_algorithms(True)
    try:
        one, other = (with_gradients(loss, batch, positives) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    same(one, other, rtol=0, atol=0)


@every_loss
def test_memory_grows_with_rows_and_columns_only(case: str) -> None:
    """A dense matrix of this batch is 4 GiB; copies of embeddings and gradients are 64 MiB each."""
    loss, batch = build(case), on_gpu(make_batch(32768, 512, dtype=torch.float32))
    with_gradients(loss, batch)  # what cuBLAS keeps
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with_gradients(loss, batch)
    assert torch.cuda.max_memory_allocated() - before < 1024 * 2**20
