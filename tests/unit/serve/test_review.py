"""The review page's server: who gets in, what is written, and the way back."""

from __future__ import annotations

import csv
import io
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from curation_pools import picture
from fastapi.testclient import TestClient
from manifests import MadeUpFilter, write_curated
from PIL import Image

from coembed.curation.overrides import read_overrides, write_decision
from coembed.curation.report.look import Manifest
from coembed.curation.settings import CurateSettings
from coembed.errors import DataError, ServiceError, UserError
from coembed.serve.decisions import Review, choose_entries
from coembed.serve.review import _bind, create_app
from coembed.serve.review_media import PairViews

TOKEN = "the-secret"
HERE = "http://127.0.0.1:8123"
POST = {"x-review-token": TOKEN}
FILTERS = {
    "mismatched_pair": MadeUpFilter(("mismatched_pair",), {"mismatched_pair_score": "float64"}),
    "near_duplicate": MadeUpFilter(("near_duplicate",), {}),
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """12 doubtful pairs, 5 near duplicates, one of them of a file that is lost."""
    rows = [
        {"pair_id": f"d{i:02d}", "path": f"media/{i}.jpg", "doubt": i / 20, "doubt_by":
         "mismatched_pair", "mismatched_pair_score": 1 - i / 20}
        for i in range(13)
    ]  # fmt: skip
    rows += [
        {"pair_id": f"n{i}", "path": f"media/{i}.jpg", "drop_reason": "near_duplicate",
         "duplicate_of": f"d0{i + 1}", "drop_detail": "<b>0.98</b> alike"}
        for i in range(5)
    ]  # fmt: skip
    rows[-1]["path"] = "media/lost.jpg"
    rows[3]["caption"] = "<script>alert(1)</script> \u202etxet"
    write_curated(tmp_path / "pairs", rows)
    (tmp_path / "pool" / "media").mkdir(parents=True)
    for i in range(13):
        (tmp_path / "pool" / "media" / f"{i}.jpg").write_bytes(picture(i, size=(90, 60)))
    return tmp_path


def review_of(project: Path, *, reason: str | None = None, limit: int = 100) -> TestClient:
    """A browser that opened the printed address."""
    with Manifest(project / "pairs" / "manifest.parquet", FILTERS) as manifest:
        entries = choose_entries(manifest, reason=reason, limit=limit)
        views = PairViews(manifest, project / "pool", CurateSettings(filters=()))
    review = Review(entries, project / "overrides.csv")
    app = create_app(review, views, token=TOKEN, title="some pairs")
    return TestClient(app, base_url=HERE)


@pytest.fixture
def page(project: Path) -> Iterator[TestClient]:
    """A browser that is let in."""
    with review_of(project) as browser:
        assert browser.get(f"/?token={TOKEN}").status_code == 200
        yield browser


def decisions(project: Path) -> dict[str, tuple[str, str]]:
    """What overrides.csv says."""
    path = project / "overrides.csv"
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["pair_id"]: (row["decision"], row["reason"]) for row in csv.DictReader(file)}


def decide(page: TestClient, pair_id: str, decision: str) -> dict[str, object]:
    """Press a key."""
    answer = page.post("/api/decide", json={"pair_id": pair_id, "decision": decision}, headers=POST)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_the_most_doubtful_pair_comes_first(page: TestClient) -> None:
    state = page.get("/api/state").json()
    assert (state["total"], state["keep"], state["drop"]) == (12, 0, 0)  # one has no doubt
    assert state["current"]["pair_id"] == "d12"
    assert state["current"]["scores"] == [["Score", "0.4"]]
    assert state["current"]["by"] == "Mismatched pair"


def test_every_decision_is_in_the_file_at_once(page: TestClient, project: Path) -> None:
    state = decide(page, "d12", "keep")
    assert decisions(project) == {"d12": ("keep", "review: keep, at doubt 0.60 by mismatched_pair")}
    assert state["current"]["pair_id"] == "d11"  # type: ignore[index]
    decide(page, "d11", "drop")
    assert {i: d for i, (d, _) in decisions(project).items()} == {"d12": "keep", "d11": "drop"}
    assert read_overrides(project / "overrides.csv").decisions.keys() == {"d12", "d11"}


def test_undo_goes_all_the_way_back(page: TestClient, project: Path) -> None:
    decide(page, "d12", "keep")
    page.post("/api/skip", json={"pair_id": "d11"}, headers=POST)
    decide(page, "d10", "drop")
    seen = []
    for _ in range(4):
        state = page.post("/api/undo", json={}, headers=POST).json()
        seen.append((state["current"]["pair_id"], sorted(decisions(project)), state["can_undo"]))
    assert seen == [
        ("d10", ["d12"], True), ("d11", ["d12"], True), ("d12", [], False), ("d12", [], False),
    ]  # fmt: skip


def test_undo_gives_back_what_the_file_said_before(page: TestClient, project: Path) -> None:
    write_decision(project / "overrides.csv", "d12", "drop", "by hand, meanwhile")
    decide(page, "d12", "keep")
    assert decisions(project)["d12"][0] == "keep"
    page.post("/api/undo", json={}, headers=POST)
    assert decisions(project)["d12"] == ("drop", "by hand, meanwhile")


def test_what_was_decided_before_does_not_come_again(project: Path) -> None:
    write_decision(project / "overrides.csv", "d12", "drop", "")
    write_decision(project / "overrides.csv", "elsewhere", "keep", "")
    with review_of(project) as browser:
        browser.get(f"/?token={TOKEN}")
        state = browser.get("/api/state").json()
    assert (state["total"], state["before"]) == (11, 1)
    assert state["current"]["pair_id"] == "d11"
    assert set(decisions(project)) == {"d12", "elsewhere"}


def test_skipped_pairs_can_be_taken_up_again(page: TestClient) -> None:
    for i in range(12, 0, -1):
        page.post("/api/skip", json={"pair_id": f"d{i:02d}"}, headers=POST)
    state = page.get("/api/state").json()
    assert state["current"] is None and state["skip"] == 12
    state = page.post("/api/skipped", json={}, headers=POST).json()
    assert state["current"]["pair_id"] == "d12" and not state["can_undo"]


def test_a_duplicate_comes_with_what_it_duplicates(project: Path) -> None:
    with review_of(project, reason="near_duplicate") as browser:
        browser.get(f"/?token={TOKEN}")
        seen = {}
        for _ in range(5):
            current = browser.get("/api/state").json()["current"]
            seen[current["pair_id"]] = current
            decide(browser, current["pair_id"], "keep")
        assert {i: c["partner"]["pair_id"] for i, c in seen.items()} == {
            f"n{i}": f"d0{i + 1}" for i in range(5)
        }
        answer = browser.get(seen["n1"]["partner"]["media"])
        assert answer.headers["content-type"] == "image/webp"
        assert Image.open(io.BytesIO(answer.content)).size == (90, 60)
        assert browser.get(seen["n4"]["media"]).status_code == 404  # its file is lost
    kept = decisions(project)["n0"]
    assert kept == ("keep", "review: keep, where the filters said near_duplicate")


def test_only_pairs_of_this_review_can_be_seen_and_decided(page: TestClient) -> None:
    for path in ("/media/17", "/media/99999", "/media/-1"):
        assert page.get(path).status_code == 404
    asked = {"pair_id": "n0", "decision": "keep"}
    assert page.post("/api/decide", json=asked, headers=POST).status_code == 404
    asked = {"pair_id": "d12", "decision": "burn"}
    assert page.post("/api/decide", json=asked, headers=POST).status_code == 422


def test_nobody_else_gets_in(project: Path) -> None:
    with review_of(project) as browser:
        for path in ("/", "/?token=wrong", "/?token=", "/api/state", "/media/12", "/nothing"):
            answer = browser.get(path)
            assert answer.status_code == 401, path
            assert TOKEN not in answer.text
        # The token of the address lets in at the door only.
        assert browser.get(f"/api/state?token={TOKEN}").status_code == 401
        assert browser.post("/api/undo", json={}, headers=POST).status_code == 401
        browser.get(f"/?token={TOKEN}")
        assert browser.get("/api/state").status_code == 200
        for host in ("evil.example", "evil.example:8123", "127.0.0.1.evil.example", "", "[::1"):
            answer = browser.get("/api/state", headers={"host": host})
            assert answer.status_code == 403, host
        for origin in ("http://evil.example", "null", "https://127.0.0.1:8123"):
            answer = browser.post("/api/undo", json={}, headers={**POST, "origin": origin})
            assert answer.status_code == 403, origin
        assert browser.post("/api/undo", json={}).status_code == 403
        wrong = {"x-review-token": "wrong"}
        assert browser.post("/api/undo", json={}, headers=wrong).status_code == 403
        own = {**POST, "origin": HERE}
        assert browser.post("/api/undo", json={}, headers=own).status_code == 200
    assert decisions(project) == {}


def test_the_page_may_run_its_own_script_only(page: TestClient) -> None:
    first, second = page.get("/"), page.get("/")
    policy = first.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    (nonce,) = re.findall(r"script-src 'nonce-([\w-]+)'", policy)
    assert f'<script nonce="{nonce}">' in first.text
    assert policy != second.headers["content-security-policy"]
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", first.text)
    assert "{{" not in first.text
    for answer in (first, page.get("/api/state"), page.get("/media/12")):
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
    entrance = page.get(f"/?token={TOKEN}", follow_redirects=False)
    assert entrance.headers["location"] == "/"
    cookie = entrance.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie


def test_captions_are_text(page: TestClient) -> None:
    for _ in range(9):
        current = page.get("/api/state").json()["current"]
        page.post("/api/skip", json={"pair_id": current["pair_id"]}, headers=POST)
    current = page.get("/api/state").json()["current"]
    assert current["pair_id"] == "d03"
    assert current["caption"] == "<script>alert(1)</script> [U+202E]txet"


def test_a_broken_overrides_file_is_left_as_it_is(page: TestClient, project: Path) -> None:
    (project / "overrides.csv").write_text("pair_id,what\nx,y\n")
    answer = page.post("/api/decide", json={"pair_id": "d12", "decision": "keep"}, headers=POST)
    assert answer.status_code == 409 and "column" in answer.json()["error"]
    assert (project / "overrides.csv").read_text() == "pair_id,what\nx,y\n"
    state = page.get("/api/state").json()
    assert state["current"]["pair_id"] == "d12" and not state["can_undo"]
    with pytest.raises(DataError, match="column"):
        review_of(project)


def test_nothing_to_review_is_said(project: Path) -> None:
    with Manifest(project / "pairs" / "manifest.parquet", FILTERS) as manifest:
        with pytest.raises(UserError, match="no pair was dropped as 'blurred'") as error:
            choose_entries(manifest, reason="blurred", limit=5)
        assert "near_duplicate (5)" in str(error.value)
        with pytest.raises(UserError, match="there is nothing to keep"):
            choose_entries(manifest, reason="truncated", limit=5)
        with pytest.raises(DataError, match="share a pair_id"):
            choose_entries(manifest, reason="repeated_pair_id", limit=5)
    write_curated(project / "pairs", [{"pair_id": "p"}])
    with (
        Manifest(project / "pairs" / "manifest.parquet", FILTERS) as manifest,
        pytest.raises(UserError, match="no kept pair is in doubt"),
    ):
        choose_entries(manifest, reason=None, limit=5)


def test_a_port_in_use_is_one_clear_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=rf"port {port} .*Address already in use"):
            _bind(port)
    with _bind(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
