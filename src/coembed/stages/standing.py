"""standing: does what is served already come from the project as it is?

A retrain that finished leaves a receipt. While the recipe (params.yaml, dvc.yaml, dvc.lock and the
data's version) is the one of the receipt, and both stores still point where it says, another
retrain has nothing to do, and that is seen in seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coembed.code import code_hash
from coembed.config import Config
from coembed.errors import DataError
from coembed.files import read_json, sha256_file, sha256_json, write_json
from coembed.index.opening import open_index
from coembed.registry.journal import Journal
from coembed.registry.settings import CHAMPION
from coembed.registry.store import open_registry
from coembed.services import Services
from coembed.stages.result import Result


def leave(
    path: Path,
    *,
    recipe: str,
    outcomes: dict[str, str],
    served: dict[str, Any],
    data: dict[str, Any],
) -> None:
    """Write the receipt of a finished retrain; `served` has `version` and `collection`, `data` the
    git `commit` of the run and DVC's `md5` of its pool."""
    write_json(path, {"recipe": recipe, "outcomes": outcomes, "data": data, **served})


def recipe_hash(project: Path, pool: Path) -> str:
    """SHA-256 over the files that say what a run is made from and what it made.

    The code of the effects is part of it: DVC does not know about them.
    """
    names = ("params.yaml", "dvc.yaml", "dvc.lock", f"{pool}.dvc")
    found = {name: sha256_file(project / name) for name in names if (project / name).exists()}
    return sha256_json({**found, "effects": code_hash("registry", "index", "stages")})


def find(cfg: Config, *, services: Services, project: Path, receipt: Path) -> Result | None:
    """The last retrain's result, if it still stands; None where there is something to do.

    Whether the outputs in the project are what dvc.lock says is DVC's to tell, not ours.
    """
    try:
        left = read_json(receipt, what="retrain receipt")
    except DataError:
        return None
    if not isinstance(left, dict) or left.get("recipe") != recipe_hash(project, cfg.paths.pool):
        return None
    with open_index(services, cfg.index) as index:
        if index.aliases().get(cfg.index.collection) != left["collection"]:
            return None
    registry = open_registry(services, cfg.register_)
    if registry.aliases().get(CHAMPION) != left["version"]:
        return None
    if Journal(registry).open_entries():  # a switch was cut short: the flow closes it
        return None
    rows = (
        ("champion", f"{cfg.register_.model} version {left['version']}"),
        ("search", f"{cfg.index.collection} → {left['collection']}"),
    )
    return Result("Up to date: there is nothing to retrain (--force runs the flow anyway)", rows)
