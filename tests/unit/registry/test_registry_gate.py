"""The gate with a real registry, index and models: what it compares, writes down and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluated_pairs import write_pairs
from release_case import METRIC, World
from training_pairs import SMALL_MODEL, make_samples

from coembed.config import parse_config
from coembed.errors import ConfigError, DataError, UserError
from coembed.files import read_json, sha256_tree
from coembed.index.opening import open_index
from coembed.registry.store import ModelVersion, Registry, open_registry
from coembed.stages import compare, evaluate, evaluations
from coembed.stages.trained_on import write_trained_on


@pytest.fixture
def world(fresh_world: World) -> World:
    return fresh_world


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The models that are evaluated again, by their folders."""
    seen: list[Path] = []
    real = evaluate.run

    def counted(cfg: Any, *, model: Path, **arguments: Any) -> Any:
        seen.append(model)
        return real(cfg, model=model, **arguments)

    monkeypatch.setattr(evaluations.evaluate, "run", counted)
    return seen


def registry_of(world: World) -> Registry:
    return open_registry(world.services, world.cfg.register_)


def challenge(world: World, name: str) -> int:
    """Register and index a model; its version."""
    version = int(world.register(name).receipt["version"])
    world.index(name, version)
    return version


def gone(world: World, version: int, *, files: bool) -> ModelVersion:
    """Delete a version's run, as a person may in MLflow; its files go too at `mlflow gc`."""
    found = registry_of(world).version(version)
    registry_of(world)._client.delete_run(found.run_id)
    if files:
        shutil.rmtree(Path(found.source.removeprefix("file://")).parent)
        shutil.rmtree(world.path("runs") / "models" / found.fingerprint)
    return found


def headline(receipt: dict[str, Any]) -> dict[str, Any]:
    return next(gate for gate in receipt["gates"] if gate["key"] == "metric")


def test_a_decision_is_written_down_where_people_look(world: World, evaluated: list[Path]) -> None:
    one, _, _ = world.release("a")
    two = challenge(world, "b")
    found = world.gate("b", two)
    assert evaluated == []  # the champion's evaluation is the one that was attached to its run
    assert found.columns == ("gate", "value", "limit", "verdict")
    assert found.title == f"shop version 2 passes: not worse than the champion, version {one}"
    folder = world.path("runs") / "gates" / "v2"
    decision = json.loads((folder / "decision.json").read_text())
    assert (decision["version"], decision["champion"], decision["verdict"]) == (two, one, "passed")
    assert decision["settings"]["metric"] == METRIC
    assert decision["leaks"]["known"] is True
    comparison = json.loads((folder / "comparison.json").read_text())
    row = next(row for row in comparison["overall"] if row["path"] == METRIC)
    metrics = read_json(world.path("b-evaluation") / "metrics.json", what="metrics")
    assert row["challenger"] == pytest.approx(metrics["retrieval"]["text_to_image"]["recall_at_10"])
    assert "Version 2" in (folder / "report.html").read_text()
    registry = registry_of(world)
    tags = registry.version(two).tags
    assert tags["coembed.gate"] == "passed"
    assert tags["coembed.gate_policy"] == decision["policy"]
    assert tags["coembed.collection"] == decision["collection"]
    attached = registry.fetch_files(registry.version(two).run_id, "gate", world.root / "attached")
    assert attached is not None
    assert sha256_tree(attached) == sha256_tree(folder)
    assert registry.aliases() == {"champion": one, "challenger": two}
    # The same question has the same answer, byte for byte.
    before = sha256_tree(folder)
    world.gate("b", two)
    assert sha256_tree(folder) == before
    # Once it is served, why it was promoted is not written over by a comparison with itself.
    world.promote("b", two, decision["collection"])
    itself = world.gate("b", two)
    assert itself.receipt["reason"] == "it is the champion already"
    assert sha256_tree(folder) == before
    shutil.rmtree(folder)
    world.gate("b", two)
    assert sha256_tree(folder) == before


def test_an_evaluation_taken_in_another_way_is_taken_again_and_kept(
    world: World, evaluated: list[Path]
) -> None:
    one, _, _ = world.release("a")
    deeper = world.with_settings(evaluate={"ks": [1, 5, 10, 15]})
    again = deeper.path("b-deeper")
    evaluate.run(deeper.cfg, model=world.path("b"), pairs=world.path("pairs"), out=again)
    evaluated.clear()
    two = int(deeper.register("b", evaluation=again).receipt["version"])
    world.index("b", two)
    places = evaluations.Places(again, world.path("pairs"), world.path("runs"))
    receipt = deeper.gate("b", two, places=places).receipt
    assert receipt["champion"] == one
    fingerprint = registry_of(world).version(one).fingerprint
    assert evaluated == [world.path("runs") / "models" / fingerprint]
    deeper.gate("b", two, places=places)
    assert len(evaluated) == 1
    (kept,) = (world.path("runs") / "evaluations").iterdir()
    assert kept.name.startswith(fingerprint[:12])
    # An older version, named by its number, is judged in today's way, too.
    old = deeper.gate("b", one, places=places).receipt
    assert (old["version"], old["reason"]) == (one, "it is the champion already")
    assert len(evaluated) == 1


def test_a_champion_whose_run_was_deleted_is_evaluated_again_while_its_files_are_there(
    world: World, evaluated: list[Path]
) -> None:
    one, _, _ = world.release("a")
    two = challenge(world, "b")
    gone(world, one, files=False)
    receipt = world.gate("b", two).receipt
    assert (receipt["verdict"], receipt["champion"]) == ("passed", one)
    assert len(evaluated) == 1


def test_a_champion_whose_files_are_gone_can_only_be_replaced_by_force(world: World) -> None:
    one, first, _ = world.release("a")
    two = challenge(world, "b")
    run = gone(world, one, files=True).run_id
    receipt = world.gate("b", two).receipt
    assert receipt["verdict"] == "refused"
    assert receipt["reason"] == (
        "version 1 is served, but the files of version 1 are not in the registry any more: its run "
        f"{run} was deleted"
    )
    collection = str(receipt["collection"])
    assert world.promote("b", two, collection).receipt["promoted"] is False
    with open_index(world.services, world.cfg.index) as index:
        assert index.aliases() == {"items": first}
    forced = world.promote("b", two, collection, force=True, why="the old run was cleaned away")
    assert forced.receipt["promoted"]


def test_a_served_version_that_the_registry_does_not_know_any_more_is_no_first_version(
    world: World,
) -> None:
    one, first, _ = world.release("a")
    two = challenge(world, "b")
    registry_of(world)._client.delete_model_version("shop", str(one))
    receipt = world.gate("b", two).receipt
    assert receipt["verdict"] == "refused"
    assert (
        f"version 1 of shop is served ({first}), and this registry does not have"
        in (receipt["reason"])
    )


def test_a_challenger_whose_run_was_deleted_is_an_error(world: World) -> None:
    two = challenge(world, "b")
    gone(world, two, files=False)
    with pytest.raises(UserError, match=r"of version 1 was deleted(.|\n)*mlflow runs restore"):
        world.gate("b", two)
    assert registry_of(world).aliases() == {"challenger": two}


def test_a_model_of_another_embedding_size_is_judged_and_served_like_any_other(
    world: World,
) -> None:
    one, _, _ = world.release("a")
    wide = world.with_settings(
        model={"architecture": {**SMALL_MODEL["architecture"], "embed_dim": 48}}
    )
    wide.make_model("d", 4)
    _, _, result = wide.release("d")
    assert (result.receipt["promoted"], result.receipt["champion"]) == (True, one)
    assert "→" in headline(result.receipt)["value"]


def test_curated_pairs_of_another_evaluation_set_are_refused(world: World, tmp_path: Path) -> None:
    world.release("a")
    two = challenge(world, "b")
    write_pairs(tmp_path / "pairs", train=make_samples(24, seed=0), val=make_samples(9, seed=5))
    runs = world.path("runs")
    with pytest.raises(DataError, match=r"split of .* has 9 items, the evaluation was taken on 16"):
        world.gate(
            "b", two,
            places=evaluations.Places(world.path("b-evaluation"), tmp_path / "pairs", runs),
        )  # fmt: skip
    old = tmp_path / "old"
    shutil.copytree(world.path("b-evaluation"), old)
    receipt = json.loads((old / "receipt.json").read_text())
    del receipt["measured"]
    (old / "receipt.json").write_text(json.dumps(receipt))
    with pytest.raises(DataError, match=r"older coembed(.|\n)*run `coembed evaluate` again"):
        world.gate("b", two, places=evaluations.Places(old, world.path("pairs"), runs))


def test_a_policy_that_names_what_is_not_there_leaves_everything_as_it_was(world: World) -> None:
    two = challenge(world, "b")
    for promote in ({"floors": {"a/b": 0.1}}, {"protected_slices": {"colors": 0.0}}):
        with pytest.raises(ConfigError, match=r"a/b|colors"):
            world.with_settings(promote=promote).gate("b", two)
    assert "coembed.gate" not in registry_of(world).version(two).tags
    assert not (world.path("runs") / "gates").exists()


def test_protected_slices_are_found_in_what_was_evaluated(world: World) -> None:
    world.release("a")
    two = challenge(world, "b")
    few = world.with_settings(
        evaluate={"min_slice": 2}, promote={"protected_slices": {"colour": 1.0}}
    )
    gates = [gate for gate in few.gate("b", two).receipt["gates"]
             if gate["key"] == "protected_slices"]  # fmt: skip
    assert len(gates) > 1
    assert {gate["verdict"] for gate in gates} == {"passed"}
    assert all("of colour = " in gate["name"] for gate in gates)


def leaky(world: World, name: str) -> None:
    """`name`l: the model `name` as if it had been trained on four evaluation items, too."""
    train = [*make_samples(24, seed=0), *make_samples(4, seed=1)]
    write_pairs(world.path("leaky"), train=train, val=make_samples(16, seed=1)[4:])
    shutil.copytree(world.path(name), world.path(f"{name}l"))
    write_trained_on(
        world.path(f"{name}l"), world.path("leaky"), num_val=0, val_decides=False, ancestors=(),
        num_threads=1,
    )  # fmt: skip
    for what in ("evaluation", "embeddings"):
        world.path(f"{name}l-{what}").symlink_to(world.path(f"{name}-{what}"))


def test_a_model_that_was_trained_on_evaluation_items_is_refused_with_the_list(
    world: World,
) -> None:
    leaky(world, "b")
    two = challenge(world, "bl")
    receipt = world.with_settings(promote={"leakage": "refuse"}).gate("bl", two).receipt
    assert receipt["verdict"] == "refused"
    decision = json.loads((world.path("runs") / "gates" / "v1" / "decision.json").read_text())
    same = {leak["item_id"] for leak in decision["leaks"]["found"] if leak["kind"] == "same_item"}
    assert same == {sample.item_id for sample in make_samples(4, seed=1)}
    gate = next(gate for gate in receipt["gates"] if gate["key"] == "leakage")
    assert gate["verdict"] == "refused"
    assert "(the same file, seen in train)" in gate["detail"]
    assert "Evaluation items seen in training" in receipt["reason"]


def test_what_the_champion_was_trained_on_is_left_out_of_the_comparison(world: World) -> None:
    leaky(world, "a")
    world.release("al")
    two = challenge(world, "b")
    world.gate("b", two)
    comparison = json.loads((world.path("runs") / "gates" / "v2" / "comparison.json").read_text())
    ((reason, num),) = comparison["left_out"]
    assert reason == "the champion was trained on the item"
    assert num > 0
    row = next(row for row in comparison["overall"] if row["path"] == METRIC)
    assert row["num_queries"] < 32


def test_two_versions_are_compared_and_nothing_moves(world: World) -> None:
    one, _, _ = world.release("a")
    two = challenge(world, "b")

    def listing(first: str, second: str) -> Any:
        return compare.run(
            world.cfg, services=world.services, places=world.places("b"), first=first,
            second=second, out=world.path("runs") / "compare",
        )  # fmt: skip

    found = listing("champion", "2")
    assert found.columns[2:4] == ("v1", "v2")
    assert METRIC in {row[0] for row in found.rows}
    folder = world.path("runs") / "compare" / "v1-v2"
    assert "Version 2 compared with version 1" in (folder / "report.html").read_text()
    back = listing("v2", str(one)).receipt
    forth = {row["path"]: row["difference"] for row in found.receipt["overall"]}
    assert {row["path"]: -row["difference"] for row in back["overall"]} == pytest.approx(forth)
    assert registry_of(world).aliases() == {"champion": one, "challenger": two}
    assert "coembed.gate" not in registry_of(world).version(two).tags
    for first, second, message in (
        ("1", "champion", "1 and champion are one and the same version, 1"),
        ("best", "1", "'best' is neither a version's number nor an alias; .* challenger, champion"),
        ("1", "7", "no version 7 of 'shop'; versions there: 1, 2"),
    ):
        with pytest.raises(UserError, match=message):
            listing(first, second)


def test_a_version_carries_where_it_came_from_and_what_it_scored(world: World) -> None:
    guarded = world.with_settings(
        promote={"guards": {"retrieval/image_to_text/recall_at_10": 1.0}, "floors": {METRIC: 0.0}}
    )
    found = registry_of(world).version(int(guarded.register("a").receipt["version"]))
    metrics = read_json(world.path("a-evaluation") / "metrics.json", what="metrics")["retrieval"]
    assert found.run_id
    assert {key: found.tags[key] for key in ("coembed.git_commit", "coembed.data_md5")} == {
        "coembed.git_commit": "c0ffee" * 6, "coembed.data_md5": "d" * 32,
    }  # fmt: skip
    for way in ("text_to_image", "image_to_text"):
        path = f"retrieval/{way}/recall_at_10"
        assert float(found.tags[f"coembed.metric/{path}"]) == pytest.approx(
            metrics[way]["recall_at_10"], abs=1e-6
        )


def test_params_yaml_and_the_recipes_have_a_policy_that_can_be_read() -> None:
    root = Path(__file__).parents[3]
    for path in (root / "params.yaml", *(root / "recipes").glob("*.yaml")):
        cfg = parse_config(yaml.safe_load(path.read_text()), source=str(path))
        assert cfg.promote.metric.startswith("retrieval/")
