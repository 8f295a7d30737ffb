"""The saga: a process killed between any two of its steps leaves what the next start puts right."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from release_case import World
from release_shelf import Shelf, fill_shelf, outcomes, standing

from coembed.errors import ServiceError, UserError
from coembed.index.edge import EdgeIndex
from coembed.registry.journal import Entry, Journal
from coembed.registry.settings import ROLLED_BACK
from coembed.registry.store import Registry
from coembed.stages import promotion
from coembed.stages.promotion import recover

# Runs in a process of its own. It goes through the folders it is given; in each, a child of it
# makes the switch and kills itself after so many writes to either store.
KILLING = """
import json, os, signal, sys
from pathlib import Path
from coembed.config import parse_config
from coembed.index.edge import EdgeIndex
from coembed.registry.store import Registry
from coembed.services import find_services
from coembed.stages.promotion import open_stores, switch
from coembed.stages.rollback import roll_back

cfg = parse_config(json.loads(sys.argv[1]))
collection = sys.argv[2]
writes, last = 0, None

def count(real, name):
    def counted(self, *arguments, **named):
        global writes
        if writes == last:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = real(self, *arguments, **named)
        writes += 1
        (root / "writes").open("a").write(name + "\\n")
        return answer
    return counted

for kind, names in {
    Registry: ("start_run", "log_tags", "set_alias", "delete_alias", "tag_version", "end_run"),
    EdgeIndex: ("set_alias",),
}.items():
    for name in names:
        setattr(kind, name, count(getattr(kind, name), f"{kind.__name__}.{name}"))

for job in sys.argv[3:]:
    root, last = Path(job.partition("=")[0]), int(job.partition("=")[2])
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        print(root.name, os.waitstatus_to_exitcode(status), flush=True)
        continue
    with open_stores(cfg, find_services(root, {}), runs=root / "runs") as stores:
        if collection:
            switch(stores, kind="promotion", version=2, collection=collection, before=1,
                   by="Ada", why="it is better", gate="passed")
        else:
            roll_back(stores, version=None, by="Ada", why="it is worse")
    os._exit(0)
"""


_ALL = 10_000


@pytest.fixture
def shelf(fresh_world: World) -> Shelf:
    """Version 1 is served, version 2 is the challenger."""
    return fill_shelf(fresh_world, "ab", serve=1)


def test_a_switch_moves_both_stores_and_is_written_down(shelf: Shelf) -> None:
    with shelf.open() as stores:
        assert shelf.switch(stores, 2)
        assert standing(stores) == (shelf.collections[2], {"champion": 2, "previous": 1})
        assert not shelf.switch(stores, 2), "it is served already"
        first, second = stores.journal.entries()
    assert (first.intent.version, first.intent.before) == (1, None)
    assert first.intent.collection_before is None
    assert second.outcome == "done"
    intent = second.intent
    assert (intent.kind, intent.version, intent.before) == ("promotion", 2, 1)
    assert (intent.by, intent.why, intent.gate) == ("Ada", "it is better", "passed")
    assert (intent.data, intent.commit) == ("d" * 32, "c0ffee" * 6)
    assert (intent.collection_before, intent.collection) == tuple(shelf.collections.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["promotion", "rollback"])
def test_killed_after_any_write_it_is_finished_or_undone_at_the_next_start(
    shelf: Shelf, tmp_path: Path, kind: str
) -> None:
    """SIGKILL to a real process; the whole switch of a process that lives says how many writes
    there are."""
    before, target = (1, 2) if kind == "promotion" else (2, 1)
    if kind == "rollback":
        with shelf.open() as stores:
            shelf.switch(stores, 2)
    untouched = {"promotion": {"champion": 1, "challenger": 2},
                 "rollback": {"champion": 2, "previous": 1}}[kind]  # fmt: skip
    whole = shelf.copy(tmp_path / "whole")
    _run(kind, [(whole, _ALL)])
    writes = (whole.world.root / "writes").read_text().split()
    commit = writes.index("EdgeIndex.set_alias")
    assert writes[0] == "Registry.start_run", "the intent comes first"
    assert writes[-1] == "Registry.end_run", "and nothing after the end"
    assert writes.count("Registry.set_alias") == 2
    cases = [(shelf.copy(tmp_path / f"after-{n}"), n) for n in range(len(writes))]
    _run(kind, cases)
    for case, num_written in cases:
        (case.world.root / "writes").touch()
        assert (case.world.root / "writes").read_text().split() == writes[:num_written]
        with case.open() as stores:
            closed = recover(stores)
            now = standing(stores)
            assert stores.journal.open_entries() == []
            told = outcomes(stores)[-1]
            if num_written > commit:
                assert now == (shelf.collections[target], {"champion": target, "previous": before})
                assert told == (kind, target, "done")
            else:
                assert now == (shelf.collections[before], untouched)
                assert told[2] == ("undone" if num_written else "done")
            assert len(closed) == (num_written > 0)
            assert recover(stores) == ()
            # Whatever it was, the same command ends where the whole one did.
            if kind == "rollback":
                shelf.switch(stores, target, kind="rollback")
            else:
                shelf.switch(stores, target)
            assert standing(stores) == (
                shelf.collections[target], {"champion": target, "previous": before},
            )  # fmt: skip
            marked = stores.registry.version(before).tags.get(ROLLED_BACK)
            assert marked == (str(target) if kind == "rollback" else None)


def _run(kind: str, cases: list[tuple[Shelf, int]]) -> None:
    """Make the switch in each folder, killed after so many writes."""
    world, collections = cases[0][0].world, cases[0][0].collections
    done = subprocess.run(
        [
            sys.executable, "-c", KILLING,
            json.dumps(world.cfg.model_dump(mode="json", by_alias=True)),
            collections[2] if kind == "promotion" else "",
            *(f"{case.world.root}={num}" for case, num in cases),
        ],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for line, (case, num) in zip(done.stdout.splitlines(), cases, strict=True):
        expected = 0 if num == _ALL else -9
        assert line == f"{case.world.root.name} {expected}", done.stderr[-3000:]


def test_a_store_that_refuses_leaves_nothing_half_promoted(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(store: object, *_: object) -> None:
        raise ServiceError(f"the {'index' if isinstance(store, EdgeIndex) else 'registry'} is away")

    with shelf.open() as stores:
        before = standing(stores)
        with monkeypatch.context() as patch:
            patch.setattr(EdgeIndex, "set_alias", refuse)
            with pytest.raises(ServiceError, match="the index is away"):
                shelf.switch(stores, 2)
        assert standing(stores) == before
        assert outcomes(stores)[-1] == ("promotion", 2, "undone")
        # After the commit point it stays open, and the next start finishes it.
        with monkeypatch.context() as patch:
            patch.setattr(Registry, "set_alias", refuse)
            with pytest.raises(
                ServiceError, match=r"search answers with version 2 now, but the registry does not "
                r"say so yet: the registry is away(.|\n)*`coembed reconcile` finishes it",
            ):  # fmt: skip
                shelf.switch(stores, 2)
        assert standing(stores)[0] == shelf.collections[2]
        assert outcomes(stores)[-1] == ("promotion", 2, "open")
        (closed,) = recover(stores)
        assert (closed.intent.version, closed.outcome) == (2, "done")
        assert standing(stores) == (shelf.collections[2], {"champion": 2, "previous": 1})


def test_what_was_judged_against_another_champion_is_not_served(shelf: Shelf) -> None:
    with shelf.open() as stores:
        shelf.switch(stores, 2)
        before = standing(stores)
        with pytest.raises(
            ServiceError, match=r"version 2 is served by now; version 1 was judged while it was "
            r"nothing(.|\n)*run the same command again",
        ):  # fmt: skip
            shelf.switch(stores, 1, before=None)
        assert standing(stores) == before
        assert len(outcomes(stores)) == 2


def test_a_collection_that_is_not_that_versions_or_not_whole_is_never_served(
    shelf: Shelf,
) -> None:
    with shelf.open() as stores:
        first, second = shelf.collections.values()
        with pytest.raises(UserError, match=r"was made by version 1 \(\w{12}\), not by version 2"):
            shelf.switch(stores, 2, collection=first)
        with pytest.raises(UserError, match="no collection 'items__v9' in the index; present: "):
            shelf.switch(stores, 2, collection="items__v9")
        stores.index.set_metadata(second, {"state": "loading"})
        with pytest.raises(UserError, match="is not whole: its build was cut short"):
            shelf.switch(stores, 2)
        stores.index.set_metadata(second, {"state": "built", "num_items": 999})
        with pytest.raises(UserError, match=r"it has \d+ of 999 items(.|\n)*coembed index"):
            shelf.switch(stores, 2)
        assert outcomes(stores) == [("promotion", 1, "done")]


def test_a_version_whose_files_are_gone_is_never_served(shelf: Shelf) -> None:
    with shelf.open() as stores:
        source = stores.registry.version(2).source.removeprefix("file://")
        shutil.rmtree(source)
        with pytest.raises(
            UserError, match=r"files of version 2 are not in the registry any more(.|\n)*mlflow gc"
        ):
            shelf.switch(stores, 2)
        assert standing(stores) == (
            shelf.collections[1], {"champion": 1, "challenger": 2},
        )  # fmt: skip


def test_another_machine_that_is_switching_is_given_way_and_one_that_crashed_is_not(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shelf.open() as stores:
        (done,) = stores.journal.entries()
        theirs = replace(
            done.intent, version=2, collection=shelf.collections[2], by="Grace",
            holder="elsewhere:/runs/promotion.lock",
        )  # fmt: skip
        entry = stores.journal.begin(theirs)
        for _ in range(2):
            with pytest.raises(
                ServiceError, match=r"Grace is switching to version 2 on elsewhere, since [\d:]+ "
                r"UTC(.|\n)*again in 60 s",
            ):  # fmt: skip
                shelf.switch(stores, 2)
        assert outcomes(stores)[-1] == ("promotion", 2, "open")
        monkeypatch.setattr(promotion, "_PATIENCE", timedelta(0))
        (closed,) = recover(stores)
        assert (closed.id, closed.outcome) == (entry, "undone")


def test_two_machines_that_begin_at_once_both_give_way(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one's intent is written between our look at the journal and our own intent."""
    real = Journal.begin

    def meanwhile(self: Journal, intent: Any) -> str:
        real(self, replace(intent, by="Grace", holder="elsewhere:lock"))
        return real(self, intent)

    with shelf.open() as stores:
        before = standing(stores)
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "begin", meanwhile)
            with pytest.raises(ServiceError, match="Grace is switching to version 2 on elsewhere"):
                shelf.switch(stores, 2)
        assert standing(stores) == before
        entries: list[Entry] = stores.journal.entries()
        found = {entry.intent.by: entry.outcome for entry in entries[1:]}
        assert found == {"Ada": "undone", "Grace": "open"}


def test_a_second_promoter_waits_for_the_lock(
    shelf: Shelf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The other process has the lock and lets go of it when it is told to."""
    script = """
import sys
from pathlib import Path
from coembed.locking import exclusive
with exclusive(Path(sys.argv[1]), doing="switching what is served", wait=True):
    print("locked", flush=True)
    sys.stdin.readline()
    Path(sys.argv[2]).touch()
"""
    lock, over = shelf.world.path("runs") / "promotion.lock", tmp_path / "over"
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(lock), str(over)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout is not None
    assert other.stdout.readline() == "locked\n"
    with shelf.open() as stores:
        real = stores.registry.version

        def asked(number: int) -> Any:
            assert over.exists(), "the lock was not waited for"
            return real(number)

        monkeypatch.setattr(stores.registry, "version", asked)
        threading.Timer(0.5, other.communicate, ("\n",)).start()
        assert shelf.switch(stores, 2)
    assert "waiting for another process that is switching what is served" in capsys.readouterr().err
    assert other.wait(timeout=60) == 0
