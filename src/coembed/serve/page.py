"""The search page at `/`: one HTML document with its style, script and icons inside.

It lies in parts in search_page/ and is put together here; nothing is built, and a browser asks
for nothing but the API. The policy lets only what bears the answer's own nonce run, loads nothing
from elsewhere, and forbids the script to turn any text into markup (Trusted Types), so that a
caption is shown as it is written.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

# In this order they are one script.
SCRIPTS = (
    "dom.js",
    "api.js",
    "query.js",
    "player.js",
    "release.js",
    "filters.js",
    "mix.js",
    "uploads.js",
    "labels.js",
    "grid.js",
    "details.js",
    "search.js",
)


def render(nonce: str) -> str:
    """The page; its style and script bear `nonce`, which must be new for every answer."""
    return _page().replace("{{nonce}}", nonce)


def POLICY(nonce: str) -> str:  # noqa: N802
    """The Content-Security-Policy to send the page with."""
    return (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
        "img-src 'self' data: blob:; media-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


@cache
def _page() -> str:
    """The page without its nonces."""
    folder = files("coembed.serve") / "search_page"

    def read(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    script = "\n".join(f"// {name}\n{read(name)}" for name in SCRIPTS)
    return read("page.html").replace("{{style}}", read("page.css")).replace("{{script}}", script)
