"""mlflow, imported so that it neither phones home nor talks on the terminal, nor waits for ever.

MLflow reads MLFLOW_DISABLE_TELEMETRY once, when it is imported: it has to be set before. Setting it
to "false" in the environment turns telemetry on again; that is the reader's own choice.

Its client gives a server 120 s and 7 more tries, which is a quarter of an hour before a person
hears that it hangs. Here a request has 8 s and two more tries, half a minute in all, unless the
environment says otherwise. Files take longer to be stored: see `patience`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

TIMEOUT, RETRIES = "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_TIMEOUT_S, _FILES_TIMEOUT_S = "8", "300"
_patient, _counting = 0, Lock()

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault(TIMEOUT, _TIMEOUT_S)
os.environ.setdefault(RETRIES, "2")

import mlflow  # noqa: E402

for _name in ("mlflow", "alembic", "mlflow.store.db.utils"):
    logging.getLogger(_name).setLevel(logging.WARNING)

__all__ = ["RETRIES", "TIMEOUT", "mlflow", "patience"]


@contextmanager
def patience() -> Iterator[None]:
    """Give requests the time that it takes a server to store a large file, while the block runs.

    The setting is the process's, for MLflow has none for a client: other threads share it. What the
    environment says goes before ours.
    """
    global _patient
    if os.environ.get(TIMEOUT) not in (_TIMEOUT_S, _FILES_TIMEOUT_S):
        yield
        return
    with _counting:
        _patient += 1
        os.environ[TIMEOUT] = _FILES_TIMEOUT_S
    try:
        yield
    finally:
        with _counting:
            _patient -= 1
            if _patient == 0:
                os.environ[TIMEOUT] = _TIMEOUT_S
