"""Malformed and hostile archives, folders and COCO files as sources of an ingest.

Nothing may be written outside the pool, nothing may be read from outside the source but what a
table names, and what is not taken must be refused with a reason.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzzing import MAX_RSS_BYTES, run_watched

from coembed.errors import CoembedError
from coembed.files import sha256_bytes, sha256_tree
from coembed.pairs.ingest import ingest
from coembed.pairs.pool import open_pool

MAX_MEDIA_BYTES = 1 << 20


def case(number: int, folder: Path) -> str:
    """Make a source of kind `number` modulo three, take it in twice, and look at the pool."""
    rng = random.Random(number)
    folder.mkdir(parents=True)
    canary = folder.parents[1] / "canary"
    try:
        source = (_tar, _folder, _coco)[number % 3](rng, folder, canary)
        return _take_in(source, folder / "pool")
    finally:
        shutil.rmtree(folder)


def _take_in(source: Path, pool: Path) -> str:
    reader = {".tar": "webdataset", ".json": "coco"}.get(source.suffix, "folder")
    refused = pool.parent / "refused.csv"
    try:
        summary = ingest(
            source, pool, reader=reader, refused=refused, max_media_bytes=MAX_MEDIA_BYTES
        )
    except CoembedError as error:
        assert source.name in str(error), str(error)
        return f"{reader}: {'refused' if 'no row' in str(error) else 'error'}"
    rows = sum(summary.refused.values())
    assert len(refused.read_text(encoding="utf-8").splitlines()) == rows + 1
    pairs = [row for batch in open_pool(pool).batches() for row in batch.to_pylist()]
    assert len(pairs) == summary.num_added
    for pair in pairs:
        media = pool / pair["path"]
        assert media.resolve().is_relative_to(pool.resolve()) and not media.is_symlink()
        data = media.read_bytes()
        assert b"not to be" not in data and "not to be" not in str(pair), "a secret was read"
        assert sha256_bytes(data) == media.stem and len(data) <= MAX_MEDIA_BYTES
    assert not (pool / ".ingest").exists()
    before = sha256_tree(pool)
    assert ingest(source, pool, reader=reader, max_media_bytes=MAX_MEDIA_BYTES).num_added == 0
    assert sha256_tree(pool) == before
    return f"{reader}: {'some refused' if rows else 'taken'}"


def _picture(rng: random.Random) -> bytes:
    return b"\xff\xd8\xff" + rng.randbytes(rng.randrange(200))


# Tars.


def _tar(rng: random.Random, folder: Path, canary: Path) -> Path:
    members: list[tuple[tarfile.TarInfo, bytes]] = []
    for i in range(rng.randrange(1, 12)):
        members.append(_member(f"{i:05}.jpg", _picture(rng)))
        members.append(_member(f"{i:05}.txt", f"caption {i}".encode()))
        if rng.random() < 0.4:
            members.append(_member(f"{i:05}.json", _about(rng)))
    for _ in range(rng.randrange(3)):
        at = rng.randrange(len(members) + 1)
        members[at:at] = rng.choice(ODD_MEMBERS)(rng, canary)
    form = rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    data = b""
    for info, content in members:
        try:
            data += info.tobuf(form, "utf-8", "surrogateescape")
        except ValueError:  # USTAR has no place for so long a name
            continue
        # By hand, because tarfile writes no header that lies about what follows.
        data += content + b"\0" * (-len(content) % 512)
    data += b"\0" * 1024
    for damage in rng.choices((_same, _cut, _flipped, _spliced), k=rng.choice((0, 1, 1))):
        data = damage(rng, data)
    source = folder / "source.tar"
    source.write_bytes(data)
    return source


def _member(name: str, data: bytes, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


Members = list[tuple[tarfile.TarInfo, bytes]]


def _climbing(rng: random.Random, canary: Path) -> Members:
    names = (
        "../canary/x",
        "/tmp/coembed-canary/x",
        "a/../../../x",
        f"{canary}/x",
        "..",
        "./../x",
        "//x",
    )
    name = rng.choice(names)
    return [_member(f"{name}.jpg", _picture(rng)), _member(f"{name}.txt", b"climbed")]


def _links(rng: random.Random, canary: Path) -> Members:
    kind = rng.choice(
        (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z")
    )
    target = str(canary / "secret.jpg")
    return [
        _member("link.jpg", b"", type=kind, linkname=target, devmajor=1, devminor=5),
        _member("link.txt", b"a caption of a link"),
    ]


def _twice(rng: random.Random, _: Path) -> Members:
    pictures = [
        _member(f"twice.{e}", _picture(rng)) for e in rng.choices(("jpg", "png", "wav"), k=3)
    ]
    return [*pictures, _member("twice.txt", b"one"), _member("twice.txt", b"two")]


def _odd_names(rng: random.Random, _: Path) -> Members:
    names = (
        "x" * 3000,
        "\udcff\udcfe",
        "a\nb",
        "\x1b[2J",
        "",
        " ",
        ".",
        "con",
        "a" * 90 + "/" + "b" * 90,
        "dir/",
        "__index__",
        "._mac",
        "\u202egpj",
        "a.b.c.d",
        "'; rm -rf /",
        "%s%n",
    )
    name = rng.choice(names)
    return [_member(f"{name}.jpg", _picture(rng)), _member(f"{name}.txt", b"odd name")]


def _lying_sizes(rng: random.Random, _: Path) -> Members:
    size = rng.choice((1, 10**6, 2**31, 2**40, 8**11 - 1))
    info, data = _member("liar.jpg", _picture(rng))
    info.size = size
    return [(info, data)] if size == 1 else [_member("liar.txt", b"x"), (info, data * 20)]


def _sparse(_: random.Random, __: Path) -> Members:
    info, data = _member("sparse.jpg", b"1\n0\n1\n".ljust(512, b"\0") + b"\xff")
    info.pax_headers = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "sparse.jpg",
        "GNU.sparse.realsize": str(2**36),
    }  # fmt: skip
    return [(info, data), _member("sparse.txt", b"mostly nothing")]


def _giant_headers(rng: random.Random, _: Path) -> Members:
    kind = rng.choice((tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE))
    return [
        _member("././@LongLink", b"x" * (3 << 20), type=kind),
        _member("after.jpg", b"\xff\xd8\xff"),
    ]


def _big(_: random.Random, __: Path) -> Members:
    return [
        _member("big.jpg", b"\xff\xd8\xff" + b"\0" * (3 << 20)),
        _member("big.txt", b"y" * (5 << 20)),
    ]


def _bad_text(rng: random.Random, _: Path) -> Members:
    text = rng.choice((b"\xff\xfe\0", b"caf\xe9", b"", b"\0" * 100, b"\x1b[31m", b"a\r\nb\r\n"))
    return [
        _member("text.jpg", _picture(rng)),
        _member("text.txt", text),
        _member("text.json", _about(rng)),
        _member("text.cls", rng.choice((b"7", b"9" * 5000, b"\xff", "٣".encode(), b"-1", b""))),
    ]


ODD_MEMBERS: list[Callable[[random.Random, Path], Members]] = [
    _climbing, _links, _twice, _odd_names, _lying_sizes, _sparse, _giant_headers, _big, _bad_text,
]  # fmt: skip


def _about(rng: random.Random) -> bytes:
    return rng.choice(
        (
            b'{"caption": "from json", "n": 1}', b"{", b"[]", b"null", b"\xff", b'{"a": ' * 3000,
            b'{"n": ' + b"9" * 6000 + b"}", b'{"n": 1e999, "m": NaN, "k": -Infinity}',
            b'{"captions": ["a", 1, null], "split": "train", "modality": "smell"}',
            b'{"captions": [], "modality": 5, "split": []}',
            b'{"\\ud800": "\\udfff", "": 1, "a": [[]]}',
            b'{"attributes": {"pair_id": "x", "path": "../../x"}}', b'{"pair_id": 1, "path": [1]}',
            json.dumps({f"a{i}": i for i in range(1500)}).encode(),
            b'{"deep": ' + b"[" * 985 + b"]" * 985 + b"}",
        )
    )  # fmt: skip


def _same(_: random.Random, data: bytes) -> bytes:
    return data


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _flipped(rng: random.Random, data: bytes) -> bytes:
    flipped = bytearray(data)
    for _ in range(rng.choice((1, 4, 30))):
        # Headers are where a flipped bit does most.
        at = rng.randrange(len(data)) // 512 * 512 + rng.randrange(512)
        flipped[at % len(data)] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def _spliced(rng: random.Random, data: bytes) -> bytes:
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:a] + rng.choice((b"", rng.randbytes(512), data[a:b] * 2)) + data[b:]


# Folders.


def _folder(rng: random.Random, folder: Path, canary: Path) -> Path:
    source = folder / "source"
    source.mkdir()
    for i in range(rng.randrange(1, 8)):
        (source / f"{i}.jpg").write_bytes(_picture(rng))
        (source / f"{i}.txt").write_text(f"caption {i}")
    for _ in range(rng.randrange(1, 4)):
        _odd_file(rng, source, canary)
    return source


def _odd_file(rng: random.Random, source: Path, canary: Path) -> None:
    stem = source / f"odd{rng.randrange(10**6)}"
    picture, text, about = (stem.with_suffix(e) for e in (".jpg", ".txt", ".json"))
    kind = rng.randrange(12)
    if kind != 2:
        text.write_text("an odd one")
    if kind == 0:
        picture.symlink_to(canary / "secret.jpg")
    elif kind == 1:
        picture.symlink_to(rng.choice(("/dev/zero", "/dev/null", "/nowhere", "/proc/self/mem")))
    elif kind == 2:
        picture.write_bytes(_picture(rng))
        text.symlink_to(canary / "secret.txt")
    elif kind == 3:
        picture.write_bytes(_picture(rng))
        about.symlink_to("/dev/zero")
    elif kind == 4:
        os.mkfifo(picture)
    elif kind == 5:
        picture.write_bytes(_picture(rng))
        os.mkfifo(about)
    elif kind == 6:
        picture.symlink_to(canary, target_is_directory=True)
    elif kind == 7:
        picture.symlink_to(picture.name)  # a link to itself
    elif kind == 8:
        Path(os.fsdecode(os.fsencode(stem) + b"\xff\xfe.jpg")).write_bytes(_picture(rng))
        Path(os.fsdecode(os.fsencode(stem) + b"\xff\xfe.txt")).write_text("a name of no text")
    elif kind == 9:
        picture.write_bytes(_picture(rng))
        about.write_bytes(_about(rng))
        text.write_bytes(rng.choice((b"\xff\xfe", b"\0" * 50, b"\n\n", b"z" * (5 << 20))))
    elif kind == 10:
        deep = source / "/".join("d" * 60)
        deep.mkdir(parents=True, exist_ok=True)
        (deep / "x.jpg").write_bytes(b"")
        (deep / "x.txt").write_text("deep and empty")
    else:
        picture.symlink_to(source / "0.jpg")  # within the folder: fine


# COCO.


def _coco(rng: random.Random, folder: Path, canary: Path) -> Path:
    odd: list[Any] = [
        None, [], {}, "", 1.5, True, "x" * 500, [[1]], {"a": 1}, "\ud800", -1, 2**70, "0.jpg",
        "../../canary/secret.jpg", "\x00", "/dev/zero", "file:///etc/hostname", "http://x/y.jpg",
        f"images/../../../{canary.name}/secret.jpg",
    ]  # fmt: skip
    (folder / "0.jpg").write_bytes(_picture(rng))
    images: list[Any] = [{"id": 0, "file_name": "0.jpg"}]
    annotations: list[Any] = [{"image_id": 0, "caption": "a good one"}]
    for i in range(1, rng.randrange(2, 8)):
        images.append(
            rng.choice([rng.choice(odd), {"id": rng.choice(odd), "file_name": rng.choice(odd)}])
        )
        annotation = {"image_id": rng.choice([i, 0, *odd]), "caption": rng.choice(["x", *odd])}
        annotations.append(rng.choice([annotation, annotation, rng.choice(odd)]))
    whole: Any = {"images": images, "annotations": annotations}
    if rng.random() < 0.15:
        whole = rng.choice(
            [odd, {"images": 1, "annotations": []}, {"annotations": []}, {"images": {}}]
        )
    data = json.dumps(whole).encode()
    if rng.random() < 0.3:
        data = rng.choice((_cut, _flipped, _spliced))(rng, data)
    source = folder / "source.json"
    source.write_bytes(data)
    return source


def _run(folder: Path, numbers: range, *, timeout_s: float) -> None:
    outcome = run_watched("test_fuzz_sources", numbers, folder, timeout_s=timeout_s)
    print(outcome)
    assert sum(outcome.answers.values()) == len(numbers)
    assert outcome.max_rss_bytes < MAX_RSS_BYTES, outcome
    assert len(outcome.answers) >= 6, outcome


def test_hundreds_of_hostile_sources(tmp_path: Path) -> None:
    _run(tmp_path / "work", range(240), timeout_s=200)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_hostile_sources(tmp_path: Path) -> None:
    _run(tmp_path / "work", range(1000, 1800), timeout_s=1800)
