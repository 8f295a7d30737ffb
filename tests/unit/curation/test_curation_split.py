"""Splits: the rule as its docstring says, nothing straddles, growth moves nothing back."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from coembed.curation.database import Database
from coembed.curation.settings import SplitSettings
from coembed.curation.settle import Standing
from coembed.curation.split import SPLIT_REASONS, Groups, assign_splits, hash_fraction
from coembed.types import SPLITS

# Item, value of the first column, of the second, given split, what became of it.
Row = tuple[int, int, int, int, str]
Link = tuple[int, int]
KEPT, DROPPED, UNREAD = "kept", "dropped", "unread"

VAL, TEST = 0.2, 0.3


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with Database(tmp_path_factory.mktemp("db"), readable=[], num_threads=1) as opened:
        yield opened


def _item_id(item: int) -> bytes:
    return hashlib.sha256(str(item).encode()).digest()


def _assign(
    database: Database,
    folder: Path,
    rows: list[Row],
    links: list[Link],
    *,
    columns: int = 0,
    val: float = VAL,
    test: float = TEST,
) -> list[tuple[str, str] | None]:
    ids = sorted(_item_id(row[0]) for row in rows if row[4] != UNREAD)
    ids = sorted(set(ids))
    items = [-1 if row[4] == UNREAD else ids.index(_item_id(row[0])) for row in rows]
    cells = {
        "row": pa.array(range(len(rows)), pa.int64()),
        "item": pa.array([None if i < 0 else i for i in items], pa.int64()),
        "given_split": pa.array([None if r[3] < 0 else SPLITS[r[3]] for r in rows], pa.string()),
    }
    for c in range(columns):
        values = [None if r[1 + c] < 0 else f"v{r[1 + c]}" for r in rows]
        cells[f"g{c}"] = pa.array(values, pa.string())
    places = pa.array(range(len(ids)), pa.int64())
    tables = {
        "rows": pa.table(cells),
        "items": pa.table({"item": places, "item_id": pa.array(ids, pa.binary())}),
        "links": pa.table(
            {
                "row": pa.array([a for a, _ in links], pa.int64()),
                "other": pa.array([b for _, b in links], pa.int64()),
            }
        ),
        "drops": pa.table(
            {"row": pa.array([i for i, r in enumerate(rows) if r[4] != KEPT], pa.int64())}
        ),
    }
    for name, table in tables.items():
        database.execute(f"CREATE OR REPLACE TABLE {name} AS FROM made", made=table)
    standing = Standing(
        item=np.array(items),
        kept=np.array([r[4] == KEPT for r in rows]),
        joins=np.zeros(len(rows), np.bool_),
        duplicate_of=np.full(len(rows), -1),
    )
    found = assign_splits(
        database,
        standing,
        SplitSettings(val=val, test=test, group_by=("a", "b")[:columns]),
        num_items=len(ids),
        seed=3,
        folder=folder,
    )
    return [
        None if s < 0 else (SPLITS[s], SPLIT_REASONS[r])
        for s, r in zip(found.splits.tolist(), found.reasons.tolist(), strict=True)
    ]


def _reference(rows: list[Row], links: list[Link], *, columns: int) -> list[tuple[str, str] | None]:
    """The rule of the module's docstring, walked row by row."""
    linked = {row for link in links for row in link}
    counts = [r[4] != UNREAD and (r[4] == KEPT or i in linked) for i, r in enumerate(rows)]
    joints: list[set[tuple[str, object]]] = []
    for index, row in enumerate(rows):
        own: set[tuple[str, object]] = {("row", index)}
        if counts[index]:
            own |= {("item", row[0])}
            own |= {("ab"[c], row[1 + c]) for c in range(columns) if row[1 + c] >= 0}
        joints.append(own)
    joints += [{("row", a), ("row", b)} for a, b in links if rows[a][4] != UNREAD != rows[b][4]]
    groups: list[set[tuple[str, object]]] = []
    for own in joints:
        rest = [group for group in groups if not group & own]
        groups = [*rest, own.union(*(group for group in groups if group & own))]
    result: list[tuple[str, str] | None] = []
    for index, row in enumerate(rows):
        if row[4] != KEPT:
            result.append(None)
            continue
        (group,) = (group for group in groups if ("row", index) in group)
        members = [i for i in range(len(rows)) if ("row", i) in group and counts[i]]
        most = max(rows[i][3] for i in members)
        if most >= 0:
            result.append((SPLITS[most], "given" if row[3] == most else "group"))
        else:
            outcomes = [_hashed(_key(rows[i], columns)) for i in members]
            result.append((max(outcomes, key=SPLITS.index), "hashed"))
    return result


def _key(row: Row, columns: int) -> str:
    for c in range(columns):
        if row[1 + c] >= 0:
            return f"{'ab'[c]}=v{row[1 + c]}"
    return _item_id(row[0]).hex()


def _hashed(key: str) -> str:
    u = int.from_bytes(hashlib.sha256(f"3:{key}".encode()).digest()[:8], "big") / 2**64
    return "test" if u < TEST else "val" if u < TEST + VAL else "train"


def _pools(num: int) -> tuple[list[list[Row]], list[list[Link]]]:
    """Small random pools of their own items and values, to be split side by side in one database:
    items are 10 i to 10 i + 9 in pool i, and so on."""
    rng = random.Random(0)
    pools, links = [], []
    for pool in range(num):
        rows: list[Row] = []
        for _ in range(rng.randint(1, 20)):
            first, second = rng.randint(-1, 5), rng.randint(-1, 4)
            rows.append(
                (
                    10 * pool + rng.randint(0, 9),
                    first if first < 0 else 10 * pool + first,
                    second if second < 0 else 10 * pool + second,
                    rng.choice([-1, -1, -1, -1, 0, 1, 2]) if pool % 2 else -1,
                    rng.choice([KEPT, KEPT, KEPT, DROPPED, UNREAD]),
                )
            )
        pools.append(rows)
        ends = range(len(rows))
        links.append([(rng.choice(ends), rng.choice(ends)) for _ in range(rng.randint(0, 3))])
    return pools, links


def _side_by_side(pools: list[list[Row]], links: list[list[Link]]) -> tuple[list[Row], list[Link]]:
    starts = [0, *itertools.accumulate(map(len, pools))]
    moved = [(a + s, b + s) for s, own in zip(starts, links, strict=False) for a, b in own]
    return [row for rows in pools for row in rows], moved


@pytest.mark.parametrize("columns", [0, 1, 2])
def test_the_rule_is_kept(database: Database, tmp_path: Path, columns: int) -> None:
    pools, links = _pools(300)
    found = iter(_assign(database, tmp_path, *_side_by_side(pools, links), columns=columns))
    for rows, own in zip(pools, links, strict=True):
        assert [next(found) for _ in rows] == _reference(rows, own, columns=columns)


@pytest.mark.parametrize("columns", [0, 1, 2])
def test_a_pool_that_grows_moves_pairs_towards_test_only(
    database: Database, tmp_path: Path, columns: int
) -> None:
    pools, links = _pools(400)
    pools = [[(*row[:3], -1, row[4]) for row in rows] for rows in pools]
    halves = [rows[: len(rows) // 2] for rows in pools]
    early = [
        [(a, b) for a, b in own if max(a, b) < len(rows)]
        for rows, own in zip(halves, links, strict=True)
    ]
    before = iter(_assign(database, tmp_path, *_side_by_side(halves, early), columns=columns))
    after = iter(_assign(database, tmp_path, *_side_by_side(pools, links), columns=columns))
    num_moved = 0
    for rows, half in zip(pools, halves, strict=True):
        grown = [next(after) for _ in rows]
        for old, new in zip([next(before) for _ in half], grown, strict=False):
            assert (old is None) == (new is None)
            if old and new:
                assert SPLITS.index(new[0]) >= SPLITS.index(old[0])
                num_moved += old[0] != new[0]
    assert num_moved > 50


def test_an_unread_pool_has_no_splits(database: Database, tmp_path: Path) -> None:
    assert _assign(database, tmp_path, [(0, 0, 0, -1, UNREAD)], []) == [None]


def test_the_most_held_out_split_wins(database: Database, tmp_path: Path) -> None:
    rows = [(0, 1, -1, 0), (1, 1, -1, 2), (2, 1, -1, -1), (3, 2, -1, 0), (4, 2, -1, 1)]
    found = _assign(database, tmp_path, [(*row, KEPT) for row in rows], [], columns=1)
    assert found == [
        ("test", "group"), ("test", "given"), ("test", "group"), ("val", "group"), ("val", "given"),
    ]  # fmt: skip


def test_a_dropped_near_duplicate_holds_its_group_together(
    database: Database, tmp_path: Path
) -> None:
    """Row 1 was dropped as a duplicate of row 0; its product's other picture is row 2."""
    rows: list[Row] = [(0, 0, -1, -1, KEPT), (1, 1, -1, 2, DROPPED), (2, 1, -1, -1, KEPT)]
    found = _assign(database, tmp_path, rows, [(1, 0)], columns=1)
    assert found == [("test", "group"), None, ("test", "group")]
    apart = _assign(database, tmp_path, rows, [], columns=1)
    assert [a and a[1] for a in apart] == ["hashed", None, "hashed"]


@pytest.mark.parametrize("order", ["up", "down", "shuffled"])
def test_long_chains_are_one_group(order: str) -> None:
    num = 20_000
    chain = {"up": np.arange(num), "down": np.arange(num)[::-1]}.get(
        order, np.random.default_rng(0).permutation(num)
    )
    groups = Groups(np.empty(num, np.int64))
    for start in range(0, num - 1, 3000):
        groups.link(chain[start : start + 3000][: num - 1 - start], chain[start + 1 : start + 3001])
    assert set(groups.find(np.arange(num)).tolist()) == {0}


def test_shares_come_out_and_single_keys_stay_put(database: Database, tmp_path: Path) -> None:
    def split(num: int) -> dict[int, str]:
        rows: list[Row] = [(i % 10, i, -1, -1, KEPT) for i in range(num)]
        # Ten items only, but every row has a product of its own, so the items must not join them.
        cells = [(i, *row[1:]) for i, row in enumerate(rows)]
        ids = sorted(hashlib.sha256(str(i).encode()).digest() for i in range(num))
        for name, table in {
            "rows": pa.table(
                {
                    "row": range(num),
                    "item": range(num),
                    "given_split": pa.nulls(num, pa.string()),
                    "g0": [f"{row[1]}" for row in cells],
                }
            ),
            "items": pa.table({"item": range(num), "item_id": pa.array(ids, pa.binary())}),
        }.items():
            database.execute(f"CREATE OR REPLACE TABLE {name} AS FROM made", made=table)
        database.execute("DELETE FROM links; DELETE FROM drops")
        standing = Standing(
            np.arange(num), np.ones(num, np.bool_), np.zeros(num, np.bool_), np.full(num, -1)
        )
        found = assign_splits(
            database, standing, SplitSettings(val=0.05, test=0.1, group_by=("a",)),
            num_items=num, seed=3, folder=tmp_path,
        )  # fmt: skip
        return {i: SPLITS[place] for i, place in enumerate(found.splits.tolist())}

    _assign(database, tmp_path, [(0, 0, 0, -1, KEPT)], [])
    small, large = split(5000), split(20_000)
    assert all(large[key] == place for key, place in small.items())
    for key in range(50):
        u = hash_fraction(3, f"a={key}")
        assert large[key] == ("test" if u < 0.1 else "val" if u < 0.15 else "train")
    counts: defaultdict[str, int] = defaultdict(int)
    for place in large.values():
        counts[place] += 1
    assert counts["test"] / 20_000 == pytest.approx(0.1, abs=0.01)
    assert counts["val"] / 20_000 == pytest.approx(0.05, abs=0.01)


def test_the_hash_is_a_fraction_of_seed_and_key() -> None:
    assert 0 <= hash_fraction(0, "a") < 1
    assert hash_fraction(0, "a") == hash_fraction(0, "a")
    assert len({hash_fraction(s, k) for s in range(5) for k in "abcde"}) == 25
