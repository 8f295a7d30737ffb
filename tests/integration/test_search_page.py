"""The search page in Chromium, on the real service: words, filters, mixes, dropped things, keys."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import evaluated_pairs
import pytest
from served_shop import make_shop, serve

from coembed.config import Config, parse_config
from coembed.index.opening import open_index
from coembed.pairs.shards import read_samples
from coembed.serve import page as search_page
from coembed.serve.limits import Access
from coembed.services import Services
from coembed.types import Sample

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no Chromium"),
]

MARKUP = "<img src=x onerror=alert(1)><b>a red square</b><script>alert(2)</script>"


# Of our own, so that it is known which scores are poor.
def _spread(low: float, high: float) -> dict[str, Any]:
    return {"quantiles": [low + (high - low) * i / 100 for i in range(101)], "num": 60}


CALIBRATION = {"version": 1, "text": {"image": _spread(0.55, 0.85), "audio": _spread(-1, 1)}}
DROP = """([data, name, type, how]) => {
  const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name, {type}));
  if (how === 'paste') {
    document.activeElement.dispatchEvent(
      new ClipboardEvent('paste', {clipboardData: dataTransfer, bubbles: true, cancelable: true}));
    return [];
  }
  const seen = [];
  for (const kind of ['dragenter', 'dragover', 'drop']) {
    document.body.dispatchEvent(
      new DragEvent(kind, {dataTransfer, bubbles: true, cancelable: true}));
    seen.push(document.body.classList.contains('dropping'));
  }
  return seen;
}"""


@dataclass(frozen=True)
class Shop:
    """A served project: what it was made of, and where it answers."""

    root: Path
    cfg: Config
    services: Services
    address: str = ""

    def sample(self, modality: str, **attributes: str) -> Sample:
        """Some item with those attributes."""
        for sample in read_samples(self.root / "pairs", "train"):
            if (
                sample.modality == modality
                and attributes.items() <= dict(sample.attributes).items()
            ):
                return sample
        raise LookupError(f"no {modality} has {attributes}")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Three hundred shapes and a hundred noises with a promoted model; one caption is markup."""
    plain = evaluated_pairs.catalogue

    def with_markup(num: int, *, seed: int) -> list[Sample]:
        items = plain(num, seed=seed)
        if seed == 0:
            place = next(i for i, item in enumerate(items) if item.attributes["colour"] == "red")
            items[place] = replace(items[place], captions=(MARKUP, MARKUP))
        return items

    root = tmp_path_factory.mktemp("shop")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluated_pairs, "catalogue", with_markup)
        cfg, services = make_shop(root)
    index = open_index(services, cfg.index)
    (name,) = index.collections()
    index.set_metadata(name, {"calibration": CALIBRATION})
    index.close()
    return Shop(root, cfg, services)


@contextmanager
def serving(
    shop: Shop, *, port: int = 0, access: Access | None = None, **limits: Any
) -> Iterator[Shop]:
    """The service of a project, with other limits."""
    values = shop.cfg.model_dump(mode="json", by_alias=True)
    serve_settings = {**values.get("serve", {}), "rate_per_s": 1000, "burst": 5000, **limits}
    cfg = parse_config({**values, "serve": serve_settings})
    with serve(cfg, shop.root, shop.services, access=access, port=port) as (address, _):
        yield replace(shop, address=address)


@pytest.fixture(scope="module")
def shop(project: Shop) -> Iterator[Shop]:
    with serving(project) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as player:
        chromium = player.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield chromium
        chromium.close()


class Visit:
    """The page in a browser, and whatever it complains about or asks of other hosts."""

    def __init__(self, browser: playwright.Browser, address: str, **context: Any) -> None:
        self.context = browser.new_context(
            **{"viewport": {"width": 1200, "height": 800}, **context}
        )
        self.page = self.context.new_page()
        self.trouble: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.page.on("console", lambda message: self.trouble.append(message.text))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("dialog", lambda dialog: self.trouble.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self._note(request, address))
        self.address = address

    def _note(self, request: Any, address: str) -> None:
        if not request.url.startswith((address, "data:", f"blob:{address}")):
            self.trouble.append(request.url)
        if request.method == "POST" and request.url.endswith("/search"):
            self.asked.append(json.loads(request.post_data))

    def open(self, query: str = "") -> Visit:
        self.page.goto(f"{self.address}/{query}")
        self.settle()
        return self

    def settle(self) -> None:
        """Wait for the answer to the last change."""
        self.until("!document.body.classList.contains('busy')")

    def until(self, condition: str) -> None:
        """Wait in our own way: Playwright's has the page read strings as code, which it refuses."""
        wait_until(lambda: self.page.evaluate(condition), condition, self)

    def search(self, text: str) -> None:
        self.page.fill("#text", text)
        self.change(lambda: self.page.press("#text", "Enter"))

    def change(self, act: Callable[[], Any]) -> None:
        """Do what asks for an answer, and wait for the answer."""
        with self.page.expect_response(lambda answer: answer.url.endswith("/search")):
            act()
        self.settle()

    def texts(self, selector: str) -> list[str]:
        return [text.strip() for text in self.page.locator(selector).all_text_contents()]

    def shown(self) -> list[str]:
        """The ids of the hits."""
        found: list[str] = self.page.evaluate(
            "[...document.querySelectorAll('#grid .card')].map(card => card.dataset.id)"
        )
        return found

    def focused(self, attribute: str = "id") -> str:
        return str(self.page.evaluate(f"document.activeElement.getAttribute('{attribute}') || ''"))

    def give(self, sample: Sample, *, name: str, how: str = "drop") -> list[bool]:
        """Drop or paste a file."""
        kind = {"jpg": "image/jpeg", "wav": "audio/wav"}[sample.extension]
        data = base64.b64encode(sample.media).decode()
        seen: list[bool] = []
        self.change(lambda: seen.extend(self.page.evaluate(DROP, [data, name, kind, how])))
        return seen

    def close(self, *, trouble: tuple[str, ...] = ()) -> None:
        """End the visit; nothing but the expected trouble was there."""
        left = [line for line in self.trouble if not any(known in line for known in trouble)]
        self.context.close()
        assert left == []


def wait_until(holds: Callable[[], Any], what: str, visit: Visit) -> None:
    for _ in range(300):
        if holds():
            return
        visit.page.wait_for_timeout(50)
    raise AssertionError(f"still not so: {what}; said so far: {visit.trouble}")


def test_a_query_finds_and_the_address_keeps_it(shop: Shop, browser: playwright.Browser) -> None:
    visit = Visit(browser, shop.address).open()
    page = visit.page
    assert visit.focused() == "text"
    assert "300 pictures and 100 sounds" in (page.text_content("#subline") or "")
    assert re.search(
        r"version 1\s*Recall@10 [01][.\d]*\s*300 pictures", page.text_content("#foot") or ""
    )
    shelf = visit.shown()
    assert len(shelf) == len(set(shelf)) == 12 and page.locator(".example").count() > 0

    visit.change(lambda: page.fill("#text", "a green square"))  # Enter is not needed
    visit.change(lambda: page.press("#text", "Enter"))
    assert "q=a+green+square" in page.url and page.title().startswith("a green square")
    captions = visit.texts(".card .caption")
    assert len(captions) == 24 and sum("green" in caption for caption in captions[:8]) >= 6
    assert {"Strong match", "Good match", "Fair match"} & set(visit.texts(".match span:last-child"))
    assert "square" in visit.texts(".card .facts span")
    assert "24 hits" in (page.text_content("#status") or "")
    visit.until("document.querySelector('.card img').naturalWidth > 0")

    first = visit.shown()
    visit.change(lambda: page.click("#more"))
    assert visit.shown()[:24] == first and len(set(visit.shown())) == 48
    visit.search("a low beep")
    assert "q=a+low+beep" in page.url
    visit.change(page.go_back)
    assert page.input_value("#text") == "a green square" and visit.shown() == first
    visit.change(page.go_back)
    assert page.input_value("#text") == "" and visit.page.is_visible("#subline")
    visit.close()


def test_filters_are_chips_and_come_off_again(shop: Shop, browser: playwright.Browser) -> None:
    visit = Visit(browser, shop.address).open("?q=a+disc")
    page = visit.page
    assert visit.texts("#modality button") == ["All", "Pictures", "Sounds"]
    page.click("[data-column=colour]")
    counts = dict(zip(visit.texts(".value .name"), visit.texts(".value .count"), strict=True))
    assert set(counts) == {"red", "green", "blue", "grey"} and sum(map(int, counts.values())) == 300
    visit.change(lambda: page.check(".value[data-value=blue] input"))
    visit.change(lambda: page.check(".value[data-value=grey] input"))
    assert visit.asked[-1]["filters"] == ["colour=blue,grey"] and "f=colour" in page.url
    page.keyboard.press("Escape")
    assert visit.focused("data-column") == "colour"
    wait_until(lambda: page.locator(".surface").count() == 0, "closed", visit)
    assert "Colour: blue, grey" in visit.texts("#filters .chip")

    page.click("[data-column=price]")
    visit.change(lambda: page.fill(".fields input >> nth=1", "90"))
    assert visit.asked[-1]["filters"] == ["colour=blue,grey", "price<=90"]
    page.keyboard.press("Escape")
    facts = visit.texts(".card .facts")
    assert facts and all(re.search("blue|grey", fact) for fact in facts)
    visit.change(lambda: page.click("[aria-label='Remove the filter Price up to 90']"))
    assert visit.asked[-1]["filters"] == ["colour=blue,grey"]
    assert visit.focused("data-column") == "price"

    visit.change(lambda: page.click("#modality [data-kind=audio]"))
    assert visit.asked[-1]["modality"] == "audio"
    assert page.text_content("#notice h2") == "Nothing found" and visit.shown() == []
    visit.change(lambda: page.click("#notice .off"))
    assert page.is_hidden("#notice") and page.locator(".card.audio").count() == 24
    visit.change(lambda: page.press("#modality [data-kind=audio]", "ArrowLeft"))
    assert visit.asked[-1]["modality"] == "image" and visit.focused("data-kind") == "image"
    visit.close()


def test_more_and_not_like_this_build_a_mix(shop: Shop, browser: playwright.Browser) -> None:
    visit = Visit(browser, shop.address).open("?q=a+square")
    page = visit.page
    liked = visit.shown()[2]
    page.hover(f"[data-id='{liked}'] .frame")
    visit.change(lambda: page.click(f"[data-id='{liked}'] .tool.more"))
    assert visit.asked[-1]["query"] == [
        {"text": "a square", "weight": 1}, {"item": liked, "weight": 1},
    ]  # fmt: skip
    assert page.locator("#mix .term").count() == 2 and page.locator("#mix .term img").count() == 1
    assert page.locator(".card .earned").count() == 24

    visit.search('a square -grey +"a ring"')
    assert page.input_value("#text") == "a square"
    assert visit.asked[-1]["query"][2:] == [
        {"text": "grey", "weight": -0.5}, {"text": "a ring", "weight": 1},
    ]  # fmt: skip
    assert page.locator("#mix .term.away").count() == 1
    visit.change(lambda: page.locator("#mix .away input").press("ArrowRight"))
    assert visit.asked[-1]["query"][2]["weight"] == -0.6
    assert page.locator("#mix .away output").text_content() == "×0.6"
    visit.change(lambda: page.click("#mix .away .sign"))
    assert visit.asked[-1]["query"][2]["weight"] == 0.6
    mixed, address = visit.shown(), page.url

    page.fill("#text", "blue")
    visit.change(lambda: page.click("#away"))
    assert page.input_value("#text") == ""
    assert visit.asked[-1]["query"][-1] == {"text": "blue", "weight": -0.5}

    page.click(".card:nth-child(1) .open")
    parts = visit.texts("#details .parts .name")
    assert parts[-1] == "not blue" and any(part.startswith("like ") for part in parts)
    shares = [float(text.replace("−", "-").strip("%")) for text in visit.texts(".parts .share")]
    assert len(shares) == 4 and 96 <= sum(map(abs, shares)) <= 104
    visit.change(lambda: page.keyboard.press("n"))
    assert visit.asked[-1]["query"][-1]["weight"] == -0.5 and page.is_hidden("#details")

    other = Visit(browser, shop.address).open(address.partition("/?")[2].join(["?", ""]))
    assert other.shown() == mixed  # a mix of words and items can be passed on
    wait_until(lambda: any("like" in text for text in other.texts("#mix .term")), "named", other)
    other.close()
    visit.change(lambda: page.click("#mix > .quiet"))
    assert page.is_hidden("#mix") and len(visit.shown()) == 12
    visit.close()


def test_a_dropped_picture_is_searched_with_and_labelled(
    shop: Shop, browser: playwright.Browser
) -> None:
    sample = shop.sample("image", colour="blue", shape="disc")
    visit = Visit(browser, shop.address).open()
    page = visit.page
    assert visit.give(sample, name="mine.jpg") == [True, True, False]
    assert visit.asked[-1]["query"] == [
        {"image": base64.b64encode(sample.media).decode(), "weight": 1}
    ]
    assert visit.shown()[0] == sample.item_id
    assert "mine.jpg" in visit.texts("#mix .term .words") and page.is_visible("#labels img")
    page.wait_for_selector("#labels .said li .name")
    page.click("#labels-edit")
    page.select_option("#labels-column", "colour")
    wait_until(
        lambda: set(visit.texts("#labels .said .name")) <= {"red", "green", "blue", "grey"},
        "colours",
        visit,
    )
    assert visit.texts("#labels .first .name") == ["blue"]
    shares = visit.texts("#labels .said .share")
    assert len(shares) == 4 and all(share.endswith("%") for share in shares)

    page.click("#labels-none")
    page.fill("#labels-new", "a blue disc, a red bar")
    page.press("#labels-new", "Enter")
    wait_until(lambda: visit.texts("#labels .first .name") == ["a blue disc"], "own labels", visit)
    page.click("[aria-label='Remove the label a red bar']")
    assert "at least two labels" in (page.text_content("#labels") or "")

    page.reload()
    visit.settle()
    assert visit.shown()[0] == sample.item_id  # kept for this tab
    address = page.url
    stranger = Visit(browser, shop.address).open(f"?{address.partition('?')[2]}")
    assert "not part of a link" in (stranger.page.text_content("#toasts") or "")
    assert len(stranger.shown()) == 12
    stranger.close()

    page.click("#text")
    red = shop.sample("image", colour="red", shape="bar")
    visit.give(red, name="image.jpg", how="paste")
    assert visit.shown()[0] == red.item_id and page.locator("#mix .term").count() == 1
    page.evaluate(
        DROP, [base64.b64encode(b"%PDF-1.7").decode(), "a.pdf", "application/pdf", "drop"]
    )
    wait_until(
        lambda: "a.pdf is not a picture or a sound" in (page.text_content("#toasts") or ""),
        "said",
        visit,
    )
    with page.expect_file_chooser() as chooser:
        page.click("#upload")
    broken = {"name": "broken.jpg", "mimeType": "image/jpeg", "buffer": b"\xff\xd8 no picture"}
    visit.change(lambda: chooser.value.set_files(files=[broken]))
    assert page.text_content("#notice h2") == "That search cannot be done"
    assert len(page.text_content("#notice p") or "") > 10
    visit.close(trouble=("422",))  # Chromium tells the console of every 4xx


def test_one_sound_plays_at_a_time(shop: Shop, browser: playwright.Browser) -> None:
    visit = Visit(browser, shop.address).open("?q=a+low+beep&in=audio")
    page = visit.page
    visit.until("document.querySelectorAll('.wave.here').length === 24")
    page.click(".card:nth-child(1) .play")
    visit.until("document.querySelector('.card:nth-child(1) .play.playing') !== null")
    page.click(".card:nth-child(2) .play")
    visit.until("document.querySelector('.card:nth-child(2) .play.playing') !== null")
    assert page.locator(".play.playing").count() == 1
    visit.until("document.querySelectorAll('.play.playing').length === 0")  # it has an end

    sound = shop.sample("audio", noise="clicks", pitch="high")
    visit.give(sound, name="mine.wav")
    assert sound.item_id in visit.shown()[:5]  # many sound nearly the same
    assert page.text_content("#labels h2") == "What is heard"
    page.click("#labels .play")
    visit.until("document.querySelector('#labels .play.playing') !== null")
    visit.close()


def test_everything_can_be_done_with_keys(shop: Shop, browser: playwright.Browser) -> None:
    visit = Visit(browser, shop.address).open("?q=a+red+bar")
    page = visit.page
    hits = visit.shown()
    page.keyboard.press("ArrowDown")
    assert visit.focused("data-place") == "0"
    page.keyboard.press("ArrowRight")
    assert visit.focused("data-place") == "1"
    outline = page.evaluate("getComputedStyle(document.activeElement).boxShadow")
    assert outline != "none"
    page.keyboard.press("ArrowDown")
    across = int(visit.focused("data-place")) - 1
    assert across > 1
    page.keyboard.press("ArrowUp")
    assert visit.focused("data-place") == "1"

    page.keyboard.press("Enter")
    assert page.is_visible("#details") and f"item={hits[1]}" in page.url
    page.keyboard.press("ArrowRight")
    assert "3 of 24" in (page.text_content("#details .place") or "") and hits[2] in page.url
    page.keyboard.press("Escape")
    wait_until(
        lambda: visit.focused("data-place") == "2" and "item=" not in page.url, "back", visit
    )
    page.keyboard.press("Enter")
    page.go_back()
    wait_until(lambda: page.is_hidden("#details"), "closed by the way back", visit)
    wait_until(lambda: visit.focused("data-place") == "2", "back at the hit", visit)

    page.focus(".card:nth-child(4) .open")
    visit.change(lambda: page.keyboard.press("m"))
    assert visit.asked[-1]["query"][-1] == {"item": hits[3], "weight": 1}
    assert visit.focused("data-place") == "0"
    page.keyboard.press("Tab")
    assert "More like this" in visit.focused("aria-label")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Escape")
    assert visit.focused() == "text"
    page.keyboard.press("Tab")
    page.focus("#brand")
    page.keyboard.press("?")
    assert page.is_visible("#keys")
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    assert visit.focused() == "text" and page.input_value("#text") == "a red bar"
    page.focus("[data-column=shape]")
    page.keyboard.press("Enter")
    visit.change(lambda: page.keyboard.press("Space"))
    assert visit.asked[-1]["filters"][0].startswith("shape=")
    page.keyboard.press("Escape")
    assert visit.focused("data-column") == "shape"
    visit.close()


def test_dark_mode_follows_the_system_and_is_remembered(
    shop: Shop, browser: playwright.Browser
) -> None:
    def luminance(visit: Visit) -> float:
        colour = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3

    visit = Visit(browser, shop.address, color_scheme="dark").open()
    assert luminance(visit) < 60 and visit.page.get_attribute("#theme", "aria-pressed") == "true"
    visit.page.click("#theme")
    assert luminance(visit) > 200
    visit.page.reload()
    visit.settle()
    assert luminance(visit) > 200
    visit.close()


def test_a_phone_needs_no_sideways_scrolling(shop: Shop, browser: playwright.Browser) -> None:
    visit = Visit(
        browser, shop.address, viewport={"width": 360, "height": 740}, has_touch=True,
        is_mobile=True,
    )  # fmt: skip
    page = visit.page
    liked = shop.sample("image", colour="grey").item_id
    addresses = (
        "", "?q=a+green+square&f=colour=red,green&f=price<=90&in=image",
        f"?q=a+long+query+of+many+words&mix=-0.5:text:something+that+is+long&mix=1:item:{liked}",
        f"?q=a+square&item={liked}",
    )  # fmt: skip
    for address in addresses:
        visit.open(address)
        if "item=" in address:
            page.wait_for_selector("#details[open]")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, address
        wide = page.evaluate(
            "[...document.querySelectorAll('header *, #mix *, #notice *, #grid *, #details *')]"
            ".filter(one => !one.closest('.facts'))"  # cut off with an ellipsis
            ".filter(one => one.getBoundingClientRect().right > 361).map(one => one.className)"
        )
        assert wide == [], address
    page.keyboard.press("Escape")
    page.locator("[data-column=colour]").scroll_into_view_if_needed()
    page.tap("[data-column=colour]")
    box = page.locator(".surface.sheet").bounding_box()
    assert box is not None and box["width"] == 360
    page.wait_for_timeout(400)
    box = page.locator(".surface.sheet").bounding_box()
    assert box is not None and box["y"] + box["height"] == pytest.approx(740, abs=2)
    tools = page.locator(".card .tool").first.bounding_box()
    assert tools is not None and min(tools["width"], tools["height"]) >= 36
    visit.close()


def test_markup_in_a_caption_is_text(shop: Shop, browser: playwright.Browser) -> None:
    marked = next(s for s in read_samples(shop.root / "pairs", "train") if s.captions[0] == MARKUP)
    visit = Visit(browser, shop.address).open(f"?q=red&f=path={marked.path}")
    page = visit.page
    assert visit.shown() == [marked.item_id]
    assert visit.texts(".card .caption") == [MARKUP]
    page.click(".card .open")
    assert page.text_content("#details h2") == MARKUP
    visit.change(lambda: page.keyboard.press("m"))
    wait_until(lambda: any("<img" in text for text in visit.texts("#mix .term")), "chip", visit)
    assert page.locator("#grid b, #grid script, #mix b, #notice script").count() == 0
    visit.search(MARKUP)
    assert page.locator("main script").count() == 0
    visit.close()


def test_nothing_that_matches_well_is_said(shop: Shop, browser: playwright.Browser) -> None:
    visit = Visit(browser, shop.address).open("?q=a+red+square&f=colour=blue&f=shape=ring")
    page = visit.page
    answer = page.evaluate(
        "fetch('/search', {method: 'POST', headers: {'content-type': 'application/json'},"
        " body: JSON.stringify({text: 'a red square', filters: ['colour=blue', 'shape=ring']})})"
        ".then(answer => answer.json())"
    )
    assert answer["nothing_matches_well"] is True and answer["hits"]
    assert page.text_content("#notice h2") == "Nothing matches well"
    assert page.text_content("#count") == "The nearest, all the same"
    assert page.locator("#grid.dim .card").count() == len(answer["hits"])
    assert set(visit.texts(".match span:last-child")) == {"Weak match"}
    assert "Nothing matches well" in (page.text_content("#status") or "")
    visit.change(lambda: page.click("#notice .off >> nth=0"))
    assert visit.asked[-1]["filters"] == ["shape=ring"]
    visit.change(lambda: page.click("[aria-label^='Remove the filter'] >> nth=0"))
    assert page.is_hidden("#notice") and page.locator("#grid.dim").count() == 0
    visit.close()


def test_a_key_is_asked_for_and_serves_for_media_too(
    project: Shop, browser: playwright.Browser
) -> None:
    with serving(project, access=Access(api_key="sesame")) as shop:
        visit = Visit(browser, shop.address)
        page = visit.page
        page.goto(f"{shop.address}/?q=a+red+square")
        page.wait_for_selector("#key[open]")
        page.fill("#key-value", "wrong")
        page.press("#key-value", "Enter")
        wait_until(lambda: "not accepted" in (page.text_content("#key-why") or ""), "wrong", visit)
        page.fill("#key-value", "sesame")
        page.press("#key-value", "Enter")
        page.wait_for_selector(".card .open")
        visit.until("document.querySelector('.card img').naturalWidth > 0")
        assert page.evaluate("Object.values(sessionStorage)") == ["sesame"]
        assert page.evaluate("Object.values(localStorage)") == []
        page.reload()
        visit.settle()
        assert len(visit.shown()) == 24 and page.locator("#key[open]").count() == 0
        visit.close(trouble=("401",))


def test_a_busy_and_a_vanished_service_are_tried_again(
    project: Shop, browser: playwright.Browser
) -> None:
    with serving(project, rate_per_s=0.3, burst=3) as shop:
        port = int(shop.address.rpartition(":")[2])
        visit = Visit(browser, shop.address)
        page = visit.page
        page.goto(f"{shop.address}/?q=a+red+square")  # its pictures use up what is allowed
        page.wait_for_selector(".card .open")
        for _ in range(10):
            page.fill("#text", "a blue square")
            page.press("#text", "Enter")
            visit.settle()
            if page.text_content("#notice") or "":
                break
        assert page.text_content("#notice h2") == "Many are searching just now"
        wait_until(lambda: page.is_hidden("#notice") and visit.shown(), "tried again", visit)
        assert "blue" in visit.texts(".card .caption")[0]
        visit.settle()
    page.fill("#text", "a grey bar")
    page.press("#text", "Enter")
    page.wait_for_selector("#notice.wrong")
    assert page.text_content("#notice h2") == "The service is away"
    assert "Trying again" in (page.text_content("#notice") or "")
    with serving(project, port=port):
        wait_until(lambda: page.is_hidden("#notice") and visit.shown(), "back again", visit)
        assert "grey" in visit.texts(".card .caption")[0]
    visit.close(trouble=("429", "ERR_CONNECTION", "Failed to load resource"))


def test_another_release_is_noticed_quietly(project: Shop, browser: playwright.Browser) -> None:
    """The last test: the project has another release after it."""
    from coembed.stages import embed, index, promote
    from coembed.stages.evaluations import Places

    with serving(project) as shop:
        visit = Visit(browser, shop.address).open("?q=a+red+square")
        page = visit.page
        assert "300 pictures and 100 sounds" in (page.text_content("#foot") or "")
        root, runs, pairs = shop.root, shop.root / "runs", shop.root / "pairs-2"
        fewer = evaluated_pairs.catalogue(90, seed=2)
        evaluated_pairs.write_pairs(pairs, train=fewer)
        for item in fewer:
            (root / "data" / item.path).write_bytes(item.media)
        embed.run(shop.cfg, model=root / "model", pairs=pairs, out=root / "embeddings-2", runs=runs)
        collection = index.run(
            shop.cfg, services=shop.services, embeddings=root / "embeddings-2", version=1,
            out=runs / "index-2.json",
        ).receipt["collection"]  # fmt: skip
        promote.run(
            shop.cfg, services=shop.services,
            places=Places(root / "evaluation", root / "pairs", runs), version=1,
            collection=collection, by="Ada", why="fewer items", force=True,
            out=runs / "promote-2.json",
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while "90 pictures" not in (page.text_content("#foot") or ""):
            assert time.monotonic() < deadline, "the page never noticed"
            visit.search(f"a red square {time.monotonic():.0f}")
        assert "The collection is a new one: 90 pictures" in (page.text_content("#toasts") or "")
        assert page.is_hidden("#modality") and "noise" not in visit.texts("#filters .chip")
        assert len(visit.shown()) == 24
        visit.close(trouble=("404",))  # a picture of the old release, asked for after the switch


def test_the_page_is_whole_and_its_policy_is_strict() -> None:
    html, policy = search_page.render("n0nce"), search_page.POLICY("n0nce")
    assert "{{" not in html and html.count('nonce="n0nce"') == 3
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", html)
    assert "innerHTML" not in html and not re.search(r"<[a-z][^>]* on[a-z]+=", html)
    directives = dict(part.strip().partition(" ")[::2] for part in policy.split(";"))
    assert directives["default-src"] == "'none'" and directives["script-src"] == "'nonce-n0nce'"
    assert directives["connect-src"] == "'self'" and "require-trusted-types-for" in directives
    assert search_page.render("another") != html
