"""The journal of releases: which version was to be served, by whom and why, and what came of it.

MLflow keeps no history of an alias and cannot move one under a condition. So every promotion and
rollback is a run of its own, in the experiment `<experiment>-promotions`: RUNNING while it is under
way, FINISHED when it is done, KILLED when it was undone. The times are MLflow's own. A run that
still says RUNNING with nobody at work is what a crash left.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal, get_args

from coembed.registry.store import Registry, Run

Kind = Literal["promotion", "rollback", "forced", "reconcile"]
Step = Literal["intent", "search", "champion", "previous"]
Outcome = Literal["open", "done", "undone"]

_TAG = "coembed."


@dataclass(frozen=True, slots=True)
class Intent:
    """What is to happen. `before` is the version served until now, None for the first of all.

    `gate` is the gate's verdict on the version ("" where it was not asked); `data` and `commit` are
    the data version (DVC's md5) and the git commit that it was trained on. `holder` names the
    machine and the lock that the switch is made under.
    """

    kind: Kind
    model: str
    version: int
    before: int | None
    alias: str
    collection: str
    collection_before: str | None
    by: str
    why: str
    gate: str
    data: str
    commit: str
    holder: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. `step` is the last step that was begun; `ended` is None while it is open."""

    id: str
    intent: Intent
    step: str
    outcome: Outcome
    began: datetime
    ended: datetime | None


class Journal:
    """The entries of one registered model, kept in its registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._experiment = f"{registry.settings.experiment}-promotions"

    def begin(self, intent: Intent) -> str:
        """Write down what is to happen, before anything does; returns the entry's id."""
        tags = {
            f"{_TAG}{name}": "" if value is None else str(value)
            for name, value in asdict(intent).items()
        }
        return self._registry.start_run(
            f"{intent.kind} of version {intent.version}",
            # The last two are what MLflow's own pages show.
            {
                **tags, f"{_TAG}step": "intent",
                "mlflow.user": intent.by, "mlflow.note.content": intent.why,
            },
            experiment=self._experiment,
        )  # fmt: skip

    def step(self, entry: str, name: Step) -> None:
        """Say which step is being made."""
        self._registry.log_tags(entry, {f"{_TAG}step": name})

    def end(self, entry: str, outcome: Literal["done", "undone"]) -> None:
        """Close an entry."""
        self._registry.end_run(entry, "FINISHED" if outcome == "done" else "KILLED")

    def entries(self) -> list[Entry]:
        """All entries of this model, oldest first."""
        return self._read(self._registry.runs(self._experiment))

    def open_entries(self) -> list[Entry]:
        """The entries that nobody has closed, oldest first."""
        return self._read(
            self._registry.runs(self._experiment, where="attributes.status = 'RUNNING'")
        )

    def _read(self, runs: list[Run]) -> list[Entry]:
        model = self._registry.settings.model
        # Whatever else someone keeps in that experiment is not ours to read.
        found = [run for run in runs if run.tags.get(f"{_TAG}kind") in get_args(Kind)]
        return [_entry(run) for run in found if run.tags.get(f"{_TAG}model") == model]


def _entry(run: Run) -> Entry:
    def tag(name: str) -> str:
        return run.tags.get(f"{_TAG}{name}", "")

    kinds: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
    outcomes: dict[str, Outcome] = {"RUNNING": "open", "FINISHED": "done"}
    return Entry(
        id=run.run_id,
        intent=Intent(
            kind=kinds[tag("kind")],
            model=tag("model"),
            version=int(tag("version")),
            before=int(tag("before")) if tag("before") else None,
            alias=tag("alias"),
            collection=tag("collection"),
            collection_before=tag("collection_before") or None,
            by=tag("by"),
            why=tag("why"),
            gate=tag("gate"),
            data=tag("data"),
            commit=tag("commit"),
            holder=tag("holder"),
        ),
        step=tag("step"),
        outcome=outcomes.get(run.status, "undone"),
        began=run.began,
        ended=run.ended,
    )
