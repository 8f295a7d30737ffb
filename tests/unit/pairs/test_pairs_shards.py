"""Shards: written deterministically, read safely, and by WebDataset too."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from coembed.errors import DataError
from coembed.files import sha256_bytes, sha256_file, write_receipt
from coembed.pairs.shards import ShardWriter, num_samples, read_samples, read_shard, shard_paths
from coembed.types import Sample


def _sample(number: int, *, size: int = 700) -> Sample:
    media = b"\xff\xd8\xff" + bytes([number]) * size
    return Sample(
        item_id=sha256_bytes(media),
        modality="image",
        path=f"media/{number}.jpg",
        media=media,
        extension="jpg",
        captions=(f"first {number} é", "second"),
        pair_ids=(f"p{number}", f"q{number}"),
        attributes={"price": number / 2, "colour": "red", "sold": True},
    )


def _write(folder: Path, samples: list[Sample], **limits: int) -> ShardWriter:
    folder.mkdir(exist_ok=True)
    limits = {"max_samples": 100, "max_bytes": 10**9} | limits
    with ShardWriter(folder, "train", **limits) as writer:
        for sample in samples:
            writer.write(sample)
    shards = [shard.as_dict() for shard in writer.shards]
    nothing: dict[str, object] = {"num_items": 0, "shards": []}
    splits = {
        "train": {"num_items": len(samples), "shards": shards},
        "val": nothing,
        "test": nothing,
    }
    write_receipt(folder, {"splits": splits})
    return writer


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    samples = [_sample(i) for i in range(5)]
    writer = _write(tmp_path / "pairs", samples, max_samples=2)
    assert list(read_samples(tmp_path / "pairs", "train", verify=True)) == samples
    assert [shard.num_samples for shard in writer.shards] == [2, 2, 1]
    assert num_samples(tmp_path / "pairs", "train") == 5
    assert num_samples(tmp_path / "pairs", "val") == 0
    assert list(read_samples(tmp_path / "pairs", "val")) == []


def test_shards_say_their_size_and_hash_and_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    samples = [_sample(i) for i in range(7)]
    one = _write(tmp_path / "one", samples, max_bytes=20_480)
    two = _write(tmp_path / "two", samples, max_bytes=20_480)
    assert len(one.shards) > 1 and one.shards == two.shards
    for shard in one.shards:
        path = tmp_path / "one" / shard.name
        assert (shard.num_bytes, shard.sha256) == (path.stat().st_size, sha256_file(path))
        assert path.stat().st_size <= 20_480
        assert path.read_bytes() == (tmp_path / "two" / shard.name).read_bytes()


def test_a_sample_larger_than_a_shard_gets_one_of_its_own(tmp_path: Path) -> None:
    samples = [_sample(0), _sample(1, size=50_000), _sample(2)]
    writer = _write(tmp_path / "pairs", samples, max_bytes=20_480)
    assert [shard.num_samples for shard in writer.shards] == [1, 1, 1]


def test_the_standard_library_and_webdataset_read_them(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    samples = [_sample(i) for i in range(3)]
    _write(tmp_path / "pairs", samples)
    path = tmp_path / "pairs" / "train-000000.tar"
    with tarfile.open(path) as tar:
        infos = tar.getmembers()
    assert {(i.mtime, i.uid, i.gid, i.uname) for i in infos} == {(0, 0, 0, "")}
    read = list(webdataset.WebDataset(str(path), shardshuffle=False).decode())
    assert [r["__key__"] for r in read] == [s.item_id for s in samples]
    assert [r["txt"] for r in read] == [s.captions[0] for s in samples]
    assert read[1]["json"]["pair_ids"] == ["p1", "q1"]
    assert read[1]["json"]["attributes"] == {"colour": "red", "price": 0.5, "sold": True}


def _tar(path: Path, *members: tuple[tarfile.TarInfo | str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for info, data in members:
            info = tarfile.TarInfo(info) if isinstance(info, str) else info
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def _link() -> tarfile.TarInfo:
    info = tarfile.TarInfo("a.jpg")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../a.jpg", b"x")], "'../a.jpg' is not named KEY.ENDING"),
        ([("/etc/a.jpg", b"x")], "not named KEY.ENDING"),
        ([(_link(), b"")], "'a.jpg' is not a regular file with a plain name"),
        ([("a.jpg", b"x"), ("a.txt", b"x")], "sample 'a' is not one media file"),
        ([("a.jpg", b"x"), ("a.json", b"[]")], r"a\.json does not describe"),
        ([("a.jpg", b"x"), ("a.json", b"\x80")], r"a\.json does not describe"),
    ],
)
def test_hostile_and_foreign_shards_are_refused(
    tmp_path: Path, members: list[tuple[tarfile.TarInfo | str, bytes]], message: str
) -> None:
    path = _tar(tmp_path / "train-000000.tar", *members)
    with pytest.raises(DataError, match=message):
        list(read_shard(path))


def test_damaged_headers_are_refused(tmp_path: Path) -> None:
    _write(tmp_path / "pairs", [_sample(0), _sample(1)])
    path = tmp_path / "pairs" / "train-000000.tar"
    whole = path.read_bytes()
    size = slice(124, 136)
    for place, data, message in (
        (slice(0, 1), b"x", "wrong checksum"),
        (size, b"zzzzzzzzzzz\0", "no tar header"),
        (size, b"-0000000001\0", "damaged"),
        (slice(0, 100), b"\xff" * 100, "no tar header"),
        (slice(3000, 9999), b"", "ends in the middle|no tar header"),
    ):
        hurt = bytearray(whole)
        hurt[place] = data
        path.write_bytes(hurt)
        with pytest.raises(DataError, match=message):
            list(read_shard(path))
    info = tarfile.TarInfo("a.jpg")
    info.size = 8**10
    header = info.tobuf(tarfile.USTAR_FORMAT)
    negative = header.replace(b"10000000000", b"-0000000001")
    start = sum(negative[:148]) + sum(negative[156:]) + 8 * 32
    negative = negative[:148] + b"%06o\0 " % start + negative[156:]
    for hurt_header, size_text in ((header, "1,073,741,824"), (negative, "-1")):
        path.write_bytes(hurt_header + b"x" * 600)
        with pytest.raises(DataError, match=f"said to have {size_text} bytes, the whole"):
            list(read_shard(path))


def test_changed_media_are_found_when_asked(tmp_path: Path) -> None:
    sample = _sample(1)
    about = {"item_id": sample.item_id, "modality": "image", "path": "x", "captions": [],
             "pair_ids": [], "attributes": {}}  # fmt: skip
    path = _tar(
        tmp_path / "a.tar",
        (f"{sample.item_id}.jpg", b"other"),
        (f"{sample.item_id}.json", json.dumps(about).encode()),
    )
    assert len(list(read_shard(path))) == 1
    with pytest.raises(DataError, match="do not have that SHA-256"):
        list(read_shard(path, verify=True))


@pytest.mark.parametrize("keep", [0, 100, 700, 1500, 3072, 6144, 9000])
def test_a_shard_cut_short_is_an_error(tmp_path: Path, keep: int) -> None:
    _write(tmp_path / "pairs", [_sample(0), _sample(1)])
    path = tmp_path / "pairs" / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="but its receipt says"):
        list(read_samples(tmp_path / "pairs", "train"))


def test_a_folder_without_receipt_or_shard_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="coembed curate"):
        list(read_samples(tmp_path, "train"))
    _write(tmp_path / "pairs", [_sample(0)])
    (tmp_path / "pairs" / "train-000000.tar").unlink()
    with pytest.raises(DataError, match=r"train-000000\.tar is missing"):
        shard_paths(tmp_path / "pairs", "train")
    write_receipt(
        tmp_path / "pairs", {"splits": {"train": {"num_items": 1, "shards": [{"name": "../x"}]}}}
    )
    with pytest.raises(DataError, match="is not one of curated pairs"):
        shard_paths(tmp_path / "pairs", "train")
