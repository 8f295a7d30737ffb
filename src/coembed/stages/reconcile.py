"""reconcile: registry and index say the same, whoever moved what, and whatever a crash left.

The journal tells a crash from a hand. An open entry is a switch that was cut short: it is finished
or undone. Where every entry is closed, the last one says what both stores were left at, and the
store that says otherwise now was moved by somebody: the alias `champion` in MLflow's own pages, or
the index's alias.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from coembed.config import Config
from coembed.errors import UserError
from coembed.files import write_json
from coembed.registry.journal import Entry
from coembed.registry.settings import CHAMPION
from coembed.services import Services
from coembed.stages.promotion import (
    Stores,
    called,
    find_collection,
    open_stores,
    recover,
    served,
    served_version,
    switch,
)
from coembed.stages.result import Result


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What was found and done. `missing` says why the two stores still differ, if they do.

    `carried_out` says what was followed: a champion set by hand, or an index's alias.
    """

    recovered: tuple[Entry, ...]
    carried_out: str | None
    missing: str | None


def run(cfg: Config, *, services: Services, runs: Path, out: Path) -> Result:
    """Bring registry and index to one state, or say what is missing. `out` is the receipt's file.

    A champion that was set by hand is carried out if the gate passed it, or it was champion before,
    and the index holds a whole collection of it. Otherwise search stays as it is.
    """
    with open_stores(cfg, services, runs=runs) as stores:
        done = reconcile(stores)
        champion = stores.registry.aliases().get(CHAMPION)
        now = served(stores)
    receipt = {
        "model": cfg.register_.model,
        "recovered": [
            {"entry": entry.id, "version": entry.intent.version, "outcome": entry.outcome}
            for entry in done.recovered
        ],
        "carried_out": done.carried_out,
        "missing": done.missing,
        "champion": champion,
        "served": now.release.version if now else None,
        "collection": now.collection if now else None,
    }
    write_json(out, receipt)
    title = "Registry and index agree"
    if done.missing:
        title = "Registry and index do not agree; search stays as it is"
    rows = [(_outcome(entry), _told(entry)) for entry in done.recovered]
    if done.carried_out:
        rows.append(("carried out", done.carried_out))
    rows += [
        ("champion", called(champion)),
        (
            "search",
            f"{cfg.index.collection} → {now.collection} (version {now.release.version})"
            if now
            else f"{cfg.index.collection} → nothing",
        ),
    ]
    if done.missing:
        rows.append(("missing", done.missing))
    return Result(title, tuple(rows), receipt)


def reconcile(stores: Stores) -> Reconciled:
    """Finish or undo what was cut short, then follow what was moved by hand, where that may be."""
    recovered = recover(stores)
    champion = stores.registry.aliases().get(CHAMPION)
    now = served(stores)
    current = served_version(stores)
    number = current.version if current else None
    if now is not None and current is None:
        return Reconciled(
            recovered,
            None,
            f"search answers with collection {now.collection!r}, whose model (version "
            f"{now.release.version} of {now.release.model!r}, {now.release.fingerprint[:12]}) is "
            "not in this registry: promote a version that is",
        )
    if champion == number:
        return Reconciled(recovered, None, None)
    done = sorted(
        (entry for entry in stores.journal.entries() if entry.outcome == "done"),
        key=lambda entry: entry.ended or entry.began,
    )
    last = done[-1] if done else None
    if now is not None and number is not None and _index_was_moved(last, champion, now.collection):
        switch(
            stores, kind="reconcile", version=number, collection=now.collection, before=number,
            by="Qdrant", why=f"the index's alias was found at {now.collection}",
        )  # fmt: skip
        return Reconciled(
            recovered, f"the index was moved to version {number}: the registry follows", None
        )
    if champion is None:
        return Reconciled(
            recovered,
            None,
            f"the registry has no champion, while search answers with version {number}: "
            f"`coembed rollback {number}` sets it again",
        )
    return _follow_champion(stores, recovered, champion, number, done)


def _index_was_moved(last: Entry | None, champion: int | None, collection: str) -> bool:
    """Whether it is the index that was moved, and not the champion.

    Without a journal (a project from before there was one) the registry is behind: the index was
    always switched first.
    """
    if last is None:
        return True
    return champion == last.intent.version and collection != last.intent.collection


def _follow_champion(
    stores: Stores,
    recovered: tuple[Entry, ...],
    champion: int,
    number: int | None,
    done: list[Entry],
) -> Reconciled:
    version = stores.registry.version(champion)
    found = f"the champion was set to version {champion} by hand, while {called(number)} was served"
    by, why = "MLflow", "the alias champion was set by hand"
    if number is None and champion in {entry.intent.version for entry in done[-1:]}:
        found = f"version {champion} is the champion, but nothing is served"
        by, why = "coembed", "its collection was not served any more"
    verdict = version.tags.get("coembed.gate", "")
    if verdict != "passed" and champion not in {entry.intent.version for entry in done}:
        reason = version.tags.get("coembed.gate_reason", "")
        judged = f"its gate says {verdict}: {reason}" if verdict else "no gate has judged it"
        return Reconciled(
            recovered,
            None,
            f"{found}, but {judged}. `coembed gate {champion}` asks the gate, `coembed promote "
            f"{champion} --force --reason TEXT` serves it all the same",
        )
    try:
        collection = find_collection(stores, version)
        switch(
            stores, kind="reconcile", version=champion, collection=collection, before=number,
            by=by, why=why, gate=verdict,
        )  # fmt: skip
    except UserError as error:
        return Reconciled(recovered, None, f"{found}, and {error.message}. Then: {error.hint}")
    return Reconciled(recovered, found, None)


def _outcome(entry: Entry) -> str:
    return "finished" if entry.outcome == "done" else "undone"


def _told(entry: Entry) -> str:
    intent = entry.intent
    when = f"{entry.began:%Y-%m-%d %H:%M:%S} UTC"
    return f"the {intent.kind} of version {intent.version} by {intent.by}, cut short at {when}"
