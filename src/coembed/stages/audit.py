"""audit: which version answered searches when, what it was trained on, and who had it so and why.

Read from the journal alone, so it also tells of versions that were deleted since.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from coembed.config import Config
from coembed.registry.journal import Entry, Journal
from coembed.registry.settings import CHAMPION
from coembed.registry.store import open_registry
from coembed.services import Services
from coembed.stages.promotion import called
from coembed.stages.result import Listing, clock

_COLUMNS = (
    "from (UTC)", "until (UTC)", "version", "how", "by", "why", "gate", "data", "commit",
)  # fmt: skip


def run(cfg: Config, *, services: Services) -> Listing:
    """List every promotion and rollback, oldest first, those that were undone among them.

    A version serves from the end of its entry to the end of the next one of the same index alias.
    """
    registry = open_registry(services, cfg.register_)
    told = [_tell(entry, until) for entry, until in periods(Journal(registry).entries())]
    champion = registry.aliases().get(CHAMPION)
    receipt = {"model": cfg.register_.model, "champion": champion, "entries": told}
    title = f"{cfg.register_.model}: {_sum_up(told, champion)}"
    return Listing(title, _COLUMNS, tuple(map(_row, told)), receipt)


def _sum_up(told: list[dict[str, Any]], champion: int | None) -> str:
    serving = [one["version"] for one in told if one["outcome"] == "done" and not one["until"]]
    if not serving:
        if champion is None:
            return "nothing was ever promoted"
        return f"version {champion} is the champion, since before there was a journal"
    if champion != serving[-1]:
        return (
            f"version {serving[-1]} serves; the registry's champion is {called(champion)}: "
            "`coembed reconcile`"
        )
    return f"version {serving[-1]} serves"


def periods(entries: list[Entry]) -> list[tuple[Entry, datetime | None]]:
    """Entries in the order in which they came to an end, each with when its version stopped
    serving: None where it still does, or never did."""

    def end(entry: Entry) -> datetime:
        return entry.ended or entry.began

    found: list[tuple[Entry, datetime | None]] = []
    next_of: dict[str, datetime] = {}
    for entry in sorted(entries, key=end, reverse=True):
        alias = entry.intent.alias
        if entry.outcome == "done":
            found.append((entry, next_of.get(alias)))
            next_of[alias] = end(entry)
        else:
            found.append((entry, None))
    return found[::-1]


def _tell(entry: Entry, until: datetime | None) -> dict[str, Any]:
    intent = entry.intent
    done = entry.outcome == "done"
    return {
        "entry": entry.id,
        "kind": intent.kind,
        "forced": intent.kind == "forced",
        "outcome": entry.outcome,
        "version": intent.version,
        "before": intent.before,
        "alias": intent.alias,
        "collection": intent.collection,
        "by": intent.by,
        "why": intent.why,
        "gate": intent.gate or None,
        "data_md5": intent.data or None,
        "git_commit": intent.commit or None,
        "began": _iso(entry.began),
        "from": _iso(entry.ended) if done else None,
        "until": _iso(until),
    }


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="seconds")


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    if one["outcome"] == "done":
        since, until = clock(one["from"]), clock(one["until"]) if one["until"] else "now"
    else:
        since = clock(one["began"])
        until = {"undone": "undone", "open": "under way, or cut short: coembed reconcile"}[
            one["outcome"]
        ]
    return (
        since, until, f"v{one['version']}", one["kind"], one["by"], one["why"],
        one["gate"] or "–", (one["data_md5"] or "–")[:8], (one["git_commit"] or "–")[:8],
    )  # fmt: skip
