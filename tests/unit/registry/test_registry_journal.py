"""The journal: what is to happen is written down before it does, and read back in order."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from coembed.errors import UserError
from coembed.registry.journal import Intent, Journal
from coembed.registry.settings import RegisterSettings
from coembed.registry.store import Registry

FIRST = Intent(
    kind="promotion",
    model="shop",
    version=1,
    before=None,
    alias="items",
    collection="items__v1",
    collection_before=None,
    by="Ada Lovelace",
    why="it is “better”,\n100 %",
    gate="passed",
    data="d" * 32,
    commit="c0ffee",
    holder="here:/runs/promotion.lock",
)


@pytest.fixture
def registry(empty_store: Path, tmp_path: Path) -> Registry:
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    settings = RegisterSettings(model="shop", experiment="tests")
    return Registry(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "files", settings)


def test_entries_come_back_as_they_were_written_and_oldest_first(registry: Registry) -> None:
    journal = Journal(registry)
    assert journal.entries() == journal.open_entries() == []
    assert registry.runs("tests-promotions") == [], "reading makes no experiment"
    started = datetime.now(UTC)
    second = replace(FIRST, kind="rollback", version=2, before=1, collection_before="items__v1")
    third = replace(second, kind="forced", version=3)
    ids = []
    for intent, outcome in ((FIRST, "done"), (second, "undone"), (third, None)):
        entry = journal.begin(intent)
        ids.append(entry)
        journal.step(entry, "search")
        if outcome == "done":
            journal.end(entry, "done")
        elif outcome == "undone":
            journal.end(entry, "undone")
    found = journal.entries()
    assert [entry.id for entry in found] == ids
    assert [entry.intent for entry in found] == [FIRST, second, third]
    assert [entry.outcome for entry in found] == ["done", "undone", "open"]
    assert {entry.step for entry in found} == {"search"}
    assert found[2].ended is None
    for entry in found[:2]:
        assert entry.ended is not None
        assert timedelta(0) <= entry.ended - entry.began < timedelta(minutes=5)
        assert abs(entry.began - started) < timedelta(minutes=5)
    assert [entry.id for entry in journal.open_entries()] == ids[2:]


def test_another_models_entries_and_what_else_lies_there_are_passed_over(
    registry: Registry, tmp_path: Path
) -> None:
    other = Registry(
        f"sqlite:///{tmp_path}/mlflow.db",
        tmp_path / "files",
        RegisterSettings(model="other", experiment="tests"),
    )
    Journal(other).begin(replace(FIRST, model="other"))
    registry.start_run("by hand", {"coembed.kind": "a whim"}, experiment="tests-promotions")
    registry.start_run("by hand too", experiment="tests-promotions")
    assert Journal(registry).entries() == Journal(registry).open_entries() == []
    assert len(Journal(other).open_entries()) == 1


def test_a_journal_that_somebody_deleted_says_so(registry: Registry) -> None:
    journal = Journal(registry)
    journal.end(journal.begin(FIRST), "done")
    client = registry._client
    client.delete_experiment(client.get_experiment_by_name("tests-promotions").experiment_id)
    with pytest.raises(UserError, match=r"'active' state(.|\n)*mlflow experiments restore"):
        journal.begin(FIRST)
