"""From a registered version to what a search answers: index, gate, switch, crash, rollback."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from release_case import METRIC, World, copy_store, make_world

from coembed.errors import ConfigError, ModelError, UserError
from coembed.files import read_json
from coembed.index.qdrant import QdrantIndex, open_index
from coembed.registry.settings import PromoteSettings
from coembed.registry.store import Registry, open_registry
from coembed.services import find_services
from coembed.stages import promote, rollback, search


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = make_world(tmp_path_factory.mktemp("promotion") / "world")
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        made.make_model(name, seed)
    return made


@pytest.fixture
def world(prepared: World, empty_store: Path, tmp_path: Path) -> World:
    """Every test has its own registry and index; models and embeddings are shared."""
    root = tmp_path / "world"
    root.mkdir()
    for path in prepared.root.iterdir():
        if path.name != "runs":
            (root / path.name).symlink_to(path)
    copy_store(empty_store, root)
    return replace(prepared, root=root, services=find_services(root, {}))


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
    (check,) = result.receipt["checks"]
    assert check["champion"] == scores(world, "a")
    assert check["challenger"] == scores(world, "b")
    assert result.receipt["champion_before"] == one
    assert json.loads((world.path("runs") / "promote.json").read_text()) == result.receipt
    # Promoted again, nothing moves.
    again = world.promote("b", two, second)
    assert again.receipt["promoted"]
    assert again.receipt["reason"] == "it is the champion already"
    assert served(world) == (second, {"champion": two, "previous": one})


def test_a_worse_version_stays_challenger_and_says_why(world: World) -> None:
    best, worst = sorted("abc", key=lambda name: -scores(world, name))[::2]
    assert scores(world, best) > scores(world, worst)
    strict = world.with_settings(promote={"tolerance": 0.0})
    one, first, _ = strict.release(best)
    two, second, result = strict.release(worst)
    assert not result.receipt["promoted"]
    assert "stays challenger" in result.title
    assert served(world) == (first, {"champion": one, "challenger": two})
    registry = open_registry(world.services, world.cfg.register_)
    tags = registry.version(two).tags
    assert tags["coembed.gate"] == "failed"
    assert METRIC in tags["coembed.gate_reason"]
    # Both collections are there; the served one is untouched.
    with open_index(world.services, world.cfg.index) as index:
        assert index.collections() == sorted([first, second])
    assert find(world).release.version == one


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
    assert result.receipt["finished_version"] == two
    assert served(world) == (second, {"champion": two, "previous": one})


def test_another_version_finishes_what_was_cut_short_before_its_own_gate(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.release("a")
    two = int(world.register("b").receipt["version"])
    second = str(world.index("b", two).receipt["collection"])
    with monkeypatch.context() as patch:
        patch.setattr("coembed.stages.release.follow", _die)
        with pytest.raises(KeyboardInterrupt):
            world.promote("b", two, second)
    three, third, result = world.release("c")
    assert result.receipt["finished_version"] == two
    assert result.receipt["champion_before"] == two
    assert served(world) == (third, {"champion": three, "previous": two})


def test_a_crash_before_the_switch_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, first, _ = world.release("a")
    two = int(world.register("b").receipt["version"])
    second = str(world.index("b", two).receipt["collection"])
    with monkeypatch.context() as patch:
        patch.setattr(QdrantIndex, "set_alias", _die)
        with pytest.raises(KeyboardInterrupt):
            world.promote("b", two, second)
    assert served(world) == (first, {"champion": one, "challenger": two})


def _die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_another_evaluation_set_has_the_champion_measured_again(
    world: World, tmp_path: Path
) -> None:
    world.release("a")
    evaluation = tmp_path / "other"
    shutil.copytree(world.path("b-evaluation"), evaluation)
    receipt = json.loads((evaluation / "receipt.json").read_text())
    receipt["evaluation_set"] = "9" * 64
    (evaluation / "receipt.json").write_text(json.dumps(receipt))
    two = int(world.register("b", evaluation=evaluation).receipt["version"])
    collection = str(world.index("b", two).receipt["collection"])
    asked: list[Path] = []

    def measure(folder: Path) -> dict[str, Any]:
        asked.append(folder)
        assert (folder / "model.safetensors").read_bytes() == (
            world.path("a") / "model.safetensors"
        ).read_bytes()
        return {"retrieval": {"text_to_image": {"recall_at_10": 0.999}}}

    strict = world.with_settings(promote={"tolerance": 0.0})
    result = strict.promote("b", two, collection, evaluation=evaluation, evaluate_champion=measure)
    assert len(asked) == 1
    assert not result.receipt["promoted"]
    assert result.receipt["checks"][0]["champion"] == 0.999


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
        rollback.run(world.cfg, services=world.services, out=world.path("runs") / "r.json")
    one, first, _ = world.release("a")
    two, second, _ = world.release("b")
    result = rollback.run(world.cfg, services=world.services, out=world.path("runs") / "r.json")
    assert result.receipt["version"] == one
    assert served(world) == (first, {"champion": one, "previous": two})
    assert find(world).release.version == one
    rollback.run(world.cfg, services=world.services, out=world.path("runs") / "r.json", version=two)
    assert served(world) == (second, {"champion": two, "previous": one})


def test_what_was_rolled_back_is_not_promoted_again_unless_a_person_asks(world: World) -> None:
    one, first, _ = world.release("a")
    two, second, _ = world.release("b")
    rollback.run(world.cfg, services=world.services, out=world.path("runs") / "r.json")
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
        rollback.run(few.cfg, services=world.services, out=world.path("runs") / "r", version=1)


def test_the_gate_in_numbers() -> None:
    settings = PromoteSettings(metric="a/b", tolerance=0.02, minimum=0.3, guards={"c": 0.1})

    def passed(challenger: float, guard: float, champion: float | None = 0.5) -> list[bool]:
        before = None if champion is None else {"a": {"b": champion}, "c": 0.5}
        found = promote.decide(settings, {"a": {"b": challenger}, "c": guard}, before)
        return [check.passed for check in found]

    assert passed(0.5, 0.5) == [True, True]
    assert passed(0.48, 0.4) == [True, True]
    assert passed(0.4799, 0.3999) == [False, False]
    assert passed(math.nan, 0.5) == [False, True]
    assert passed(0.3, 0.0, champion=None) == [True, True]
    assert passed(0.29, 0.0, champion=None) == [False, True]
    assert passed(0.6, 0.5, champion=math.nan) == [True, True]
    assert passed(0.31, 0.45, champion=0.32) == [True, True]
    with pytest.raises(ConfigError, match=r"names the metric 'a/b', which was not measured; .* c"):
        promote.decide(settings, {"c": 1.0}, None)


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
    assert list(shown["hits"][0])[:3] == ["rank", "score", "item_id"]
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
