"""The endpoints, on a small corpus of pictures and sounds with a real encoder and index."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from served_releases import Shop, evenly, make_releases

from coembed.models.encoder import Encoder
from coembed.serve import schemas, server
from coembed.serve.limits import Access

HERE = "http://127.0.0.1:8000"
# Of a random model: where its scores lie is its own affair, so that these are chosen.
CALIBRATION = {
    "version": 1,
    "text": {"image": evenly(-1, 1), "audio": evenly(-1, 1)},
    "image": {"image": evenly(0.5, 1)},
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_releases(tmp_path_factory.mktemp("api") / "shop", calibrations={1: CALIBRATION})


@pytest.fixture(scope="module")
def encoder(shop: Shop) -> Encoder:
    return shop.encoder(next(iter(shop.releases)))


@pytest.fixture(scope="module")
def vectors(shop: Shop, encoder: Encoder) -> dict[str, np.ndarray]:
    """Every item's embedding."""
    return {
        item_id: encoder.encode(sample.modality, [sample.media])[0]
        for item_id, sample in shop.samples.items()
    }


@pytest.fixture(scope="module")
def client(shop: Shop) -> Iterator[TestClient]:
    place = server.Place(pool=shop.root / "data", runs=shop.root / "runs")
    with (
        server.application(shop.cfg, services=shop.services, place=place, access=Access()) as app,
        TestClient(app, base_url=HERE) as browser,
    ):
        yield browser


def ask(client: TestClient, path: str = "/search", **body: Any) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def refused(client: TestClient, path: str = "/search", **body: Any) -> tuple[int, str]:
    answer = client.post(path, json=body)
    assert set(answer.json()) == {"error", "hint"}, answer.text
    return answer.status_code, answer.json()["error"]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def exact(
    vectors: dict[str, np.ndarray], query: np.ndarray, but: set[str] | None = None
) -> list[tuple[str, float]]:
    scored = [(key, float(v @ query)) for key, v in vectors.items() if key not in (but or set())]
    return sorted(scored, key=lambda one: (-one[1], one[0]))


def same(hits: list[dict[str, Any]], expected: list[tuple[str, float]]) -> None:
    assert [hit["item_id"] for hit in hits] == [key for key, _ in expected]
    assert [hit["score"] for hit in hits] == pytest.approx([s for _, s in expected], abs=1e-4)


def test_a_text_finds_what_a_full_scan_finds(
    client: TestClient, shop: Shop, encoder: Encoder, vectors: dict[str, np.ndarray]
) -> None:
    found = ask(client, text="  a red disc ", limit=10)
    schemas.SearchAnswer.model_validate(found)
    same(found["hits"], exact(vectors, encoder.encode_texts(["a red disc"])[0])[:10])
    assert [hit["rank"] for hit in found["hits"]] == list(range(1, 11))
    (collection,) = shop.releases
    assert found["release"] == {
        "collection": collection, "model": "shop", "version": 1,
        "fingerprint": shop.releases[collection].fingerprint, "num_items": 44,
        "recall_at_10": 1.0,
    }  # fmt: skip
    hit = found["hits"][0]
    sample = shop.samples[hit["item_id"]]
    assert hit["captions"] == list(sample.captions) and hit["path"] == sample.path
    assert hit["attributes"] == dict(sample.attributes)
    assert hit["media"] == f"/items/{sample.item_id}/media" and "explain" not in hit
    assert ask(client, query=[{"text": "a red disc"}], limit=10)["hits"] == found["hits"]


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_media_find_themselves_first(client: TestClient, shop: Shop, modality: str) -> None:
    sample = shop.of(modality)[3]
    found = ask(client, query=[{modality: b64(sample.media)}], limit=3)
    assert found["hits"][0]["item_id"] == sample.item_id
    assert found["hits"][0]["score"] == pytest.approx(1, abs=1e-4)


def test_more_like_this_leaves_this_out(
    client: TestClient, shop: Shop, vectors: dict[str, np.ndarray]
) -> None:
    sample = shop.of("image")[0]
    found = ask(client, query=[{"item": sample.item_id}], limit=10)
    same(found["hits"], exact(vectors, vectors[sample.item_id], {sample.item_id})[:10])


def test_a_mix_with_negatives_and_its_explanation(
    client: TestClient, shop: Shop, encoder: Encoder, vectors: dict[str, np.ndarray]
) -> None:
    picture, item = shop.of("image")[1], shop.of("image")[5]
    terms = [
        {"image": b64(picture.media)}, {"text": "red"}, {"text": "ring", "weight": -0.5},
        {"item": item.item_id, "weight": 0.25},
    ]  # fmt: skip
    found = ask(client, query=terms, limit=8, explain=True)
    red, ring = encoder.encode_texts(["red", "ring"])
    mixed = vectors[picture.item_id] + red - 0.5 * ring + 0.25 * vectors[item.item_id]
    mixed = mixed / np.linalg.norm(mixed)
    same(found["hits"], exact(vectors, mixed, {item.item_id})[:8])
    for hit in found["hits"]:
        explained = hit["explain"]
        assert [one["term"] for one in explained] == ["a picture", "red", "ring", item.item_id]
        assert [one["kind"] for one in explained] == ["image", "text", "text", "item"]
        assert [one["weight"] for one in explained] == [1, 1, -0.5, 0.25]
        assert sum(one["score"] for one in explained) == pytest.approx(hit["score"], abs=1e-5)
        assert sum(abs(one["share"]) for one in explained) == pytest.approx(1)
        assert explained[1]["cosine"] == pytest.approx(
            float(red @ vectors[hit["item_id"]]), abs=1e-5
        )
        assert hit["match"] is None  # a mix has no calibration
    assert found["floor"] is None and found["nothing_matches_well"] is False


def test_only_a_negative_leads_to_what_is_least_like_it(
    client: TestClient, encoder: Encoder, vectors: dict[str, np.ndarray]
) -> None:
    found = ask(client, query=[{"text": "red", "weight": -2}], limit=5)
    same(found["hits"], exact(vectors, -encoder.encode_texts(["red"])[0])[:5])
    assert found["hits"][0]["match"] is None


def test_filters_and_modality(client: TestClient, shop: Shop) -> None:
    found = ask(client, text="thing", filters=["colour=red,blue", "price<15"], limit=100)
    expected = {
        key for key, one in shop.samples.items()
        if one.attributes.get("colour") in ("red", "blue") and one.attributes["price"] < 15  # type: ignore[operator]
    }  # fmt: skip
    assert {hit["item_id"] for hit in found["hits"]} == expected and expected
    sounds = ask(client, text="beep", modality="audio", limit=100)["hits"]
    assert {hit["item_id"] for hit in sounds} == {one.item_id for one in shop.of("audio")}
    assert ask(client, text="beep", modality="audio", filters=["colour=red"])["hits"] == []


def test_pages_are_parts_of_one_list(client: TestClient) -> None:
    whole = ask(client, text="a blue bar", limit=44)
    assert whole["next_offset"] is None and len(whole["hits"]) == 44
    pages, offset = [], 0
    while offset is not None:
        page = ask(client, text="a blue bar", limit=10, offset=offset)
        pages += page["hits"]
        offset = page["next_offset"]
    assert pages == whole["hits"]
    assert ask(client, text="a blue bar", offset=900)["hits"] == []


def test_diversity_reorders_the_same_hits_and_pages(client: TestClient) -> None:
    plain = ask(client, text="a red disc", limit=44)["hits"]
    diverse = ask(client, text="a red disc", limit=44, diversity=0.8)["hits"]
    assert {hit["item_id"] for hit in diverse} == {hit["item_id"] for hit in plain}
    assert diverse[0]["item_id"] == plain[0]["item_id"]
    assert [hit["item_id"] for hit in diverse] != [hit["item_id"] for hit in plain]
    assert [hit["rank"] for hit in diverse] == list(range(1, 45))
    pages = [
        ask(client, text="a red disc", limit=9, offset=o, diversity=0.8)["hits"] for o in (0, 9)
    ]
    assert [hit["item_id"] for page in pages for hit in page] == [
        hit["item_id"] for hit in diverse[:18]
    ]


def test_keywords_bring_up_what_the_captions_say(client: TestClient, shop: Shop) -> None:
    """A random model knows no words, so that what holds them comes up by keyword search only."""
    found = ask(client, text="green ring", limit=10, keywords=0.9, explain=True)
    having = [
        one.item_id for one in shop.samples.values()
        if {"green", "ring"} <= set(" ".join(one.captions).replace(",", "").split())
    ]  # fmt: skip
    assert having
    assert {hit["item_id"] for hit in found["hits"][: len(having)]} == set(having)
    fused = [hit["fused"] for hit in found["hits"]]
    assert fused == sorted(fused, reverse=True) and all(0 <= value <= 1 for value in fused)
    for hit in found["hits"]:
        *terms, words = hit["explain"]
        assert (words["kind"], words["term"], words["weight"]) == ("keywords", "green ring", 0.9)
        assert sum(abs(one["share"]) for one in hit["explain"]) == pytest.approx(1)
        assert sum(one["score"] for one in terms) == pytest.approx(hit["score"], abs=1e-5)
    only = ask(client, text="green ring", limit=44, keywords=0.9, filters=["colour=red"])["hits"]
    assert {hit["attributes"]["colour"] for hit in only} == {"red"}
    both = ask(client, text="green ring", limit=44, keywords=0.5, diversity=0.5)["hits"]
    assert len({hit["item_id"] for hit in both}) == len(both) == 44
    status, error = refused(client, query=[{"item": having[0]}], keywords=0.5)
    assert status == 422 and "needs a text" in error


def test_scores_are_given_a_meaning(client: TestClient, shop: Shop) -> None:
    for hit in ask(client, text="a red disc", limit=44)["hits"]:
        assert hit["match"] == pytest.approx((hit["score"] + 1) / 2, abs=1e-6)
    found = ask(client, text="a red disc")
    assert found["floor"] == pytest.approx(-0.9) and not found["nothing_matches_well"]
    picture = shop.of("image")[0].media
    found = ask(client, query=[{"image": b64(picture)}], modality="image")
    assert found["floor"] == pytest.approx(0.525) and found["hits"][0]["match"] == pytest.approx(1)
    # Not measured: sounds asked with a sound.
    sound = shop.of("audio")[0].media
    found = ask(client, query=[{"audio": b64(sound)}], limit=44)
    assert {hit["match"] for hit in found["hits"]} == {None} and found["floor"] is None


def test_nothing_matches_well_is_said_where_no_true_match_scored_so_low(tmp_path: Path) -> None:
    high = {"text": {"image": evenly(0.9999, 1.0), "audio": evenly(0.9999, 1.0)}}
    shop = make_releases(tmp_path / "shop", num_images=4, num_sounds=2, calibrations={1: high})
    place = server.Place(pool=shop.root / "data", runs=shop.root / "runs")
    with (
        server.application(shop.cfg, services=shop.services, place=place, access=Access()) as app,
        TestClient(app, base_url=HERE) as browser,
    ):
        found = ask(browser, text="an aubergine")
        assert found["nothing_matches_well"] is True and found["hits"]
        assert found["floor"] == pytest.approx(0.999905)
        assert found["hits"][0]["match"] == 0.0
        nothing = ask(browser, text="an aubergine", filters=["colour=mauve"])
        assert nothing["nothing_matches_well"] is True and nothing["hits"] == []


def test_a_repeated_query_comes_from_the_cache_and_is_the_same(client: TestClient) -> None:
    first = ask(client, text="asked twice", limit=7)
    again = ask(client, text="asked twice", limit=7)
    assert (first["cached"], again["cached"]) == (False, True)
    assert first["hits"] == again["hits"] and first["release"] == again["release"]
    other = ask(client, text="asked twice", limit=8)
    assert other["cached"] is False and other["hits"][:7] == first["hits"]
    # As a term of a mix with other weights it is another query.
    assert ask(client, query=[{"text": "asked twice", "weight": 2}], limit=7)["cached"] is False


def test_classify_is_the_softmax_over_labels(
    client: TestClient, shop: Shop, encoder: Encoder, vectors: dict[str, np.ndarray]
) -> None:
    sample = shop.of("image")[2]
    labels, prompts = ["red disc", "blue_bar", "green ring"], ["a photo of a {label}", "{label}"]
    body: dict[str, Any] = {"labels": labels, "prompts": prompts}
    found = ask(client, "/classify", image=b64(sample.media), **body)
    schemas.ClassifyAnswer.model_validate(found)
    scores = []
    for label in ("red disc", "blue bar", "green ring"):
        mean = encoder.encode_texts([f"a photo of a {label}", label]).mean(axis=0)
        scores.append(float(mean / np.linalg.norm(mean) @ vectors[sample.item_id]))
    powers = [math.exp(encoder.logit_scale * score) for score in scores]
    expected = {label: power / sum(powers) for label, power in zip(labels, powers, strict=True)}
    got = {one["label"]: one["probability"] for one in found["labels"]}
    assert got == pytest.approx(expected, abs=1e-4)
    assert sum(got.values()) == pytest.approx(1)
    assert list(got) == sorted(labels, key=lambda label: -expected[label])
    by_item = ask(client, "/classify", item=sample.item_id, **body)["labels"]
    assert [one["label"] for one in by_item] == list(got)
    sound = shop.of("audio")[0]
    assert ask(client, "/classify", audio=b64(sound.media), labels=["beep", "hiss"])["labels"]
    assert (
        ask(client, "/classify", text="a red disc", labels=["one"])["labels"][0]["probability"] == 1
    )


def test_embed_gives_what_the_encoder_gives(
    client: TestClient, shop: Shop, encoder: Encoder, vectors: dict[str, np.ndarray]
) -> None:
    image, sound = shop.of("image")[0], shop.of("audio")[0]
    texts = [f"text {number}" for number in range(40)]
    found = ask(client, "/embed", texts=texts, images=[b64(image.media)], sounds=[b64(sound.media)])
    schemas.EmbedAnswer.model_validate(found)
    assert np.allclose(found["texts"], encoder.encode_texts(texts), atol=1e-4)
    assert np.allclose(found["images"], vectors[image.item_id][None], atol=1e-4)
    assert np.allclose(found["sounds"], vectors[sound.item_id][None], atol=1e-4)
    assert found["release"]["version"] == 1


def test_the_release_says_what_can_be_asked(client: TestClient, shop: Shop) -> None:
    found = client.get("/release").json()
    schemas.ReleaseShown.model_validate(found)
    columns = {column["name"]: column for column in found["columns"]}
    colours = [one.attributes["colour"] for one in shop.of("image")]
    assert {v["value"]: v["count"] for v in columns["colour"]["values"]} == {
        colour: colours.count(colour) for colour in set(colours)
    }
    prices = [float(one.attributes["price"]) for one in shop.of("image")]
    assert (columns["price"]["min"], columns["price"]["max"]) == (min(prices), max(prices))
    assert columns["price"]["kind"] == "number" and len(columns["price"]["values"]) == 20
    assert found["item_modalities"] == {"audio": 12, "image": 32}
    assert sorted(found["modalities"]) == ["audio", "image", "text"] == sorted(found["engines"])
    assert found["keywords"] is True
    assert sorted(map(tuple, found["calibrated"])) == [
        ("image", "image"), ("text", "audio"), ("text", "image"),
    ]  # fmt: skip
    assert found["limits"]["max_limit"] == shop.cfg.serve.max_limit


def test_items_with_their_media_and_pictures(client: TestClient, shop: Shop) -> None:
    for modality, kind in (("image", "image/jpeg"), ("audio", "audio/wav")):
        sample = shop.of(modality)[0]
        shown = client.get(f"/items/{sample.item_id}").json()
        schemas.ItemShown.model_validate(shown)
        assert shown["captions"] == list(sample.captions)
        media = client.get(shown["media"])
        assert media.content == sample.media and media.headers["content-type"] == kind
        thumbnail = client.get(shown["thumbnail"], params={"px": 40})
        assert thumbnail.headers["content-type"] == "image/webp"
        with Image.open(io.BytesIO(thumbnail.content)) as picture:
            assert (picture.format, max(picture.size)) == ("WEBP", 40)
        again = client.get(shown["thumbnail"], params={"px": 40})
        assert again.content == thumbnail.content
        known = client.get(shown["media"], headers={"if-none-match": media.headers["etag"]})
        assert (known.status_code, known.content) == (304, b"")


def test_a_sound_can_be_played_from_the_middle(client: TestClient, shop: Shop) -> None:
    sample = shop.of("audio")[0]
    path, size = f"/items/{sample.item_id}/media", len(sample.media)
    part = client.get(path, headers={"range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, sample.media[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{size}"
    last = client.get(path, headers={"range": "bytes=-50"})
    assert last.content == sample.media[-50:]
    beyond = client.get(path, headers={"range": f"bytes={size}-"})
    assert beyond.status_code == 416 and beyond.headers["content-range"] == f"bytes */{size}"


def test_an_unknown_item_is_a_404(client: TestClient) -> None:
    unknown = "0" * 64
    for path in (f"/items/{unknown}", f"/items/{unknown}/media", f"/items/{unknown}/thumbnail"):
        answer = client.get(path)
        assert answer.status_code == 404 and unknown in answer.json()["error"]
    assert refused(client, query=[{"item": unknown}])[0] == 404
    assert refused(client, "/classify", item=unknown, labels=["a"])[0] == 404


def test_operations(client: TestClient, shop: Shop) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    ready = client.get("/ready").json()
    schemas.Ready.model_validate(ready)
    assert ready["ready"] and ready["failing"] is None and ready["release"]["version"] == 1
    client.post("/search", json={"text": "measured"})
    client.post("/search", json={"text": "measured"})
    answer = client.get("/metrics")
    families = {
        family.name: family.samples for family in text_string_to_metric_families(answer.text)
    }
    samples = {
        (one.name, *sorted(one.labels.values())): one.value
        for family in families.values() for one in family
    }  # fmt: skip
    assert samples["coembed_requests_total", "/search", "200"] > 1
    assert samples["coembed_cache_total", "hit", "result"] >= 1
    assert samples["coembed_search_stage_seconds_count", "encode"] > 0
    assert samples["coembed_search_stage_seconds_count", "other"] > 0
    assert samples["coembed_batch_size_count", "text"] > 0
    assert samples["coembed_release_swaps_total", "cold"] == 1
    (collection,) = shop.releases
    fingerprint = shop.releases[collection].fingerprint
    labels = sorted([collection, "shop", "1", fingerprint])
    assert samples["coembed_release_serving", *labels] == 1
    assert samples["coembed_release_failing",] == 0
    assert samples["coembed_requests_in_work",] == 0  # scraping is no work


def test_the_page_may_run_its_own_script_only(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    nonce = policy.split("script-src 'nonce-")[1].split("'")[0]
    assert f'nonce="{nonce}"' in answer.text and "{{nonce}}" not in answer.text
    assert client.get("/").headers["content-security-policy"] != policy
