"""Keyword search over captions."""

from __future__ import annotations

import math
import re
import sqlite3
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coembed.search import keywords

CAPTIONS = {
    "a": ["a red sneaker", "sneaker, red"],
    "b": ["a blue sneaker"],
    "c": ["a red mug on a red table"],
    "d": ["Crème brûlée in a CUP"],
    "e": [],
}


def table(captions: dict[str, list[str]]) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    keywords.create(connection)
    keywords.add(connection, captions.items())
    keywords.optimise(connection)
    return connection


def found(connection: sqlite3.Connection, text: str, limit: int = 10) -> list[str]:
    return [one.item_id for one in keywords.find(connection, text, limit=limit)]


def slow_bm25(captions: dict[str, list[str]], text: str) -> dict[str, float]:
    """As in SQLite's documentation of FTS5, section 5.1.1."""
    k1, b = 1.2, 0.75
    docs = {key: re.findall(r"\w+", " ".join(texts).lower()) for key, texts in captions.items()}
    mean = sum(map(len, docs.values())) / len(docs)
    scores: dict[str, float] = {}
    for word in dict.fromkeys(re.findall(r"\w+", text.lower())):
        having = sum(word in doc for doc in docs.values())
        idf = max(math.log((len(docs) - having + 0.5) / (having + 0.5)), 1e-6)
        for key, doc in docs.items():
            freq = Counter(doc)[word]
            if freq:
                part = idf * freq * (k1 + 1) / (freq + k1 * (1 - b + b * len(doc) / mean))
                scores[key] = scores.get(key, 0.0) + part
    return scores


@pytest.mark.parametrize("text", ["red", "red sneaker", "a red mug", "blue cup sneaker"])
def test_scores_are_bm25(text: str) -> None:
    captions = {key: value for key, value in CAPTIONS.items() if key != "d"}
    got = {one.item_id: one.bm25 for one in keywords.find(table(captions), text, limit=10)}
    expected = slow_bm25(captions, text)
    assert got.keys() == expected.keys()
    for key, score in expected.items():
        assert got[key] == pytest.approx(score, rel=1e-6)


def test_the_best_come_first_and_accents_and_case_do_not_matter() -> None:
    connection = table(CAPTIONS)
    assert found(connection, "red sneaker")[0] == "a"
    assert found(connection, "creme BRULEE") == ["d"]
    assert found(connection, "red sneaker", limit=1) == ["a"]


@pytest.mark.parametrize(
    "text", ['"', "*", "red AND", "NEAR(red mug)", "text:red", "-", "", "  ", "(", "red^2", "a\0b"]
)
def test_nothing_in_a_text_is_an_operator(text: str) -> None:
    words = re.findall(r"\w+", text.lower())
    expected = {
        k for k, v in CAPTIONS.items() if set(words) & set(re.findall(r"\w+", " ".join(v).lower()))
    }
    assert set(found(table(CAPTIONS), text)) == expected


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_at_all_is_only_words(text: str) -> None:
    if not any(0xD800 <= ord(char) <= 0xDFFF for char in text):
        keywords.find(table(CAPTIONS), text, limit=5)


def test_every_score_is_above_nothing_found() -> None:
    """A word that all captions hold is worth little, and still something."""
    connection = table({str(n): ["a thing"] for n in range(5)})
    assert all(one.bm25 > 0 for one in keywords.find(connection, "thing", limit=5))
