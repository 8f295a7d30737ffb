"""What `benchmarks/gpu.py` needs: on a machine with a GPU little may be installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SERVICES = {
    "prefect", "mlflow", "dvc", "qdrant_client", "qdrant_edge", "fastapi", "uvicorn", "duckdb",
    "onnxruntime",
}  # fmt: skip


def test_it_imports_none_of_the_services_packages() -> None:
    program = "import json, sys, gpu; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=BENCHMARKS, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert {"coembed", "torch", "open_clip"} <= loaded
    assert not loaded & SERVICES
