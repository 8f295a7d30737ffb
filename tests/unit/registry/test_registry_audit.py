"""What `coembed models` lists and what `coembed audit` answers."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from release_case import METRIC, World
from release_shelf import Shelf, fill_shelf

from coembed.files import read_json
from coembed.registry.journal import Entry, Intent, Outcome
from coembed.registry.store import Registry, open_registry
from coembed.stages import audit, models
from coembed.stages.rollback import roll_back


@pytest.fixture
def shelf(fresh_world: World) -> Shelf:
    """Three versions; 1 was served, 2 is, 3 is the challenger."""
    return fill_shelf(fresh_world, "abc", serve=2)


def registry_of(shelf: Shelf) -> Registry:
    return open_registry(shelf.world.services, shelf.world.cfg.register_)


def _list(shelf: Shelf) -> tuple[Any, dict[int, dict[str, str]]]:
    listing = models.run(shelf.world.cfg, services=shelf.world.services)
    json.dumps(listing.receipt)
    rows = [dict(zip(listing.columns, row, strict=True)) for row in listing.rows]
    return listing, {int(row["version"]): row for row in rows}


def test_every_version_is_listed_with_what_is_known_of_it(shelf: Shelf) -> None:
    registry = registry_of(shelf)
    registry.tag_version(2, {"coembed.gate": "passed", "coembed.collection": shelf.collections[2]})
    registry.tag_version(3, {"coembed.gate": "refused", "coembed.gate_reason": "recall fell"})
    registry.tag_version(1, {"coembed.gate": "passed", "coembed.rolled_back_to": "2"})
    listing, rows = _list(shelf)
    assert list(rows) == [3, 2, 1], "newest first"
    assert listing.title == "shop: 3 versions"
    assert [rows[n]["aliases"] for n in (1, 2, 3)] == ["previous", "champion", "challenger"]
    assert [rows[n]["gate"] for n in (1, 2, 3)] == ["passed, rolled back", "passed", "refused"]
    assert rows[2]["collection"] == f"{shelf.collections[2]} (served)"
    assert rows[3]["collection"] == shelf.collections[3]
    assert (rows[1]["commit"], rows[1]["data"]) == ("c0ffeec0", "dddddddd")
    measured = read_json(shelf.world.path("b-evaluation") / "metrics.json", what="metrics")
    value = measured["retrieval"]["text_to_image"]["recall_at_10"]
    assert rows[2][METRIC] == f"{value:.4f}"
    now = datetime.now(UTC)
    for row, entry in zip(listing.rows, listing.receipt["versions"], strict=True):
        created = datetime.fromisoformat(entry["created"])
        assert timedelta(0) <= now - created < timedelta(minutes=10)
        assert row[-1] == created.strftime("%Y-%m-%d %H:%M:%S")
    third, second, _ = listing.receipt["versions"]
    assert (third["gate_reason"], third["served"], third["in_index"]) == (
        "recall fell",
        False,
        True,
    )
    assert second["metrics"] == {METRIC: value}
    assert second["git_commit"] == "c0ffee" * 6


def test_what_the_policy_names_is_a_column_once(shelf: Shelf) -> None:
    other = "retrieval/image_to_text/recall_at_1"
    policy = {"guards": {other: 0.1}, "floors": {METRIC: 0.0, other: 0.0, "no/such": 0.0}}
    world = shelf.world.with_settings(promote=policy)
    listing = models.run(world.cfg, services=world.services)
    assert listing.columns[2:5] == (METRIC, other, "no/such")
    assert {row[4] for row in listing.rows} == {"–"}


def test_deleted_runs_and_collections_are_said_and_not_stumbled_over(shelf: Shelf) -> None:
    registry = registry_of(shelf)
    registry.tag_version(1, {"coembed.collection": shelf.collections[1]})
    registry._client.delete_run(registry.version(3).run_id)
    with shelf.open() as stores:
        stores.index.delete(shelf.collections[1])
        stores.index.delete(shelf.collections[3])
    _, rows = _list(shelf)
    # The version's own tags kept what the policy names; what it names since then is gone.
    value = float(registry.version(3).tags[f"coembed.metric/{METRIC}"])
    assert rows[3][METRIC] == f"{value:.4f}"
    guarded = shelf.world.with_settings(promote={"guards": {"retrieval/image_to_text/mrr": 1.0}})
    newest = models.run(guarded.cfg, services=guarded.services).rows[0]
    assert newest[2:4] == (f"{value:.4f}", "run deleted")
    assert rows[3]["collection"] == "not built"
    assert rows[1]["collection"] == f"{shelf.collections[1]} (gone from the index)"
    assert rows[2][METRIC] not in ("run deleted", "–")


def test_an_index_that_does_not_answer_leaves_its_column_open(shelf: Shelf) -> None:
    world = shelf.world.with_settings(index={"num_tries": 1})
    nowhere = replace(world.services, qdrant_url="http://127.0.0.1:9")  # nobody listens there
    listing, rows = _list(replace(shelf, world=replace(world, services=nowhere)))
    assert {row["collection"] for row in rows.values()} == {"the index does not answer"}
    assert [one["in_index"] for one in listing.receipt["versions"]] == [None] * 3


def test_an_empty_registry_lists_nothing(fresh_world: World) -> None:
    listing, rows = _list(Shelf(fresh_world, {}))
    assert (listing.title, rows) == ("shop: 0 versions", {})
    found = audit.run(fresh_world.cfg, services=fresh_world.services)
    assert (found.title, found.rows) == ("shop: nothing was ever promoted", ())


def test_the_audit_answers_who_what_when_and_why(shelf: Shelf) -> None:
    with shelf.open() as stores:
        shelf.switch(
            stores, 3, kind="forced", by="Grace", why="the shop opens today", gate="refused"
        )
        roll_back(stores, version=None, by="Ada", why="[bold]nobody[/bold] finds a thing")
        # One that was cut short before anything moved, and one that still is under way.
        last = stores.journal.entries()[-1].intent
        stores.journal.end(stores.journal.begin(last), "undone")
        stores.journal.begin(last)
        # What was deleted since is told of all the same.
        stores.registry.delete_alias("previous")
        stores.registry._client.delete_model_version("shop", "3")
    listing = audit.run(shelf.world.cfg, services=shelf.world.services)
    assert listing.title == "shop: version 2 serves"
    told = listing.receipt["entries"]
    json.dumps(told)
    assert [(one["version"], one["kind"], one["outcome"]) for one in told] == [
        (1, "promotion", "done"),
        (2, "promotion", "done"),
        (3, "forced", "done"),
        (2, "rollback", "done"),
        (2, "rollback", "undone"),
        (2, "rollback", "open"),
    ]
    for one, after in pairwise(told[:4]):
        assert one["until"] == after["from"], "one version ends where the next begins"
    assert told[3]["until"] is None
    assert [one["forced"] for one in told] == [False, False, True, False, False, False]
    assert told[2]["by"] == "Grace"
    assert (told[2]["why"], told[2]["gate"]) == ("the shop opens today", "refused")
    assert {one["data_md5"] for one in told} == {"d" * 32}
    assert {one["git_commit"] for one in told} == {"c0ffee" * 6}
    rows = [dict(zip(listing.columns, row, strict=True)) for row in listing.rows]
    assert [row["until (UTC)"] for row in rows[3:]] == [
        "now", "undone", "under way, or cut short: coembed reconcile",
    ]  # fmt: skip
    assert rows[2]["until (UTC)"] == told[2]["until"].replace("T", " ").removesuffix("+00:00")
    assert rows[3]["why"] == "[bold]nobody[/bold] finds a thing"
    assert rows[3]["data"] == "dddddddd"


def test_what_the_journal_does_not_explain_is_in_the_title(fresh_world: World) -> None:
    shelf = fill_shelf(fresh_world, "ab", serve=0)
    registry = registry_of(shelf)

    def title() -> str:
        return audit.run(fresh_world.cfg, services=fresh_world.services).title

    registry.set_alias("champion", 1)
    assert title() == "shop: version 1 is the champion, since before there was a journal"
    with shelf.open() as stores:
        shelf.switch(stores, 2)
    assert title() == "shop: version 2 serves"
    registry.set_alias("champion", 1)
    assert title() == (
        "shop: version 2 serves; the registry's champion is version 1: `coembed reconcile`"
    )


def _entry(version: int, end_s: int | None, outcome: Outcome, alias: str = "items") -> Entry:
    intent = Intent(
        kind="promotion", model="shop", version=version, before=None, alias=alias,
        collection="c", collection_before=None, by="", why="", gate="", data="", commit="",
        holder="",
    )  # fmt: skip
    start = datetime(2026, 1, 1, tzinfo=UTC)
    ended = None if end_s is None else start + timedelta(seconds=end_s)
    return Entry(f"{alias}-{version}", intent, "intent", outcome, start, ended)


def test_periods_are_of_one_alias_and_in_the_order_of_their_ends() -> None:
    entries = [
        _entry(1, 10, "done"),
        _entry(2, 40, "done"),  # begun before version 3 and finished after it, by another's hand
        _entry(3, 20, "done"),
        _entry(4, 30, "undone"),
        _entry(5, 15, "done", alias="other"),
    ]
    found = [
        (entry.intent.version, until and until.second) for entry, until in audit.periods(entries)
    ]
    assert found == [(1, 20), (5, None), (3, 40), (4, None), (2, None)]
