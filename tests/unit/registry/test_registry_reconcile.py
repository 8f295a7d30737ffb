"""Aliases that were moved by hand: carried out where that may be, reported where it may not."""

from __future__ import annotations

import shutil

import pytest
from release_case import World
from release_shelf import Shelf, fill_shelf, outcomes, standing

from coembed.files import read_json
from coembed.registry.settings import ROLLED_BACK
from coembed.registry.store import Registry
from coembed.stages import reconcile
from coembed.stages.result import Result


@pytest.fixture
def shelf(fresh_world: World) -> Shelf:
    """Three versions; 1 was served, 2 is, 3 is the challenger."""
    return fill_shelf(fresh_world, "abc", serve=2)


def run(shelf: Shelf) -> Result:
    world = shelf.world
    out = world.path("runs") / "reconcile.json"
    result = reconcile.run(world.cfg, services=world.services, runs=world.path("runs"), out=out)
    assert read_json(out, what="receipt") == result.receipt
    return result


def registry_of(shelf: Shelf) -> Registry:
    services = shelf.world.services
    return Registry(services.tracking_uri, services.artifact_root, shelf.world.cfg.register_)


def unmoved(shelf: Shelf) -> None:
    with shelf.open() as stores:
        assert standing(stores)[0] == shelf.collections[2], "search stays as it is"
        assert outcomes(stores) == [("promotion", 1, "done"), ("promotion", 2, "done")]


def test_where_all_is_well_nothing_is_done(shelf: Shelf) -> None:
    result = run(shelf)
    assert result.title == "Registry and index agree"
    assert dict(result.rows) == {
        "champion": "version 2",
        "search": f"items → {shelf.collections[2]} (version 2)",
    }
    unmoved(shelf)


def test_a_project_without_any_release_agrees_too(fresh_world: World) -> None:
    result = run(Shelf(fresh_world, {}))
    assert dict(result.rows) == {"champion": "nothing", "search": "items → nothing"}


def test_a_champion_set_by_hand_that_the_gate_passed_is_carried_out(shelf: Shelf) -> None:
    registry = registry_of(shelf)
    registry.tag_version(3, {"coembed.gate": "passed"})
    registry.set_alias("champion", 3)
    result = run(shelf)
    assert dict(result.rows)["carried out"] == (
        "the champion was set to version 3 by hand, while version 2 was served"
    )
    with shelf.open() as stores:
        assert standing(stores) == (shelf.collections[3], {"champion": 3, "previous": 2})
        entry = stores.journal.entries()[-1]
        assert stores.registry.version(2).tags.get(ROLLED_BACK) is None
    assert (entry.intent.kind, entry.intent.by, entry.outcome) == ("reconcile", "MLflow", "done")
    assert (entry.intent.version, entry.intent.before) == (3, 2)
    assert run(shelf).receipt["carried_out"] is None, "once is enough"


def test_one_that_was_champion_before_needs_no_gate_and_marks_what_it_replaced(
    shelf: Shelf,
) -> None:
    registry_of(shelf).set_alias("champion", 1)
    assert run(shelf).receipt["served"] == 1
    with shelf.open() as stores:
        assert standing(stores)[0] == shelf.collections[1]
        aliases = {"champion": 1, "previous": 2, "challenger": 3}
        assert standing(stores)[1] == aliases
        # Else the next retrain would serve it again at once.
        assert stores.registry.version(2).tags[ROLLED_BACK] == "1"


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({}, "but no gate has judged it"),
        (
            {"coembed.gate": "refused", "coembed.gate_reason": "recall fell"},
            "but its gate says refused: recall fell",
        ),
        ({"coembed.gate": "waiting"}, "but its gate says waiting"),
    ],
)
def test_one_that_no_gate_passed_is_reported(
    shelf: Shelf, tags: dict[str, str], message: str
) -> None:
    registry = registry_of(shelf)
    registry.tag_version(3, tags)
    registry.set_alias("champion", 3)
    result = run(shelf)
    assert result.title == "Registry and index do not agree; search stays as it is"
    said = dict(result.rows)["missing"]
    assert "the champion was set to version 3 by hand, while version 2 was served" in said
    assert message in said
    assert "`coembed gate 3`" in said
    assert (result.receipt["champion"], result.receipt["served"]) == (3, 2)
    assert dict(result.rows)["champion"] == "version 3"
    assert "(version 2)" in dict(result.rows)["search"]
    unmoved(shelf)


def test_one_without_a_whole_collection_is_reported(shelf: Shelf) -> None:
    registry = registry_of(shelf)
    registry.tag_version(3, {"coembed.gate": "passed"})
    registry.set_alias("champion", 3)
    with shelf.open() as stores:
        stores.index.set_metadata(shelf.collections[3], {"state": "loading"})
    said = run(shelf).receipt["missing"]
    assert "the index holds no whole collection of version 3" in said
    assert "its build was cut short" in said
    with shelf.open() as stores:
        stores.index.delete(shelf.collections[3])
    said = run(shelf).receipt["missing"]
    assert "the index holds no whole collection of version 3; it has those of version 1, 2" in said
    unmoved(shelf)


def test_an_index_that_was_moved_has_the_registry_follow(shelf: Shelf) -> None:
    with shelf.open() as stores:
        stores.index.set_alias("items", shelf.collections[1])
    assert run(shelf).receipt["carried_out"] == (
        "the index was moved to version 1: the registry follows"
    )
    with shelf.open() as stores:
        assert standing(stores)[0] == shelf.collections[1]
        aliases = {"champion": 1, "previous": 2, "challenger": 3}
        assert standing(stores)[1] == aliases
        assert stores.registry.version(2).tags[ROLLED_BACK] == "1"
        entry = stores.journal.entries()[-1]
    assert (entry.intent.kind, entry.intent.by) == ("reconcile", "Qdrant")


def test_a_champion_that_was_taken_away_is_reported_and_search_goes_on(shelf: Shelf) -> None:
    registry_of(shelf).delete_alias("champion")
    said = run(shelf).receipt["missing"]
    assert said.startswith("the registry has no champion, while search answers with version 2")
    unmoved(shelf)


def test_a_registered_model_that_was_deleted_is_reported_and_search_goes_on(shelf: Shelf) -> None:
    registry = registry_of(shelf)
    registry._client.delete_registered_model("shop")
    result = run(shelf)
    assert "version 2 of 'shop'" in result.receipt["missing"]
    assert "is not in this registry" in result.receipt["missing"]
    assert result.receipt["champion"] is None
    unmoved(shelf)


def test_a_version_that_coembed_did_not_register_is_no_champion(shelf: Shelf) -> None:
    registry = registry_of(shelf)
    run_id = registry.versions()[0].run_id
    registry._client.create_model_version("shop", "file:///tmp/other", run_id)
    registry.tag_version(4, {"coembed.gate": "passed"})
    registry.set_alias("champion", 4)
    said = run(shelf).receipt["missing"]
    assert "version 4 of 'shop' has no tag coembed.fingerprint: coembed did not register" in said
    unmoved(shelf)


def test_a_project_from_before_the_journal_has_the_registry_follow(fresh_world: World) -> None:
    """There the index was switched first, and a crash left the registry behind."""
    shelf = fill_shelf(fresh_world, "ab", serve=0)
    with shelf.open() as stores:
        stores.index.set_alias("items", shelf.collections[2])
        stores.registry.set_alias("champion", 1)
    run(shelf)
    with shelf.open() as stores:
        assert standing(stores) == (shelf.collections[2], {"champion": 2, "previous": 1})


def test_the_first_version_of_all_can_be_promoted_by_hand(fresh_world: World) -> None:
    shelf = fill_shelf(fresh_world, "a", serve=0)
    registry = registry_of(shelf)
    registry.tag_version(1, {"coembed.gate": "passed"})
    registry.set_alias("champion", 1)
    assert dict(run(shelf).rows)["carried out"] == (
        "the champion was set to version 1 by hand, while nothing was served"
    )
    with shelf.open() as stores:
        assert standing(stores) == (shelf.collections[1], {"champion": 1})


def test_a_served_collection_that_was_deleted_is_told_from_a_hand(shelf: Shelf) -> None:
    """The alias goes with it. Nothing is left to serve, so nothing is served."""
    shutil.rmtree(shelf.world.services.qdrant_path / "collections" / shelf.collections[2])
    result = run(shelf)
    assert result.receipt["missing"].startswith(
        "version 2 is the champion, but nothing is served, and the index holds no whole collection"
        " of version 2; it has those of version 1, 3. Then: check out that version's commit"
    )
    assert result.receipt["served"] is None
