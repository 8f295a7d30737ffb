"""The demo shop: the same bytes on any number of workers, and faults that are what truth says."""

import io
import itertools
import re
from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, UnidentifiedImageError

from coembed.errors import UserError
from coembed.files import sha256_tree
from coembed.pairs.shop import PoolSummary, draw_pool
from coembed.pairs.shop.captions import NOUNS
from coembed.pairs.shop.catalogue import KINDS, unseen_combos
from coembed.pairs.shop.faults import SHARES, counts
from coembed.pairs.shop.palette import COLOURS
from coembed.pairs.shop.photo import take
from coembed.pairs.shop.pool import plan

NUM_PAIRS = 150


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PoolSummary]:
    out = tmp_path_factory.mktemp("shop") / "pool"
    return out, draw_pool(out, num_pairs=NUM_PAIRS, image_px=64, num_workers=1)


@pytest.fixture(scope="module")
def pool(drawn: tuple[Path, PoolSummary]) -> pd.DataFrame:
    return pq.read_table(drawn[0] / "pairs" / "shop.parquet").to_pandas().set_index("pair_id")


@pytest.fixture(scope="module")
def truth(drawn: tuple[Path, PoolSummary]) -> pd.DataFrame:
    return pq.read_table(drawn[0] / "truth.parquet").to_pandas()


def _of(truth: pd.DataFrame, fault: str) -> pd.DataFrame:
    found = truth[truth.fault == fault]
    assert len(found), f"no {fault} was planted"
    return found


def _named(caption: str, words: dict[str, tuple[str, ...]]) -> set[str]:
    return {
        name
        for name, synonyms in words.items()
        if any(re.search(rf"\b{re.escape(word)}\b", caption) for word in (name, *synonyms))
    }


_COLOUR_WORDS = {name: tuple(tone.name for tone in tones) for name, tones in COLOURS.items()}


def test_same_bytes_on_any_number_of_workers(
    drawn: tuple[Path, PoolSummary], tmp_path: Path
) -> None:
    again = tmp_path / "pool"
    summary = draw_pool(again, num_pairs=NUM_PAIRS, image_px=64, num_workers=2)
    assert sha256_tree(again) == sha256_tree(drawn[0])
    assert summary == drawn[1]


def test_another_seed_is_another_pool() -> None:
    assert [row.caption for row in plan(7, 150, 64)] != [row.caption for row in plan(8, 150, 64)]


def test_columns_and_types(drawn: tuple[Path, PoolSummary]) -> None:
    table = pq.read_table(drawn[0] / "pairs" / "shop.parquet")
    strings = "pair_id path caption split product_id kind colour pattern style background"
    expected = [*strings.split(), "price", "composition"]
    assert table.column_names == expected
    assert table.schema.field("price").type == pa.float64()
    assert {table.schema.field(name).type for name in expected if name != "price"} == {pa.string()}
    assert len(set(table["pair_id"].to_pylist())) == table.num_rows == NUM_PAIRS
    truth = pq.read_table(drawn[0] / "truth.parquet")
    assert truth.column_names == ["pair_id", "path", "fault", "partner", "detail"]


def test_summary_counts_what_is_there(
    drawn: tuple[Path, PoolSummary], pool: pd.DataFrame, truth: pd.DataFrame
) -> None:
    out, summary = drawn
    files = {path.relative_to(out).as_posix() for path in (out / "media").rglob("*.jpg")}
    assert set(pool.path) == files
    assert summary.num_pairs == NUM_PAIRS
    assert summary.num_items == len(files)
    assert summary.num_products == pool.product_id.nunique()
    assert summary.faults == Counter(truth.fault) == counts(NUM_PAIRS)


def test_about_eight_percent_are_faults() -> None:
    assert set(counts(6000)) == set(SHARES)
    assert sum(counts(6000).values()) == 480
    assert all(num >= 0.003 * 6000 for num in counts(6000).values())


def test_faults_are_one_a_row_and_scattered(pool: pd.DataFrame, truth: pd.DataFrame) -> None:
    assert truth.pair_id.is_unique
    places = sorted(pool.index.get_loc(pair_id) for pair_id in truth.pair_id)
    assert places[-1] - places[0] > NUM_PAIRS / 2


def test_sound_images_decode(
    drawn: tuple[Path, PoolSummary], pool: pd.DataFrame, truth: pd.DataFrame
) -> None:
    for path in sorted(set(pool.path) - set(truth.path)):
        with Image.open(drawn[0] / path) as picture:
            assert min(picture.size) >= 64
            picture.load()


def test_broken_images_do_not_decode(drawn: tuple[Path, PoolSummary], truth: pd.DataFrame) -> None:
    for path in _of(truth, "corrupt").path:
        with pytest.raises(UnidentifiedImageError):
            Image.open(io.BytesIO((drawn[0] / path).read_bytes()))
    for path in _of(truth, "truncated").path:
        with Image.open(drawn[0] / path) as picture, pytest.raises(OSError, match="truncated"):
            picture.load()


def test_odd_sizes(drawn: tuple[Path, PoolSummary], truth: pd.DataFrame) -> None:
    for path in _of(truth, "tiny_image").path:
        assert max(Image.open(drawn[0] / path).size) < 32
    for path in _of(truth, "extreme_ratio").path:
        assert sorted(Image.open(drawn[0] / path).size) == [20, 400]


def test_duplicates_repeat_their_partner(
    drawn: tuple[Path, PoolSummary], pool: pd.DataFrame, truth: pd.DataFrame
) -> None:
    for fault, same_bytes in (("exact_duplicate", True), ("near_duplicate", False)):
        for row in _of(truth, fault).itertuples():
            partner = pool.loc[row.partner]
            assert row.path != partner.path
            assert pool.loc[row.pair_id].product_id == partner.product_id
            one, other = ((drawn[0] / path).read_bytes() for path in (row.path, partner.path))
            assert (one == other) is same_bytes


def test_swapped_captions_name_another_kind(pool: pd.DataFrame, truth: pd.DataFrame) -> None:
    for row in _of(truth, "swapped_caption").itertuples():
        mine, partner = pool.loc[row.pair_id], pool.loc[row.partner]
        assert mine.product_id != partner.product_id
        assert _named(mine.caption, NOUNS) == {partner.kind} != {mine.kind}
        assert row.detail == partner.caption


def test_poor_captions(pool: pd.DataFrame, truth: pd.DataFrame) -> None:
    for fault, check in (
        ("empty_caption", lambda text: not text.strip()),
        ("short_caption", lambda text: 1 <= len(text) <= 2),
        ("boilerplate_caption", lambda text: not _named(text, NOUNS)),
    ):
        for row in _of(truth, fault).itertuples():
            assert check(pool.loc[row.pair_id].caption)
            assert _named(row.detail, NOUNS) == {pool.loc[row.pair_id].kind}


def test_straddling_products_are_in_two_splits(pool: pd.DataFrame, truth: pd.DataFrame) -> None:
    for row in _of(truth, "straddling_product").itertuples():
        mine, partner = pool.loc[row.pair_id], pool.loc[row.partner]
        assert mine.product_id == partner.product_id
        assert {mine.split, partner.split} == {"train", "test"}


def test_some_paths_have_several_captions(pool: pd.DataFrame) -> None:
    several = pool.groupby("path").caption.agg(["size", "nunique"])
    share = (several["size"] > 1).mean()
    assert 0.05 < share < 0.3
    assert (several["size"] == several["nunique"]).all()


def test_every_kind_has_an_unseen_colour_and_most_are_seen() -> None:
    for seed in range(5):
        unseen = unseen_combos(seed)
        assert {kind for _, kind in unseen} == set(KINDS)
        assert max(Counter(colour for colour, _ in unseen).values()) <= 2


@pytest.mark.parametrize("seed", [7, 8])
def test_unseen_combos_never_leak_into_training(seed: int) -> None:
    # Planned only: captions are written before anything is drawn.
    unseen = set(unseen_combos(seed))
    held_out = 0
    for row in plan(seed, 3000, 64):
        product = row.item.product
        if (product.colour, product.kind) in unseen:
            held_out += 1
            assert product.unseen
            assert row.split == "test"
            continue
        assert not product.unseen
        assert row.split is None or row.fault == "straddling_product"
        colours, kinds = _named(row.caption, _COLOUR_WORDS), _named(row.caption, NOUNS)
        leaked = set(itertools.product(colours, kinds)) & unseen
        assert not leaked, f"{row.caption!r} leaks {leaked}"
    assert held_out > 150


def test_sound_captions_name_what_is_seen() -> None:
    for row in plan(7, 1500, 64):
        if row.fault in ("", "exact_duplicate", "near_duplicate", "straddling_product"):
            product = row.item.product
            assert _named(row.caption, NOUNS) == {product.kind}, row.caption
            assert product.colour in _named(row.caption, _COLOUR_WORDS), row.caption


def test_every_kind_draws_in_its_colour() -> None:
    # The middle of a plain red thing is redder than it is green or blue.
    seen: set[str] = set()
    for row in plan(7, 2000, 64):
        photo = row.item.photo
        wanted = photo.kind not in seen and photo.colour == "red" and photo.pattern == "plain"
        if wanted and photo.kind not in ("watch", "umbrella"):
            seen.add(photo.kind)
            pixels = list(take(photo).convert("RGB").getdata())
            reddish = sum(r > g + 70 and r > b + 60 for r, g, b in pixels)
            assert reddish > 0.08 * len(pixels), photo.kind
    assert len(seen) >= 12


def test_refuses_to_overwrite(tmp_path: Path) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    with pytest.raises(UserError, match="exists and is not empty"):
        draw_pool(tmp_path, num_pairs=NUM_PAIRS)
    assert kept.read_text() == "mine"
    draw_pool(tmp_path, num_pairs=100, image_px=64, num_workers=1, overwrite=True)
    assert not kept.exists()
    assert (tmp_path / "truth.parquet").exists()


def test_an_interrupted_draw_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("coembed.pairs.shop.pool._write", stop)
    with pytest.raises(KeyboardInterrupt):
        draw_pool(tmp_path / "pool", num_pairs=100, image_px=64, num_workers=1)
    assert not (tmp_path / "pool").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"num_pairs": 5}, "num_pairs"), ({"image_px": 8}, "image_px"), ({"num_workers": 0}, "num_w")],
)
def test_arguments_out_of_range(tmp_path: Path, wrong: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw_pool(tmp_path / "pool", **wrong)
