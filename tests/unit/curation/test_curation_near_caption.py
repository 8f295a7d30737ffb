"""Near-identical captions, against an oracle that compares all with all."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
from caption_pools import CaptionPool
from datasketch import MinHash

from coembed.curation.captions import bands as bands_module
from coembed.curation.captions.bands import Bands
from coembed.curation.captions.minhash import BANDS, ROWS, band_keys, jaccard, shingles
from coembed.curation.filters import near_caption

NEAR = near_caption.Settings().build()
# The bound without evidence as low as the one with it.
UNSEEN = near_caption.Settings(max_items=10).build()
KINDS = ("mug", "teapot", "sofa", "lamp", "guitar", "umbrella", "backpack", "watch")
COLOURS = ("red", "blue", "green", "black", "white", "orange", "purple", "yellow")
PLACES = ("on a table", "in a garden", "by the window", "at the beach", "under a tree", "in a room")


def _products(num: int, rng: random.Random) -> list[dict[str, object]]:
    """Captions of one template, which differ in a word or two."""
    rows = []
    for _ in range(num):
        kind, colour = rng.choice(KINDS), rng.choice(COLOURS)
        caption = f"a photo of a {colour} {kind} {rng.choice(PLACES)}"
        rows.append({"caption": caption, "kind": kind, "colour": colour})
    return rows


def _vary(text: str, rng: random.Random, most: int = 6) -> str:
    """`text` with some characters changed."""
    chars = list(text)
    for _ in range(rng.randint(0, most)):
        chars[rng.randrange(len(chars))] = rng.choice("abcdefgh ")
    return "".join(chars)


def test_bands_propose_what_their_formula_says_and_similarity_is_jaccard() -> None:
    rng = random.Random(1)
    texts = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=45)) for _ in range(3000)]
    others = [_vary(text, rng) for text in texts]
    keys, other_keys = band_keys(texts), band_keys(others)
    assert keys.shape == (3000, BANDS) and (band_keys(texts[:7]) == keys[:7]).all()
    expected = []
    for text, other in zip(texts, others, strict=True):
        one, two = shingles(text), shingles(other)
        similarity = jaccard(one, two)
        assert similarity == len(one & two) / len(one | two)
        expected.append(1 - (1 - similarity**ROWS) ** BANDS)
    proposed = (keys == other_keys).any(axis=1)
    # Three standard deviations are below 0.02.
    assert abs(proposed.mean() - np.mean(expected)) < 0.02
    assert band_keys([]).shape == (0, BANDS)
    assert (band_keys(["", "", "x"])[0] == band_keys([""])[0]).all()


def test_similarity_is_what_datasketch_estimates() -> None:
    rng = random.Random(2)
    for _ in range(20):
        pair = [_vary("an orange teapot on a wooden shelf", rng) for _ in range(2)]
        sketches = [MinHash(num_perm=2048) for _ in pair]
        for sketch, text in zip(sketches, pair, strict=True):
            sketch.update_batch([piece.encode() for piece in shingles(text)])
        estimate = sketches[0].jaccard(sketches[1])
        assert abs(estimate - jaccard(*map(shingles, pair))) < 0.05


@pytest.mark.parametrize("num", [12, 90])
def test_near_repeats_of_one_item_are_those_of_the_oracle(tmp_path: Path, num: int) -> None:
    """Twelve captions are compared all with all, ninety by bands."""
    rng = random.Random(num)
    base = "a brown watch with a square face on wooden boards"
    rows = [
        {
            "caption": _vary(base, rng, 2) if place % 2 else _products(1, rng)[0]["caption"],
            "item": item,
        }
        for item in range(4)
        for place in range(num)
    ]
    expected: dict[int, list[int]] = {}
    staying: list[int] = []
    for row, cells in enumerate(rows):
        own = shingles(" ".join(str(cells["caption"]).split()))
        near = [
            other
            for other in staying
            if rows[other]["item"] == cells["item"]
            and jaccard(own, shingles(" ".join(str(rows[other]["caption"]).split()))) >= 0.9
        ]
        if near:
            expected[row] = near
        else:
            staying.append(row)
    with CaptionPool(tmp_path, rows) as pool:
        said = pool.judge(NEAR)
    found = {r: told for r, told in said.items() if told.get("reason") == "near_repeated_pair"}
    assert len(expected) > num // 6 and found.keys() == expected.keys()
    for row, told in found.items():
        assert told["duplicate_of"] in expected[row]
        assert told["near_caption_group"] == f"p{told['duplicate_of']}"
        assert f"like the caption of pair p{told['duplicate_of']}" in told["detail"]


def test_the_same_caption_beside_other_items_is_no_repeat(tmp_path: Path) -> None:
    rows = [{"caption": "a red mug on a table"}, {"caption": "a red mug on a table!"}]
    with CaptionPool(tmp_path, rows) as pool:
        assert pool.judge(NEAR) == {}


def test_boilerplate_with_variations_is_dropped_and_templates_are_not(tmp_path: Path) -> None:
    rng = random.Random(3)
    rows = _products(600, rng)
    planted = [
        f"Buy now! Free shipping {rng.randint(1, 9999)}{rng.choice(['', '!', ' :-)'])}"
        for _ in range(20)
    ]
    places = rng.sample(range(600), 20)
    for place, caption in zip(places, planted, strict=True):
        rows[place]["caption"] = caption
    with CaptionPool(tmp_path / "with", rows) as pool:
        said = pool.judge(NEAR)
        again = pool.judge(near_caption.Settings(max_items=100).build())
    found = {row for row, told in said.items() if told.get("reason")}
    assert found == set(places)
    assert {said[row]["near_caption_group"] for row in found} == {f"p{min(places)}"}
    detail = said[places[0]]["detail"]
    assert "stand beside 20 items > 10; 1 of the captions with the words" in detail
    assert re.search(r"; the items' (kind|colour) agrees by -?0\.\d+ < 0\.5 / 2$", detail)
    assert all("reason" not in told for told in again.values())
    # Without attributes the words alone decide, and more is asked for.
    with CaptionPool(tmp_path / "without", [{"caption": row["caption"]} for row in rows]) as pool:
        assert pool.reasons(NEAR) == {}
        assert set(pool.reasons(UNSEEN)) == set(places)


def test_a_product_line_is_saved_by_what_its_items_share(tmp_path: Path) -> None:
    """Its words are its own as well, but all of its items are of one kind."""
    rng = random.Random(4)
    rows = _products(600, rng)
    for number in range(20):
        line = f"Zyklon {number + 100} vacuum cleaner"
        rows.append({"caption": line, "kind": "vacuum", "colour": rng.choice(COLOURS)})
    with CaptionPool(tmp_path / "with", rows) as pool:
        assert pool.reasons(UNSEEN) == {}
    alike = [{**row, "kind": rng.choice(KINDS)} for row in rows]
    with CaptionPool(tmp_path / "without", alike) as pool:
        assert set(pool.reasons(NEAR)) == set(range(600, 620))


def test_what_the_whole_pool_is_like_stays(tmp_path: Path) -> None:
    rows = [{"caption": f"Plate {number}"} for number in range(60)] + _products(
        100, random.Random(5)
    )
    with CaptionPool(tmp_path, [{"caption": row["caption"]} for row in rows]) as pool:
        assert pool.reasons(UNSEEN) == {}
        strict = near_caption.Settings(max_items=10, max_group_share=1.0).build()
        assert set(pool.reasons(strict)) == set(range(60))


def test_one_caption_repeated_to_the_letter_is_left_to_repeated_caption(tmp_path: Path) -> None:
    rows = _products(300, random.Random(6)) + [{"caption": "No description available"}] * 20
    with CaptionPool(tmp_path, rows) as pool:
        assert pool.reasons(UNSEEN) == {}


def test_dropped_rows_count_for_nothing(tmp_path: Path) -> None:
    rows = _products(300, random.Random(7))
    rows += [{"caption": f"Buy now! Free shipping {n}"} for n in range(12)]
    with CaptionPool(tmp_path, rows) as pool:
        assert set(pool.reasons(UNSEEN)) == set(range(300, 312))
        pool.drop(300, 301)
        assert pool.reasons(UNSEEN) == {}


def test_captions_in_chinese_are_judged_like_others(tmp_path: Path) -> None:
    rng = random.Random(8)
    kinds, colours, places = (
        "杯壶灯琴伞包表椅",
        "红蓝绿黑白橙紫黄",
        ["桌上", "园中", "窗边", "海滩", "树下"],
    )
    rows = [
        {"caption": f"一个{rng.choice(colours)}色的{rng.choice(kinds)}子放在{rng.choice(places)}"}
        for _ in range(300)
    ]
    rows += [{"caption": f"点击购买包邮优惠{rng.randint(1, 999)}"} for _ in range(15)]
    with CaptionPool(tmp_path, rows) as pool:
        assert set(pool.reasons(UNSEEN)) == set(range(300, 315))


def test_bands_sorted_in_parts_are_those_sorted_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**64, (40, 3), dtype=np.uint64)[rng.integers(0, 40, 500)]
    weights = rng.integers(1, 9, 500).astype(np.int32)
    told = []
    for name, part in (("once", 1 << 22), ("parts", 64)):
        monkeypatch.setattr(bands_module, "_PART", part)
        (tmp_path / name).mkdir()
        bands = Bands(tmp_path / name, 3, weights)
        bands.write(iter([keys[:300], keys[300:]]))
        near = [bands.neighbours(keys[place]).tolist() for place in range(0, 500, 50)]
        told.append((sorted(bands.heavy(40)), near))
    assert told[0] == told[1]
    for place, near in zip(range(0, 500, 50), told[0][1], strict=True):
        assert near == np.flatnonzero((keys == keys[place]).any(axis=1)).tolist()
    for band in range(3):
        for key in np.unique(keys[:, band]):
            ids = np.flatnonzero(keys[:, band] == key)
            if weights[ids].sum() >= 40:
                best = int(ids[np.argmax(weights[ids])])
                assert (best, int(weights[ids].sum())) in told[0][0]
