"""`coembed pairs review` in Chromium: keys, the way back, the file, a reload, the end."""

from __future__ import annotations

import csv
import os
import re
import signal
import socket
import subprocess
import sys
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from curation_pools import picture
from manifests import write_curated
from typer.testing import CliRunner

from coembed.cli.pairs import pairs_app
from coembed.errors import ServiceError

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no Chromium")

PARAMS = Path(__file__).parents[2] / "params.yaml"
VERB = "from coembed.cli.pairs import pairs_app; pairs_app()"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Eight doubtful pairs, the first a sound, and three duplicates."""
    params = yaml.safe_load(PARAMS.read_text())
    params["curate"] = {"filters": ["image_size", "exact_duplicate"]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    media = tmp_path / "data" / "media"
    media.mkdir(parents=True)
    for i in range(8):
        (media / f"{i}.jpg").write_bytes(picture(i, size=(120, 90)))
    with wave.open(str(media / "0.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 4000, "NONE", ""))
        file.writeframes(b"\0\1" * 4000)
    rows = [
        {"pair_id": f"d{i}", "path": f"media/{i}.jpg", "doubt": 0.9 - i / 10,
         "doubt_by": "mismatched_pair"}
        for i in range(8)
    ]  # fmt: skip
    rows[0] |= {"path": "media/0.wav", "modality": "audio", "format": "WAV"}
    rows[1]["caption"] = "<img src=x onerror=alert(1)><b>bold</b>"
    rows += [
        {"pair_id": f"c{i}", "path": f"media/{i}.jpg", "drop_reason": "exact_duplicate",
         "drop_detail": "same bytes", "duplicate_of": f"d{i}"}
        for i in (3, 4, 5)
    ]  # fmt: skip
    write_curated(tmp_path / "artifacts" / "pairs", rows)
    return tmp_path


@dataclass
class Server:
    """A running `coembed pairs review`."""

    process: subprocess.Popen[str]
    url: str

    def end(self) -> str:
        """Press Ctrl-C; what was printed after the address."""
        self.process.send_signal(signal.SIGINT)
        printed, _ = self.process.communicate(timeout=20)
        return printed


@contextmanager
def serving(project: Path, *arguments: str) -> Iterator[Server]:
    """The verb in a process of its own, as a user runs it."""
    process = subprocess.Popen(
        [sys.executable, "-c", VERB, "review", "-C", str(project), "--no-browser", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        url, printed = "", ""
        assert process.stdout is not None
        for line in process.stdout:
            printed += line
            found = re.search(r"http://127\.0\.0\.1:\d+/\S+", line)
            url = found.group() if found else url
            if "Ctrl-C" in line:
                break
        assert url, printed
        yield Server(process, url)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as player:
        chromium = player.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield chromium
        chromium.close()


def open_page(browser: playwright.Browser, url: str) -> tuple[playwright.Page, list[str]]:
    """The page, and whatever it complains about or asks of other hosts from here on."""
    page = browser.new_page(viewport={"width": 1000, "height": 700})
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: trouble.append(f"dialog {dialog.message}"))
    host = url.partition("/?")[0]
    page.on(
        "request",
        lambda asked: None if asked.url.startswith((host, "data:")) else trouble.append(asked.url),
    )
    page.goto(url)
    page.wait_for_selector("#pair:not([hidden])")
    return page, trouble


def until(page: playwright.Page, condition: str) -> None:
    """Wait for a condition. (Playwright's own way evaluates strings in the page, which the page's
    policy forbids.)"""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {condition}")


def press(page: playwright.Page, key: str) -> None:
    """Press a key and wait until the server has answered."""
    with page.expect_response(lambda answer: "/api/" in answer.url):
        page.keyboard.press(key)
    until(page, "!busy")


def decisions(project: Path) -> dict[str, str]:
    """What overrides.csv says."""
    path = project / "overrides.csv"
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["pair_id"]: row["decision"] for row in csv.DictReader(file)}


def now_shown(page: playwright.Page) -> str:
    """The pair_id on the page."""
    return (page.text_content("#id") or "").partition(" ")[0]


def test_one_key_a_pair_and_the_way_back(project: Path, browser: playwright.Browser) -> None:
    with serving(project) as server:
        page, trouble = open_page(browser, server.url)
        assert "token" not in page.url
        assert now_shown(page) == "d0"
        until(page, "document.querySelector('audio').readyState >= 1")
        assert page.evaluate("document.querySelector('audio').duration") == pytest.approx(0.5)

        press(page, "k")
        assert decisions(project) == {"d0": "keep"}
        assert now_shown(page) == "d1"
        assert page.text_content("#caption") == "<img src=x onerror=alert(1)><b>bold</b>"
        until(page, "document.querySelector('.frame img').naturalWidth === 120")
        press(page, "d")
        press(page, "s")
        press(page, "ArrowRight")
        assert decisions(project) == {"d0": "keep", "d1": "drop"}
        assert now_shown(page) == "d4"
        press(page, "u")
        press(page, "z")
        press(page, "u")
        assert (decisions(project), now_shown(page)) == ({"d0": "keep"}, "d1")
        press(page, "K")
        assert decisions(project) == {"d0": "keep", "d1": "keep"}
        page.keyboard.press("Control+d")  # the browser's own key: a bookmark, not a drop
        page.wait_for_timeout(200)
        assert decisions(project) == {"d0": "keep", "d1": "keep"}

        page.reload()
        page.wait_for_selector("#pair:not([hidden])")
        assert now_shown(page) == "d2"
        assert "2 of 8 decided" in (page.text_content("#count") or "")

        for key in "kkkkdd":
            press(page, key)
        assert "8 decided: 6 keep, 2 drop" in (page.text_content("#done") or "")
        assert "coembed curate" in (page.text_content("#next") or "")
        assert page.is_hidden("#pair")
        press(page, "u")
        assert now_shown(page) == "d7"
        press(page, "d")
        page.keyboard.press("f")
        printed, _ = server.process.communicate(timeout=20)
        assert server.process.returncode == 0
        assert "8: 6 to keep, 2 to drop" in printed and "coembed curate" in printed
        assert decisions(project) == {f"d{i}": "drop" if i > 5 else "keep" for i in range(8)}
        assert trouble == []


def test_duplicates_stand_side_by_side_and_buttons_do_the_same(
    project: Path, browser: playwright.Browser
) -> None:
    with serving(project, "--reason", "exact_duplicate", "--limit", "2") as server:
        page, trouble = open_page(browser, server.url)
        first = now_shown(page)
        assert page.locator(".frame img").count() == 2
        pictures = "[...document.querySelectorAll('.frame img')]"
        until(page, f"{pictures}.every(image => image.naturalWidth === 120)")
        assert f"d{first[1]}" in (page.text_content("#stage") or "")
        assert "same bytes" in (page.text_content("#detail") or "")
        for button, said in (("#keep", {first: "keep"}), ("#undo", {})):
            with page.expect_response(lambda answer: "/api/" in answer.url):
                page.click(button)
            until(page, "!busy")
            assert decisions(project) == said
        press(page, "s")
        press(page, "s")
        with page.expect_response(lambda answer: "/api/skipped" in answer.url):
            page.click("#again")
        page.wait_for_selector("#pair:not([hidden])")
        assert now_shown(page) == first

        page.set_viewport_size({"width": 390, "height": 780})  # a phone
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        box = page.locator("#keep").bounding_box()
        assert box is not None and box["y"] + box["height"] <= 780 and box["height"] >= 44
        assert trouble == []
        printed = server.end()
    assert server.process.returncode == 0
    assert "Traceback" not in printed and "0: 0 to keep, 0 to drop" in printed


def test_ctrl_c_ends_it_with_the_page_open(project: Path, browser: playwright.Browser) -> None:
    with serving(project) as server:
        page, _ = open_page(browser, server.url)
        press(page, "d")
        printed = server.end()
        assert server.process.returncode == 0 and "Traceback" not in printed
        assert "1: 0 to keep, 1 to drop" in printed
        page.keyboard.press("k")
        page.wait_for_selector("#error:not([hidden])")
        assert "not there any more" in (page.text_content("#error") or "")
    assert decisions(project) == {"d0": "drop"}


def test_a_port_in_use_is_said_before_anything_starts(project: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        arguments = ["review", "-C", str(project), "--no-browser", "--port", str(port)]
        done = CliRunner().invoke(pairs_app, arguments)
    assert isinstance(done.exception, ServiceError) and f"port {port}" in str(done.exception)
    assert "http://" not in done.output
