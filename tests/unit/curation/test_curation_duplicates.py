"""Exact duplicates and boilerplate, against slow references."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from caption_pools import CaptionPool

from coembed.curation.database import Database
from coembed.curation.examination.workers import Workers
from coembed.curation.filters.exact_duplicate import Settings as ExactDuplicate
from coembed.curation.filters.repeated_caption import Settings as RepeatedCaption
from coembed.curation.pool_view import FilterPool, Surroundings
from coembed.curation.rows_table import Examined

KINDS = ("mug", "chair", "lamp", "boots", "dress", "watch")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path, readable=[], num_threads=2) as opened:
        opened.execute("CREATE TABLE drops (row BIGINT)")
        yield opened


def _slow_duplicates(rows: list[tuple[int, int, int]]) -> dict[int, tuple[str, int, bool]]:
    """Rows of (item, path, caption), in pool order: walked item by item."""
    found: dict[int, tuple[str, int, bool]] = {}
    for item in {item for item, _, _ in rows}:
        own = [i for i, row in enumerate(rows) if row[0] == item]
        owner, seen = own[0], dict[int, int]()
        same_path = [i for i in own if rows[i][1] == rows[owner][1]]
        for i in same_path:
            if rows[i][2] in seen:
                found[i] = ("repeated_pair", seen[rows[i][2]], False)
            seen.setdefault(rows[i][2], i)
        for i in (i for i in own if i not in same_path):
            found[i] = ("exact_duplicate", owner, rows[i][2] not in seen)
            seen.setdefault(rows[i][2], i)
    return found


def test_exact_duplicates_are_those_of_a_walk(tmp_path: Path, database: Database) -> None:
    rng = random.Random(0)
    # A path has one item, an item several paths.
    rows = [
        (path // 3, path, rng.randrange(5)) for path in (rng.randrange(240) for _ in range(1500))
    ]
    num = len(rows)
    cells: dict[str, Any] = {
        "row": range(num), "item": [r[0] for r in rows], "pair_id": [f"id{i}" for i in range(num)],
        "path": [f"p{r[1]}.jpg" for r in rows], "caption": [f"c{r[2]}" for r in rows],
        "modality": ["image"] * num, "given_split": pa.nulls(num, pa.string()),
        "path_key": [str(uuid.UUID(int=r[1])) for r in rows],
        "caption_key": [str(uuid.UUID(int=r[2])) for r in rows],
        **{name: range(num) for name in ("num_bytes", "format", "width_px", "height_px")},
        "duration_s": pa.nulls(num, pa.float64()),
    }  # fmt: skip
    database.execute(
        "CREATE TABLE rows AS SELECT * REPLACE (path_key::UUID AS path_key,"
        " caption_key::UUID AS caption_key) FROM given",
        given=pa.table(cells),
    )
    around = Surroundings(tmp_path, tmp_path, tmp_path / "runs", tmp_path / "scratch", 0, (), 100)
    with (
        Workers(1) as workers,
        FilterPool("mine", database, Examined((), {}), {}, around, workers) as view,
    ):
        tables = list(ExactDuplicate().build().check_pool(view))
    found = {}
    for cells in (cells for table in tables for cells in table.to_pylist()):
        found[cells["row"]] = (cells["reason"], cells["duplicate_of"], cells["keep_caption"])
        of = cells["duplicate_of"]
        if cells["reason"] == "repeated_pair":
            said = f"same path and caption as pair id{of}"
        else:
            how = "added there" if cells["keep_caption"] else "there already"
            said = f"same bytes as p{rows[of][1]}.jpg; its caption was {how}"
        assert cells["detail"] == said
    assert found == _slow_duplicates(rows)


def _shop(rng: random.Random, num: int) -> list[dict[str, Any]]:
    """Items of a kind; one caption in four is as plain as "a mug"."""
    rows = []
    for i in range(num):
        kind = rng.choice(KINDS)
        caption = f"a {kind}" if rng.random() < 0.25 else f"a {kind} with the number {i}"
        rows.append({"caption": caption, "kind": kind, "licence": rng.choice("ab"), "price": i / 7})
    return rows


def test_attributes_tell_boilerplate_from_plain_captions(tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = _shop(rng, 300)
    # Twenty captions of two or three items each: what shows that `kind` is evidence.
    for i in range(50):
        rows[i]["caption"] = f"the {rows[i]['kind']} of batch {i // 12}"
    spread = rng.sample(range(60, 300), 9)
    for i in spread[:6]:
        rows[i]["caption"] = "No  description AVAILABLE" if i % 2 else "no description available"
    for i in spread[6:]:
        rows[i]["caption"] = "see above"  # of three items: too few to tell
    filter_ = RepeatedCaption().build()
    with CaptionPool(tmp_path / "a", rows) as pool:
        said = pool.judge(filter_)
    assert {row for row, told in said.items() if "reason" in told} == set(spread[:6])
    assert "their kind agrees by" in said[spread[0]]["detail"]
    assert said[spread[0]]["detail"].startswith("beside 6 items")
    assert said[spread[0]]["caption_num_items"] == 6 and len(said) == 300
    plain = next(i for i in range(60, 300) if rows[i]["caption"] == "a mug")
    assert said[plain]["caption_num_items"] > 5 and said[plain]["repeated_caption_doubt"] == 0
    assert 0 < said[spread[6]]["repeated_caption_doubt"] < 1
    # Without attributes only the number can tell: a caption of more than ten items goes.
    bare = [{"caption": row["caption"]} for row in rows]
    with CaptionPool(tmp_path / "b", bare) as pool:
        reasons = pool.reasons(filter_)
        # Unless too much of the pool is like that.
        assert not pool.reasons(RepeatedCaption(max_pool_share=len(reasons) / 301).build())
    dropped = {rows[row]["caption"] for row in reasons}
    assert dropped and dropped <= {f"a {kind}" for kind in KINDS}
    # Attributes that captions do not speak of are no evidence.
    with CaptionPool(
        tmp_path / "c", [{"caption": r["caption"], "licence": r["licence"]} for r in rows]
    ) as pool:
        assert pool.reasons(filter_) == reasons


def test_items_count_not_pairs_and_large_pools_bear_more(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"caption": "same words", "item": 0} for _ in range(50)]
    rows += [{"caption": f"words {i}", "item": i} for i in range(1, 400)]
    rows += [{"caption": "a dog", "item": i} for i in range(1, 13)]
    with CaptionPool(tmp_path / "a", rows) as pool:
        found = pool.judge(RepeatedCaption().build())
        assert found[0]["caption_num_items"] == 1
        assert {r for r, told in found.items() if "reason" in told} == set(range(449, 461))
        assert found[450]["detail"] == "beside 12 items > 10"
        assert not pool.reasons(RepeatedCaption(max_share=0.05).build())
        pool.drop(449, 450)
        assert not pool.reasons(RepeatedCaption().build())


def test_impossible_limits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"min_items \(6\) is above max_items \(5\)"):
        RepeatedCaption(max_items=5, min_items=6)
