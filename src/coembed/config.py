"""Config: the typed, frozen, extra-forbidding reading of params.yaml.

One params file is one complete run: a section a stage, beside `seed`, `paths` and `model`. Each
section's type stands beside the component that it builds; this file only puts them together.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator

from coembed.curation.settings import CurateSettings
from coembed.embedding.settings import EmbedSettings
from coembed.errors import ConfigError
from coembed.evaluation.settings import EvaluateSettings
from coembed.index.settings import IndexSettings
from coembed.models.settings import ModelSettings
from coembed.registry.settings import PromoteSettings, RegisterSettings
from coembed.search.settings import ServeSettings
from coembed.settings import Settings
from coembed.training.settings import TrainSettings

# The project's own folders: a pool in one of them would be overwritten, or overwrite it.
_TAKEN = ("artifacts", "benchmarks", "deploy", "docs", "flows", "mlflow", "qdrant", "recipes",
          "runs", "src", "tests")  # fmt: skip


class Paths(Settings):
    """Where a run reads and writes, relative to the project folder.

    Only the pool's folder is a setting. What stages write is replaced whole at every run, and
    dvc.yaml, .gitignore and the plots name it, so its place is fixed.
    """

    pool: Path = Path("data")

    @field_validator("pool")
    @classmethod
    def _of_its_own(cls, path: Path) -> Path:
        parts = PurePosixPath(path.as_posix()).parts
        if len(parts) != 1 or parts[0].startswith((".", "/")) or parts[0] in _TAKEN:
            raise ValueError(f"{path} must be a folder of its own inside the project, like data")
        return path

    @property
    def pairs(self) -> Path:
        """Curated pairs."""
        return Path("artifacts/pairs")

    @property
    def model(self) -> Path:
        """The trained model."""
        return Path("artifacts/model")

    @property
    def evaluation(self) -> Path:
        """Metrics, slices, plots and the report."""
        return Path("artifacts/evaluation")

    @property
    def embeddings(self) -> Path:
        """The embedded corpus."""
        return Path("artifacts/embeddings")

    @property
    def overrides(self) -> Path:
        """What people decided about single pairs; git versions it."""
        return Path("overrides.csv")

    @property
    def runs(self) -> Path:
        """What outlives a run: checkpoints, caches, logs, receipts of effects."""
        return Path("runs")


class Config(Settings):
    """One complete run."""

    seed: int = Field(ge=0, lt=2**32)
    paths: Paths = Paths()
    model: ModelSettings
    curate: CurateSettings
    train: TrainSettings
    evaluate: EvaluateSettings
    embed: EmbedSettings
    register_: RegisterSettings = Field(alias="register")
    index: IndexSettings
    promote: PromoteSettings
    serve: ServeSettings = ServeSettings()


def read_params(path: Path) -> dict[str, Any]:
    """Read a params file as plain values."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"no params file at {path}",
            hint="run coembed in the project's folder, or name it with --project",
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, expected sections of settings")
    return values


def override(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `values` with each `section.key=value` set; the value is read as YAML."""
    result = copy.deepcopy(values)
    for text in overrides:
        dotted, sign, raw = text.partition("=")
        keys = dotted.strip().split(".")
        if not sign or not all(keys):
            raise ConfigError(
                f"--set {text!r} is not SECTION.KEY=VALUE", hint="for example --set train.lr=1e-3"
            )
        try:
            value = yaml.safe_load(raw)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {text!r}: the value is not readable: {error}") from error
        node: Any = result
        for depth, key in enumerate(keys):
            node = _step(node, key, keys[: depth + 1], text, last=depth == len(keys) - 1, new=value)
    return result


def _step(node: Any, key: str, path: list[str], text: str, *, last: bool, new: Any) -> Any:
    """Go from `node` to its member `key`, or set it when it is the `last` of the path."""
    where = ".".join(path[:-1]) or "params.yaml"
    slot: Any = key
    if isinstance(node, list):
        if not key.isdigit() or int(key) >= len(node):
            raise ConfigError(
                f"--set {text!r}: {where} is a list of {len(node)}; {key!r} is no place in it"
            )
        slot = int(key)
    elif not isinstance(node, dict):
        raise ConfigError(f"--set {text!r}: {where} is a single value and has no {key!r}")
    if last:
        node[slot] = new
        return None
    if isinstance(node, dict) and node.get(slot) is None:
        node[slot] = {}
    return node[slot]


def parse_config(values: dict[str, Any], *, source: str = "params.yaml") -> Config:
    """Check plain values and freeze them. `source` names them in errors."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            "\n  ".join([f"{source} cannot be used:", *map(_explain, error.errors())]),
            hint="`coembed config schema` prints every setting with its type and default",
        ) from None


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read, override, check and freeze a params file."""
    return parse_config(override(read_params(path), overrides), source=str(path))


def _explain(problem: Any) -> str:
    """One line for one of pydantic's problems: where, what was found, what was expected."""
    where = ".".join(str(part) for part in problem["loc"]) or "(top)"
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key; {_neighbours(problem['loc'])}"
    if problem["type"] == "missing":
        return f"{where}: missing"
    message = problem["msg"].removeprefix("Value error, ")
    shown = json.dumps(problem["input"], default=str)
    if problem["type"] == "component_name":
        return f"{where}: {message}"
    return f"{where}: {message} (got {shown if len(shown) <= 60 else shown[:57] + '...'})"


def _neighbours(loc: tuple[Any, ...]) -> str:
    """The keys that are known beside the unknown one at `loc`."""
    here: Any = Config
    for part in loc[:-1]:
        fields = getattr(here, "model_fields", {})
        by_alias = {info.alias or name: info.annotation for name, info in fields.items()}
        here = by_alias.get(str(part))
    fields = getattr(here, "model_fields", None)
    if not fields:
        return "it is not one of this component's settings"
    names = sorted(info.alias or name for name, info in fields.items())
    return f"known here: {', '.join(names)}"
