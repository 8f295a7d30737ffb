"""Caps by concept and by attribute, against slow obvious references."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caption_pools import CaptionPool, item_id

from coembed.curation.captions.words import words
from coembed.curation.filters import attribute_cap, concept_cap
from coembed.curation.filters.attribute_cap import greatest_cap
from coembed.errors import ConfigError


def _draw(seed: int, item: object, concept: str) -> float:
    digest = hashlib.md5(f"{seed}:{item_id(item)}:{concept}".encode()).digest()
    return int.from_bytes(digest[8:], "little") / 2**64


def _pool(num: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    nouns = ["mug"] * 40 + ["sofa"] * 20 + ["hot dog"] * 8 + ["theremin", "astrolabe", "杯子"]
    return [
        {"caption": f"a {rng.choice(['red', 'blue'])} {rng.choice(nouns)}", "item": row // 2}
        for row in range(num)
    ]


def _reference(
    rows: list[dict[str, Any]], limit: int, *, min_count: int, min_lift: float, seed: int
) -> tuple[set[int], dict[int, str]]:
    """MetaCLIP's rule, one pair after the other."""
    texts = [words(row["caption"]) for row in rows]
    grams = [{*t, *(" ".join(pair) for pair in pairwise(t))} for t in texts]
    counts = Counter(gram for some in grams for gram in some)
    concepts = {}
    for gram, num in counts.items():
        parts = gram.split(" ")
        lift = num * len(rows) / (counts[parts[0]] * counts[parts[-1]])
        if num >= min_count and (len(parts) == 1 or lift >= min_lift):
            concepts[gram] = num
    dropped, rarest = set(), {}
    for row, some in enumerate(grams):
        own = sorted((concepts[gram], -len(gram), gram) for gram in some if gram in concepts)
        if own:
            rarest[row] = own[0][2]
            if not any(
                n <= limit or _draw(seed, rows[row]["item"], gram) < limit / n for n, _, gram in own
            ):
                dropped.add(row)
    return dropped, rarest


@pytest.mark.parametrize("seed", [0, 7])
def test_the_concept_cap_is_the_rule(tmp_path: Path, seed: int) -> None:
    rows = _pool(900, seed)
    dropped, rarest = _reference(rows, 60, min_count=5, min_lift=3, seed=seed)
    chosen = concept_cap.Settings(max_per_concept=60, min_count=5, min_lift=3).build()
    with CaptionPool(tmp_path, rows, seed=seed) as pool:
        said = pool.judge(chosen)
    assert {row for row, told in said.items() if "reason" in told} == dropped
    assert {row: told["rarest_concept"] for row, told in said.items()} == rarest
    assert "hot dog" in rarest.values() and 300 < len(dropped) < 890
    # Rare concepts keep every pair that has them.
    assert not any(word in rows[row]["caption"] for row in dropped for word in ("theremin", "杯"))
    (detail,) = {
        told["detail"]
        for told in said.values()
        if "reason" in told and told["rarest_concept"] == "sofa"
    }
    num = sum("sofa" in row["caption"] for row in rows)
    assert detail == f"no concept took it in; the rarest, 'sofa', is in {num} pairs > 60"


def test_about_as_many_stay_as_the_cap_says(tmp_path: Path) -> None:
    rows = [{"caption": "mug", "item": item} for item in range(4000)]
    with CaptionPool(tmp_path, rows) as pool:
        said = pool.reasons(concept_cap.Settings(max_per_concept=400).build())
    # Binomial: 400 with a standard deviation of 19.
    assert 320 < 4000 - len(said) < 480


def test_draws_stay_when_the_pool_grows(tmp_path: Path) -> None:
    rows = [{"caption": "mug", "item": item} for item in range(2000)]
    dropped = []
    for num in (1000, 2000):
        with CaptionPool(tmp_path / str(num), rows[:num]) as pool:
            chosen = concept_cap.Settings(max_per_concept=num // 5).build()
            dropped.append(set(pool.reasons(chosen)))
    # The same probability, so the same luck.
    assert dropped[0] == {row for row in dropped[1] if row < 1000}


def test_given_concepts_are_the_only_ones(tmp_path: Path) -> None:
    rows = _pool(400, 1)
    chosen = concept_cap.Settings(max_per_concept=3, concepts=("Hot DOG", "杯子", "absent")).build()
    with CaptionPool(tmp_path, rows) as pool:
        said = pool.judge(chosen)
    expected = {
        row: term
        for row, cells in enumerate(rows)
        for term, shown in (("hot dog", "hot dog"), ("杯 子", "杯子"))
        if shown in cells["caption"]
    }
    assert {row: told["rarest_concept"] for row, told in said.items()} == expected
    assert 0 < sum("reason" in told for told in said.values()) < len(expected)


def _capped(rows: list[dict[str, Any]], cap: int, seed: int) -> set[int]:
    """The rows that stay: item by item in the order of the hash."""
    items: dict[Any, list[int]] = {}
    for row, cells in enumerate(rows):
        items.setdefault(cells["item"], []).append(row)
    order = sorted(items, key=lambda item: (_draw_item(seed, item), item_id(item)))
    totals: Counter[str] = Counter()
    chosen: dict[Any, str | None] = {}
    for item, own in items.items():
        values = sorted(str(rows[row]["kind"]) for row in own if rows[row]["kind"] is not None)
        chosen[item] = values[0] if values else None
        totals[str(chosen[item])] += len(own)
    used: Counter[str] = Counter()
    staying: set[int] = set()
    for item in order:
        value = chosen[item]
        if value is None or used[value] + len(items[item]) <= cap:
            staying.update(items[item])
            used[str(value)] += len(items[item])
    return staying


def _draw_item(seed: int, item: object) -> int:
    return int.from_bytes(hashlib.md5(f"{seed}:{item_id(item)}".encode()).digest()[8:], "little")


@pytest.mark.parametrize("seed", [0, 5])
def test_the_attribute_cap_takes_whole_items_by_hash(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    rows = [
        {
            "caption": f"caption {row}",
            "item": rng.randrange(150),
            "kind": rng.choice(["mug"] * 6 + ["sofa", "it's", None]),
        }
        for row in range(400)
    ]
    chosen = attribute_cap.Settings(column="kind", max_pairs=40).build()
    staying = _capped(rows, 40, seed)
    with CaptionPool(tmp_path / "one", rows, seed=seed) as pool:
        said = pool.judge(chosen)
    assert set(range(400)) - set(said) == staying and 40 < len(staying) < 350
    assert {told["reason"] for told in said.values()} == {"over_attribute_cap"}
    # Whatever the order of the pool.
    order = rng.sample(range(400), 400)
    with CaptionPool(tmp_path / "two", [rows[row] for row in order], seed=seed) as pool:
        assert {order[row] for row in pool.reasons(chosen)} == set(said)


def test_numbers_and_manifest_columns_can_be_capped(tmp_path: Path) -> None:
    rows = [{"caption": "c", "item": row, "year": 1990 + row % 3} for row in range(30)]
    with CaptionPool(tmp_path / "one", rows) as pool:
        said = pool.judge(attribute_cap.Settings(column="year", max_pairs=4).build())
        assert Counter(told["detail"] for told in said.values()) == {
            f"year {year}: 10 pairs > 4": 6 for year in (1990, 1991, 1992)
        }
        by_format = attribute_cap.Settings(column="format", max_pairs=7).build()
        assert len(pool.reasons(by_format)) == 23
    own = [{**row, "format": "ab"[number % 2]} for number, row in enumerate(rows)]
    with CaptionPool(tmp_path / "own", own) as pool:
        assert {told["detail"] for told in pool.judge(by_format).values()} == {
            "format a: 15 pairs > 7",
            "format b: 15 pairs > 7",
        }


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
def test_a_share_holds_of_what_stays_and_no_higher_cap_would(share: float) -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        totals = rng.integers(1, 200, rng.integers(max(2, int(1 / share) + 1), 40))
        cap = greatest_cap(totals, share)
        caps = [c for c in range(1, totals.max() + 1) if c <= share * np.minimum(totals, c).sum()]
        assert cap == max(caps, default=1)


def test_a_share_of_the_pool(tmp_path: Path) -> None:
    rows = [{"caption": "c", "item": row, "kind": "abcd"[min(row // 10, 3)]} for row in range(100)]
    with CaptionPool(tmp_path, rows) as pool:
        chosen = attribute_cap.Settings(column="kind", max_pairs=None, max_share=0.4).build()
        said = pool.reasons(chosen)
        left = Counter(row["kind"] for number, row in enumerate(rows) if number not in said)
        assert left == {"a": 10, "b": 10, "c": 10, "d": 20}
        impossible = attribute_cap.Settings(column="kind", max_pairs=None, max_share=0.2).build()
        with pytest.raises(ConfigError, match="'kind' has 4 values, so that one of them has at"):
            pool.judge(impossible)


def test_a_missing_column_is_an_error_that_names_those_there_are(tmp_path: Path) -> None:
    rows = [{"caption": "c", "kind": "mug", "colour": "red"}]
    chosen = attribute_cap.Settings(column="Kinds").build()
    with CaptionPool(tmp_path, rows) as pool, pytest.raises(ConfigError) as caught:
        pool.judge(chosen)
    assert "'Kinds', which the pool does not have; its attributes are: kind, colour" in str(
        caught.value
    )


def test_exactly_one_limit() -> None:
    for both in ({"max_pairs": None}, {"max_pairs": 5, "max_share": 0.5}):
        with pytest.raises(ValueError, match="exactly one of the two must be null"):
            attribute_cap.Settings.model_validate({"name": "attribute_cap", **both})
