"""Filters of a search: `colour=red`, `price<50`, `kind=mug,lamp`, `pattern!=plain`.

`parse_filters` reads the text against the columns that a collection says it has, so that a
misspelt column is an error rather than an empty result. `matches` is the meaning of a filter in
plain Python; a backend translates it into its own terms and must agree with it.
"""

from __future__ import annotations

import contextlib
import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from coembed.errors import UserError
from coembed.types import Attribute

# The kind of an attribute column: it decides how a filter's text is read and which payload index
# is made. "number" covers whole numbers too; "mixed" is a column that is text in one place and a
# number or truth value in another.
ColumnKind = Literal["text", "number", "bool", "mixed"]
Comparison = Literal["<", "<=", ">", ">="]

_SYNTAX = re.compile(r"^\s*(?P<column>[^=<>!]+?)\s*(?P<sign>!=|<=|>=|=|<|>)\s*(?P<value>.*?)\s*$")
_HINT = (
    "write COLUMN=VALUE, COLUMN=ONE,OTHER (any of them), COLUMN!=VALUE or COLUMN<NUMBER "
    "(also <=, >, >=), for example --filter colour=red --filter 'price<50'"
)
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
# Columns of every payload that stand beside the attributes.
BASE_COLUMNS: dict[str, ColumnKind] = {"modality": "text", "path": "text", "split": "text"}


@dataclass(frozen=True, slots=True)
class AnyOf:
    """The column has one of `values`; with `negated`, it has none of them (or has no value)."""

    column: str
    values: tuple[Attribute, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Compare:
    """The column is a number on that side of `bound`."""

    column: str
    sign: Comparison
    bound: float


@dataclass(frozen=True, slots=True)
class Filter:
    """All conditions must hold."""

    conditions: tuple[AnyOf | Compare, ...] = ()


NO_FILTER = Filter()


def payload_key(column: str) -> str:
    """Where a column stands in a payload, as a path in Qdrant's terms."""
    if column in BASE_COLUMNS:
        return column
    return f"attributes.{column}" if _PLAIN.fullmatch(column) else f'attributes."{column}"'


def payload_value(payload: Mapping[str, Any], column: str) -> Any:
    """A payload's value in a column (None: it has none)."""
    attributes = payload.get("attributes") or {}
    if column in attributes:
        return attributes[column]
    return payload.get(column) if column in BASE_COLUMNS else None


def matches(where: Filter, payload: Mapping[str, Any]) -> bool:
    """Whether a payload passes the filter."""
    return all(_holds(condition, payload) for condition in where.conditions)


def _holds(condition: AnyOf | Compare, payload: Mapping[str, Any]) -> bool:
    value = payload_value(payload, condition.column)
    if isinstance(condition, AnyOf):
        found = value is not None and any(_same(value, wanted) for wanted in condition.values)
        return found != condition.negated
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return {
        "<": value < condition.bound,
        "<=": value <= condition.bound,
        ">": value > condition.bound,
        ">=": value >= condition.bound,
    }[condition.sign]


def _same(value: Any, wanted: Attribute) -> bool:
    # In Python True == 1; in a table they are different things.
    return isinstance(value, bool) == isinstance(wanted, bool) and value == wanted


def restrict(where: Filter, column: str, value: Attribute) -> Filter:
    """The same filter for what has `value` in `column`."""
    return Filter((*where.conditions, AnyOf(column, (value,))))


def parse_filters(texts: Sequence[str], columns: Mapping[str, ColumnKind]) -> Filter:
    """Read filters against `columns` (name → kind) of a collection.

    Raises UserError for bad syntax, an unknown column, or a value that its column cannot have.
    """
    return Filter(tuple(_parse(text, {**BASE_COLUMNS, **columns}) for text in texts))


def _parse(text: str, columns: Mapping[str, ColumnKind]) -> AnyOf | Compare:
    parts = _SYNTAX.match(text)
    if parts is None:
        raise UserError(f"--filter {text!r} is not a condition", hint=_HINT)
    column, sign, raw = parts["column"], parts["sign"], parts["value"]
    kind = columns.get(column)
    if kind is None:
        raise UserError(
            f"--filter {text!r}: no column {column!r}; this collection has "
            f"{', '.join(sorted(columns))}",
            hint=_HINT,
        )
    if raw == "":
        raise UserError(f"--filter {text!r} has no value after {sign!r}", hint=_HINT)
    if sign in ("=", "!="):
        values = tuple(value for word in _words(raw, text) for value in _read(word, kind, text))
        return AnyOf(column, values, negated=sign == "!=")
    if kind not in ("number", "mixed"):
        raise UserError(
            f"--filter {text!r}: {column} is a {kind} column and cannot be compared with {sign!r}",
            hint=_HINT,
        )
    return Compare(column, sign, _number(raw, text))  # type: ignore[arg-type]


def _words(raw: str, text: str) -> list[str]:
    """Comma-separated values; double quotes keep a comma inside one."""
    try:
        (words,) = csv.reader([raw], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError) as error:
        raise UserError(f"--filter {text!r}: {error}", hint=_HINT) from None
    words = [word.strip() for word in words]
    if "" in words:
        raise UserError(f"--filter {text!r} has an empty value between its commas", hint=_HINT)
    return words


def _read(word: str, kind: ColumnKind, text: str) -> tuple[Attribute, ...]:
    """The values that a word can stand for in a column of that kind."""
    if kind == "text":
        return (word,)
    if kind == "number":
        return (_number(word, text),)
    truth = {"true": True, "false": False}.get(word.lower())
    if kind == "bool":
        if truth is None:
            raise UserError(f"--filter {text!r}: {word!r} is neither true nor false", hint=_HINT)
        return (truth,)
    readings: list[Attribute] = [word]
    if truth is not None:
        readings.append(truth)
    with contextlib.suppress(UserError):
        readings.append(_number(word, text))
    return tuple(readings)


def _number(word: str, text: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"--filter {text!r}: {word!r} is not a number", hint=_HINT)
    return number


def column_kinds(payloads: Sequence[Mapping[str, Any]]) -> dict[str, ColumnKind]:
    """The attribute columns of these payloads and the kind of each."""
    found: dict[str, set[ColumnKind]] = {}
    for payload in payloads:
        for column, value in (payload.get("attributes") or {}).items():
            if value is not None:
                found.setdefault(column, set()).add(_kind(value))
    return {column: merge_kinds(kinds) for column, kinds in sorted(found.items())}


def merge_kinds(kinds: set[ColumnKind]) -> ColumnKind:
    """The kind of a column whose values are of these kinds."""
    return next(iter(kinds)) if len(kinds) == 1 else "mixed"


def _kind(value: Any) -> ColumnKind:
    if isinstance(value, bool):
        return "bool"
    return "number" if isinstance(value, int | float) else "text"
