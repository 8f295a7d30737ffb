"""The evaluation report and the page of a decision in Chromium, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from verdict_case import HOSTILE, Evaluated, decide, make_evaluated

from coembed.evaluation.verdict_page import render_verdict

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no Chromium")

WIDTHS = (1280, 420)


@dataclass
class Opened:
    """A page and whatever it complained about or asked of elsewhere."""

    page: Any
    trouble: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    return make_evaluated(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def pages(evaluated: Evaluated, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report, a refusal with hostile words, and the page of a first version."""
    folder = tmp_path_factory.mktemp("html")
    common: dict[str, Any] = {
        "evaluation": evaluated.challenger,
        "samples": evaluated.samples,
        "settings": evaluated.cfg.evaluate,
        "protected": ("composition",),
    }
    refused = render_verdict(
        decide(text=f"{HOSTILE} {'x' * 300}"),
        champion=evaluated.champion,
        comparison=evaluated.compared(leave_out=2),
        facts=[("run", "0123456789abcdef" * 8), (HOSTILE, HOSTILE)],
        **common,
    )
    first = render_verdict(
        decide("passed", champion=None), champion=None, comparison=None, **common
    )
    (folder / "refused.html").write_text(refused, encoding="utf-8")
    (folder / "first.html").write_text(first, encoding="utf-8")
    return {
        "report": evaluated.challenger / "report.html",
        "refused": folder / "refused.html",
        "first": folder / "first.html",
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as player:
        chromium = player.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield chromium
        chromium.close()


def open_page(browser: Any, path: Path, *, width: int) -> Opened:
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
    opened = Opened(context.new_page())
    opened.page.on("console", lambda message: opened.trouble.append(message.text))
    opened.page.on("pageerror", lambda error: opened.trouble.append(str(error)))
    opened.page.on("dialog", lambda dialog: opened.trouble.append(f"dialog {dialog.message}"))
    own = path.as_uri()
    opened.page.on(
        "request",
        lambda asked: (
            None if asked.url.startswith((own, "data:")) else opened.trouble.append(asked.url)
        ),
    )
    opened.page.goto(own)
    return opened


@pytest.mark.parametrize("name", ["report", "refused", "first"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_opens_offline_without_a_word_and_fits_the_screen(
    browser: Any, pages: dict[str, Path], name: str, width: int
) -> None:
    opened = open_page(browser, pages[name], width=width)
    page = opened.page
    # All that is folded away has to fit as well.
    page.evaluate("() => document.querySelectorAll('details').forEach(one => one.open = true)")
    sizes = page.evaluate(
        "() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert sizes[0] <= sizes[1], sizes
    pictures = page.evaluate(
        "() => Promise.all([...document.images].map(one => one.decode()))"
        ".then(() => document.images.length)"
    )
    assert pictures > 20
    assert opened.trouble == []


def test_a_refusal_is_read_at_a_glance(browser: Any, pages: dict[str, Path]) -> None:
    page = open_page(browser, pages["refused"], width=1280).page
    title = page.locator("h1").first
    assert title.inner_text() == page.title() == "Version 7 is refused"
    place = title.bounding_box()
    assert place["y"] < 120 and place["height"] > 36  # at the top, in large words
    red = page.evaluate("() => getComputedStyle(document.querySelector('h1')).color")
    assert red == "rgb(179, 56, 44)"
    assert page.locator("#gates tbody tr").count() == 3
    assert page.locator("#against svg circle").first.is_visible()
    assert page.locator("#broken article").count() >= 1
    # The evaluation follows, with its pictures, sounds and charts.
    assert page.locator("h1").nth(1).inner_text() == "How well does this model search?"
    assert page.locator("audio").count() > 0
    for name in ("robustness", "confidence", "geometry", "learned", "data", "lineage"):
        assert page.locator(f"#{name}").count() == 1, name


def test_links_within_the_page_lead_somewhere(browser: Any, pages: dict[str, Path]) -> None:
    page = open_page(browser, pages["refused"], width=1280).page
    lost = page.evaluate(
        "() => [...document.querySelectorAll('a')].map(one => one.getAttribute('href'))"
        ".filter(to => !to.startsWith('#') || !document.getElementById(to.slice(1)))"
    )
    assert lost == []
    twice = page.evaluate(
        "() => { const ids = [...document.querySelectorAll('[id]')].map(one => one.id);"
        " return ids.filter((id, place) => ids.indexOf(id) !== place); }"
    )
    assert twice == []


def test_whiskers_enclose_their_bars(browser: Any, pages: dict[str, Path]) -> None:
    page = open_page(browser, pages["report"], width=1280).page
    ends = page.evaluate(
        "() => [...document.querySelectorAll('#figures .meter')].map(meter => ["
        "meter.querySelector('s').getBoundingClientRect().left,"
        "meter.querySelector('i').getBoundingClientRect().right,"
        "meter.querySelector('s').getBoundingClientRect().right])"
    )
    assert len(ends) > 5
    for low, score, high in ends:
        assert low - 2.5 <= score <= high + 2.5


def test_a_page_that_asks_elsewhere_is_seen_to(browser: Any, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text('<img src="https://example.org/x.png"><script>console.log("ran")</script>')
    opened = open_page(browser, page, width=420)
    opened.page.wait_for_timeout(100)
    assert "ran" in opened.trouble
    assert "https://example.org/x.png" in opened.trouble


def test_the_printed_page_has_everything(
    browser: Any, pages: dict[str, Path], tmp_path: Path
) -> None:
    page = open_page(browser, pages["first"], width=1280).page
    page.emulate_media(media="print")
    assert not page.locator("nav").first.is_visible()
    assert page.locator("h1").first.is_visible()
    printed = page.pdf(path=str(tmp_path / "page.pdf"))
    assert printed.startswith(b"%PDF") and len(printed) > 20_000


def test_words_wrap_however_long(browser: Any, evaluated: Evaluated, tmp_path: Path) -> None:
    long = "w" * 600
    page = render_verdict(
        replace(decide(text=long), reason=long),
        evaluation=evaluated.challenger,
        champion=None,
        comparison=None,
        samples=[],
        settings=evaluated.cfg.evaluate,
        facts=[(long, long)],
    )
    (tmp_path / "long.html").write_text(page, encoding="utf-8")
    opened = open_page(browser, tmp_path / "long.html", width=420)
    sizes = opened.page.evaluate(
        "() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert sizes[0] <= sizes[1]
