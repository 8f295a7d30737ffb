"""Opening the index: a server where there is one, else the store in the project's folder."""

from __future__ import annotations

from coembed.index.base import VectorIndex
from coembed.index.settings import IndexSettings
from coembed.services import Services


def open_index(services: Services, settings: IndexSettings) -> VectorIndex:
    """The index at `services.qdrant_url`, or else the embedded one in `services.qdrant_path`.

    Raises ServiceError when the server does not answer or the store cannot be read.
    """
    # Each engine takes a while to import, and only one is used.
    if services.qdrant_url is not None:
        from coembed.index.qdrant import open_server

        return open_server(services, settings)
    from coembed.index.edge import open_store

    return open_store(services.qdrant_path, settings)
