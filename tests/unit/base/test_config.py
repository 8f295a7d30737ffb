"""params.yaml is read into frozen types, and what is not understood is refused in clear words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coembed.config import Config, load_config, override, parse_config, read_params
from coembed.errors import ConfigError

REPOSITORY = Path(__file__).parents[3]
PARAMS = REPOSITORY / "params.yaml"


@pytest.fixture
def values() -> dict[str, Any]:
    return read_params(PARAMS)


def test_the_repositorys_params_are_read_and_frozen() -> None:
    cfg = load_config(PARAMS)
    with pytest.raises(ValueError, match="frozen"):
        cfg.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("recipe", sorted((REPOSITORY / "recipes").glob("*.yaml")), ids=str)
def test_every_recipe_is_a_complete_run(recipe: Path) -> None:
    assert load_config(recipe).seed >= 0
    assert "pool" in read_params(recipe)["paths"], "dvc.yaml reads it, and knows no defaults"


def test_params_survive_being_shown_and_read_again(values: dict[str, Any]) -> None:
    cfg = parse_config(values)
    assert parse_config(cfg.model_dump(mode="json", by_alias=True)) == cfg


def test_overrides_set_values_lists_and_components(values: dict[str, Any]) -> None:
    cfg = parse_config(override(values, ["train.lr=2e-3", "seed=5", "evaluate.ks=[1, 3]"]))
    assert (cfg.train.lr, cfg.seed, cfg.evaluate.ks) == (2e-3, 5, (1, 3))
    assert parse_config(override(values, ["train.loss.name=sigmoid"])).train.loss.name == "sigmoid"
    assert values["seed"] != 5, "the values given are not changed"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train.lr", "not SECTION.KEY=VALUE"),
        ("seed.x=1", "seed is a single value"),
        ("train.lr=[1", "the value is not readable"),
        ("curate.filters.99=readable", "no place in it"),
    ],
)
def test_a_bad_override_says_what_is_wrong(values: dict[str, Any], text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        override(values, [text])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train.learning_rate=1", r"train.learning_rate: unknown key; known here: .*\blr\b"),
        ("trian={}", "trian: unknown key; known here: .*train"),
        ("train.lr=fast", 'train.lr: .*number.*got "fast"'),
        ("train.lr=-1", "train.lr: .*greater than"),
        ("train.loss=hinge", "'hinge'; expected one of distillation, sigmoid, softmax, triplet"),
        ("paths.pool=../elsewhere", "paths.pool: .*inside the project"),
        ("paths.pool=/etc", "paths.pool: .*inside the project"),
        ("paths.pool=src", "paths.pool: .*of its own"),
        ("paths.pool=.git", "paths.pool: .*of its own"),
        ("paths.pairs=docs", "paths.pairs: unknown key; known here: pool"),
        ("seed=-1", "seed"),
    ],
)
def test_an_impossible_setting_is_refused_by_name(
    values: dict[str, Any], text: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_config(override(values, [text]))
    assert caught.value.exit_code == 2
    assert "config schema" in (caught.value.hint or "")


def test_a_date_is_a_wrong_value_and_not_a_crash(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="seed"):
        parse_config(override(values, ["seed=2020-01-01"]))


def test_a_missing_section_is_named(values: dict[str, Any]) -> None:
    del values["train"]
    with pytest.raises(ConfigError, match="train: missing"):
        parse_config(values)


@pytest.mark.parametrize(
    ("content", "words"),
    [("a: [", "not readable YAML"), ("- 1", "holds list"), ("", "holds NoneType")],
)
def test_unreadable_params_are_one_error(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "params.yaml").write_text(content)
    with pytest.raises(ConfigError, match=words):
        load_config(tmp_path / "params.yaml")


def test_missing_params_say_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no params file") as caught:
        load_config(tmp_path / "params.yaml")
    assert "--project" in (caught.value.hint or "")


def test_the_schema_holds_every_component() -> None:
    text = str(Config.model_json_schema())
    assert all(name in text for name in ("softmax", "sigmoid", "readable", "exact_duplicate"))
