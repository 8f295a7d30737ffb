"""The page of a decision, on real evaluations of two small models."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_evaluation_report import parse
from verdict_case import HEADLINE, HOSTILE, Evaluated, decide, make_evaluated

from coembed.errors import DataError
from coembed.evaluation.comparison import Change, Comparison, Difference
from coembed.evaluation.outcomes_file import HITS, INTERVALS, read_hits
from coembed.evaluation.report import VERDICT_PLACE, interval
from coembed.evaluation.verdict_page import metric_words, render_verdict
from coembed.files import read_json
from coembed.stages.decision import Decision


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    return make_evaluated(tmp_path_factory.mktemp("verdict"))


@pytest.fixture(scope="module")
def comparison(evaluated: Evaluated) -> Comparison:
    return evaluated.compared(leave_out=3)


def render(
    evaluated: Evaluated, decision: Decision, comparison: Comparison | None, **changes: Any
) -> str:
    arguments: dict[str, Any] = {
        "evaluation": evaluated.challenger,
        "champion": None if comparison is None else evaluated.champion,
        "comparison": comparison,
        "samples": evaluated.samples,
        "settings": evaluated.cfg.evaluate,
        "protected": ("composition",),
    }
    return render_verdict(decision, **(arguments | changes))


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def section(html: str, name: str) -> str:
    """The part of the page from the element with that id to the next <section>."""
    return html.partition(f'id="{name}"')[2].partition("<section")[0]


def make_difference(**changes: Any) -> Difference:
    row = Difference(
        path=HEADLINE, column=None, value=None, num_queries=200, num_clusters=100, small=False,
        champion=0.8, challenger=0.7, difference=-0.1, low=-0.15, high=-0.05, p_value=0.001,
        p_adjusted=0.002,
    )  # fmt: skip
    return replace(row, **changes)


def test_the_verdict_stands_first_then_gates_then_the_evaluation(
    evaluated: Evaluated, comparison: Comparison
) -> None:
    html = render(evaluated, decide(), comparison, facts=[("git commit", "c0ffee")])
    assert "<title>Version 7 is refused</title>" in html
    order = [
        "<h1>Version 7 is refused</h1>", "git commit <b>c0ffee</b>", 'id="gates"', 'id="against"',
        'id="changes"', "<h1>How well does this model search?</h1>", 'id="figures"',
    ]  # fmt: skip
    places = [html.index(part) for part in order]
    assert places == sorted(places)
    assert VERDICT_PLACE not in html
    ruling = text_of(html[: html.index('id="gates"')])
    assert "Top-1: floor : 0.31; asked for: 0.50" in ruling
    for cell in ("✗ refused", "✓ passed", "… waiting", "0.31 is below"):
        assert cell in text_of(section(html, "gates"))


@pytest.mark.parametrize(
    ("verdict", "title"),
    [("passed", "Version 7 can be promoted"), ("waiting", "Version 7 waits for a person")],
)
def test_what_is_not_refused_gives_its_reason(
    evaluated: Evaluated, comparison: Comparison, verdict: str, title: str
) -> None:
    html = render(evaluated, decide(verdict), comparison)
    assert f"<h1>{title}</h1>\n<p>Reason: lost.</p>" in html


def test_a_comparison_alone_has_its_own_title(evaluated: Evaluated, comparison: Comparison) -> None:
    html = render(evaluated, decide("passed"), comparison, title="Version 7 beside <6>")
    assert "<title>Version 7 beside &lt;6&gt;</title>" in html
    assert '<div class="ruling compared">\n<h1>Version 7 beside &lt;6&gt;</h1>' in html


def test_a_first_version_has_nothing_beside_it(evaluated: Evaluated) -> None:
    html = render(evaluated, decide("passed", champion=None), None)
    assert "There is nothing to compare this version with" in html
    assert "compared with <b>nothing</b>" in html
    for part in ("against", "changes", "broken", "mended"):
        assert f'id="{part}"' not in html and f'href="#{part}"' not in html


def test_metrics_stand_beside_the_champions(evaluated: Evaluated, comparison: Comparison) -> None:
    table = text_of(section(render(evaluated, decide(), comparison), "against"))
    row = comparison.difference(HEADLINE)
    assert row is not None
    own = r"[\d.]+ to [\d.]+ "
    assert re.search(
        f"Text → image, Recall@10 headline {100 * row.champion:.1f} % {own}"
        f"{100 * row.challenger:.1f} % {own}",
        table,
    )
    assert table.index("headline") < table.index("Image → text")
    assert f"the same {comparison.num_queries:,} queries" in table
    left = dict(comparison.left_out)["the champion was trained on it"]
    assert f"{left} queries: the champion was trained on it." in table


def test_signs_colours_and_smallness_say_what_a_difference_is(
    evaluated: Evaluated, comparison: Comparison
) -> None:
    unsure = {"low": -0.2, "high": 0.01, "p_adjusted": 0.4}
    rows = {
        "surely worse": make_difference(column="composition", value="surely worse"),
        "surely better": make_difference(
            column="composition", value="surely better", difference=0.1, low=0.05, high=0.15
        ),
        "unsure": make_difference(column="composition", value="unsure", **unsure),
        "doubtful": make_difference(column="composition", value="doubtful", p_adjusted=0.3),
        "tiny": make_difference(column="composition", value="tiny", small=True, num_queries=4),
    }
    made = replace(comparison, overall=(make_difference(),), slices=tuple(rows.values()))
    html = section(render(evaluated, decide(), made), "changes")
    told = {
        name: re.search(
            rf"<tr([^>]*)><th>composition = {name}.*?<td class=\"small said (\w+)\">([^<]+)<",
            html,
            re.DOTALL,
        )
        for name in rows
    }
    assert {name: found and found.groups() for name, found in told.items()} == {
        "surely worse": ("", "worse", "worse"),
        "surely better": ("", "better", "better"),
        "unsure": ("", "same", "within chance"),
        "doubtful": ("", "same", "maybe worse"),
        "tiny": (' class="few"', "same", "too few to tell"),
    }
    words = text_of(html)
    assert "−10.0 −15.0 to −5.0" in words and "few: 4" in words
    assert "5 figures of parts of the data were compared, 2 of them differ for sure" in words
    # Among the largest changes sure ones come first, and a small slice not at all.
    largest = html.partition("Largest changes")[2]
    assert largest.index("surely better") < largest.index("unsure") and "tiny" not in largest


def test_the_headline_is_judged_by_itself_and_the_others_together(
    evaluated: Evaluated, comparison: Comparison
) -> None:
    other = "retrieval/image_to_text/recall_at_10"
    rows = tuple(make_difference(path=path, p_adjusted=0.5) for path in (HEADLINE, other))
    html = render(evaluated, decide(), replace(comparison, overall=rows))
    said = re.findall(r'<td class="small said (\w+)">([^<]+)<', section(html, "against"))
    # Once among the leading metrics and once among all.
    assert said == [("worse", "worse"), ("same", "maybe worse")] * 2


def test_slices_of_an_unprotected_column_are_no_protected_ones(
    evaluated: Evaluated, comparison: Comparison
) -> None:
    protected = section(render(evaluated, decide(), comparison), "changes")
    protected = protected.partition("Largest changes")[0]
    assert "composition = seen" in protected and "colour = " not in protected
    assert "Protected parts" not in render(evaluated, decide(), comparison, protected=())


def test_what_broke_shows_what_both_models_found(
    evaluated: Evaluated, comparison: Comparison
) -> None:
    assert comparison.broken and comparison.mended
    html = render(evaluated, decide(), comparison)
    part = section(html, "broken")
    assert f"What broke: {comparison.num_broken:,} quer" in part
    shown = re.findall(r'<span class="query">([^<]*)</span>', part)
    assert 1 <= len(shown) <= 6
    first = comparison.broken[0]
    assert shown[0] == first.query.removeprefix(f"{first.item_id}: ").replace("'", "&#39;")
    article = part.partition("<article")[2].partition("</article")[0]
    assert "looked for" in article and "Version 6 found" in article and "Version 7 found" in article
    # The champion had it among its first ten, and the strips are as the files say.
    captions = {sample.item_id: sample.captions[0] for sample in evaluated.samples}
    for folder, name in ((evaluated.champion, "Version 6"), (evaluated.challenger, "Version 7")):
        task = HEADLINE.rpartition("/")[0]
        hits = read_hits(folder / HITS, {task: {first.query}})[task][first.query][:5]
        strip = article.partition(f"{name} found")[2].partition("</ol>")[0]
        said = re.findall(r"<figcaption[^>]*>([^<]*)</figcaption>", strip)
        assert said == [captions[hit.item_id] for hit in hits]


def test_hits_of_attribute_searches_are_judged_by_their_attributes(evaluated: Evaluated) -> None:
    found = evaluated.compared("attribute_queries/colour_shape/precision_at_1")
    changes = [change for change in (*found.broken, *found.mended) if HOSTILE not in change.query]
    assert changes
    html = render(evaluated, decide(), found)
    parts = section(html, "broken") + section(html, "mended")
    by_id = {sample.item_id: sample.attributes for sample in evaluated.samples}
    task = found.headline.rpartition("/")[0]
    for change in changes[:2]:
        _, _, rest = parts.partition(f'<span class="query">{change.query}</span>')
        article = rest.partition("</article>")[0]
        judged = re.findall(r'<li class="hit (right|wrong)">', article)
        expected = [
            "right"
            if f"{by_id[hit.item_id]['colour']} {by_id[hit.item_id]['shape']}" == change.query
            else "wrong"
            for folder in (evaluated.champion, evaluated.challenger)
            for hit in read_hits(folder / HITS, {task: {change.query}})[task][change.query][:5]
        ]
        assert judged == expected and {"right", "wrong"} <= {*judged}
        assert "% with version 6 → " in article


def test_queries_by_items_are_shown_with_their_item(evaluated: Evaluated) -> None:
    found = evaluated.compared("retrieval/image_to_text/recall_at_10")
    assert found.broken
    part = section(render(evaluated, decide(), found), "broken")
    assert "searched with" in part and "found</p>" not in part


def test_an_item_that_is_not_there_is_left_out(evaluated: Evaluated) -> None:
    gone = Change(HEADLINE, "ffff: a thing", "ffff", 1.0, 0.0, 1.0, 12.0)
    made = replace(evaluated.compared(), broken=(gone,), num_broken=1)
    part = section(render(evaluated, decide(), made), "broken")
    assert "a thing" in part and "looked for" not in part
    assert "rank 1 with version 6 → rank 12 with version 7" in part


def test_reading_stops_when_all_that_is_shown_is_there(
    evaluated: Evaluated, comparison: Comparison
) -> None:
    wanted = render(evaluated, decide(), comparison)

    def endless() -> Any:
        yield from evaluated.samples
        raise AssertionError("read on after the last item")

    assert render(evaluated, decide(), comparison, samples=endless()) == wanted


def test_hostile_words_stay_words(evaluated: Evaluated) -> None:
    found = evaluated.compared()
    hostile = next(s for s in evaluated.samples if HOSTILE in s.captions)
    change = Change(HEADLINE, f"{hostile.item_id}: {HOSTILE}", hostile.item_id, 1.0, 0.0, 1.0, 30.0)
    row = make_difference(column=HOSTILE, value=HOSTILE)
    made = replace(found, broken=(change,), slices=(row,), left_out=((HOSTILE, 3),), num_broken=1)
    html = render(
        evaluated, decide(text=HOSTILE), made, protected=(HOSTILE,), facts=[(HOSTILE, HOSTILE)]
    )
    page = parse(html)
    assert "script" not in page.tags and page.handlers == []
    assert all(source.startswith("data:") for source in page.sources)
    assert html.count("</style>") == 1 and html.partition("</head>")[0].count("</title>") == 1
    assert "{{ 7 * 7 }}" in html
    assert html.count("&lt;script&gt;alert(1)") >= 6


def test_the_same_inputs_make_the_same_bytes(evaluated: Evaluated, comparison: Comparison) -> None:
    assert render(evaluated, decide(), comparison) == render(evaluated, decide(), comparison)


def test_a_report_without_a_place_or_without_words_is_refused(
    evaluated: Evaluated, tmp_path: Path
) -> None:
    folder = tmp_path / "evaluation"
    shutil.copytree(evaluated.challenger, folder)
    report = folder / "report.html"
    report.write_text(render(evaluated, decide(), None))  # has its verdict already
    with pytest.raises(DataError, match=r"report.html has no place for a verdict"):
        render(evaluated, decide(), None, evaluation=folder)
    report.unlink()
    with pytest.raises(DataError, match=r"report.html cannot be read") as caught:
        render(evaluated, decide(), None, evaluation=folder)
    assert caught.value.hint == "evaluate the model again with this coembed"


def test_metrics_in_words() -> None:
    assert metric_words(HEADLINE) == "Text → image, Recall@10"
    assert metric_words("zero_shot/kind/top_1") == "Zero-shot: kind, Top-1 accuracy"
    assert metric_words("attribute_queries/a_b/precision_at_1") == (
        "Attribute queries: a b, Precision@1"
    )


def test_each_models_own_interval_stands_below_its_score(
    evaluated: Evaluated, comparison: Comparison
) -> None:
    table = section(render(evaluated, decide(), comparison), "against")
    row = table.partition("Text → image, Recall@10")[2].partition("</tr>")[0]
    cells = re.findall(r'<td class="num">[\d.]+ %<span class="detail">([^<]*)</span>', row)
    expected = [
        interval(tuple(read_json(folder / INTERVALS, what="intervals")[HEADLINE]), is_share=True)
        for folder in (evaluated.champion, evaluated.challenger)
    ]
    assert cells == expected and all(" to " in cell for cell in cells)


@pytest.mark.parametrize("content", ["[]", '{"a/b/c": 3}', '{"a/b/c": [1, "x"]}', "{"])
def test_damaged_intervals_are_named(
    evaluated: Evaluated, comparison: Comparison, tmp_path: Path, content: str
) -> None:
    folder = tmp_path / "evaluation"
    shutil.copytree(evaluated.champion, folder)
    (folder / INTERVALS).write_text(content)
    with pytest.raises(DataError, match=r"intervals\.json"):
        render(evaluated, decide(), comparison, champion=folder)
