"""The service, fuzzed from its own OpenAPI document: valid requests, and requests that are not.

Nothing may answer 5xx; every answer must be one that the document declares, of the declared type
and schema; what the document forbids must be refused.
"""

from __future__ import annotations

import base64
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from served_releases import Shop, make_releases
from served_shop import serve

pytestmark = pytest.mark.slow

# `positive_data_acceptance` is not among them: the settings draw narrower bounds than the types.
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance,
    response_schema_conformance, response_headers_conformance, negative_data_rejection,
    allow_header_conformance,
]  # fmt: skip
OPERATIONS = [
    "POST /search", "POST /classify", "POST /embed", "GET /release", "GET /items/{item_id}",
    "GET /items/{item_id}/media", "GET /items/{item_id}/thumbnail", "GET /health", "GET /ready",
    "GET /metrics",
]  # fmt: skip
NUM_EXAMPLES = int(os.environ.get("COEMBED_FUZZ_EXAMPLES", "40"))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    root = tmp_path_factory.mktemp("fuzz") / "shop"
    return make_releases(root, num_images=12, num_sounds=6)


@pytest.fixture(scope="module")
def schema(shop: Shop) -> Iterator[Any]:
    with serve(shop.cfg, shop.root, shop.services) as (address, _):
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


def test_every_operation_of_the_document_is_fuzzed(schema: Any) -> None:
    assert sorted(found.ok().label for found in schema.get_all_operations()) == sorted(OPERATIONS)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("label", OPERATIONS)
def test_no_request_breaks_it(schema: Any, shop: Shop, label: str, mode: GenerationMode) -> None:
    operations = {found.ok().label: found.ok() for found in schema.get_all_operations()}
    operation = operations[label]
    takes_something = bool(list(operation.iter_parameters())) or bool(operation.body)
    if mode is GenerationMode.NEGATIVE and not takes_something:
        pytest.skip("there is nothing to get wrong")
    statuses: list[int] = []

    @settings(
        max_examples=NUM_EXAMPLES if takes_something else 3,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
    )
    @given(case=operation.as_strategy(generation_mode=mode), seed=st.integers(0, 1 << 20))
    def send(case: Any, seed: int) -> None:
        if mode is GenerationMode.POSITIVE:
            _make_real(case, shop, random.Random(seed))
        statuses.append(case.call_and_validate(checks=CHECKS, timeout=60).status_code)

    send()
    assert statuses
    if mode is GenerationMode.POSITIVE:
        assert any(status < 300 for status in statuses), statuses  # it got past the first check


def _make_real(case: Any, shop: Shop, rng: random.Random) -> None:
    """Put items and media that are there into most of what asks for some, so that requests get to
    where the work is done."""
    if "item_id" in (case.path_parameters or {}) and rng.random() < 0.8:
        case.path_parameters["item_id"] = rng.choice(list(shop.samples))
    if isinstance(case.body, dict):
        case.body = _real(case.body, shop, rng)


def _real(value: Any, shop: Shop, rng: random.Random, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _real(one, shop, rng, key) for key, one in value.items()}
    if isinstance(value, list):
        return [_real(one, shop, rng, name) for one in value[:6]]
    if not isinstance(value, str) or rng.random() < 0.2:
        return value
    if name == "item":
        return rng.choice(list(shop.samples))
    if name in ("image", "images", "audio", "sounds"):
        modality = "image" if name.startswith("image") else "audio"
        media = rng.choice(shop.of(modality)).media
        if rng.random() < 0.2:
            media = media[: rng.randrange(1, len(media))]
        return base64.b64encode(media).decode()
    if name == "filters":
        return rng.choice(["colour=red", "price<20", "pitch!=low", "shape=disc,bar"])
    if name == "prompts":
        return value + " {label}"
    return value
