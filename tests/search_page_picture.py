"""Take the picture of the search page that stands in the README.

    coembed serve --port 8000 &
    python tests/search_page_picture.py http://127.0.0.1:8000 docs/search-page.png

With `--query` it shows another search, as it stands in the address bar.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
QUERY = "?q=red+sneakers&mix=-0.5:text:checked&in=image"
_PATIENCE_MS = 30_000


def settle(page: Page) -> None:
    """Wait until the hits are there, their pictures too, and nothing moves any more."""
    page.wait_for_selector("#grid .card .open", timeout=_PATIENCE_MS)
    for _ in range(_PATIENCE_MS // 100):
        if page.evaluate(
            "!document.body.classList.contains('busy') && ![...document.querySelectorAll("
            "'.frame > img')].some(image => !image.classList.contains('here'))"
        ):
            break
        page.wait_for_timeout(100)
    page.wait_for_timeout(1000)  # the cards come in one after another


def main() -> None:
    reader = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    reader.add_argument("address")
    reader.add_argument("out", type=Path)
    reader.add_argument("--query", default=QUERY)
    reader.add_argument("--dark", action="store_true")
    asked = reader.parse_args()
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": 1280, "height": 860},
            color_scheme="dark" if asked.dark else "light",
        )
        page.goto(asked.address.rstrip("/") + "/" + asked.query)
        settle(page)
        page.evaluate("document.activeElement.blur()")
        page.wait_for_timeout(300)
        page.screenshot(path=str(asked.out))
        browser.close()


if __name__ == "__main__":
    main()
