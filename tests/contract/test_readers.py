"""What every reader of pairs keeps. A new module of coembed.pairs.readers is picked up unasked; it
adds to SOURCES a function that writes three items in its format, one of them broken.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coembed.errors import UserError
from coembed.files import sha256_tree
from coembed.pairs.ingest import ingest, load_reader, reader_names
from coembed.pairs.pool import read_pool
from coembed.pairs.readers.base import ReadOptions, Refusal, Row

MEDIA = {"one.jpg": b"\xff\xd8\xff one", "two.png": b"\x89PNG\r\n\x1a\n two"}
CAPTIONS = {"one.jpg": "a réd mug", "two.png": "two boots"}
BROKEN = "three.jpg"  # has a caption but no file


def _media(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in MEDIA.items():
        (folder / name).write_bytes(data)


def _rows() -> list[dict[str, Any]]:
    good = [{"path": n, "caption": c, "shop": "north"} for n, c in CAPTIONS.items()]
    return [{"path": BROKEN, "caption": "lost", "shop": "north"}, *good]


def _csv(folder: Path) -> Path:
    _media(folder)
    lines = [",".join(row.values()) for row in _rows()]
    (folder / "pairs.csv").write_text("\n".join(["path,caption,shop", *lines]), encoding="utf-8")
    return folder / "pairs.csv"


def _parquet(folder: Path) -> Path:
    _media(folder)
    pq.write_table(pa.Table.from_pylist(_rows()), folder / "pairs.parquet")
    return folder / "pairs.parquet"


def _jsonl(folder: Path) -> Path:
    _media(folder)
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, _rows())))
    return folder / "pairs.jsonl"


def _folder(folder: Path) -> Path:
    _media(folder)
    for name, caption in {**CAPTIONS, BROKEN: "lost"}.items():
        (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
        (folder / name).with_suffix(".json").write_text('{"shop": "north"}')
    return folder


def _coco(folder: Path) -> Path:
    _media(folder / "val")
    rows = _rows()
    images = [{"id": i, "file_name": row["path"]} for i, row in enumerate(rows)]
    annotations = [{"image_id": i, "caption": row["caption"]} for i, row in enumerate(rows)]
    (folder / "annotations").mkdir()
    path = folder / "annotations" / "captions_val.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def _webdataset(folder: Path) -> Path:
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for name, caption in {BROKEN: "lost", **CAPTIONS}.items():
            stem = name.split(".")[0]
            members = {f"{stem}.txt": caption.encode(), f"{stem}.json": b'{"shop": "north"}'}
            if name in MEDIA:
                members[name] = MEDIA[name]
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder


SOURCES: dict[str, Callable[[Path], Path]] = {
    "csv": _csv,
    "parquet": _parquet,
    "jsonl": _jsonl,
    "folder": _folder,
    "coco": _coco,
    "webdataset": _webdataset,
}


@pytest.fixture(params=reader_names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def source(name: str, tmp_path: Path) -> Path:
    assert name in SOURCES, f"give reader {name!r} an entry in SOURCES"
    return SOURCES[name](tmp_path / "in")


def test_only_this_reader_recognises_its_format(name: str, source: Path) -> None:
    assert [n for n in reader_names() if load_reader(n).recognises(source)] == [name]


def test_rows_say_where_they_stand_and_come_in_a_fixed_order(name: str, source: Path) -> None:
    read = load_reader(name).read
    first, second = (list(read(source, ReadOptions())) for _ in range(2))
    assert first == second
    assert len({row.where for row in first}) == len(first)
    for row in first:
        assert isinstance(row, Row | Refusal) and row.where
        if isinstance(row, Row):
            assert row.captions and row.name
        else:
            assert row.reason.isidentifier() and row.reason == row.reason.lower() and row.detail


def test_good_rows_come_in_and_the_broken_one_does_not_stop_them(
    name: str, source: Path, tmp_path: Path
) -> None:
    summary = ingest(source, tmp_path / "pool")
    assert (summary.reader, summary.num_added, summary.num_refused) == (name, 2, 1)
    pairs = read_pool(tmp_path / "pool").set_index("caption")
    for file, caption in CAPTIONS.items():
        row = pairs.loc[caption]
        assert (tmp_path / "pool" / row["path"]).read_bytes() == MEDIA[file]
        assert row["path"].endswith(file.rpartition(".")[2])
        if name != "coco":
            assert row["shop"] == "north"


def test_all_readers_agree_on_pair_ids(source: Path, tmp_path: Path) -> None:
    ingest(source, tmp_path / "pool")
    ingest(_csv(tmp_path / "reference"), tmp_path / "pool_2")
    ids = [sorted(read_pool(tmp_path / p)["pair_id"]) for p in ("pool", "pool_2")]
    assert ids[0] == ids[1]


def test_twice_is_once(name: str, source: Path, tmp_path: Path) -> None:
    ingest(source, tmp_path / "pool", reader=name)
    before = sha256_tree(tmp_path / "pool")
    assert ingest(source, tmp_path / "pool", reader=name).num_added == 0
    assert sha256_tree(tmp_path / "pool") == before


def test_a_source_of_rubbish_is_one_clear_error(name: str, source: Path, tmp_path: Path) -> None:
    files = [source] if source.is_file() else [p for p in source.rglob("*") if p.is_file()]
    for path in files:
        path.write_bytes(b"\x00\xff rubbish " * 50)
    if name == "folder":  # any bytes are media; without captions there are no pairs
        for path in source.glob("*.txt"):
            path.unlink()
    with pytest.raises(UserError) as caught:
        ingest(source, tmp_path / "pool", reader=name)
    assert source.name in str(caught.value) or "00000.tar" in str(caught.value)
