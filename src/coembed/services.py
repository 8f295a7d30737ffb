"""Where the services are. Addresses and secrets come from the environment: they say where, never
what. With none set, everything runs embedded, in folders of the project.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from coembed.errors import UserError


@dataclass(frozen=True, slots=True)
class Services:
    """Addresses of the registry and the index.

    `artifact_root` is where an embedded registry keeps its files; a server keeps its own.
    `qdrant_path` is used while `qdrant_url` is None. With `qdrant_grpc_port` the server is asked
    over gRPC at that port.
    """

    tracking_uri: str
    artifact_root: Path | None
    qdrant_url: str | None
    qdrant_api_key: str | None
    qdrant_path: Path
    qdrant_grpc_port: int | None = None


def find_services(project: Path, environ: Mapping[str, str]) -> Services:
    """Services of the project folder, as `environ` (`os.environ`) says."""
    project = project.resolve()
    store = project / "mlflow" / "store"
    tracking_uri = environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store / 'mlflow.db'}"
    grpc_port = environ.get("QDRANT_GRPC_PORT") or None
    if grpc_port is not None and not (grpc_port.isdecimal() and 0 < int(grpc_port) < 65536):
        raise UserError(
            f"QDRANT_GRPC_PORT is {grpc_port!r}, expected a port such as 6334",
            hint="unset it to ask the server over HTTP",
        )
    embedded = tracking_uri.startswith("sqlite:")
    return Services(
        tracking_uri=tracking_uri,
        artifact_root=store / "artifacts" if embedded else None,
        qdrant_url=environ.get("QDRANT_URL") or None,
        qdrant_api_key=environ.get("QDRANT_API_KEY") or None,
        qdrant_path=project / "qdrant",
        qdrant_grpc_port=int(grpc_port) if grpc_port else None,
    )
