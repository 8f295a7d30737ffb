"""Where the services are. Addresses and secrets come from the environment: they say where, never
what. With none set, everything runs embedded, in folders of the project.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Services:
    """Addresses of the registry and the index.

    `artifact_root` is where an embedded registry keeps its files; a server keeps its own.
    `qdrant_path` is used while `qdrant_url` is None.
    """

    tracking_uri: str
    artifact_root: Path | None
    qdrant_url: str | None
    qdrant_api_key: str | None
    qdrant_path: Path


def find_services(project: Path, environ: Mapping[str, str]) -> Services:
    """Services of the project folder, as `environ` (`os.environ`) says."""
    project = project.resolve()
    store = project / "mlflow" / "store"
    tracking_uri = environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store / 'mlflow.db'}"
    embedded = tracking_uri.startswith("sqlite:")
    return Services(
        tracking_uri=tracking_uri,
        artifact_root=store / "artifacts" if embedded else None,
        qdrant_url=environ.get("QDRANT_URL") or None,
        qdrant_api_key=environ.get("QDRANT_API_KEY") or None,
        qdrant_path=project / "qdrant",
    )
