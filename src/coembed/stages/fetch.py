"""fetch: a registered model version as a model directory, for whoever scores pairs with it."""

from __future__ import annotations

from pathlib import Path

from coembed.config import Config
from coembed.errors import UserError
from coembed.registry.settings import CHAMPION
from coembed.registry.store import open_registry
from coembed.services import Services
from coembed.stages.result import Result


def run(
    cfg: Config, *, services: Services, root: Path, models: Path, version: int | None = None
) -> Result:
    """Copy the champion, or `version`, into a folder of its own under `root / models`.

    Its fingerprint is for the settings that name a model by path (`model`, `fingerprint`): they
    refuse a folder that holds another one. Raises UserError when there is no champion.
    """
    registry = open_registry(services, cfg.register_)
    number = version if version is not None else registry.aliases().get(CHAMPION)
    if number is None:
        raise UserError(
            f"{cfg.register_.model} has no champion yet",
            hint="run `coembed retrain`, or name a version with --version",
        )
    found = registry.version(number)
    folder = registry.download(found, root / models / found.fingerprint)
    receipt = {
        "model": found.name,
        "version": number,
        "fingerprint": found.fingerprint,
        "precision": found.precision,
        "folder": folder.relative_to(root).as_posix(),
    }
    rows = (
        ("version", str(number)),
        ("folder", folder.relative_to(root).as_posix()),
        ("fingerprint", found.fingerprint),
        ("precision", found.precision),
    )
    return Result(f"Fetched {found.name}", rows, receipt)
