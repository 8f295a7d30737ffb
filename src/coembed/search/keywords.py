"""Keyword search over captions: SQLite's FTS5, ranked by BM25.

BM25 as SQLite computes it (k1 = 1.2, b = 0.75; Robertson and Zaragoza, "The probabilistic relevance
framework", 2009), over all captions of an item as one document. Case and accents do not matter.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_WORD = re.compile(r"\w+", re.UNICODE)
_MAX_WORDS = 64


@dataclass(frozen=True, slots=True)
class Found:
    """An item whose captions hold words of a query. `bm25`: higher is better, above 0."""

    item_id: str
    bm25: float


def create(connection: sqlite3.Connection) -> None:
    """Make the table in an empty database."""
    connection.execute(
        "CREATE VIRTUAL TABLE captions USING fts5(item_id UNINDEXED, text, "
        "tokenize = 'unicode61 remove_diacritics 2')"
    )


def add(connection: sqlite3.Connection, items: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Add items with their captions."""
    connection.executemany(
        "INSERT INTO captions (item_id, text) VALUES (?, ?)",
        ((item_id, "\n".join(captions)) for item_id, captions in items),
    )


def optimise(connection: sqlite3.Connection) -> None:
    """To be called once after the last `add`."""
    connection.execute("INSERT INTO captions (captions) VALUES ('optimize')")


def find(connection: sqlite3.Connection, text: str, *, limit: int) -> list[Found]:
    """The `limit` items whose captions match any word of `text` best; equal ones by item id.

    Nothing in `text` has a meaning of its own: operators, quotes and stars are not words.
    """
    words = list(dict.fromkeys(_WORD.findall(text.lower())))[:_MAX_WORDS]
    if not words:
        return []
    query = " OR ".join(f'"{word}"' for word in words)
    rows = connection.execute(
        "SELECT item_id, bm25(captions) AS score FROM captions WHERE captions MATCH ? "
        "ORDER BY score, item_id LIMIT ?",
        (query, limit),
    ).fetchall()
    # SQLite gives the negative, and for a word that most items hold even a little above 0.
    return [Found(str(item_id), max(-float(score), 1e-9)) for item_id, score in rows]
