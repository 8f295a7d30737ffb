"""Near duplicates: search and groups against slow references, the filter through the engine."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lookalike_pictures import COPIES, copy_of, jpeg, photograph
from numpy.typing import NDArray
from pydantic import ValidationError

from coembed.curation.engine import curate
from coembed.curation.filters.near_duplicate import Settings, _best_partners
from coembed.curation.lookalikes import lookalikes
from coembed.curation.lookalikes.grouping import components, stars
from coembed.curation.lookalikes.lookalikes import Pairs, nearest, orient, propose
from coembed.curation.lookalikes.perceptual import MIRROR, NUM_WINDOWS
from coembed.curation.settings import CurateSettings
from coembed.pairs.pool import open_pool

Row = dict[str, Any]


def _hashes(rng: np.random.Generator, num: int) -> NDArray[np.uint64]:
    """Every third picture is close to the one before it, half of those mirrored."""
    hashes = rng.integers(0, 2**63, (num, NUM_WINDOWS), dtype=np.uint64)
    for i in range(0, num - 1, 3):
        noise = np.uint64(1) << rng.choice(63, int(rng.integers(1, 10)), replace=False).astype("u8")
        hashes[i + 1, 0] = hashes[i, i % NUM_WINDOWS] ^ np.bitwise_or.reduce(noise)
        if i % 2:
            hashes[i + 1, 0] ^= MIRROR
    return hashes


def test_search_proposes_what_comparing_all_windows_finds(tmp_path: Path) -> None:
    hashes = _hashes(np.random.default_rng(0), 90)
    frames = np.ascontiguousarray(hashes[:, 0])
    found = propose(
        hashes, frames, np.arange(90), radius=6, folder=tmp_path, map_tasks=map
    )  # fmt: skip
    bits = np.bitwise_count(
        hashes[:, :, None, None] ^ np.stack([frames, frames ^ MIRROR])[None, None]
    )
    expected = np.argwhere(bits.min(axis=(1, 2)) <= 6)
    assert len(expected) > 100
    assert np.stack(found, axis=1).tolist() == expected.tolist()
    oriented = orient(found, hashes, hashes)
    both = bits.min(axis=1).transpose(1, 0, 2)  # mirrored, asking, answering
    for mirrored in (0, 1):
        ways = np.minimum(both[mirrored][found], both[mirrored].T[found])
        assert (oriented.distance[mirrored] == ways).all()


def test_equal_hashes_are_proposed_but_not_all_with_all(tmp_path: Path) -> None:
    hashes = np.full((200, NUM_WINDOWS), 12345, np.uint64)
    rank = np.arange(200)[::-1].copy()
    found = propose(
        hashes, np.ascontiguousarray(hashes[:, 0]), rank, radius=6, folder=tmp_path, map_tasks=map
    )  # fmt: skip
    best = set(range(200 - lookalikes.MOST_OF_ONE_HASH, 200))
    assert set(found.answering.tolist()) == best
    assert set(found.asking[found.answering == 199].tolist()) == set(range(200))


def test_nothing_to_search(tmp_path: Path) -> None:
    none = np.zeros((0, NUM_WINDOWS), np.uint64)
    found = propose(
        none, none[:, 0], np.zeros(0, np.int64), radius=6, folder=tmp_path, map_tasks=map
    )
    assert len(found.asking) == 0


def test_only_the_nearest_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookalikes, "MOST_NEIGHBOURS", 2)
    # 0 is near to all others, which are near to 0 alone: these keep it among their nearest.
    star = Pairs(np.zeros(5, np.int64), np.arange(1, 6))
    assert nearest(star, np.array([5, 1, 4, 2, 3]), np.arange(6)).all()
    one, other = np.triu_indices(6, 1)
    kept = nearest(Pairs(one, other), np.ones(len(one), np.int64), np.arange(6))
    # All equally near: everybody keeps the two best by rank.
    assert {(int(a), int(b)) for a, b in zip(one[kept], other[kept], strict=True)} == {
        (a, b) for a in range(6) for b in range(6) if a < b and (a < 2 or (a, b) == (0, 2))
    }


def test_groups_are_stars_around_the_best() -> None:
    rank = np.array([3, 0, 2, 1, 4, 5])
    # A chain 1 - 0 - 2 and a pair 4 - 5; 3 has nobody.
    one, other = np.array([0, 0, 4]), np.array([1, 2, 5])
    assert stars(one, other, rank).tolist() == [1, 1, 2, 3, 4, 4]
    assert [part.tolist() for part in components(one, other)] == [[0, 1, 2], [4, 5]]


@pytest.mark.parametrize("seed", range(5))
def test_members_are_compared_with_their_representative(seed: int) -> None:
    rng = random.Random(seed)
    num = 40
    pairs = sorted({tuple(sorted(rng.sample(range(num), 2))) for _ in range(60)})
    one, other = (np.array(side) for side in zip(*pairs, strict=True))
    rank = np.array(rng.sample(range(num), num))
    by = stars(one, other, rank)
    together = {frozenset(pair) for pair in pairs}
    for place, best in enumerate(by.tolist()):
        assert by[best] == best
        if best != place:
            assert frozenset((place, best)) in together and rank[best] < rank[place]
    # Two that stay are copies of each other never: the worse one would have joined the better.
    for a, b in pairs:
        assert by[a] != a or by[b] != b


def test_everybodys_nearest_is_the_one_that_a_plain_search_finds() -> None:
    rng = np.random.default_rng(2)
    one, other = np.triu_indices(12, 1)
    chosen = np.sort(rng.choice(len(one), 20, replace=False))
    one, other = one[chosen], other[chosen]
    score = rng.integers(60, 70, 20) / 100  # with equals
    rank = rng.permutation(12)
    best, partner = _best_partners(one, other, score, rank)
    for place in range(12):
        mine = [
            (-s, rank[a + b - place], a + b - place)
            for a, b, s in zip(one.tolist(), other.tolist(), score.tolist(), strict=True)
            if place in (a, b)
        ]
        expected = min(mine, default=(0, 0, place))
        assert (-best[place], partner[place]) == (expected[0], expected[2])


def _write_pool(folder: Path, rows: Sequence[Row]) -> None:
    (folder / "media").mkdir(parents=True)
    (folder / "pairs").mkdir()
    for row in rows:
        (folder / row["path"]).write_bytes(row["data"])
    names = ("pair_id", "path", "caption")
    table = pa.table({name: [row[name] for row in rows] for name in names})
    pq.write_table(table, folder / "pairs" / "all.parquet")


def _row(name: str, data: bytes, caption: str | None = None) -> Row:
    path = f"media/{name}.jpg"
    return {"pair_id": name, "path": path, "data": data, "caption": caption or f"a {name}"}


def _curated(folder: Path, out: str, num_workers: int = 1, **settings: Any) -> dict[str, Row]:
    (folder / out).mkdir()
    filters = [{"name": "near_duplicate", **settings}]
    split = {"val": 0.1, "test": 0.2}
    chosen = CurateSettings.model_validate(
        {"filters": filters, "num_workers": num_workers, "min_pairs": 1, "split": split}
    )
    curate(
        open_pool(folder / "pool"), folder / out, chosen,
        seed=1, root=folder, runs=folder / f"{out}-runs",
    )  # fmt: skip
    table = pq.read_table(folder / out / "manifest.parquet")
    assert not [name for name in table.column_names if name.startswith("_")]
    return {row["pair_id"]: row for row in table.to_pylist()}


def test_finds_copies_and_nothing_else(tmp_path: Path) -> None:
    rows, copies = [], {}
    for seed in range(20):
        original = photograph(seed)
        rows.append(_row(f"original-{seed}", jpeg(original, 95)))
        rows.append(_row(f"other-{seed}", jpeg(photograph(seed, thing=50 + seed), 95)))
        how = sorted(COPIES)[seed % len(COPIES)]
        copies[f"{how}-{seed}"] = f"original-{seed}"
        rows.append(_row(f"{how}-{seed}", copy_of(original, how, seed)))
    _write_pool(tmp_path / "pool", rows)
    manifest = _curated(tmp_path, "out")
    dropped = {name: row for name, row in manifest.items() if not row["kept"]}
    right = {name: row for name, row in dropped.items() if copies.get(name) == row["duplicate_of"]}
    assert set(right) == set(dropped)
    assert len(right) >= 18
    for row in right.values():
        best = manifest[row["duplicate_of"]]
        assert row["drop_reason"] == "near_duplicate"
        assert best["path"] in row["drop_detail"] and "0.73" in row["drop_detail"]
        assert row["near_duplicate_score"] >= 0.73
        assert row["near_duplicate_group"] == best["near_duplicate_group"] == best["item_id"][:16]

    # Another order of rows, other workers: the same verdicts.
    _write_pool(tmp_path / "again" / "pool", random.Random(0).sample(rows, len(rows)))
    again = _curated(tmp_path / "again", "out", num_workers=2)
    assert again == manifest


def test_the_largest_stays_with_all_captions(tmp_path: Path) -> None:
    small, large = photograph(1), photograph(1, px=256)
    enlarged = small.resize((224, 224))
    rows = [
        _row("b-small", jpeg(small), "a thing"),
        _row("a-large", jpeg(large.resize((256, 256))), "A  Thing"),
        _row("c-again", jpeg(enlarged), "a strange thing"),
        _row("d-again", jpeg(enlarged, 60), "a strange  thing"),
        _row("e-other", jpeg(photograph(2))),
    ]
    rows[1]["data"] = jpeg(small.resize((256, 256)))
    rows.append({**rows[2], "pair_id": "c-second", "caption": "something else"})
    _write_pool(tmp_path / "pool", rows)
    manifest = _curated(tmp_path, "out")
    kept = {name for name, row in manifest.items() if row["kept"]}
    assert kept == {"a-large", "e-other"}
    detail = {name: manifest[name]["drop_detail"] for name in set(manifest) - kept}
    added = {name for name, said in detail.items() if said.endswith("its caption was added there")}
    assert added == {"c-again", "c-second"}
    assert all(manifest[name]["duplicate_of"] == "a-large" for name in detail)


def test_almost_copies_share_a_split(tmp_path: Path) -> None:
    rows = [_row(f"{kind}-{seed}", data) for seed in range(12) for kind, data in (
        ("one", jpeg(photograph(seed))),
        ("copy", copy_of(photograph(seed), "stamped", seed)),
    )]  # fmt: skip
    _write_pool(tmp_path / "pool", rows)
    # Nothing is alike enough to be dropped, everything enough to be doubted.
    manifest = _curated(tmp_path, "out", min_score=1.0, doubt_score=0.5)
    assert all(row["kept"] for row in manifest.values())
    doubted = [seed for seed in range(12) if manifest[f"one-{seed}"]["near_duplicate_doubt"]]
    assert len(doubted) >= 11
    for seed in doubted:
        one, copy = manifest[f"one-{seed}"], manifest[f"copy-{seed}"]
        assert one["split"] == copy["split"]
        assert one["near_duplicate_doubt"] == copy["near_duplicate_doubt"] > 0
        assert one["near_duplicate_nearest"] == f"copy-{seed}"
        assert copy["near_duplicate_nearest"] == f"one-{seed}"
    alone = [row for row in manifest.values() if row["near_duplicate_doubt"] is None]
    assert all(row["near_duplicate_nearest"] is None for row in alone)
    assert len({row["split"] for row in manifest.values()}) > 1


def test_pictures_without_structure_are_left_alone(tmp_path: Path) -> None:
    from PIL import Image

    shades = [Image.new("RGB", (160, 160), (shade, shade, 90)) for shade in range(40, 200, 20)]
    rows = [_row(f"plain-{i}", jpeg(shade)) for i, shade in enumerate(shades)]
    _write_pool(tmp_path / "pool", rows)
    assert all(row["kept"] for row in _curated(tmp_path, "out").values())


def test_doubt_must_lie_below_certainty() -> None:
    with pytest.raises(ValidationError, match=r"doubt_score is 0.9, above min_score \(0.8\)"):
        Settings(min_score=0.8, doubt_score=0.9)


def test_a_pool_without_pictures(tmp_path: Path) -> None:
    rows = [
        {"pair_id": f"t{i}", "path": f"media/{i}.txt", "caption": f"text {i}", "data": b"x%d" % i}
        for i in range(6)
    ]
    _write_pool(tmp_path / "pool", rows)
    manifest = _curated(tmp_path, "out")
    assert len(manifest) == 6
    assert all(row["kept"] and not row["near_duplicate_score"] for row in manifest.values())
