"""The report: its figures against plain counting, its pictures, and that nothing in it is alive."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import wave
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from curation_pools import picture
from manifests import MadeUpFilter, write_curated
from PIL import Image

from coembed.curation.examination.examine import declared_reasons
from coembed.curation.filters.base import Filter
from coembed.curation.overrides import OVERRIDE_REASON
from coembed.curation.report.look import Manifest
from coembed.curation.report.report import gather, render, write_report
from coembed.curation.report.report_change import last_change
from coembed.curation.report.report_numbers import (
    Categories,
    Constant,
    Histogram,
    fact_distributions,
    score_distributions,
)
from coembed.curation.report.report_pictures import Pictures, small_picture
from coembed.curation.report.report_sections import Cards, doubtful_pairs, duplicate_groups
from coembed.curation.report.report_splits import balances
from coembed.curation.report.report_text import FAMILIES, meaning, number, percent, short, visible
from coembed.curation.settings import CurateSettings
from coembed.errors import DataError
from coembed.settings import component_names

FILTERS = {
    "image_size": MadeUpFilter(("small_image",), {}),
    "near_duplicate": MadeUpFilter(
        ("near_duplicate",),
        {"near_duplicate_score": "float64", "_hash": "int64", "near_duplicate_doubt": "float64"},
    ),
    "caption_language": MadeUpFilter(("other_language",), {"language": "string"}),
}


def some_rows() -> list[dict[str, Any]]:
    """80 pairs: 20 small, 9 near duplicates of three kept ones, 1 whose file is lost."""
    rows: list[dict[str, Any]] = []
    for i in range(80):
        row: dict[str, Any] = {
            "pair_id": f"p{i:03d}", "path": f"media/{i % 40}.jpg", "colour": ("red", "blue")[i % 2],
            "price": 2.0 ** (i % 12), "language": "de" if i % 10 == 0 else "en",
            "caption": " ".join(["word"] * (1 + i % 9)), "width_px": 40 + i, "height_px": 60,
        }  # fmt: skip
        if i % 4 == 1:
            row |= {"drop_reason": "small_image", "drop_detail": f"{i} px < 90 px"}
        elif i % 8 == 2 and i > 8:
            row |= {
                "drop_reason": "near_duplicate", "duplicate_of": f"p{4 * (i % 3):03d}",
                "near_duplicate_score": 0.9 + i / 1000,
            }  # fmt: skip
        elif i == 0:
            row |= {"split": "test", "split_reason": "given"}
        elif i == 3:
            row |= {"drop_reason": "missing_file", "width_px": None, "height_px": None}
        elif i % 4 == 3:
            row |= {"doubt": i / 100, "doubt_by": "near_duplicate", "split": "val"}
        rows.append(row)
    return rows


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """The media of `some_rows`."""
    (tmp_path / "pool" / "media").mkdir(parents=True)
    for i in range(40):
        (tmp_path / "pool" / "media" / f"{i}.jpg").write_bytes(picture(i))
    return tmp_path / "pool"


def make(pool: Path, folder: Path, rows: list[dict[str, Any]]) -> str:
    """The page of a manifest with `rows`."""
    write_curated(folder, rows)
    summary = json.loads((folder / "summary.json").read_text())
    pictures = Pictures(pool, max_pixels=10**8, max_media_bytes=10**8)
    with Manifest(folder / "manifest.parquet", FILTERS) as manifest:
        return render(gather(manifest, summary, pictures, pool=pool))


class _Page(HTMLParser):
    """All tags with their attributes, and the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._silent = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._silent = tag == "style"

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002
        self._silent = False
        self.text += " "

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.text += data


def test_counts_are_those_of_plain_counting(tmp_path: Path, pool: Path) -> None:
    page = _Page(make(pool, tmp_path / "pairs", some_rows()))
    text = " ".join(page.text.split())
    num = pd.DataFrame(some_rows()).drop_reason.value_counts().to_dict()
    assert num == {"small_image": 20, "near_duplicate": 9, "missing_file": 1}
    assert "50 of 80 pairs stayed" in text
    assert "30 pairs (37.5 %) went, for 3 reasons" in text
    for reason, count in num.items():
        assert f"{count} {percent(count / 80)} of all pairs · {reason}" in text
    assert re.search(r"\d+ px < 90 px", text)
    assert "All of them: coembed pairs show --reason small_image" in text
    ids = {attrs.get("id") for _, attrs in page.tags}
    links = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    assert {"r-small_image", "r-near_duplicate", "r-missing_file"} <= ids
    assert {str(link).removeprefix("#") for link in links} <= ids


def test_same_curation_same_bytes_wherever_it_lies(tmp_path: Path, pool: Path) -> None:
    first, again = tmp_path / "one" / "pairs", tmp_path / "elsewhere" / "p"
    for folder in (first, again):
        write_curated(folder, some_rows())
    shutil.copytree(pool, tmp_path / "elsewhere" / "pool")
    settings = CurateSettings(filters=())
    write_report(first, pool=pool, settings=settings)
    write_report(again, pool=tmp_path / "elsewhere" / "pool", settings=settings)
    page = (first / "report.html").read_bytes()
    assert page == (again / "report.html").read_bytes()
    assert str(tmp_path).encode() not in page
    assert sorted(path.name for path in first.iterdir()) == [
        "manifest.parquet", "report.html", "summary.json",
    ]  # fmt: skip


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "</style><script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "abc\u202edcba\u2066\u2069\u200e end",
    "\x1b[31mred\x07",
    "a\0b",
    "javascript:alert(1)",
    "W" * 100_000,
    "Z\u0351\u034d" * 3000,
)


def test_hostile_texts_are_inert(tmp_path: Path, pool: Path) -> None:
    rows = some_rows()
    for i, text in enumerate(HOSTILE * 2):
        rows[i] |= {"caption": text, "path": text, "pair_id": f"{i}{text}", "drop_detail": text}
        rows[i] |= {"colour": text, "language": text, text[:40]: text, "duplicate_of": text}
        rows[i] |= {"item_id": f"{i:064x}"}
    for i, row in enumerate(rows[30:50]):
        row |= {"drop_reason": HOSTILE[i % 4], "split_reason": HOSTILE[0]}
    (pool / "history.jsonl").write_text("")
    html = make(pool, tmp_path / "pairs", rows)
    page = _Page(html)
    assert {tag for tag, _ in page.tags} <= {
        "html", "head", "meta", "title", "style", "body", "nav", "div", "a", "main", "header", "h1",
        "p", "b", "code", "i", "ul", "li", "span", "section", "h2", "h3", "article", "figure",
        "img", "figcaption", "bdi", "svg", "line", "g", "rect", "text", "details", "summary",
        "table", "thead", "tbody", "tr", "th", "td", "audio", "br",
    }  # fmt: skip
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/webp", "data:audio"))
        if tag != "meta":
            assert "http" not in (attributes.get("style") or "")
    assert "49" not in re.findall(r"\{\{.*?\}\}", html)
    for character in "\u202e\u2066\u2069\u200e\x1b\x07\0":
        assert character not in html
    assert "[U+202E]" in page.text
    assert "Content-Security-Policy" in html and "default-src 'none'" in html
    assert len(html) < 400_000


def test_histograms_count_every_pair_once(tmp_path: Path) -> None:
    rows = write_curated(tmp_path, some_rows())
    frame = pd.DataFrame(rows)
    with Manifest(tmp_path / "manifest.parquet", FILTERS) as manifest:
        views = {view.title: view for view in fact_distributions(manifest)}
        scores = score_distributions(manifest)
    width = views["Width"]
    assert isinstance(width, Histogram) and not width.logarithmic
    known = frame.width_px.dropna()
    assert width.num_unknown == 1
    assert sum(bar.num_kept for bar in width.bars) == frame[frame.kept].width_px.notna().sum()
    assert sum(bar.num_dropped for bar in width.bars) == frame[~frame.kept].width_px.notna().sum()
    assert width.median_before == number(float(np.sort(known)[(len(known) - 1) // 2]))
    for bar in width.bars:
        low, _, high = bar.label.partition(" to ")
        inside = known.between(float(low), float(high or low))
        assert bar.num_kept + bar.num_dropped == inside.sum(), bar.label
        assert bar.kept_height + bar.dropped_height <= 132 and bar.width > 0
    assert views["Height"] == Constant("Height", "60 px")
    language = next(view for view in scores if view.title == "Language")
    assert isinstance(language, Categories)
    assert [(v.label, v.num_before) for v in language.values] == [("en", 72), ("de", 8)]
    assert [v.num_after for v in language.values] == [
        int(((frame.language == name) & frame.kept).sum()) for name in ("en", "de")
    ]


def test_a_far_outlier_does_not_squeeze_the_rest(tmp_path: Path) -> None:
    rows = [{"pair_id": f"p{i}", "price": float(i % 97)} for i in range(3000)]
    rows[5]["price"], rows[6]["price"] = 1e12, float("inf")
    rows[7]["price"] = float("nan")
    write_curated(tmp_path, rows)
    with Manifest(tmp_path / "manifest.parquet", {}) as manifest:
        from coembed.curation.report.report_numbers import attribute_distributions

        (view,) = attribute_distributions(manifest)
    assert isinstance(view, Histogram)
    assert sum(bar.num_kept for bar in view.bars) == 2998 and view.num_unknown == 2
    assert len(view.bars) > 20 and view.ticks[-1][1] == "96"


def test_balance_is_that_of_plain_counting(tmp_path: Path) -> None:
    frame = pd.DataFrame(write_curated(tmp_path, some_rows()))
    with Manifest(tmp_path / "manifest.parquet", FILTERS) as manifest:
        (colour, language) = balances(manifest)
    assert (colour.title, language.title) == ("Colour", "Language")
    before = frame.colour.value_counts(normalize=True)
    after = frame[frame.kept].colour.value_counts(normalize=True)
    for share in colour.shares:
        assert share.before == pytest.approx(before[share.label])
        assert share.after == pytest.approx(after[share.label])
    entropy = -(before * np.log(before)).sum()
    assert colour.evenness_before == pytest.approx(np.exp(entropy))
    train = frame[frame.split == "train"].colour.value_counts(normalize=True)
    val = frame[frame.split == "val"].colour.value_counts(normalize=True)
    distance = train.sub(val, fill_value=0).abs().sum() / 2
    assert {name: d for name, d, _ in colour.drift}["val"] == pytest.approx(distance)


def test_chance_is_what_drawing_gives() -> None:
    from coembed.curation.report.report_splits import _chance

    shares = np.array([0.5, 0.3, 0.15, 0.05])
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(200, shares, size=4000) / 200
    measured = np.abs(drawn - shares).sum(1).mean() / 2
    assert _chance(list(shares), 200) == pytest.approx(measured, rel=0.03)


def test_duplicates_stand_beside_what_stayed(tmp_path: Path, pool: Path) -> None:
    rows = write_curated(tmp_path / "pairs", some_rows())
    pictures = Pictures(pool, max_pixels=10**8, max_media_bytes=10**8)
    with Manifest(tmp_path / "pairs" / "manifest.parquet", FILTERS) as manifest:
        groups = duplicate_groups(manifest, Cards(manifest, pictures))
        doubtful = doubtful_pairs(manifest, Cards(manifest, pictures))
    truth: dict[str, set[str]] = {}
    for row in rows:
        if row["duplicate_of"]:
            truth.setdefault(row["duplicate_of"], set()).add(row["pair_id"])
    shown = {g.kept.pair_id: {card.pair_id for card in g.members} for g in groups if g.kept}
    assert shown == truth and len(truth) == 3
    assert all(card.shown.kind == "picture" for group in groups for card in group.members)
    assert all(card.chips[0][0] == "Score" for group in groups for card in group.members)
    (doubts,) = doubtful
    scores = [score for score, *_ in doubts.cards]
    assert scores == sorted(scores, reverse=True) and scores[0] == 0.79
    assert doubts.num == sum((row["doubt"] or 0) >= 0.5 for row in rows)


def test_a_doubtful_picture_stands_beside_the_nearest_one(tmp_path: Path, pool: Path) -> None:
    rows = some_rows()
    # Pairs 7 and 11 are nearest to each other, 15 is nearest to a pair that went.
    for i, nearest in ((7, 11), (11, 7), (15, 1)):
        rows[i] |= {"doubt": 0.95 - i / 1000, "near_duplicate_nearest": f"p{nearest:03d}"}
    write_curated(tmp_path / "pairs", rows)
    columns = {**FILTERS["near_duplicate"].columns, "near_duplicate_nearest": "string"}
    filters = {**FILTERS, "near_duplicate": MadeUpFilter(("near_duplicate",), columns)}
    pictures = Pictures(pool, max_pixels=10**8, max_media_bytes=10**8)
    with Manifest(tmp_path / "pairs" / "manifest.parquet", filters) as manifest:
        (doubts,) = doubtful_pairs(manifest, Cards(manifest, pictures))
        summary = json.loads((tmp_path / "pairs" / "summary.json").read_text())
        page = render(gather(manifest, summary, pictures, pool=pool))
    shown = [(card.pair_id, other and other.pair_id) for _, card, other in doubts.cards]
    # The couple once, not from both sides.
    assert shown[:2] == [("p007", "p011"), ("p015", "p001")]
    assert "p011" not in {pair_id for pair_id, _ in shown}
    assert all(not card.chips for _, card, _ in doubts.cards), "the id of the nearest is no value"
    assert page.count('<div class="two">') == 2
    assert "(went: small image)" in page


def test_the_filters_notes_stand_in_their_sections(tmp_path: Path, pool: Path) -> None:
    write_curated(tmp_path / "pairs", some_rows())
    path = tmp_path / "pairs" / "summary.json"
    notes = {"image_size": ["about <5%> are small"], "caption_language": ["nothing is dropped"]}
    summary = {**json.loads(path.read_text()), "notes": notes}
    pictures = Pictures(pool, max_pixels=10**8, max_media_bytes=10**8)
    with Manifest(tmp_path / "pairs" / "manifest.parquet", FILTERS) as manifest:
        report = gather(manifest, summary, pictures, pool=pool)
    sections = {s.reason: s.notes for _, own, _ in report.families for s in own}
    assert sections["small_image"] == ("about <5%> are small",) and not sections["near_duplicate"]
    said = {cost.label: cost.notes for cost in report.costs if cost.notes}
    assert said == {name: tuple(own) for name, own in notes.items()}
    page = render(report)
    assert page.count("bout &lt;5%&gt; are small") == 2 and "nothing is dropped" in page


def test_what_the_line_under_a_picture_says_is_no_chip_as_well(tmp_path: Path, pool: Path) -> None:
    rows = [
        {"pair_id": "a", "drop_reason": "near_duplicate", "near_duplicate_score": 0.91,
         "drop_detail": "likeness 0.910 >= 0.73 with media/b.jpg"},
        {"pair_id": "b", "drop_reason": "near_duplicate", "near_duplicate_score": 0.9,
         "drop_detail": "likeness 0.905 >= 0.73 with media/c.jpg"},
        {"pair_id": "c"},
    ]  # fmt: skip
    write_curated(tmp_path / "pairs", rows)
    pictures = Pictures(pool, max_pixels=10**8, max_media_bytes=10**8)
    with Manifest(tmp_path / "pairs" / "manifest.parquet", FILTERS) as manifest:
        cards = Cards(manifest, pictures)
        found = {row.text("pair_id"): cards.card(row).chips for row in manifest.rows()}
    assert found == {"a": (), "b": (("Score", "0.9"),), "c": ()}


def _history(pool: Path, tables: dict[str, int], newest: list[str]) -> None:
    (pool / "pairs").mkdir()
    for name, num in tables.items():
        frame = pd.DataFrame({"path": ["a"] * num, "caption": ["b"] * num})
        if name.endswith(".csv"):
            frame.to_csv(pool / "pairs" / name, index=False)
        else:
            frame.to_parquet(pool / "pairs" / name)
    old = [name for name in tables if name not in newest]
    lines = [
        {"version": n, "source": source, "reader": "csv", "tables": names, "complete": True}
        for n, source, names in ((1, "old", old), (2, "<b>new</b>.csv", newest))
    ]
    (pool / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_change_compares_the_newest_tables_with_the_rest(tmp_path: Path, pool: Path) -> None:
    _history(pool, {"a.parquet": 30, "b.csv": 15, "c.parquet": 35}, ["b.csv"])
    frame = pd.DataFrame(write_curated(tmp_path / "pairs", some_rows()))
    with Manifest(tmp_path / "pairs" / "manifest.parquet", FILTERS) as manifest:
        change = last_change(manifest, pool)
    assert change is not None
    is_new = frame.index.to_series().between(30, 44)
    new, old = frame[is_new], frame[~is_new]
    assert (change.num_new, change.num_before) == (15, 65)
    assert (change.num_kept_new, change.num_kept_before) == (new.kept.sum(), old.kept.sum())
    assert change.num_items_new == len(set(new.item_id) - set(old.item_id))
    assert change.num_items_before == old.item_id.nunique()
    assert {row.reason: row.num for row in change.reasons if row.num} == (
        new.drop_reason.value_counts().to_dict()
    )
    words = change.numbers[0]
    lengths = frame.caption.str.split().str.len()
    assert words.new == np.sort(lengths[is_new])[(len(new) - 1) // 2]
    distance = (
        new.colour.value_counts(normalize=True)
        .sub(old.colour.value_counts(normalize=True), fill_value=0).abs().sum() / 2
    )  # fmt: skip
    assert {c.title: c.distance for c in change.columns}["Colour"] == pytest.approx(distance)
    shift = {column.title: column for column in change.columns}["Caption length"]
    shares = {value.label: value.new for value in shift.values}
    assert shares["5 to 8 words"] == pytest.approx(lengths[is_new].between(5, 8).mean())
    assert shares["1 word"] == pytest.approx((lengths[is_new] == 1).mean())
    page = make(pool, tmp_path / "pairs", some_rows())
    assert "Version 2 of the pool" in page and "&lt;b&gt;new&lt;/b&gt;.csv" in page


def test_a_pool_without_a_past_says_so(tmp_path: Path, pool: Path) -> None:
    assert "no earlier version" in make(pool, tmp_path / "pairs", some_rows())
    _history(pool, {"a.parquet": 80}, ["a.parquet"])
    assert "no earlier version" in make(pool, tmp_path / "pairs", some_rows())


def test_column_names_that_sql_would_mix_up(tmp_path: Path) -> None:
    rows = [
        {"pair_id": f"p{i}", "Colour": "x" if i % 2 else "y", "colour": "zw"[i % 2], 'a"b': i % 3,
         "file_row_number": "mine", "row": "own", "x3": "?"}
        for i in range(30)
    ]  # fmt: skip
    write_curated(tmp_path, rows)
    with Manifest(tmp_path / "manifest.parquet", {}) as manifest:
        assert manifest.attributes == ("Colour", "colour", 'a"b', "file_row_number", "row", "x3")
        row = manifest.rows("pair_id = ?", ["p7"])[0]
        assert (row["Colour"], row["colour"], row['a"b'], row["row"]) == ("x", "w", 1, "own")
        assert row.number == 7
        assert [b.title for b in balances(manifest)] == ["Colour", "Colour", 'A"b']


def test_an_older_manifest_or_none_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no manifest of curated pairs"):
        Manifest(tmp_path / "manifest.parquet")
    (tmp_path / "manifest.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="cannot be read"):
        Manifest(tmp_path / "manifest.parquet")
    pd.DataFrame({"pair_id": ["a"], "kept": [True]}).to_parquet(tmp_path / "manifest.parquet")
    with pytest.raises(DataError, match="an earlier coembed wrote it"):
        Manifest(tmp_path / "manifest.parquet")


def test_nothing_outside_the_pool_is_shown(tmp_path: Path, pool: Path) -> None:
    secret = picture(999)
    (tmp_path / "secret.jpg").write_bytes(secret)
    (pool / "media" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    os.mkfifo(pool / "media" / "pipe.jpg")
    paths = ["../secret.jpg", str(tmp_path / "secret.jpg"), "media/link.jpg", "media/pipe.jpg",
             "media", "", "media/0.jpg\0", "media/none.jpg"]  # fmt: skip
    rows = write_curated(
        tmp_path / "pairs", [{"pair_id": f"p{i}", "path": path} for i, path in enumerate(paths)]
    )
    pictures = Pictures(pool, max_pixels=10**8, max_media_bytes=10**8)
    with Manifest(tmp_path / "pairs" / "manifest.parquet", {}) as manifest:
        shown = [pictures.show(row) for row in manifest.rows()]
    assert len(shown) == len(rows) and {one.kind for one in shown} == {"note"}


def test_what_could_not_be_decoded_is_not_decoded_here(tmp_path: Path, pool: Path) -> None:
    # The file is a good picture: were it opened, it would be shown.
    rows = [{"pair_id": "p", "path": "media/0.jpg", "drop_reason": "crashes_decoder"}]
    write_curated(tmp_path / "pairs", rows)
    pictures = Pictures(pool, max_pixels=10**8, max_media_bytes=10**8)
    with Manifest(tmp_path / "pairs" / "manifest.parquet", {}) as manifest:
        assert pictures.show(manifest.rows()[0]).kind == "note"


def _encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_small_pictures_are_upright_flat_and_without_data_of_their_own() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "taken by somebody"
    turned = small_picture(
        _encode(Image.new("RGB", (90, 30), "red"), "JPEG", exif=exif), px=30, max_pixels=10**6
    )
    assert turned is not None and turned.size == (10, 30) and not turned.info
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    shown = small_picture(_encode(clear, "PNG"), px=10, max_pixels=10**6)
    assert shown is not None and shown.getpixel((5, 5)) == (255, 255, 255)
    ramp = Image.fromarray((np.arange(400, dtype=np.uint16) * 100).reshape(20, 20))
    shown = small_picture(_encode(ramp, "PNG"), px=20, max_pixels=10**6)
    assert shown is not None
    assert (shown.getpixel((0, 0)), shown.getpixel((19, 19))) == ((0, 0, 0), (255, 255, 255))
    cmyk = _encode(Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "JPEG")
    shown = small_picture(cmyk, px=20, max_pixels=10**6)
    assert shown is not None and shown.getpixel((5, 5))[0] > 200  # type: ignore[index]
    assert small_picture(picture(1), px=20, max_pixels=100) is None
    assert small_picture(b"no picture", px=20, max_pixels=100) is None


def test_small_sounds_can_be_heard_and_large_ones_are_named(tmp_path: Path, pool: Path) -> None:
    for name, num in (("short", 800), ("long", 80_000)):
        with wave.open(str(pool / "media" / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, num, "NONE", ""))
            file.writeframes(b"\0\1" * num)
    rows = [
        {"pair_id": name, "path": f"media/{name}.wav", "modality": "audio", "format": "WAV",
         "duration_s": seconds, "width_px": None, "height_px": None, "colour_mode": None}
        for name, seconds in (("short", 0.1), ("long", 10.0))
    ]  # fmt: skip
    write_curated(tmp_path / "pairs", rows)
    pictures = Pictures(pool, max_pixels=10**8, max_media_bytes=10**8)
    with Manifest(tmp_path / "pairs" / "manifest.parquet", {}) as manifest:
        first, second = (pictures.show(row) for row in manifest.rows())
    assert first.kind == "sound"
    head, _, data = first.source.partition(",")
    assert head == "data:audio/wav;base64"
    assert base64.b64decode(data) == (pool / "media" / "short.wav").read_bytes()
    assert (second.kind, second.source) == ("note", "a sound of 10.0 s")


def test_a_pool_of_which_all_stayed_and_one_of_which_nothing_did(
    tmp_path: Path, pool: Path
) -> None:
    everything = make(pool, tmp_path / "a", [{"pair_id": "p", "path": "media/0.jpg"}])
    assert "1 of 1 pair stayed" in everything and "every pair passed" in everything
    nothing = make(pool, tmp_path / "b", [{"pair_id": "p", "drop_reason": "new_reason"}])
    assert "0 of 1 pair stayed" in nothing and "New reason" in nothing


def test_texts_are_shown_as_they_are() -> None:
    assert visible("a\n\t b") == "a b"
    assert visible("x" * 10, 5) == "xxxx…"
    assert visible("\u202eabc\x1b") == "[U+202E]abc[U+001B]"
    assert visible("می\u200cخواهم 👩\u200d🚀") == "می\u200cخواهم 👩\u200d🚀"
    assert visible("\ud800") == "[U+D800]"
    assert [percent(x) for x in (0, 1e-5, 0.5, 0.1234, 0.99999, 1)] == [
        "0 %", "< 0.1 %", "50 %", "12.3 %", "> 99.9 %", "100 %",
    ]  # fmt: skip
    assert [number(x) for x in (1234567, 0.12345, 1234.5)] == ["1,234,567", "0.123", "1,234"]
    assert [short(x) for x in (7, 1234, 12345, 3_400_000)] == ["7", "1,234", "12.3k", "3.4M"]


def test_every_reason_that_can_occur_is_explained() -> None:
    reasons = [*declared_reasons({}), OVERRIDE_REASON]
    for name in component_names("coembed.curation.filters"):
        members = vars(import_module(f"coembed.curation.filters.{name}")).values()
        own = [m for m in members if isinstance(m, type) and issubclass(m, Filter)]
        reasons += [reason for one in own for reason in getattr(one, "reasons", ())]
    assert len(set(reasons)) > 30
    families = {family.key for family in FAMILIES}
    for reason in reasons:
        family, sentence = meaning(reason)
        assert family in families
        assert sentence.endswith(".") and "line under each example" not in sentence, reason
    # One that this page does not know is explained by its filter.
    assert meaning("strange", "caption_odd", "Drop odd captions.") == (
        "caption", "Drop odd captions.",
    )  # fmt: skip
