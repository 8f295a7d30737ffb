"""approve: a person says yes to a model version, where the policy asks for that."""

from __future__ import annotations

from pathlib import Path

from coembed.config import Config
from coembed.errors import UserError
from coembed.files import write_json
from coembed.registry.store import open_registry
from coembed.services import Services
from coembed.stages.gate import APPROVED_BY, APPROVED_WHY
from coembed.stages.result import Result

_LONGEST_NAME, _LONGEST_REASON = 200, 2000


def run(cfg: Config, *, services: Services, version: int, by: str, why: str, out: Path) -> Result:
    """Record that `by` approves `version`, and `why`, as tags of the version and of its run.

    `out` is the receipt's file. Raises UserError for no name, no such version, or a deleted run.
    """
    by, why = by.strip(), why.strip()
    if not by or len(by) > _LONGEST_NAME:
        raise UserError(f"--by is {by!r}; expected the name of the person who approves")
    if len(why) > _LONGEST_REASON:
        raise UserError(f"the reason has {len(why):,} characters, expected {_LONGEST_REASON:,}")
    registry = open_registry(services, cfg.register_)
    registered = registry.version(version)
    if registered.run_id not in registry.runs_of([registered]):
        raise UserError(
            f"the run {registered.run_id} of version {version} was deleted",
            hint="register the model again and approve that version",
        )
    tags = {APPROVED_BY: by, APPROVED_WHY: why}
    # A metric is what MLflow keeps the time of: its history says when, and how often.
    registry.log_points(registered.run_id, [("coembed/approved", 1.0, version)])
    registry.log_tags(registered.run_id, tags)
    registry.tag_version(version, tags)
    receipt = {"model": registered.name, "version": version, "by": by, "reason": why}
    write_json(out, receipt)
    rows = [("by", by)]
    if why:
        rows.append(("reason", why))
    rows.append(("next", f"`coembed promote {version}`"))
    return Result(f"{registered.name} version {version} is approved", tuple(rows), receipt)
