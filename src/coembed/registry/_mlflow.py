"""mlflow, imported so that it neither phones home nor talks on the terminal.

MLflow reads MLFLOW_DISABLE_TELEMETRY once, when it is imported: it has to be set before. Setting it
to "false" in the environment turns telemetry on again; that is the reader's own choice.
"""

from __future__ import annotations

import logging
import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow

for _name in ("mlflow", "alembic", "mlflow.store.db.utils"):
    logging.getLogger(_name).setLevel(logging.WARNING)

__all__ = ["mlflow"]
