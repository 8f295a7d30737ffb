"""What every test gets: quiet tools, no network, few threads."""

from __future__ import annotations

import os

import pytest

# Before anything imports them: nothing phones home, and tests leave cores to their neighbours.
os.environ.update(
    {
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "HF_HUB_OFFLINE": "1",
    }
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
for _name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
    os.environ.pop(_name, None)  # A test must not reach the services of whoever runs it.


def pytest_make_parametrize_id(config: pytest.Config, val: object) -> str | None:  # noqa: ARG001
    """Name a case by the length of its bytes and not by the bytes: libsndfile writes the time into
    some WAV files, and workers that collect at different seconds would not have the same tests."""
    return f"{len(val)}-bytes" if isinstance(val, bytes) else None
