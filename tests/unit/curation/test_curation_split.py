"""Splits: groups stay together, given splits are honoured, growth moves nothing."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coembed.curation.split import SPLIT_REASONS, assign_splits, hash_fraction
from coembed.types import SPLITS

Row = tuple[int, int, int, int]  # item, value of the first column, of the second, given split

ROWS = st.lists(
    st.tuples(st.integers(0, 9), st.integers(-1, 5), st.integers(-1, 4), st.integers(-1, 2)),
    min_size=1,
    max_size=25,
)


def _item_key(item: int) -> str:
    return hashlib.sha256(bytes([item])).hexdigest()


def _assign(
    rows: list[Row], *, columns: int, val: float = 0.2, test: float = 0.3
) -> list[tuple[str, str]]:
    table: NDArray[np.int64] = np.array(rows, np.int64)
    values = [f"v{i}" for i in range(10)]
    # Items are numbered in the order of their ids, as the engine numbers them.
    order = sorted(range(10), key=_item_key)
    place = {item: i for i, item in enumerate(order)}
    found = assign_splits(
        items=np.array([place[i] for i in table[:, 0].tolist()], np.int64),
        item_keys=[_item_key(i) for i in order],
        groups={
            name: (table[:, 1 + c], values) for c, name in zip(range(columns), "ab", strict=False)
        },
        given=table[:, 3].astype(np.int8),
        used=np.ones(len(rows), np.bool_),
        seed=3,
        val=val,
        test=test,
    )
    return [
        (SPLITS[s], SPLIT_REASONS[r])
        for s, r in zip(found.splits.tolist(), found.reasons.tolist(), strict=True)
    ]


def _reference(rows: list[Row], *, columns: int, val: float, test: float) -> list[tuple[str, str]]:
    """The rule of the module's docstring, walked row by row."""
    keys = [
        {("item", _item_key(r[0]))}
        | {("value", f"{'ab'[c]}=v{r[1 + c]}") for c in range(columns) if r[1 + c] >= 0}
        for r in rows
    ]
    groups: list[tuple[set[tuple[str, str]], set[int]]] = []
    for index, own in enumerate(keys):
        joined: tuple[set[tuple[str, str]], set[int]] = (set(own), {index})
        rest = []
        for group in groups:
            if group[0] & joined[0]:
                joined = (joined[0] | group[0], joined[1] | group[1])
            else:
                rest.append(group)
        groups = [*rest, joined]
    result: dict[int, tuple[str, str]] = {}
    for group_keys, members in groups:
        most = max(rows[i][3] for i in members)
        values = [key for kind, key in group_keys if kind == "value"]
        key = min(values) if values else min(key for _, key in group_keys)
        digest = int.from_bytes(hashlib.sha256(f"3:{key}".encode()).digest()[:8], "big")
        u = (digest >> 11) / 2**53
        hashed = "test" if u < test else "val" if u < test + val else "train"
        for i in members:
            if most < 0:
                result[i] = (hashed, "hashed")
            else:
                result[i] = (SPLITS[most], "given" if rows[i][3] == most else "group")
    return [result[i] for i in range(len(rows))]


@settings(max_examples=300, deadline=None)
@given(rows=ROWS, columns=st.integers(0, 2))
def test_the_rule_is_kept(rows: list[Row], columns: int) -> None:
    assert _assign(rows, columns=columns) == _reference(rows, columns=columns, val=0.2, test=0.3)


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, data=st.data())
def test_the_order_of_the_pairs_does_not_matter(rows: list[Row], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(rows))))
    plain = _assign(rows, columns=2)
    assert _assign([rows[i] for i in order], columns=2) == [plain[i] for i in order]


def test_the_most_held_out_split_wins() -> None:
    rows = [(0, 1, -1, 0), (1, 1, -1, 2), (2, 1, -1, -1), (3, 2, -1, 0), (4, 2, -1, 1)]
    assert _assign(rows, columns=1) == [
        ("test", "group"), ("test", "given"), ("test", "group"), ("val", "group"), ("val", "given"),
    ]  # fmt: skip


def test_long_chains_are_one_group() -> None:
    num = 2000  # item i has value i in column a and value i + 1 in column b: one chain
    items = np.repeat(np.arange(num), 2)
    links = np.stack([np.arange(num), np.arange(num) + 1], axis=1).ravel()
    given_splits = np.full(2 * num, -1, np.int8)
    given_splits[-1] = 2
    found = assign_splits(
        items=items,
        item_keys=[f"{i:05}" for i in range(num)],
        groups={"a": (links, [str(i) for i in range(num + 1)])},
        given=given_splits,
        used=np.ones(2 * num, np.bool_),
        seed=0,
        val=0.1,
        test=0.1,
    )
    assert set(found.splits.tolist()) == {SPLITS.index("test")}


def test_shares_come_out_and_a_growing_pool_moves_nothing() -> None:
    def split(num: int) -> dict[str, int]:
        ids = sorted(hashlib.sha256(str(i).encode()).hexdigest() for i in range(num))
        found = assign_splits(
            items=np.arange(num),
            item_keys=ids,
            groups={},
            given=np.full(num, -1, np.int8),
            used=np.ones(num, np.bool_),
            seed=0,
            val=0.05,
            test=0.1,
        )
        return dict(zip(ids, found.splits.tolist(), strict=True))

    small, large = split(5000), split(20_000)
    assert all(large[key] == place for key, place in small.items())
    counts: defaultdict[str, int] = defaultdict(int)
    for place in large.values():
        counts[SPLITS[place]] += 1
    assert counts["test"] / 20_000 == pytest.approx(0.1, abs=0.01)
    assert counts["val"] / 20_000 == pytest.approx(0.05, abs=0.01)


def test_rows_that_are_not_used_get_no_split_and_join_nothing() -> None:
    found = assign_splits(
        items=np.array([0, -1, 1]),
        item_keys=["a", "b"],
        groups={"c": (np.array([0, 0, 0]), ["v"])},
        given=np.array([-1, 2, -1], np.int8),
        used=np.array([True, False, True]),
        seed=0,
        val=0,
        test=0,
    )
    assert found.splits.tolist() == [0, -1, 0] and found.reasons.tolist() == [2, -1, 2]


def test_the_hash_is_a_fraction_of_seed_and_key() -> None:
    assert 0 <= hash_fraction(0, "a") < 1
    assert hash_fraction(0, "a") == hash_fraction(0, "a")
    assert len({hash_fraction(s, k) for s in range(5) for k in "abcde"}) == 25
