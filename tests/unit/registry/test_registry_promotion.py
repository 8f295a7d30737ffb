"""From a registered version to what a search answers: index, gate, switch, crash, rollback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from release_case import METRIC, World

from coembed.errors import ModelError, ServiceError, UserError
from coembed.files import read_json
from coembed.index.edge import EdgeIndex
from coembed.index.opening import open_index
from coembed.registry.journal import Journal
from coembed.registry.store import Registry, open_registry
from coembed.stages import approve, gate, rollback, search
from coembed.stages.result import Result


@pytest.fixture
def world(fresh_world: World) -> World:
    return fresh_world


def served(world: World) -> tuple[str | None, dict[str, int]]:
    with open_index(world.services, world.cfg.index) as index:
        alias = index.aliases().get("items")
    return alias, open_registry(world.services, world.cfg.register_).aliases()


def find(
    world: World, query: str | Path | search.MediaQuery = "a red disc", **changes: Any
) -> search.SearchResult:
    if isinstance(query, Path):
        query = search.MediaQuery("image", query)
    arguments: dict[str, Any] = {
        "services": world.services, "pool": world.path("data"),
        "models": world.path("runs") / "models", "query": query,
    }  # fmt: skip
    return search.run(world.cfg, **(arguments | changes))


def go_back(world: World, **changes: Any) -> Result:
    runs = world.path("runs")
    return rollback.run(
        world.cfg, services=world.services, runs=runs, out=runs / "r.json", by="Ada", **changes
    )


def scores(world: World, name: str) -> float:
    metrics = read_json(world.path(f"{name}-evaluation") / "metrics.json", what="metrics")
    return float(metrics["retrieval"]["text_to_image"]["recall_at_10"])


def test_the_first_version_passes_and_the_next_replaces_it(world: World) -> None:
    one, first, result = world.release("a")
    assert result.receipt["promoted"]
    assert result.receipt["champion_before"] is None
    assert served(world) == (first, {"champion": one})
    two, second, result = world.release("b")
    assert served(world) == (second, {"champion": two, "previous": one})
    headline = result.receipt["gates"][0]
    before, after = (100 * scores(world, name) for name in "ab")
    assert f"({before:.2f} % → {after:.2f} %)" in headline["value"]
    assert result.receipt["champion_before"] == one
    assert json.loads((world.path("runs") / "promote.json").read_text()) == result.receipt
    # Promoted again, nothing moves.
    again = world.promote("b", two, second)
    assert again.receipt["promoted"]
    assert again.receipt["reason"] == "it is the champion already"
    assert served(world) == (second, {"champion": two, "previous": one})


def test_a_refused_version_stays_registered_and_says_why(world: World) -> None:
    one, first, _ = world.release("a")
    strict = world.with_settings(promote={"floors": {METRIC: 1.0}})
    two, second, result = strict.release("b")
    assert not result.receipt["promoted"]
    assert result.title == f"shop version {two} is refused; what is served stays"
    assert served(world) == (first, {"champion": one, "challenger": two})
    registry = open_registry(world.services, world.cfg.register_)
    tags = registry.version(two).tags
    assert tags["coembed.gate"] == "refused"
    assert "Text → image, Recall@10: floor" in tags["coembed.gate_reason"]
    assert tags["coembed.collection"] == second
    # Both collections are there; the served one is untouched.
    with open_index(world.services, world.cfg.index) as index:
        assert index.collections() == sorted([first, second])
    assert find(world).release.version == one
    assert [entry.intent.version for entry in Journal(registry).entries()] == [one]


def test_a_person_may_force_what_is_refused_and_says_why(world: World) -> None:
    one, first, _ = world.release("a")
    strict = world.with_settings(promote={"floors": {METRIC: 1.0}})
    two, second, _ = strict.release("b")
    for why in ("", "  "):
        with pytest.raises(UserError, match=r"needs a reason(.|\n)*promote 2 --force --reason"):
            strict.promote("b", two, second, force=True, why=why)
    assert served(world)[0] == first
    result = strict.promote("b", two, second, force=True, why="the old one offends")
    assert result.receipt["promoted"]
    assert result.receipt["forced"]
    assert result.receipt["verdict"] == "refused"
    assert served(world) == (second, {"champion": two, "previous": one})
    registry = open_registry(world.services, world.cfg.register_)
    tags = registry.version(two).tags
    assert (tags["coembed.forced_by"], tags["coembed.forced_why"]) == ("Ada", "the old one offends")
    assert tags["coembed.gate"] == "refused"
    last = Journal(registry).entries()[-1].intent
    assert (last.kind, last.version, last.by, last.why, last.gate) == (
        "forced", two, "Ada", "the old one offends", "refused",
    )  # fmt: skip


def test_what_passes_by_itself_is_not_called_forced(world: World) -> None:
    one, _, _ = world.release("a")
    two = int(world.register("b").receipt["version"])
    second = str(world.index("b", two).receipt["collection"])
    result = world.promote("b", two, second, force=True, why="in a hurry")
    assert not result.receipt["forced"]
    registry = open_registry(world.services, world.cfg.register_)
    last = Journal(registry).entries()[-1].intent
    assert (last.kind, last.before, last.why, last.gate) == (
        "promotion", one, "in a hurry", "passed",
    )  # fmt: skip
    assert "coembed.forced_by" not in registry.version(two).tags


def test_another_model_s_collection_cannot_be_forced(world: World) -> None:
    one = int(world.register("a").receipt["version"])
    first = str(world.index("a", one).receipt["collection"])
    two = int(world.register("b").receipt["version"])
    with pytest.raises(UserError, match="was made by version 1"):
        world.promote("b", two, first, force=True, why="it looks alright")
    assert served(world) == (None, {"challenger": two})


def test_what_waits_for_approval_is_promoted_once_it_has_it(world: World) -> None:
    careful = world.with_settings(promote={"approval": True})
    one, first, result = careful.release("a")
    assert not result.receipt["promoted"]
    assert result.title == "shop version 1 waits for approval"
    assert result.receipt["reason"].startswith("waiting for approval: `coembed approve 1 --by")
    assert served(world) == (None, {"challenger": one})
    runs = world.path("runs")
    for by, message in (("  ", "--by is ''"), ("x" * 201, "expected the name of the person")):
        with pytest.raises(UserError, match=message):
            approve.run(
                careful.cfg, services=world.services, version=one, by=by, why="",
                out=runs / "approve.json",
            )  # fmt: skip
    approve.run(
        careful.cfg, services=world.services, version=one, by="Grace", why="looked at it",
        out=runs / "approve.json",
    )  # fmt: skip
    assert served(world) == (None, {"challenger": one})
    result = careful.promote("a", one, first)
    assert result.receipt["promoted"]
    approval = next(gate for gate in result.receipt["gates"] if gate["key"] == "approval")
    assert approval["value"] == "Grace: looked at it"
    assert served(world) == (first, {"champion": one})


def test_a_decision_is_not_carried_out_once_another_version_is_served(world: World) -> None:
    world.release("a")
    versions = {}
    for name in ("b", "c"):
        number = int(world.register(name).receipt["version"])
        versions[name] = (number, str(world.index(name, number).receipt["collection"]))
    two, second = versions["b"]
    judged = gate.judge(
        world.cfg, services=world.services, places=world.places("b"), version=two,
        collection=second, asked_for=False,
    )  # fmt: skip
    three, third = versions["c"]
    world.promote("c", three, third)
    with pytest.raises(ServiceError, match=r"version 3 is served by now(.|\n)*run the same"):
        world.promote("b", two, second, judged=judged)
    assert served(world)[0] == third


@pytest.mark.parametrize("cut_after", ["alias", "previous"])
def test_a_promotion_cut_short_is_finished_by_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch, cut_after: str
) -> None:
    one, _, _ = world.release("a")
    two = int(world.register("b").receipt["version"])
    second = str(world.index("b", two).receipt["collection"])
    real = Registry.set_alias

    def dying(self: Registry, alias: str, number: int) -> None:
        if cut_after == "previous" and alias == "previous":
            real(self, alias, number)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "set_alias", dying)
        with pytest.raises(KeyboardInterrupt):
            world.promote("b", two, second)
    alias, aliases = served(world)
    assert alias == second
    assert aliases["champion"] == one
    assert find(world).release.version == two  # search follows the index, never half of each
    result = world.promote("b", two, second)
    assert result.receipt["promoted"]
    assert result.receipt["finished_versions"] == [two]
    assert served(world) == (second, {"champion": two, "previous": one})


def test_another_version_finishes_what_was_cut_short_before_its_own_gate(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.release("a")
    two = int(world.register("b").receipt["version"])
    second = str(world.index("b", two).receipt["collection"])
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "set_alias", _die)
        with pytest.raises(KeyboardInterrupt):
            world.promote("b", two, second)
    three, third, result = world.release("c")
    assert result.receipt["finished_versions"] == [two]
    assert result.receipt["champion_before"] == two
    assert served(world) == (third, {"champion": three, "previous": two})


def test_a_crash_before_the_switch_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, first, _ = world.release("a")
    two = int(world.register("b").receipt["version"])
    second = str(world.index("b", two).receipt["collection"])
    with monkeypatch.context() as patch:
        patch.setattr(EdgeIndex, "set_alias", _die)
        with pytest.raises(KeyboardInterrupt):
            world.promote("b", two, second)
    assert served(world) == (first, {"champion": one, "challenger": two})


def _die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_embeddings_of_another_model_are_refused(world: World) -> None:
    one = int(world.register("a").receipt["version"])
    with pytest.raises(UserError, match=r"were made by the model \w{12}; version 1 of 'shop'"):
        world.index("b", one)


def test_a_collection_of_another_version_is_not_promoted(world: World) -> None:
    one = int(world.register("a").receipt["version"])
    first = str(world.index("a", one).receipt["collection"])
    two = int(world.register("b").receipt["version"])
    with pytest.raises(UserError, match="was made by version 1"):
        world.promote("b", two, first)
    with open_index(world.services, world.cfg.index) as index:
        index.set_metadata(first, {"state": "loading"})
    with pytest.raises(UserError, match="is not whole: its build was cut short"):
        world.promote("a", one, first)


def test_rollback_and_forward_again(world: World) -> None:
    with pytest.raises(UserError, match="no version to go back to"):
        go_back(world)
    one, first, _ = world.release("a")
    two, second, _ = world.release("b")
    result = go_back(world)
    assert result.receipt["version"] == one
    assert served(world) == (first, {"champion": one, "previous": two})
    assert find(world).release.version == one
    go_back(world, version=two)
    assert served(world) == (second, {"champion": two, "previous": one})


def test_what_was_rolled_back_is_not_promoted_again_unless_a_person_asks(world: World) -> None:
    one, first, _ = world.release("a")
    two, second, _ = world.release("b")
    go_back(world)
    again = world.promote("b", two, second)
    assert again.receipt["promoted"] is False
    assert "was rolled back" in again.receipt["reason"]
    assert served(world)[0] == first
    asked = world.promote("b", two, second, asked_for=True)
    assert asked.receipt["promoted"] is True
    assert served(world) == (second, {"champion": two, "previous": one})
    assert world.promote("b", two, second).receipt["promoted"] is True, "it is rehabilitated"


def test_old_collections_go_but_never_the_served_or_the_previous_one(world: World) -> None:
    few = world.with_settings(index={"keep": 1})
    _, first, _ = few.release("a")
    _, second, _ = few.release("b")
    _, third, result = few.release("c")
    assert result.receipt["pruned"] == [first]
    with open_index(world.services, world.cfg.index) as index:
        assert index.collections() == sorted([second, third])
    with pytest.raises(UserError, match="the index holds no whole collection of version 1"):
        go_back(few, version=1)


# Search


def test_search_answers_as_the_encoder_and_a_full_scan_would(world: World, tmp_path: Path) -> None:
    import numpy as np

    from coembed.index.points import read_points
    from coembed.models.encoder import load_encoder

    one, collection, _ = world.release("a")
    points = list(read_points(world.path("a-embeddings")))
    encoder = load_encoder(world.path("a"), device="cpu")
    picture = world.path("data") / str(points[5].payload["path"])
    sheet = tmp_path / "sheet.png"
    for query, vector in (
        ("  a red disc ", encoder.encode_texts(["a red disc"])[0]),
        (picture, encoder.encode_images([picture.read_bytes()])[0]),
    ):
        found = find(world, query, filters=["colour=red,blue"], limit=5, sheet=sheet)
        expected = sorted(
            (-float(np.dot(point.vector, vector)), point.item_id)
            for point in points
            if point.payload["attributes"]["colour"] in ("red", "blue")
        )[:5]
        assert [hit.item_id for hit in found.hits] == [item_id for _, item_id in expected]
    assert sheet.read_bytes().startswith(b"\x89PNG")
    shown = found.to_json()
    assert shown["query"] == picture.name
    assert shown["release"] == {
        "model": "shop", "version": one, "collection": collection,
        "fingerprint": encoder.fingerprint,
    }  # fmt: skip
    assert list(shown["hits"][0])[:4] == ["rank", "score", "match", "item_id"]
    assert {"path", "captions", "attributes", "split"} <= set(shown["hits"][0])
    json.dumps(shown)


def test_a_search_with_a_known_model_needs_no_registry(world: World) -> None:
    world.release("a")
    before = find(world)
    shutil.rmtree(world.root / "mlflow")
    assert find(world).hits == before.hits


def test_search_never_mixes_two_models(world: World) -> None:
    one, _, _ = world.release("a")
    fingerprint = find(world).release.fingerprint
    folder = world.path("runs") / "models" / fingerprint
    shutil.rmtree(folder)
    shutil.copytree(world.path("b"), folder)
    with pytest.raises(ModelError, match=r"was made by the model \w{12}; version 1 of 'shop' is"):
        find(world)
    shutil.rmtree(folder)
    registry = open_registry(world.services, world.cfg.register_)
    registry.tag_version(one, {"coembed.fingerprint": "0" * 64})
    with pytest.raises(ModelError, match="is 000000000000 here"):
        find(world)


def test_searches_that_cannot_be_are_one_clear_error(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing is served as 'items' yet(.|\n)*coembed retrain"):
        find(world)
    world.release("a")
    text = tmp_path / "notes.txt"
    text.write_text("not a picture")
    for query, changes, message in (
        ("  ", {}, "the query is empty"),
        ("x" * 10_001, {}, "10,001 characters"),
        ("x", {"limit": 0}, "--limit 0 is out of range"),
        ("x", {"limit": 1001}, "--limit 1001"),
        ("x", {"filters": ["color=red"]}, "no column 'color'; this collection has colour"),
        (tmp_path / "none.jpg", {}, "none.jpg cannot be read: No such file"),
        (tmp_path, {}, "cannot be read: Is a directory"),
        (text, {}, "the picture .*notes.txt cannot be searched with: not "),
        (search.MediaQuery("audio", tmp_path / "none.wav"), {}, "the sound .*none.wav cannot be"),
        (
            search.MediaQuery("audio", text),
            {},
            r"version 1 of 'shop', encodes image and text: it cannot search with a sound"
            r"(.|\n)*search with --image FILE or words",
        ),
    ):
        with pytest.raises(UserError, match=message):
            find(world, query, **changes)
    assert find(world, "x", filters=["colour=purple"]).hits == ()
    assert find(world, "x", modality="audio").hits == ()
    assert find(world, "x", modality="image").hits == find(world, "x").hits
