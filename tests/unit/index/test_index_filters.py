"""Filters: what their text means, and what is said of text that means nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coembed.errors import UserError
from coembed.index.filters import (
    NO_FILTER,
    AnyOf,
    Compare,
    column_kinds,
    matches,
    parse_filters,
    payload_key,
    restrict,
)
from coembed.index.qdrant_filters import to_qdrant

COLUMNS = {
    "colour": "text",
    "price": "number",
    "sale": "bool",
    "code": "mixed",
    "list price": "number",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("colour=red", AnyOf("colour", ("red",))),
        (" colour = red ", AnyOf("colour", ("red",))),
        ("colour=red, blue", AnyOf("colour", ("red", "blue"))),
        ('colour="red, dark",blue', AnyOf("colour", ("red, dark", "blue"))),
        ("colour!=red", AnyOf("colour", ("red",), negated=True)),
        ("colour=a=b", AnyOf("colour", ("a=b",))),
        ("colour==red", AnyOf("colour", ("=red",))),
        ("price<50", Compare("price", "<", 50.0)),
        ("price<=5e1", Compare("price", "<=", 50.0)),
        ("price > -3", Compare("price", ">", -3.0)),
        ("price>=0", Compare("price", ">=", 0.0)),
        ("price=3", AnyOf("price", (3.0,))),
        ("list price<3", Compare("list price", "<", 3.0)),
        ("sale=TRUE", AnyOf("sale", (True,))),
        ("code=3", AnyOf("code", ("3", 3.0))),
        ("code=true", AnyOf("code", ("true", True))),
        ("code=x3", AnyOf("code", ("x3",))),
        ("split=val", AnyOf("split", ("val",))),
    ],
)
def test_text_becomes_a_condition(text: str, expected: object) -> None:
    assert parse_filters([text], COLUMNS).conditions == (expected,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a condition"),
        ("colour", "is not a condition"),
        ("=red", "is not a condition"),
        ("color=red", "no column 'color'; this collection has code, colour, list price, modality"),
        ("colour=", "has no value after '='"),
        ("colour=red,,blue", "empty value between its commas"),
        ("colour<red", "colour is a text column and cannot be compared with '<'"),
        ("sale>0", "sale is a bool column"),
        ("price=cheap", "'cheap' is not a number"),
        ("price<nan", "'nan' is not a number"),
        ("price<inf", "'inf' is not a number"),
        ("price<5,6", "'5,6' is not a number"),
        ("sale=perhaps", "'perhaps' is neither true nor false"),
        ('colour="red', "--filter"),
    ],
)
def test_text_that_means_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_filters([text], COLUMNS)
    assert message in str(caught.value)
    assert "--filter colour=red" in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_with_a_user_error(text: str) -> None:
    try:
        found = parse_filters([text, f"price{text}", f"colour={text}"], COLUMNS)
    except UserError:
        return
    assert len(found.conditions) == 3


def test_missing_values_are_different_from_everything() -> None:
    payload = {"attributes": {"price": 3, "sale": True}}
    for text, expected in [
        ("colour=red", False),
        ("colour!=red", True),
        ("price=3", True),
        ("sale=true", True),
        ("price<3", False),
        ("price<=3", True),
        ("code=1", False),
    ]:
        assert matches(parse_filters([text], COLUMNS), payload) is expected, text


def test_a_truth_value_is_not_the_number_one() -> None:
    where = parse_filters(["code=1"], COLUMNS)
    assert not matches(where, {"attributes": {"code": True}})
    assert matches(where, {"attributes": {"code": 1}})
    assert not matches(parse_filters(["code<2"], COLUMNS), {"attributes": {"code": True}})


def test_kinds_of_columns() -> None:
    payloads = [
        {"attributes": {"a": 1, "b": "x", "c": True, "d": None, "e": 1}},
        {"attributes": {"a": 2.5, "b": "y", "c": False, "e": "1", "f": True}},
        {"attributes": {"f": 1}},
        {},
    ]
    assert column_kinds(payloads) == {
        "a": "number", "b": "text", "c": "bool", "e": "mixed", "f": "mixed",
    }  # fmt: skip


def test_odd_column_names_are_quoted_for_qdrant() -> None:
    assert payload_key("colour") == "attributes.colour"
    assert payload_key("list price") == 'attributes."list price"'
    assert payload_key("a.b") == 'attributes."a.b"'
    assert payload_key("split") == "split"
    assert to_qdrant(parse_filters([], COLUMNS)) is None


def test_a_restriction_is_one_more_condition() -> None:
    where = restrict(parse_filters(["colour=red"], COLUMNS), "modality", "audio")
    assert where == parse_filters(["colour=red", "modality=audio"], COLUMNS)
    for modality in ("image", "audio"):
        payload = {"modality": modality, "attributes": {"colour": "red"}}
        assert matches(where, payload) == (modality == "audio")
    assert restrict(NO_FILTER, "modality", "audio") == parse_filters(["modality=audio"], {})
