"""What nobody should send, and what must not get out."""

from __future__ import annotations

import base64
import io
import json
import shutil
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from evaluated_pairs import encode_sound
from fastapi.testclient import TestClient
from PIL import Image
from served_releases import Shop, make_releases

from coembed.serve import server
from coembed.serve.limits import LOOPBACK_NAMES, Access

HERE = "http://127.0.0.1:8000"
KEY = "a-secret-of-some-length"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_releases(
        tmp_path_factory.mktemp("hostile") / "shop", num_images=6, num_sounds=3,
        max_upload_mb=1.0, max_image_pixels=250_000, max_clip_s=3.0, max_query_chars=300,
        max_terms=4, max_filters=3, max_labels=5, max_prompts=2, max_batch=6, max_depth=200,
    )  # fmt: skip


@contextmanager
def browse(shop: Shop, access: Access | None = None, **changes: Any) -> Iterator[TestClient]:
    place = server.Place(pool=shop.root / "data", runs=shop.root / "runs")
    cfg = shop.with_settings(**changes).cfg if changes else shop.cfg
    with (
        server.application(
            cfg, services=shop.services, place=place, access=access or Access()
        ) as app,
        TestClient(app, base_url=HERE, raise_server_exceptions=False) as browser,
    ):
        yield browser


@pytest.fixture(scope="module")
def client(shop: Shop) -> Iterator[TestClient]:
    with browse(shop) as browser:
        yield browser


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def refused(answer: httpx.Response, *statuses: int) -> str:
    """The words of a refusal."""
    assert answer.status_code in statuses, (answer.status_code, answer.text[:300])
    assert answer.headers["content-type"] == "application/json"
    said = answer.json()
    assert set(said) == {"error", "hint"} and said["error"]
    return str(said["error"])


# Bodies


@pytest.mark.parametrize(
    ("body", "statuses"),
    [
        (b"", (422,)), (b"{", (400,)), (b"[]", (422,)), (b"null", (422,)), (b"7", (422,)),
        (b'"text"', (422,)), (b'{"text": 7}', (422,)), (b'{"text": null}', (422,)),
        (b'{"text": ""}', (422,)), (b'{"text": "   "}', (422,)), (b'{"text": "a\\u0000b"}', (422,)),
        (b'{"text": "\\ud800"}', (422,)), (b'{"text": "a", "unknown": 1}', (422,)),
        (b'{"text": "a", "limit": 0}', (422,)), (b'{"text": "a", "limit": 101}', (422,)),
        (b'{"text": "a", "limit": 1e999}', (422,)), (b'{"text": "a", "limit": "many"}', (422,)),
        (b'{"text": "a", "offset": -1}', (422,)), (b'{"text": "a", "offset": 199}', (422,)),
        (b'{"text": "a", "offset": ' + b"9" * 5000 + b"}", (400, 422)),
        (b'{"text": "a", "diversity": NaN}', (422,)),
        (b'{"text": "a", "diversity": Infinity}', (422,)),
        (b'{"text": "a", "diversity": -0.1}', (422,)), (b'{"text": "a", "keywords": 1.1}', (422,)),
        (b'{"query": [{"text": "a", "weight": NaN}]}', (422,)),
        (b'{"query": [{"text": "a", "weight": 1e300}]}', (422,)),
        (b'{"query": [{"text": "a", "weight": 0}]}', (422,)),
        (b'{"query": [{"text": "a"}, {"text": "a", "weight": -1}]}', (422,)),
        (b'{"query": []}', (422,)), (b'{"query": [{}]}', (422,)),
        (b'{"query": [{"text": "a", "item": "' + b"0" * 64 + b'"}]}', (422,)),
        (b'{"query": [{"text": "a"}], "text": "b"}', (422,)),
        (b'{"query": [' + b'{"text": "a"},' * 4 + b'{"text": "a"}]}', (422,)),
        (b'{"query": [{"item": "../../etc/passwd"}]}', (422,)),
        (b'{"text": "a", "modality": "text"}', (422,)),
        (b'{"text": "a", "filters": ["no condition"]}', (422,)),
        (b'{"text": "a", "filters": ["nowhere=1"]}', (422,)),
        (b'{"text": "a", "filters": ["price<nan"]}', (422,)),
        (b'{"text": "a", "filters": ["colour<3"]}', (422,)),
        (b'{"text": "a", "filters": ["colour=\\u0000"]}', (422,)),
        (b'{"text": "a", "filters": ["a=1", "a=1", "a=1", "a=1"]}', (422,)),
        (b'{"text": "' + b"a" * 301 + b'"}', (422,)), (b"[" * 100_000, (400,)),
        (b'{"text": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", (400, 422)),
        (b"\xff\xfe\x00", (400,)), (b'{"text": "\xff"}', (400,)),
    ],
)  # fmt: skip
def test_a_search_that_cannot_be_is_refused(
    client: TestClient, body: bytes, statuses: tuple[int, ...]
) -> None:
    answer = client.post("/search", content=body, headers={"content-type": "application/json"})
    refused(answer, *statuses)


@pytest.mark.parametrize(
    "body",
    [
        {"labels": ["a"]}, {"text": "a", "labels": []}, {"text": "a", "labels": ["a", "a"]},
        {"text": "a", "labels": list("abcdef")}, {"text": "a", "labels": [" "]},
        {"text": "a", "labels": ["b"], "prompts": ["no place"]},
        {"text": "a", "labels": ["b"], "prompts": ["{label}"] * 3},
        {"text": "a", "item": "0" * 64, "labels": ["b"]}, {"text": "a", "labels": ["a\0"]},
        {"text": "a", "labels": ["x" * 301]},
    ],
)  # fmt: skip
def test_a_classification_that_cannot_be_is_refused(
    client: TestClient, body: dict[str, Any]
) -> None:
    refused(client.post("/classify", json=body), 422)


@pytest.mark.parametrize(
    "body", [{}, {"texts": []}, {"texts": ["a"] * 7}, {"texts": [""]}, {"images": ["!!!!"]}]
)
def test_an_embedding_that_cannot_be_is_refused(client: TestClient, body: dict[str, Any]) -> None:
    refused(client.post("/embed", json=body), 422)


def test_only_json_is_read(client: TestClient) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = client.post("/search", content=b'{"text": "a"}', headers={"content-type": kind})
        assert "JSON" in answer.json()["hint"] or "JSON" in answer.json()["error"]
        refused(answer, 422)


def test_a_body_beyond_the_limit_is_refused_before_it_is_read(client: TestClient) -> None:
    large = json.dumps({"text": "a" * 1_000_001}).encode()
    assert "at most 1,000,000 bytes" in refused(client.post("/search", content=large), 413)
    sent = []

    def pieces() -> Iterator[bytes]:
        for number in range(200):
            sent.append(number)
            yield b" " * 100_000

    headers = {"content-type": "application/json"}
    answer = client.post("/search", content=pieces(), headers=headers)  # its length is not declared
    refused(answer, 413)
    answer = client.post("/search", content=b"{}", headers={**headers, "content-length": "9" * 30})
    refused(answer, 413)


# Media


def picture(width: int, height: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 40)).save(buffer, kind)
    return buffer.getvalue()


def png_bomb(side: int) -> bytes:
    """A PNG of a few kilobytes that says it has side × side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 100_000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def tone(seconds: float, extension: str) -> bytes:
    return encode_sound(0.5 * np.sin(np.arange(int(8000 * seconds)) / 9), extension)


@pytest.mark.parametrize(
    ("kind", "media", "said"),
    [
        ("image", picture(600, 600), "360,000 pixels, at most 250,000"),
        ("image", png_bomb(10_000), "100,000,000 pixels, at most 250,000"),
        ("image", png_bomb(50_000), "2500000000 pixels"),
        ("image", picture(600, 600, "JPEG"), "360,000 pixels"),
        ("image", picture(600, 600, "GIF"), "360,000 pixels"),
        ("image", picture(40, 40)[:-30], "cannot be used"),
        ("image", picture(40, 40, "JPEG")[:200], "image"),
        ("image", b"GIF89a", "image"),
        ("image", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture of a known format"),
        ("image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "known format"),
        ("image", tone(1, "wav"), "known format"),
        ("image", b"abc", "known format"),
        ("audio", picture(40, 40), "not a WAV"),
        ("audio", tone(1, "wav")[:-700], "not readable"),
        ("audio", tone(1, "flac")[:-100], "sound"),
        ("audio", tone(4, "wav"), "too long: 4 s > 3 s"),
        ("audio", tone(4, "flac"), "too long"),
        ("audio", tone(4, "ogg"), "too long"),
        ("audio", tone(4, "mp3"), "too long"),
        ("audio", b"RIFF\xff\xff\xff\xffWAVE", "not readable"),
        ("audio", b"abc", "not a WAV"),
    ],
)  # fmt: skip
def test_media_that_cannot_be_decoded_or_must_not_be(
    client: TestClient, kind: str, media: bytes, said: str
) -> None:
    for path, body in (
        ("/search", {"query": [{kind: b64(media)}]}),
        ("/classify", {kind: b64(media), "labels": ["a", "b"]}),
        ("/embed", {"images" if kind == "image" else "sounds": [b64(media)]}),
    ):
        assert said in refused(client.post(path, json=body), 422)


@pytest.mark.parametrize(
    "text",
    ["====", "abc", "a b c d", "data:image/png;base64,aaaa", "äääää", "....", "YWJj\n", "\0" * 4],
)
def test_what_is_not_base64(client: TestClient, text: str) -> None:
    answer = client.post("/search", json={"query": [{"image": text}]})
    refused(answer, 422)


def test_a_broken_picture_does_not_spoil_its_neighbours_searches(
    client: TestClient, shop: Shop
) -> None:
    good, bad = shop.of("image")[0].media, picture(40, 40)[:-30]
    answers: dict[int, httpx.Response] = {}

    def ask(place: int) -> None:
        media = bad if place % 3 == 0 else good
        answers[place] = client.post(
            "/search", json={"query": [{"image": b64(media)}], "limit": 1 + place}
        )

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, answer in answers.items():
        if place % 3 == 0:
            refused(answer, 422)
        else:
            assert answer.json()["hits"][0]["item_id"] == shop.of("image")[0].item_id


# Items and files


@pytest.mark.parametrize(
    "path",
    [
        "/items/..%2f..%2fetc%2fpasswd/media", "/items/../../etc/passwd", "/items/%00/media",
        "/items/" + "A" * 64, "/items/" + "0" * 63, "/items/" + "0" * 65, "/items/" + "g" * 64,
        "/items/%2e%2e/media", "/items/media/0-0.jpg", "/items//media", "/data/media/0-0.jpg",
        "/items/" + "0" * 64 + "%0a", "/items/" + "٠" * 64, "/params.yaml",
        "/static/../params.yaml",
        "/items/" + "0" * 64 + "/../../params.yaml",
    ],
)  # fmt: skip
def test_no_path_leads_to_a_file(client: TestClient, path: str) -> None:
    refused(client.get(path), 404, 422)


def test_only_the_file_that_was_indexed_is_sent(shop: Shop, tmp_path: Path) -> None:
    """Not another one in its place, not one outside the pool, not a folder."""
    root = tmp_path / "copy"
    shutil.copytree(shop.root, root, symlinks=True)
    moved = Shop(root, shop.cfg, shop.services, shop.samples, shop.releases, shop.models)
    changed, linked_out, linked_in, gone, folder = shop.of("image")[:5]
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(linked_out.media)  # even with the very same bytes
    data = root / "data"
    (data / changed.path).write_bytes(linked_out.media)
    (data / linked_out.path).unlink()
    (data / linked_out.path).symlink_to(secret)
    (data / "elsewhere.jpg").write_bytes(linked_in.media)
    (data / linked_in.path).unlink()
    (data / linked_in.path).symlink_to(data / "elsewhere.jpg")
    (data / gone.path).unlink()
    (data / folder.path).unlink()
    (data / folder.path).mkdir()
    with browse(moved) as client:
        for sample, said in (
            (changed, "another file is in its place"), (linked_out, "path outside pool"),
            (gone, "missing file"), (folder, "not a file"),
        ):  # fmt: skip
            for what in ("media", "thumbnail"):
                answer = client.get(f"/items/{sample.item_id}/{what}")
                assert said in refused(answer, 404)
                assert str(tmp_path) not in answer.text
        inside = client.get(f"/items/{linked_in.item_id}/media")
        assert inside.content == linked_in.media
        shutil.rmtree(data)
        data.symlink_to(shop.root / "data")  # a pool that is a link itself is the pool
        assert client.get(f"/items/{gone.item_id}/media").status_code in (200, 404)


@pytest.mark.parametrize("px", ["0", "15", "1025", "-1", "1e9", "nan", "", "9" * 400])
def test_thumbnails_have_bounds(client: TestClient, shop: Shop, px: str) -> None:
    item_id = shop.of("image")[0].item_id
    refused(client.get(f"/items/{item_id}/thumbnail", params={"px": px}), 422)


def test_every_answer_has_the_strict_headers(client: TestClient, shop: Shop) -> None:
    item_id = shop.of("image")[0].item_id
    for path in (
        "/", "/health", "/release", "/nowhere", f"/items/{item_id}", f"/items/{item_id}/media",
        f"/items/{item_id}/thumbnail", "/items/x", "/metrics", "/openapi.json",
    ):  # fmt: skip
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["x-frame-options"] == "DENY"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "default-src 'none'" in headers["content-security-policy"]
        if path.startswith(f"/items/{item_id}/"):
            assert "sandbox" in headers["content-security-policy"]


def test_markup_and_odd_text_is_searched_with_as_it_is(client: TestClient) -> None:
    for text in (
        "<script>alert(1)</script>",
        "'; DROP TABLE captions; --",
        "\u202e‮٣ 🦆",
        "\x7f\x1b[2J",
    ):
        answer = client.post("/search", json={"text": text, "keywords": 0.5})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"


# Who may ask, and how often


def test_a_page_of_another_site_may_not_ask(client: TestClient) -> None:
    for headers in (
        {"host": "evil.example"}, {"host": "127.0.0.1.evil.example:8000"}, {"host": ""},
        {"host": "[::1"}, {"host": "evil.example", "x-forwarded-host": "127.0.0.1"},
        {"origin": "http://evil.example"}, {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"}, {"origin": "http://["},
    ):  # fmt: skip
        refused(client.get("/release", headers=headers), 403)
    for headers in (
        {"host": "localhost:8000"}, {"host": "[::1]:8000"}, {"host": "LOCALHOST"},
        {"origin": "http://127.0.0.1:8000"},
    ):  # fmt: skip
        assert client.get("/release", headers=headers).status_code == 200


def test_with_a_key_only_who_has_it_is_answered(shop: Shop) -> None:
    names = LOOPBACK_NAMES | {"shop.example"}
    with browse(shop, Access(KEY, names)) as client:
        item = f"/items/{shop.of('image')[0].item_id}"
        closed = [
            "/release",
            item,
            f"{item}/media",
            f"{item}/thumbnail",
            "/metrics",
            "/openapi.json",
        ]
        for headers in (
            {}, {"x-api-key": ""}, {"x-api-key": KEY[:-1]}, {"x-api-key": KEY + "x"},
            {"authorization": KEY}, {"authorization": f"Basic {KEY}"}, {"authorization": "Bearer"},
            {"x-api-key": "\xff\xfe"},
        ):  # fmt: skip
            for path in closed:
                answer = client.get(
                    path, headers=[(n.encode(), v.encode("latin-1")) for n, v in headers.items()]
                )
                refused(answer, 401)
                assert answer.headers["www-authenticate"] == "Bearer"
            refused(client.post("/search", json={"text": "a"}), 401)
        for headers in (
            {"x-api-key": KEY},
            {"authorization": f"Bearer {KEY}"},
            {"authorization": f"bearer  {KEY}"},
        ):
            for path in closed:
                assert client.get(path, headers=headers).status_code == 200
        for path in ("/", "/health", "/ready"):
            assert client.get(path).status_code == 200
        assert client.get("/", headers={"host": "shop.example"}).status_code == 200
        document = client.get("/openapi.json", headers={"x-api-key": KEY}).json()
        assert document["security"] and "401" in document["paths"]["/search"]["post"]["responses"]


def test_who_asks_too_often_is_told_when_to_come_again(shop: Shop) -> None:
    with browse(shop, rate_per_s=0.5, burst=3) as client:
        codes = [client.post("/search", json={"text": "a"}).status_code for _ in range(5)]
        assert codes == [200, 200, 200, 429, 429]
        answer = client.post("/search", json={"text": "a"})
        assert "too many requests" in refused(answer, 429)
        assert 1 <= int(answer.headers["retry-after"]) <= 3
        for path in ("/", "/health", "/ready", "/metrics"):
            assert client.get(path).status_code == 200


def test_so_many_at_once_and_no_more(shop: Shop) -> None:
    with browse(shop, max_concurrent=2) as client:
        tower = threading.Event()
        keeper = client.app.state.keeper  # type: ignore[attr-defined]
        batcher = keeper.current.encoding.batcher
        encode = batcher._encode

        def slow(modality: str, items: Any) -> Any:
            assert tower.wait(30)
            return encode(modality, items)

        batcher._encode = slow
        answers: list[int] = []

        def ask(number: int) -> None:
            answers.append(client.post("/search", json={"text": f"slow {number}"}).status_code)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        while len(answers) < 4:
            pass
        assert answers == [429] * 4
        tower.set()
        for thread in threads:
            thread.join()
        assert sorted(answers) == [200, 200, *[429] * 4]
