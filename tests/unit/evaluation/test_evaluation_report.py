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
from coembed.evaluation.charts import (
    Forest,
    Mark,
    ReliabilityChart,
    line_chart,
    nice_ticks,
    read_history,
    reliability_chart,
)
from coembed.evaluation.contact_sheet import (
    ShownHit,
    ShownItem,
    ShownSearch,
    choose,
    shown_items,
    worst,
)
from coembed.evaluation.origins import Origins, SplitRow
from coembed.evaluation.report import (
    VERDICT_PLACE,
    Geometry,
    Headline,
    MetricRow,
    Reliability,
    Report,
    SearchGroup,
    WorseQueries,
    interval,
    leading,
    percent,
    points,
    render,
    slice_table,
    weakest,
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
    row = make_slice("t", text, 0.2, low=0.1, high=0.35, small=True)
    table = slice_table([row], "t", "recall_at_10")
    assert table is not None
    bounds = (0.25, 0.75)
    return Report(
        facts=[("split", text)],
        headlines=[Headline(text, text, 0.5, 0.1, bounds)],
        metrics=[
            (
                "text_to_image",
                [
                    MetricRow("recall_at_10", 0.5, 0.1, True, bounds, leads=True, detail=text),
                    MetricRow("median_rank", 2.5, None, False, (2.0, 3.5)),
                ],
            )
        ],
        groups=[SearchGroup(text, text, [ShownSearch(text, (hit,), 1, 0, 2.0)])],
        directions=[("text_to_image", text)],
        notes=[text],
        items={0: ShownItem(PIXEL)},
        zero_shot=[zero_shot_view(text, shot, {text: bounds})],
        slices=[table],
        min_slice=30,
        curves=[line_chart("loss", [(0, 3.0), (10, 1.0)])],
        weakest=[row],
        robustness=[WorseQueries(text, "top_1", 9, 0.9, 0.6, bounds, 0.3, (0.1, 0.5))],
        reliability=[Reliability(text, square(text), [(text, 0.25, bounds)])],
        reliability_explained=text,
        geometry=[Geometry(text, [(text, -2.5, None)])],
        origins=Origins((text,), (SplitRow(text, 9, None, text),), ((text, text),)),
    )


def make_slice(
    task: str, value: str, score: float, *, low: float, high: float, small: bool = False
) -> SliceScore:
    return SliceScore(
        task=task, column="colour", value=value, num_queries=3, small=small,
        metric="recall_at_10", score=score, low=low, high=high, overall=0.4, chance=0.1,
    )  # fmt: skip


def square(text: str) -> ReliabilityChart:
    return reliability_chart([(0.5, 0.25, 0.0, 1.0, text)])


_ADDRESSES = ("src", "href", "data", "action", "srcset", "xlink:href")


class _Page(HTMLParser):
    """Collects what could reach out or run. What points within the page does neither."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            within = name == "href" and (value or "").startswith("#")
            if name in _ADDRESSES and not within:
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
    page = parse('<p onclick="x()"><script src="https://example.org/x.js"></script><a href="#b">')
    assert page.tags == ["p", "script", "a"] and page.handlers == ["onclick"]
    assert page.sources == ["https://example.org/x.js"]


def test_slices_come_worst_first_and_small_ones_last() -> None:
    def row(value: str, score: float, small: bool) -> SliceScore:
        return make_slice("t", value, score, low=0.0, high=1.0, small=small)

    rows = [row("a", 0.9, False), row("b", 0.0, True), row("c", 0.3, False), row("d", 0.2, True)]
    table = slice_table(rows, "t", "recall_at_10")
    assert table is not None
    assert [r.value for r in table.rows] == ["c", "a", "b", "d"]
    assert slice_table(rows, "t", "top_5") is None


def test_the_weakest_are_surely_weak_and_each_named_once() -> None:
    rows = [
        make_slice("t", "red", 0.2, low=0.1, high=0.3),
        make_slice("u", "red", 0.1, low=0.0, high=0.2),
        make_slice("t", "blue", 0.05, low=0.0, high=0.5),  # its interval reaches the whole's 0.4
        make_slice("t", "pink", 0.0, low=0.0, high=0.1, small=True),
        make_slice("t", "grey", 0.3, low=0.25, high=0.35),
        make_slice("other", "black", 0.0, low=0.0, high=0.0),
    ]
    tasks = [("t", "recall_at_10"), ("u", "recall_at_10")]
    found = weakest(rows, tasks, 3)
    assert [(row.task, row.value) for row in found] == [("u", "red"), ("t", "grey")]
    assert weakest(rows, tasks, 1) == found[:1]
    html = render(replace(make_report("x"), weakest=found))
    said = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", html))
    assert (
        "Weakest: colour = red, 10.0 % against 40.0 % over all (U, Recall@10); colour = grey, "
        "30.0 % against 40.0 % over all (T, Recall@10). 1 slice has too few queries to tell."
    ) in said


def test_every_figure_is_shown_with_its_interval() -> None:
    html = render(make_report("red"))
    assert "95 % interval 25.0 to 75.0<br>" in html  # a card
    assert html.count('<td class="range">25.0 to 75.0</td>') >= 4  # figures, classes, corrupted
    assert "2 to 3.5<" in html  # the median rank
    assert "10.0 to 35.0" in html  # a slice
    assert "−50.0 to −10.0" in html  # what corruption costs
    assert 'style="left:25.0%;width:50.0%"' in html  # whiskers


def test_a_small_slice_says_so() -> None:
    html = render(make_report("red"))
    assert 'class="few"><th>colour = red <span class="chip">few</span>' in html
    assert "Parts with fewer than 30 queries are marked" in html


def test_a_verdict_has_one_place_that_data_cannot_make() -> None:
    for text in ("red", str(VERDICT_PLACE), HOSTILE):
        assert render(make_report(text)).count(VERDICT_PLACE) == 1


def test_words_and_percent() -> None:
    assert words("recall_at_10") == "Recall@10"
    assert words("text_to_image") == "Text → image"
    assert words("capped_recall_at_5") == "Capped recall@5"
    assert words("compositional_swap_colour") == "Altered captions: colour swapped"
    assert words("compositional_order") == "Altered captions: order"
    assert words("robustness_blur_image_to_text") == "Blur: image → text"
    assert words("robustness_jpeg_zero_shot_kind") == "Jpeg: zero-shot: kind"
    assert [points(x) for x in (0.0123, -0.5, 0.0004, -0.0004)] == ["+1.2", "−50.0", "0.0", "0.0"]
    assert interval((0.5, 1.0), True) == "50.0 to 100"
    assert interval((-2.0, 1.25), False) == "−2 to 1.250"
    assert leading(["recall_at_1", "recall_at_10", "recall_at_5", "mrr"]) == "recall_at_10"
    assert leading(["top_1", "top_5"]) == "top_1"
    assert leading(["anything", "else"]) == "anything"
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


def test_a_forest_holds_all_differences_and_most_intervals() -> None:
    rows = [(-0.02, -0.01, 0.0), (0.0, 0.01, 0.02), (-0.01, 0.005, 0.02), (-0.9, 0.0, 0.9)]
    forest = Forest.of([*rows, rows[0], rows[0]])
    assert forest.reach == 0.02
    mark = forest.mark(-0.02, 0.0, 0.9)
    assert mark == Mark(forest.first, forest.zero, forest.last)
    assert forest.first == 14 and forest.last == forest.width - 14
    assert [tick.text for tick in forest.ticks] == ["−2", "−1", "0", "+1", "+2"]
    assert Forest.of([]).reach == 0.01
    assert Forest.of([(-0.6, -0.55, -0.5)]).reach >= 0.6


def test_reliability_lies_in_the_square() -> None:
    chart = reliability_chart([(0.0, 0.0, 0.0, 0.5, "a"), (1.0, 1.0, 0.5, 1.0, "b")])
    low, high = chart.size - chart.bottom, chart.last
    first, last = chart.points
    assert (first.x, first.y, first.low) == (chart.left, low, low)
    assert (last.x, last.y, last.high) == (chart.size - chart.last, high, high)
    assert first.high == last.low == (low + high) / 2


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
