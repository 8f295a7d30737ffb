"""The report: self-contained, safe with hostile data, the same bytes every time; its charts."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coembed.errors import DataError
from coembed.evaluation.charts import line_chart, nice_ticks, read_history
from coembed.evaluation.contact_sheet import (
    ShownHit,
    ShownItem,
    ShownSearch,
    choose,
    shown_items,
    worst,
)
from coembed.evaluation.report import (
    Headline,
    MetricRow,
    Report,
    SearchGroup,
    percent,
    render,
    slice_table,
    words,
    zero_shot_view,
)
from coembed.evaluation.slices import SliceScore
from coembed.evaluation.zero_shot import classify

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}'</style>"
PIXEL = "data:image/jpeg;base64,AAAA"
BLEEP = "data:audio/wav;base64,AAAA"


def make_report(text: str) -> Report:
    shot = classify(
        "zero_shot_kind", np.eye(2, dtype=np.float32), (text, "b"), (text, "b"),
        np.eye(2, dtype=np.float32)[::-1].copy(),
    )  # fmt: skip
    hit = ShownHit(0, 0.5, False, ((text, False), ("b", True)))
    row = SliceScore("t", "colour", text, 3, True, "recall_at_10", 0.2, 0.4, 0.1)
    table = slice_table([row], "t", "recall_at_10")
    assert table is not None
    return Report(
        facts=[("split", text)],
        headlines=[Headline(text, text, 0.5, 0.1)],
        metrics=[("text_to_image", [MetricRow("median_rank", 2.5, None, False)])],
        groups=[SearchGroup(text, text, [ShownSearch(text, (hit,), 1, 0, 2.0)])],
        directions=[("text_to_image", text)],
        notes=[text],
        items={0: ShownItem(PIXEL)},
        zero_shot=[zero_shot_view(text, shot)],
        slices=[table],
        min_slice=30,
        curves=[line_chart("loss", [(0, 3.0), (10, 1.0)])],
    )


class _Page(HTMLParser):
    """Collects what could reach out or run."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "data", "action", "srcset", "xlink:href"):
                self.sources.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)


def parse(html: str) -> _Page:
    page = _Page()
    page.feed(html)
    return page


def test_hostile_words_stay_words() -> None:
    html = render(make_report(HOSTILE))
    page = parse(html)
    assert "script" not in page.tags
    assert page.handlers == []
    assert set(page.sources) == {PIXEL}
    assert "{{ 7 * 7 }}" in html and "49" not in html.replace(PIXEL, "")
    assert html.count("</style>") == 1


def test_nothing_is_fetched_from_elsewhere() -> None:
    report = make_report("red")
    html = render(replace(report, items={0: ShownItem(PIXEL, BLEEP, is_sound=True)}))
    assert set(parse(html).sources) == {PIXEL, BLEEP}
    assert "default-src 'none'; img-src data:; media-src data:;" in html
    assert not re.search(r"https?://|url\(|@import", html)


def test_a_search_by_an_item_shows_it_and_what_it_finds() -> None:
    hits = (ShownHit(1, 0.5, True, (("a whistle", True),)), ShownHit(2, 0.4, None, (("x", True),)))
    search = ShownSearch("a kettle", hits, 3, rank=1.0, asked=0)
    items = {
        0: ShownItem(PIXEL),
        1: ShownItem(PIXEL, BLEEP, is_sound=True),
        2: ShownItem(PIXEL, None, is_sound=True),
    }
    group = SearchGroup("Sounds found by images", "", [search, search])
    html = render(replace(make_report("red"), groups=[group], items=items))
    assert html.count("searched with</span>") == 2 and "looked for" not in html
    assert "the first match came first · 3 to find" in html
    assert html.count("<audio controls") == 2
    assert html.count("cannot be played here") == 2
    assert shown_items([search, search]) == {0: 2, 1: 2, 2: 2}


def test_the_same_values_make_the_same_bytes() -> None:
    assert render(make_report("red")) == render(make_report("red"))


def test_the_parser_of_these_tests_does_see_a_script() -> None:
    page = parse('<p onclick="x()"><script src="https://example.org/x.js"></script>')
    assert page.tags == ["p", "script"] and page.handlers == ["onclick"]
    assert page.sources == ["https://example.org/x.js"]


def test_slices_come_worst_first_and_small_ones_last() -> None:
    def row(value: str, score: float, small: bool) -> SliceScore:
        return SliceScore("t", "c", value, 5, small, "top_1", score, 0.5, 0.1)

    rows = [row("a", 0.9, False), row("b", 0.0, True), row("c", 0.3, False), row("d", 0.2, True)]
    table = slice_table(rows, "t", "top_1")
    assert table is not None
    assert [r.value for r in table.rows] == ["c", "a", "b", "d"]
    assert slice_table(rows, "t", "top_5") is None


def test_words_and_percent() -> None:
    assert words("recall_at_10") == "Recall@10"
    assert words("text_to_image") == "Text → image"
    assert words("capped_recall_at_5") == "Capped recall@5"
    assert [percent(x) for x in (0, 1, 0.123456, 0.9999, 0.0004)] == [
        "0 %", "100 %", "12.3 %", "100 %", "0 %",
    ]  # fmt: skip


def test_choice_of_searches_depends_on_their_words_only() -> None:
    texts = [f"text {i}" for i in range(50)]
    first = [texts[place] for place in choose([*texts, *texts], 7)]
    turned = list(reversed(texts))
    assert [turned[place] for place in choose(turned, 7)] == first
    assert len(set(first)) == 7
    assert len(choose(texts[:3], 10)) == 3


def test_worst_are_distinct_and_missed() -> None:
    texts = ["a", "b", "a", "c", "d"]
    ranks = np.asarray([9.0, 3.0, 8.0, 1.0, 30.0])
    assert worst(texts, ranks, 3) == [4, 0, 1]
    assert worst(texts, ranks, 10) == [4, 0, 1]  # what came first is no miss


@given(
    st.floats(-1e6, 1e6, allow_nan=False),
    st.floats(1e-6, 1e6, allow_nan=False),
)
def test_ticks_enclose_the_values_with_few_marks(low: float, span: float) -> None:
    high = low + span
    ticks = nice_ticks(low, high)
    slack = 1e-9 * max(abs(low), abs(high), 1)
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 7
    assert ticks == sorted(ticks)


def test_chart_places() -> None:
    chart = line_chart("loss", [(0, 4.0), (50, 2.0), (100, 0.0)])
    assert chart.points == "46.0,10.0 198.0,83.0 350.0,156.0"
    assert (chart.first, chart.last) == ("4", "0")
    long = line_chart("loss", [(i, float(i % 7)) for i in range(10_000)])
    assert 100 < len(long.points.split()) <= 300


def test_history_curves(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_text(
        "step,epoch,loss,lr,val_recall_at_10,same\n"
        "5,0,3.5,0.001,,1\n10,0,2.5,0.002,0.25,1\n15,1,nan,0.001,0.5,1\n"
    )
    assert read_history(path) == {
        "loss": [(5, 3.5), (10, 2.5)],
        "lr": [(5, 0.001), (10, 0.002), (15, 0.001)],
        "val_recall_at_10": [(10, 0.25), (15, 0.5)],
    }
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="history"):
        read_history(path)
