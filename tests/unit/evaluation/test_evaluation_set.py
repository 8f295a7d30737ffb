"""Which caption answers which item, columns, slices and the content hash."""

from __future__ import annotations

import pytest

from coembed.errors import DataError
from coembed.evaluation.evaluation_set import EvaluatedItem, EvaluationSet
from coembed.evaluation.retrieval import Positives


def item(item_id: str, *captions: str, **attributes: object) -> EvaluatedItem:
    return EvaluatedItem(item_id, "image", f"{item_id}.jpg", captions, attributes)


def as_lists(positives: Positives) -> list[list[int]]:
    bounds = zip(positives.starts[:-1], positives.starts[1:], strict=True)
    return [positives.candidates[start:stop].tolist() for start, stop in bounds]


def test_items_with_the_same_caption_answer_each_other() -> None:
    data = EvaluationSet(
        [
            item("a", "A red shoe", "shoe"),
            item("b", "a  RED shoe", "a red boot"),
            item("c", "a red boot", "a red boot"),
            item("d", "ｓｈｏｅ"),  # full-width letters
        ]
    )
    assert data.texts == ("A red shoe", "shoe", "a  RED shoe", "a red boot", "ｓｈｏｅ")
    # A caption that an item has twice is one query.
    assert data.queries == ((0, 0), (0, 1), (1, 2), (1, 3), (2, 3), (3, 4))
    assert as_lists(data.text_to_item()) == [[0, 1], [0, 3], [0, 1], [1, 2], [1, 2], [0, 3]]
    assert as_lists(data.item_to_text()) == [[0, 1, 2, 4], [0, 2, 3], [3], [1, 4]]


def test_captions_that_differ_in_a_word_do_not() -> None:
    data = EvaluationSet([item("a", "a red shoe"), item("b", "a red shoe.")])
    assert as_lists(data.text_to_item()) == [[0], [1]]


def test_word_columns_are_words_with_2_to_50_values() -> None:
    data = EvaluationSet(
        [
            item(f"{i}", "x", kind=f"k{i % 3}", same="s", many=f"m{i}", price=1.0 * i, sold=i > 9)
            for i in range(60)
        ]
    )
    assert data.word_columns() == ("kind", "sold")


def test_labels_are_text_and_absent_ones_none() -> None:
    data = EvaluationSet([item("a", "x", sold=True, size=42), item("b", "y")])
    assert data.labels("sold", setting="s") == ("true", None)
    assert data.labels("size", setting="s") == ("42", None)


def test_a_column_that_is_not_there_is_named_with_those_that_are() -> None:
    data = EvaluationSet([item("a", "x", kind="shoe", colour="red")])
    with pytest.raises(DataError) as caught:
        data.labels("color", setting="evaluate.zero_shot")
    text = str(caught.value)
    assert "evaluate.zero_shot names the column 'color'" in text
    assert "columns there are: colour, kind" in text


def test_content_hash_knows_items_captions_and_attributes_but_no_order() -> None:
    a, b = item("a", "one", "two"), item("b", "three", size=3, colour="red")
    same = EvaluationSet([item("b", "three", colour="red", size=3), item("a", "two", "one")])
    assert EvaluationSet([a, b]).content_hash() == same.content_hash()
    relabelled = item("b", "three", size=3, colour="blue")
    others = ([a], [a, item("b", "four", size=3, colour="red")], [a, b, item("c", "x")])
    for other in (*others, [a, relabelled], [a, item("b", "three", size=3)]):
        assert EvaluationSet(other).content_hash() != same.content_hash()
