"""An empty registry, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from coembed.registry.settings import RegisterSettings
from coembed.registry.store import Registry


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with MLflow's tables and nothing in them."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    assert Registry(f"sqlite:///{path}", None, RegisterSettings()).versions() == []
    return path
