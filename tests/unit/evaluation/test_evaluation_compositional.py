"""Captions with one thing wrong: what is altered, what must not be, and the score."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pytest

from coembed.evaluation.altered_captions import Altered, Captions, auto_columns
from coembed.evaluation.compositional import ask_altered, compositional_outcomes
from coembed.evaluation.evaluation_set import EvaluatedItem, EvaluationSet, same_text
from coembed.types import Attribute

Row = tuple[str | tuple[str, ...], Mapping[str, Attribute]]


def evaluation_set(*rows: Row) -> EvaluationSet:
    return EvaluationSet(
        [
            EvaluatedItem(
                f"{place:064x}",
                "image",
                f"{place}.png",
                (captions,) if isinstance(captions, str) else captions,
                attributes,
            )
            for place, (captions, attributes) in enumerate(rows)
        ]
    )


def captions_of(data: EvaluationSet, *columns: str) -> Captions:
    return Captions(data, {column: data.labels(column, setting="x") for column in columns})


def swaps(data: EvaluationSet, column: str, *others: str) -> dict[int, str]:
    found = captions_of(data, column, *others).swapped(column, most=1000)
    return {one.item: one.altered for one in found}


def exchanges(*captions: str, **columns: Sequence[str]) -> dict[str, str]:
    rows: list[Row] = [
        (caption, {name: values[place] for name, values in columns.items()})
        for place, caption in enumerate(captions)
    ]
    found = captions_of(evaluation_set(*rows), *columns).exchanged(most=1000)
    return {one.caption: one.altered for one in found}


def shop() -> EvaluationSet:
    colours, kinds = ("red", "blue", "green", "orange"), ("mug", "hat", "umbrella")
    return evaluation_set(
        *(
            (f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {kind}",
             {"colour": colour, "kind": kind})
            for colour, kind in product(colours, kinds)
        )
    )  # fmt: skip


def test_a_swap_changes_the_value_alone_and_is_a_caption_of_the_set() -> None:
    data = shop()
    truth = {item.captions[0]: item for item in data.items}
    for column, other in (("colour", "kind"), ("kind", "colour")):
        found = swaps(data, column, other)
        assert set(found) == set(range(len(data.items)))
        for item, altered in found.items():
            # Such a caption is there: "an orange mug", never "a orange mug".
            assert truth[altered].attributes[column] != data.items[item].attributes[column]
            assert truth[altered].attributes[other] == data.items[item].attributes[other]


def test_case_underscores_and_word_boundaries() -> None:
    data = evaluation_set(
        ("A Polka Dot mug", {"pattern": "polka_dot"}),
        ("A Striped mug", {"pattern": "striped"}),
        ("a redder mug", {"pattern": "red"}),
        ("a red-hot mug", {"pattern": "red"}),
    )
    assert swaps(data, "pattern") == {0: "A Striped mug", 1: "A Polka Dot mug"}


def test_the_longest_value_counts_and_never_one_that_says_the_same() -> None:
    data = evaluation_set(
        ("a light blue mug", {"colour": "light_blue"}),
        ("a blue mug", {"colour": "blue"}),
        ("a red mug", {"colour": "red"}),
    )
    # "a light blue mug" is a blue one, too: only red is no lie's truth.
    assert swaps(data, "colour")[0] == "a red mug"
    assert swaps(data, "colour")[1] == "a red mug"


def test_what_the_item_is_in_another_way_is_no_swap() -> None:
    rows: list[Row] = [
        ("a red mug", {"colour": "red", "trim": "blue"}),
        ("a blue mug", {"colour": "blue", "trim": "red"}),
    ]
    assert swaps(evaluation_set(*rows), "colour", "trim") == {}
    rows = [(caption, {"colour": values["colour"]}) for caption, values in rows]
    assert swaps(evaluation_set(*rows), "colour") == {0: "a blue mug", 1: "a red mug"}


def test_what_the_caption_or_one_alike_says_already_is_no_swap() -> None:
    named = evaluation_set(
        ("a red mug with a blue rim", {"colour": "red"}),
        ("a blue mug with a blue rim", {"colour": "blue"}),
    )
    assert 0 not in swaps(named, "colour")
    # The second item has the first one's caption, and is blue: who can say which one is meant?
    shared = evaluation_set(
        ("a red mug", {"colour": "red"}),
        ("A red  mug", {"colour": "blue"}),
        ("a blue mug", {"colour": "blue"}),
    )
    assert 0 not in swaps(shared, "colour")
    # The second item has both captions.
    both = evaluation_set(
        ("a red mug", {"colour": "red"}),
        (("a red mug", "a blue mug"), {"colour": "red"}),
        ("a blue mug", {"colour": "blue"}),
    )
    assert 0 not in swaps(both, "colour")


def test_an_orange_that_is_orange_is_left_alone() -> None:
    data = evaluation_set(
        ("an orange", {"kind": "orange", "colour": "orange"}),
        ("a plum", {"kind": "plum", "colour": "blue"}),
    )
    assert 0 not in swaps(data, "kind", "colour")


def test_a_swap_reads_like_other_captions_of_the_set() -> None:
    data = evaluation_set(
        ("a mug on a table", {"place": "table"}),
        ("a hat on a shelf", {"place": "shelf"}),
        ("a fern in a room", {"place": "room"}),
    )
    # Nothing else is "in a", so the fern is not asked about; nobody writes "a mug on a room".
    assert swaps(data, "place") == {0: "a mug on a shelf", 1: "a hat on a table"}


def test_a_value_seen_beside_the_same_attributes_comes_first() -> None:
    def item(colour: str, kind: str, size: str) -> Row:
        return f"a {colour} mug", {"colour": colour, "kind": kind, "size": size}

    columns = "colour", "kind", "size"
    seen = [item(colour, "mug", "large") for colour in ("pink", "grey", "teal", "gold")]
    seen += [item(colour, "hat", "small") for colour in ("pink", "grey", "teal", "gold")]
    elsewhere = [item(colour, "hat", "large") for colour in ("lime", "navy", "plum", "rose")]
    red, green = item("red", "mug", "small"), item("green", "mug", "small")
    # Green is on a small mug; pink on mugs and on what is small; lime on neither.
    assert swaps(evaluation_set(red, *seen, *elsewhere, green), *columns)[0] == "a green mug"
    second = swaps(evaluation_set(red, *elsewhere, *seen), *columns)[0]
    assert second in {caption for caption, _ in seen}
    assert swaps(evaluation_set(red, *elsewhere), *columns)[0] in {one for one, _ in elsewhere}


def test_all_occurrences_are_swapped() -> None:
    data = evaluation_set(
        ("a red mug on a red cloth", {"colour": "red"}), ("a blue mug on", {"colour": "blue"})
    )
    assert swaps(data, "colour")[0] == "a blue mug on a blue cloth"


def test_two_values_of_a_column_change_places_where_they_speak_of_different_things() -> None:
    colours = {"colour": ["red", "blue"]}
    assert exchanges("a red mug on a blue cloth", "x", **colours) == {
        "a red mug on a blue cloth": "a blue mug on a red cloth"
    }
    assert exchanges("a red and blue mug", "a mug, red, blue", **colours) == {}


def test_the_heads_of_two_phrases_change_places() -> None:
    assert exchanges("a tall mug with three handles") == {
        "a tall mug with three handles": "a tall handles with three mug"
    }
    assert exchanges("tall teapot, blue, solid", "a mug with a mug", "roter Becher") == {}
    # That would be as true as before, and this would not.
    assert exchanges("a man with a dog") == {}
    assert exchanges("an old man with a dog") == {"an old man with a dog": "an old dog with a man"}
    assert exchanges("a man on a dog") == {"a man on a dog": "a dog on a man"}


def test_an_exchanged_caption_that_the_item_has_is_left_out() -> None:
    data = evaluation_set((("a mug on a hat", "a hat on a mug"), {}))
    assert captions_of(data).exchanged(most=10) == []


def test_most_takes_the_same_items_whatever_their_order() -> None:
    data = shop()
    reverse = EvaluationSet(list(reversed(data.items)))
    found = captions_of(data, "colour", "kind").swapped("colour", most=5)
    again = captions_of(reverse, "colour", "kind").swapped("colour", most=5)
    named = {(data.items[one.item].item_id, one.altered) for one in found}
    assert len(named) == 5
    assert named == {(reverse.items[one.item].item_id, one.altered) for one in again}
    whole = captions_of(data, "colour", "kind").swapped("colour", most=100)
    assert set(found) < set(whole)


def test_auto_columns_are_words() -> None:
    data = evaluation_set(
        ("a", {"colour": "red", "price": 3.5, "vegan": True, "id": "1", "one": "x"}),
        ("b", {"colour": "blue", "price": 4.5, "vegan": False, "id": "2", "one": "x"}),
    )
    assert auto_columns(data) == ("colour", "id")


def bag_of_words(texts: Sequence[str]) -> np.ndarray:
    """An encoder that ignores the order of words, [len(texts), 64]."""
    embedded = np.zeros((len(texts), 64), dtype=np.float32)
    for row, text in zip(embedded, texts, strict=True):
        for word in same_text(text).split():
            row[zlib.crc32(word.encode()) % 64] += 1
    return embedded / np.linalg.norm(embedded, axis=1, keepdims=True)


def test_a_model_that_ignores_order_scores_a_half_on_order_and_full_on_swaps() -> None:
    colours, kinds = ("red", "blue", "green"), ("mug", "hat")
    data = evaluation_set(
        *(
            (f"a {one} {kind} on a {other} cloth", {"colour": one, "kind": kind})
            for one, other, kind in product(colours, colours, kinds)
            if one != other
        )
    )
    texts = bag_of_words(data.texts)
    items = bag_of_words([item.captions[0] for item in data.items])
    labels = {column: data.labels(column, setting="x") for column in ("colour", "kind")}
    tasks = {
        task.key: task
        for task in ask_altered(data, labels, items, texts, bag_of_words, order=True, most=100)
    }
    assert set(tasks) == {"swap_colour", "swap_kind", "order"}
    order = tasks["order"].outcomes
    assert order.num_queries == len(data.items)
    assert order.values["accuracy"].tolist() == [0.5] * order.num_queries
    assert order.chance["accuracy"].tolist() == [0.5] * order.num_queries
    assert tasks["swap_kind"].outcomes.values["accuracy"].tolist() == [1.0] * len(data.items)
    assert order.task == "compositional_order"
    without = ask_altered(data, {}, items, texts, bag_of_words, order=False, most=100)
    assert without == []


def test_accuracy_is_which_caption_lies_nearer() -> None:
    rng = np.random.default_rng(0)
    items, captions, altered = (
        (vectors := rng.normal(size=(50, 8)).astype(np.float32))
        / np.linalg.norm(vectors, axis=1, keepdims=True)
        for _ in range(3)
    )
    altered[:5] = captions[:5]
    found = compositional_outcomes("task", items, captions, altered).values["accuracy"]
    expected = [
        0.5 if place < 5 else float(item @ caption > item @ other)
        for place, (item, caption, other) in enumerate(zip(items, captions, altered, strict=True))
    ]
    assert found.tolist() == expected


@pytest.mark.parametrize("caption", ["", "  ", "mug", "\0", "a the on of", "ẞtraße on ﬁn"])
def test_odd_captions_do_no_harm(caption: str) -> None:
    data = evaluation_set((caption, {"kind": "mug"}), ("a mug", {"kind": "mug"}))
    read = captions_of(data, "kind")
    for one in [*read.swapped("kind", most=9), *read.exchanged(most=9)]:
        assert isinstance(one, Altered)
        assert one.altered != one.caption


def test_what_is_read_of_many_captions_is_chosen_by_their_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = shop()
    whole = swaps(data, "colour", "kind")
    monkeypatch.setattr("coembed.evaluation.altered_captions._MAX_READ", 6)
    few = swaps(data, "colour", "kind")
    assert few and len(few) <= len(whole)
    again = swaps(EvaluationSet(list(reversed(data.items))), "colour", "kind")
    assert {len(data.items) - 1 - item: altered for item, altered in again.items()} == few
    seen = {item.captions[0] for item in data.items}
    assert set(few.values()) <= seen
