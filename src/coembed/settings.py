"""Settings: the base of every typed section of params.yaml, and how a section names a component.

A component (a loss, a filter, an index backend) is one module in its kind's package. The module's
name is the component's registered name, and the module holds a class `Settings` with the
component's settings and a `build` method. `Component("coembed.losses")` is the type of a setting
that names one of them: `{name: softmax, ...}`. Only the module that is named gets imported.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class Settings(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, protected_namespaces=()
    )


class ComponentSettings(Settings):
    """Base of a component's `Settings`. `name` is the name of its module."""

    name: str


def component_names(package: str) -> tuple[str, ...]:
    """Registered names in `package` (say, "coembed.losses"), sorted; imports none of them."""
    paths = importlib.import_module(package).__path__
    found = pkgutil.iter_modules(paths)
    # A leading underscore marks what components of one kind share; `base` holds their interface.
    return tuple(sorted(m.name for m in found if not m.name.startswith("_") and m.name != "base"))


def component_settings(package: str, name: str) -> type[ComponentSettings]:
    """The `Settings` class of the component `name` of `package`."""
    settings = importlib.import_module(f"{package}.{name}").Settings
    assert issubclass(settings, ComponentSettings)
    return settings


class Component:
    """Annotation `Annotated[ComponentSettings, Component("coembed.losses")]`.

    Validates a mapping with a `name` into the Settings class of the module of that name.
    """

    def __init__(self, package: str) -> None:
        self.package = package

    def _choose(self, value: Any) -> ComponentSettings:
        if isinstance(value, ComponentSettings):
            return value
        if isinstance(value, str):
            value = {"name": value}
        names = component_names(self.package)
        if not isinstance(value, dict) or value.get("name") not in names:
            got = value.get("name") if isinstance(value, dict) else value
            raise PydanticCustomError(
                "component_name",
                "name is {got}; expected one of {names}",
                {"got": repr(got), "names": ", ".join(names)},
            )
        return component_settings(self.package, value["name"]).model_validate(value)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._choose,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda chosen: chosen.model_dump(mode="json")
            ),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        components = (component_settings(self.package, n) for n in component_names(self.package))
        return {"anyOf": [_without_references(made.model_json_schema()) for made in components]}


def _without_references(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` with its `$defs` written out where they are used: they would get lost when it
    becomes part of another one."""
    definitions = schema.pop("$defs", {})

    def write_out(node: Any) -> Any:
        if isinstance(node, list):
            return [write_out(member) for member in node]
        if not isinstance(node, dict):
            return node
        name = str(node.get("$ref", "")).removeprefix("#/$defs/")
        whole = {**definitions[name], **node} if name else node
        return {key: write_out(value) for key, value in whole.items() if key != "$ref"}

    written: dict[str, Any] = write_out(schema)
    return written
