"""The index in a server over gRPC, and over TLS: the same words, the same second tries."""

from __future__ import annotations

import datetime
import ipaddress
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from index_cases import DIM, NAME, NUM, RELEASE, SETTINGS, build_with, make_points
from qdrant_grpc_stand_in import GrpcStandIn
from qdrant_stand_in import Fault, StandIn

from coembed.errors import ServiceError, UserError
from coembed.index.filters import parse_filters
from coembed.index.qdrant import QdrantIndex, open_server
from coembed.services import Services, find_services

QUICK = SETTINGS.model_copy(update={"backoff_s": 0.01, "backoff_max_s": 0.05, "timeout_s": 2})
UNAVAILABLE, DEADLINE, EXHAUSTED, INTERNAL, INVALID, UNAUTHENTICATED = 14, 4, 8, 13, 3, 16


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with StandIn() as running:
        yield running


@pytest.fixture
def over_grpc(stand_in: StandIn) -> Iterator[GrpcStandIn]:
    with GrpcStandIn(stand_in) as running:
        yield running


def connect(stand_in: StandIn, over: GrpcStandIn | None, **changes: Any) -> QdrantIndex:
    services = Services("", None, stand_in.url, "secret", Path("x"), over.port if over else None)
    return open_server(services, QUICK.model_copy(update=changes))


def test_everything_goes_over_grpc(stand_in: StandIn, over_grpc: GrpcStandIn) -> None:
    points = make_points()
    with connect(stand_in, over_grpc) as index:
        built = build_with(index, points)
        assert (built.num_items, built.search.recall_at_10) == (NUM, 1.0)
        assert build_with(index, points).already_built
        index.set_alias("items", NAME)
        index.set_alias("items", NAME)
        assert index.aliases() == {"items": NAME}
        with pytest.raises(UserError, match="is served"):
            index.delete(NAME)
        index.delete_points(NAME, [points[0].item_id, "f" * 64])
        assert index.count(NAME) == NUM - 1
        scrolled = [one for batch in index.scroll(NAME, with_vectors=True) for one in batch]
        assert {one.item_id for one in scrolled} == {one.item_id for one in points[1:]}
        there = {one.item_id: one for one in scrolled}
        assert dict(there[points[3].item_id].payload) == dict(points[3].payload)
        np.testing.assert_allclose(there[points[3].item_id].vector, points[3].vector, atol=1e-6)
        where = parse_filters(["price<20"], {"price": "number"})
        hits = index.query(NAME, RELEASE.vector_name, points[9].vector, where=where, limit=3)
        assert hits[0].item_id == points[9].item_id
        assert all(hit.payload["attributes"]["price"] < 20 for hit in hits)  # type: ignore[index]
        with pytest.raises(UserError, match="no collection 'nope' in the index; present: items__"):
            index.count("nope")
        with pytest.raises(UserError, match="is taken"):
            index.create(NAME, vector_name="v", dim=DIM, metadata={}, columns={})
    assert stand_in.seen == []  # nothing went over HTTP
    assert over_grpc.keys == {"secret"}


@pytest.mark.parametrize("after_work", [False, True])
@pytest.mark.parametrize("code", [UNAVAILABLE, EXHAUSTED, INTERNAL, DEADLINE])
def test_what_may_pass_is_tried_again(
    stand_in: StandIn, over_grpc: GrpcStandIn, code: int, after_work: bool
) -> None:
    with connect(stand_in, over_grpc) as index:
        for name in ("Create", "CreateFieldIndex", "Upsert", "Update", "Scroll", "Query"):
            over_grpc.faults.append(Fault(name, code, after_work=after_work))
        build_with(index)
        assert not over_grpc.faults
        assert index.count(NAME) == NUM
        assert build_with(index).already_built


def test_a_server_that_is_too_slow_is_asked_again(
    stand_in: StandIn, over_grpc: GrpcStandIn
) -> None:
    over_grpc.faults.append(Fault("Upsert", UNAVAILABLE, slow_s=1.5, after_work=True))
    with connect(stand_in, over_grpc, timeout_s=1) as index:
        build_with(index)
    assert not over_grpc.faults


def test_a_pause_that_is_asked_for_is_kept(stand_in: StandIn, over_grpc: GrpcStandIn) -> None:
    with connect(stand_in, over_grpc) as index:
        build_with(index)
        over_grpc.faults.append(Fault("Count", EXHAUSTED, {"retry-after": "1"}))
        start = time.monotonic()
        assert index.count(NAME) == NUM
        assert time.monotonic() - start >= 1.0
        assert not over_grpc.faults


@pytest.mark.parametrize(("code", "hint"), [(INVALID, "limits"), (UNAUTHENTICATED, "API_KEY")])
def test_a_refusal_is_not_repeated(
    stand_in: StandIn, over_grpc: GrpcStandIn, code: int, hint: str
) -> None:
    with connect(stand_in, over_grpc) as index:
        build_with(index)
        over_grpc.faults.append(Fault("Upsert", code))
        before = over_grpc.calls.count("Upsert")
        with pytest.raises(ServiceError, match=r"answered .*: fault of the stand-in") as caught:
            index.upsert(NAME, make_points()[:1])
        assert over_grpc.calls.count("Upsert") == before + 1
        assert hint in str(caught.value)


def test_no_server_at_the_port_is_one_clear_error(stand_in: StandIn) -> None:
    services = Services("", None, stand_in.url, None, Path("x"), 9)
    with pytest.raises(ServiceError, match=r"does not answer .*UNAVAILABLE") as caught:
        open_server(services, QUICK)
    assert "QDRANT_GRPC_PORT" in str(caught.value)


def test_the_port_comes_from_the_environment(tmp_path: Path) -> None:
    found = find_services(tmp_path, {"QDRANT_URL": "http://h:6333", "QDRANT_GRPC_PORT": "6334"})
    assert found.qdrant_grpc_port == 6334
    assert find_services(tmp_path, {"QDRANT_GRPC_PORT": ""}).qdrant_grpc_port is None
    for wrong in ("x", "0", "70000", "-1"):
        with pytest.raises(UserError, match=f"QDRANT_GRPC_PORT is '{wrong}', expected a port"):
            find_services(tmp_path, {"QDRANT_GRPC_PORT": wrong})


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = folder / "certificate.pem", folder / "key.pem"
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate_path, key_path


def test_a_server_behind_tls_is_trusted_by_its_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = write_certificate(tmp_path)
    with StandIn(certificate=certificate, key=key) as stand_in:
        assert stand_in.url.startswith("https://")
        with pytest.raises(ServiceError, match="CERTIFICATE_VERIFY_FAILED"):
            connect(stand_in, None)
        assert stand_in.seen == []  # and so the key was not given away
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with connect(stand_in, None) as index:
            assert build_with(index).num_items == NUM
        assert {one.api_key for one in stand_in.seen} == {"secret"}
