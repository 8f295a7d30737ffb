"""What every test gets: quiet tools, no network, few threads."""

from __future__ import annotations

import os

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
