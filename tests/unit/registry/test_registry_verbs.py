"""`coembed models`, `rollback`, `audit` and `reconcile`, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from release_case import World
from release_shelf import Shelf, fill_shelf
from typer.testing import CliRunner, Result

from coembed.cli import app
from coembed.errors import UserError


@pytest.fixture
def shelf(fresh_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """A project's folder: version 1 was served, 2 is. Git knows who is at work."""
    params = fresh_world.cfg.model_dump(mode="json", by_alias=True)
    (fresh_world.root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    (tmp_path / "gitconfig").write_text("[user]\n\tname = Grace Höpper\n", encoding="utf-8")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    for name in ("MLFLOW_TRACKING_URI", "QDRANT_URL"):
        monkeypatch.delenv(name, raising=False)
    return fill_shelf(fresh_world, "ab", serve=2)


def call(shelf: Shelf, *arguments: str) -> Result:
    return CliRunner().invoke(
        app, [*arguments, "-C", str(shelf.world.root)], catch_exceptions=False
    )


def test_rollback_is_recorded_with_who_and_why(shelf: Shelf) -> None:
    done = call(shelf, "rollback", "--reason", "red sneakers find blue boots")
    assert done.exit_code == 0
    assert "shop version 1 is served again" in done.stdout
    shown = call(shelf, "audit").stdout
    for word in ("rollback", "Grace Höpper", "red sneakers find blue", "now", "v1", "dddddddd"):
        assert word in shown
    told = json.loads(call(shelf, "audit", "--json").stdout)["entries"]
    assert (told[-1]["by"], told[-1]["why"]) == ("Grace Höpper", "red sneakers find blue boots")
    receipt = json.loads((shelf.world.path("runs") / "rollback.json").read_text())
    assert (receipt["version"], receipt["champion_before"], receipt["moved"]) == (1, 2, True)
    # Back again by its number; and a third time, when it is served already.
    assert "shop version 2 is served again" in call(shelf, "rollback", "2").stdout
    assert "version 2 is served already: nothing moved" in call(shelf, "rollback", "2").stdout
    assert len(json.loads(call(shelf, "audit", "--json").stdout)["entries"]) == 4


def test_rollback_to_what_is_not_there_is_the_users_to_mend(shelf: Shelf) -> None:
    with pytest.raises(UserError, match=r"no version 9 of 'shop'; versions there: 1, 2"):
        call(shelf, "rollback", "9")
    with shelf.open() as stores:
        stores.index.delete(shelf.collections[1])
    with pytest.raises(
        UserError, match=r"no whole collection of version 1; it has those of version 2(.|\n)*embed"
    ):
        call(shelf, "rollback")


def test_models_in_a_table_and_for_a_program(shelf: Shelf) -> None:
    shown = call(shelf, "models").stdout
    for word in ("champion", "previous", "(served)", "c0ffeec0", "registered (UTC)"):
        assert word in shown
    told = json.loads(call(shelf, "models", "--json").stdout)
    assert [one["version"] for one in told["versions"]] == [2, 1]
    assert told["served"] == shelf.collections[2]


def test_reconcile_exits_with_2_while_something_is_missing(shelf: Shelf) -> None:
    assert call(shelf, "reconcile").exit_code == 0
    with shelf.open() as stores:
        stores.registry.delete_alias("champion")
    done = call(shelf, "reconcile")
    assert done.exit_code == 2
    assert "the registry has no champion" in done.stdout
    with shelf.open() as stores:
        stores.registry.set_alias("champion", 1)
    done = call(shelf, "reconcile", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["served"] == 1
