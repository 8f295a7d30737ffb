"""An empty registry and three models, made once; a world of its own for every test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from release_case import World, copy_store, make_world

from coembed.registry.settings import RegisterSettings
from coembed.registry.store import Registry
from coembed.services import find_services


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with MLflow's tables and nothing in them."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    assert Registry(f"sqlite:///{path}", None, RegisterSettings()).versions() == []
    return path


@pytest.fixture(scope="session")
def three_models(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Pairs, and the models a, b and c with their evaluations and embeddings."""
    made = make_world(tmp_path_factory.mktemp("models") / "world")
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        made.make_model(name, seed)
    return made


@pytest.fixture
def fresh_world(three_models: World, empty_store: Path, tmp_path: Path) -> World:
    """A registry and an index of its own, empty; models and embeddings are shared."""
    root = tmp_path / "world"
    root.mkdir()
    for path in three_models.root.iterdir():
        if path.name != "runs":
            (root / path.name).symlink_to(path)
    copy_store(empty_store, root)
    return replace(three_models, root=root, services=find_services(root, {}))
