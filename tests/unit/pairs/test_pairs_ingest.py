"""Ingest: what gets into a pool, what is refused, and that doing it twice changes nothing."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from pathlib import Path

import pandas as pd
import pytest

from coembed.errors import UserError
from coembed.files import sha256_bytes, sha256_tree
from coembed.pairs import intake as intake_module
from coembed.pairs.ingest import IngestSummary, ingest
from coembed.pairs.pool import read_pool

JPG = b"\xff\xd8\xff\xe0 not really a picture, but its first bytes say so"


def _media(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        data = JPG + name.encode() if name.endswith(("jpg", "jpeg")) else name.encode()
        (folder / name).write_bytes(data)
    return folder


def _csv(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_becomes_a_content_addressed_pool(tmp_path: Path) -> None:
    _media(tmp_path / "in", "a.jpeg", "b.wav")
    source = _csv(
        tmp_path / "in" / "pairs.csv",
        "filepath,title,price,code,new,split\na.jpeg,A  red mug,3.5,007,true,Validation\n"
        "b.wav,a bell,4,x,false,\n",
    )
    summary = ingest(source, tmp_path / "pool")
    assert (summary.reader, summary.num_added, summary.num_refused) == ("csv", 2, 0)
    pairs = read_pool(tmp_path / "pool")
    item_id = sha256_bytes(JPG + b"a.jpeg")
    assert pairs["path"][0] == f"media/{item_id[:2]}/{item_id}.jpg"
    assert pairs["path"][1].endswith(".wav")
    assert (tmp_path / "pool" / pairs["path"][0]).read_bytes() == JPG + b"a.jpeg"
    assert pairs["caption"].tolist() == ["A  red mug", "a bell"]
    assert pairs["modality"].tolist() == ["image", "audio"]
    assert pairs["split"].fillna("-").tolist() == ["val", "-"]
    assert pairs["price"].tolist() == [3.5, 4.0]
    assert pairs["code"].tolist() == ["007", "x"]
    assert pairs["new"].tolist() == [True, False]
    expected = sha256_bytes(f"{item_id}\0A  red mug".encode())[:32]
    assert pairs["pair_id"][0] == expected
    assert (tmp_path / "in" / "a.jpeg").exists()  # copied, not moved


def test_twice_changes_nothing_and_growth_adds_only_what_is_new(tmp_path: Path) -> None:
    _media(tmp_path / "in", "a.jpg", "b.jpg", "c.jpg")
    pool = tmp_path / "pool"
    source = _csv(tmp_path / "in" / "pairs.csv", "path,caption\na.jpg,one\nb.jpg,two\na.jpg,one\n")
    first = ingest(source, pool)
    assert (first.num_added, first.num_known, first.num_media_added) == (2, 1, 2)
    before = sha256_tree(pool)
    again = ingest(source, pool)
    assert (again.num_added, again.num_known, again.num_media_added) == (0, 3, 0)
    assert sha256_tree(pool) == before
    grown = _csv(source, source.read_text() + "c.jpg,three\nb.jpg,another caption\n")
    more = ingest(grown, pool)
    assert (more.num_added, more.num_known, more.num_media_added) == (2, 3, 1)
    assert sorted(read_pool(pool)["caption"]) == ["another caption", "one", "three", "two"]
    assert not (pool / ".ingest").exists()


def test_a_killed_ingest_ends_like_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "PART_PAIRS", 3)
    names = [f"{i}.jpg" for i in range(10)]
    _media(tmp_path / "in", *names)
    rows = "".join(f"{name},caption {name},{i}\n" for i, name in enumerate(names))
    source = _csv(tmp_path / "in" / "pairs.csv", "path,caption,n\n" + rows)
    ingest(source, tmp_path / "whole")

    take = intake_module.Intake.take
    taken = 0

    def killed(self: intake_module.Intake, row: intake_module.Row) -> intake_module.Refusal | None:
        nonlocal taken
        taken += 1
        if taken > 5:
            raise KeyboardInterrupt
        return take(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(intake_module.Intake, "take", killed)
        with pytest.raises(KeyboardInterrupt):
            ingest(source, tmp_path / "cut")
    (tmp_path / "cut" / ".ingest").mkdir()  # what SIGKILL leaves
    (tmp_path / "cut" / ".ingest" / "half").write_bytes(b"half a file")
    assert len(list((tmp_path / "cut" / "pairs").glob("*.parquet"))) == 1
    ingest(source, tmp_path / "cut")
    assert sha256_tree(tmp_path / "cut") == sha256_tree(tmp_path / "whole")


def test_bad_rows_are_refused_with_reasons_and_never_stop_the_rest(tmp_path: Path) -> None:
    folder = _media(tmp_path / "in", "good.jpg")
    (folder / "empty.jpg").touch()
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "big.jpg").write_bytes(b"x" * 2000)
    source = folder / "pairs.csv"
    source.write_bytes(
        b"path,caption,modality\n"
        b"missing.jpg,x,\nempty.jpg,x,\nfolder.jpg,x,\npipe.jpg,x,\nbig.jpg,x,\n,x,\n"
        b"http://example.com/a.jpg,x,\n../../etc/passwd,x,\na,b,c,d\nhalf\n"
        b"good.jpg,caf\xe9,\ngood.jpg,x,smell\ngood.jpg,a good one,\n"
    )
    refused = tmp_path / "runs" / "refused.csv"
    summary = ingest(source, tmp_path / "pool", refused=refused, max_media_bytes=1000)
    assert summary.num_added == 1
    assert summary.refused == {
        "missing_file": 1, "empty_file": 1, "not_a_file": 2, "file_too_large": 1,
        "missing_path": 1, "is_url": 1, "outside_media_root": 1, "malformed_row": 2,
        "not_utf8": 1, "unknown_modality": 1,
    }  # fmt: skip
    listed = list(csv.DictReader(refused.open()))
    assert len(listed) == summary.num_refused == 12
    assert listed[0] == {
        "where": "pairs.csv:2",
        "reason": "missing_file",
        "detail": f"no file {folder / 'missing.jpg'}",
    }
    assert "img2dataset" in next(r["detail"] for r in listed if r["reason"] == "is_url")
    assert len(summary.examples) <= 5
    assert ("rows refused", "12") in summary.rows()


def test_absolute_paths_and_a_media_root(tmp_path: Path) -> None:
    far = _media(tmp_path / "far", "a.jpg", "b.jpg")
    source = _csv(tmp_path / "t" / "pairs.csv", f"path,caption\n{far / 'a.jpg'},one\nb.jpg,two\n")
    assert ingest(source, tmp_path / "one").refused == {"missing_file": 1}
    assert ingest(source, tmp_path / "two", media_root=far).num_added == 2


def test_links_share_the_bytes_and_copies_do_not(tmp_path: Path) -> None:
    _media(tmp_path / "in", "a.jpg")
    source = _csv(tmp_path / "in" / "pairs.csv", "path,caption\na.jpg,one\n")
    ingest(source, tmp_path / "linked", link=True)
    ingest(source, tmp_path / "copied")
    for pool, links in (("linked", 2), ("copied", 1)):
        (file,) = (tmp_path / pool / "media").rglob("*.jpg")
        assert file.stat().st_nlink == links
    assert sha256_tree(tmp_path / "linked") == sha256_tree(tmp_path / "copied")


def test_half_a_file_from_a_power_cut_is_mended(tmp_path: Path) -> None:
    _media(tmp_path / "in", "a.jpg")
    source = _csv(tmp_path / "in" / "pairs.csv", "path,caption\na.jpg,one\n")
    ingest(source, tmp_path / "pool")
    (file,) = (tmp_path / "pool" / "media").rglob("*.jpg")
    file.write_bytes(b"")
    ingest(source, tmp_path / "pool")
    assert file.read_bytes() == JPG + b"a.jpg"


def test_columns_are_named_and_renamed(tmp_path: Path) -> None:
    _media(tmp_path / "in", "a.jpg")
    source = _csv(tmp_path / "in" / "t.csv", "where;what;color;pair_id\na.jpg;mug;red;mine\n")
    with pytest.raises(
        UserError, match="no column that could be the path; its columns are 'where'"
    ):
        ingest(source, tmp_path / "pool")
    assert not (tmp_path / "pool").exists()
    columns = {"path": "where", "caption": "what", "colour": "color"}
    ingest(source, tmp_path / "pool", columns=columns)
    (row,) = read_pool(tmp_path / "pool").to_dict("records")
    assert (row["caption"], row["colour"], row["source_pair_id"]) == ("mug", "red", "mine")
    with pytest.raises(UserError, match="no column 'wo' to take as 'path'"):
        ingest(source, tmp_path / "pool", columns={"path": "wo"})


def test_our_own_names_are_a_guess_and_other_names_an_order(tmp_path: Path) -> None:
    """The command line passes path=path and caption=caption when nobody says anything."""
    _media(tmp_path / "in", "a.jpg")
    source = _csv(tmp_path / "in" / "t.csv", "filepath\ttitle\na.jpg\tmug\n")
    ours = {"path": "path", "caption": "caption"}
    assert ingest(source, tmp_path / "pool", columns=ours).num_added == 1
    assert "--caption-column" in _fails(_csv(source, "path,words\na.jpg,x\n"), tmp_path / "p")


def test_an_unusual_split_is_kept_as_an_attribute(tmp_path: Path) -> None:
    _media(tmp_path / "in", "a.jpg", "b.jpg")
    rows = "path,caption,split\na.jpg,one,restval\nb.jpg,two,dev\n"
    ingest(_csv(tmp_path / "in" / "t.csv", rows), tmp_path / "pool")
    pairs = read_pool(tmp_path / "pool").fillna("-")
    assert pairs[["split", "source_split"]].to_numpy().tolist() == [["-", "restval"], ["val", "-"]]


def test_pictures_inside_a_parquet_table(tmp_path: Path) -> None:
    images = [{"bytes": JPG + b"1", "path": "x.jpeg"}, {"bytes": None, "path": None}]
    frame = pd.DataFrame({"image": images, "text": [["one", "two"], ["three"]], "n": [1, 2]})
    frame.to_parquet(tmp_path / "data.parquet")
    summary = ingest(tmp_path / "data.parquet", tmp_path / "pool")
    assert summary.refused == {"missing_path": 1}
    assert read_pool(tmp_path / "pool")["caption"].tolist() == ["one", "two"]


def _tar(path: Path, *members: tuple[str, bytes], extra: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in extra:
            tar.addfile(info)
    return path


def test_img2dataset_output(tmp_path: Path) -> None:
    about = {"caption": "a mug", "url": "http://example.com/1", "width": 9, "status": "success"}
    _tar(
        tmp_path / "in" / "00000.tar",
        ("000000001.jpg", JPG + b"1"),
        ("000000001.json", json.dumps(about).encode()),
        ("000000001.txt", b"a mug"),
        ("000000002.jpg", JPG + b"2"),
        ("000000002.json", b'{"caption": "only in the JSON"}'),
    )
    pd.DataFrame({"url": ["x"], "caption": ["y"]}).to_parquet(tmp_path / "in" / "00000.parquet")
    (tmp_path / "in" / "00000_stats.json").write_text("{}")
    summary = ingest(tmp_path / "in", tmp_path / "pool")
    assert (summary.reader, summary.num_added, summary.num_refused) == ("webdataset", 2, 0)
    pairs = read_pool(tmp_path / "pool")
    assert pairs["caption"].tolist() == ["a mug", "only in the JSON"]
    assert pairs["key"].tolist() == ["000000001", "000000002"]
    assert pairs["url"].fillna("-").tolist() == ["http://example.com/1", "-"]


def test_a_hostile_tar_is_refused_member_by_member(tmp_path: Path) -> None:
    links = []
    for number, kind in enumerate(
        (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
    ):
        info = tarfile.TarInfo(f"link{number}.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        links.append(info)
    source = _tar(
        tmp_path / "in" / "evil.tar",
        ("../../escape.jpg", JPG),
        ("/tmp/absolute.jpg", JPG),
        ("a/../../b.jpg", JPG),
        ("model.pkl", b"\x80\x04."),
        ("big.jpg", b"x" * 5000),
        ("pair.jpg", JPG + b"a"),
        ("pair.png", JPG + b"b"),
        ("mute.jpg", JPG),
        ("broken.jpg", JPG),
        ("broken.json", b"{"),
        ("good.jpg", JPG + b"good"),
        ("good.txt", "a good één".encode()),
        extra=tuple(links),
    )
    summary = ingest(source, tmp_path / "pool", max_media_bytes=4000)
    assert summary.refused == {
        "climbing_name": 3, "unknown_member": 1, "file_too_large": 1, "several_media": 1,
        "missing_caption": 1, "malformed_row": 1, "not_a_file": 4,
    }  # fmt: skip
    assert read_pool(tmp_path / "pool")["caption"].tolist() == ["a good één"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "pool"]


def test_a_tar_that_breaks_off_gives_what_came_before(tmp_path: Path) -> None:
    members = [
        (f"{i}.{e}", d) for i in range(3) for e, d in (("jpg", JPG + b"%d" % i), ("txt", b"ab"))
    ]
    source = _tar(tmp_path / "in" / "cut.tar", *members)
    source.write_bytes(source.read_bytes()[: 4 * 1024 + 520])
    summary = ingest(source, tmp_path / "pool")
    assert summary.refused["damaged_archive"] == 1 and summary.num_added == 2


def _fails(source: Path, pool: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        ingest(source, pool, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_sources_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    assert "no file or folder" in _fails(tmp_path / "nothing", pool)
    assert "downloads nothing" in _fails(Path("s3://bucket/x.csv"), pool)
    assert "no reader 'xml'; expected one of coco, csv" in _fails(tmp_path, pool, reader="xml")
    odd = _csv(tmp_path / "a.xml", "<a/>")
    assert "is of no format that is known here" in _fails(odd, pool)
    mixed = tmp_path / "mixed"
    _csv(mixed / "a.csv", "path,caption\n")
    _csv(mixed / "b.jsonl", "{}")
    assert "could be csv or jsonl" in _fails(mixed, pool)
    empty = _csv(tmp_path / "e.csv", "path,caption\n")
    assert "has no row that can be taken" in _fails(empty, pool)
    lost = _fails(_csv(tmp_path / "l.csv", "path,caption\nno.jpg,x\n"), pool)
    assert "1 x missing_file" in lost and "l.csv:2" in lost and "--media-root" in lost
    coco = _csv(tmp_path / "c.json", '{"images": 3}')
    assert "no list 'images' in it (it holds 'images')" in _fails(coco, pool)
    assert "is not a folder" in _fails(empty, pool, media_root=empty)


def test_summary_is_a_table(tmp_path: Path) -> None:
    _media(tmp_path / "in", "a.jpg")
    source = _csv(tmp_path / "in" / "pairs.csv", "path,caption\na.jpg,one\n")
    summary: IngestSummary = ingest(source, tmp_path / "pool")
    assert dict(summary.rows())["pairs added"] == "1"
