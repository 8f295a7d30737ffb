"""The benchmarks in their quick form: that they run, not what they measure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(name: str, *arguments: str) -> dict[str, Any]:
    """What a benchmark's last line says."""
    done = subprocess.run(
        [sys.executable, BENCHMARKS / name, "--quick", *arguments],
        capture_output=True, text=True, check=False, timeout=550,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(answer, dict)
    return answer


def test_training() -> None:
    results = BENCHMARKS / "results" / "training.json"
    before = results.read_bytes()
    found = run("training.py", "--threads", "1")
    for scene in ("demo", "small", "photos", "photos_streamed", "long_text"):
        assert found["ratios"][f"{scene}_over_bare"] > 0
    assert found["counts"]["frozen"]["frozen_per_s"] > 0
    errors = found["counts"]["gradient_caching"]["gradients_fp32"]
    assert errors["largest_difference"] < 1e-5 * errors["largest_gradient"]
    assert abs(errors["logit_scale_ratio"] - 1) < 1e-5
    assert results.read_bytes() == before  # a quick run measures nothing worth keeping


def test_gpu_without_one(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    found = run("gpu.py", "--out", str(out))
    sections = ("throughput", "resume", "one_rank", "losses", "largest_batch")
    assert not [name for name in sections if "error" in json.dumps(found[name])], found
    assert found["throughput"]["ViT-B-32_decoded_compiled"]["samples_per_s"] > 0
    for same in ("same_weights", "same_history", "same_weights_and_moments"):
        assert found["resume"][same] is True
    assert found["resume"]["exit_code"] == -9
    assert found["one_rank"]["none"]["same_weights"] is True
    assert found["one_rank"]["none"]["sharded"] is False
    assert found["one_rank"]["fsdp"]["sharded"] is True
    assert found["one_rank"]["fsdp"]["largest_difference"] < 1e-4
    assert json.loads(out.read_text()) == found


def test_evaluation() -> None:
    found = run("evaluation.py", "--threads", "1", "--rounds", "1")
    small, large = found["counts"]["3000"], found["counts"]["6000"]
    assert small["full_matrix"]["largest_difference"] < 1e-3
    assert large["ours"]["extra_mb"] < large["matrix_mb"]
    for way in ("text_to_image", "image_to_text"):
        assert found["counts"]["found"][way]["map_at_10"] > 0.1


def test_embedding() -> None:
    found = run("embedding.py", "--threads", "1")
    assert found["ratios"]["ViT-S-32_bf16_over_bare"] > 0
    assert found["ratios"]["ViT-S-32_bf16_over_dataloader"] > 0
    change = found["counts"]["change"]
    assert (change["items"], change["embedded"]) == (2_000, 20)
