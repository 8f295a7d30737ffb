"""Files appear whole or not at all, and a full disk is one clear error."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from coembed.errors import CoembedError, DataError, ServiceError, UserError
from coembed.files import (
    atomic_folder,
    atomic_path,
    disk_errors,
    read_json,
    read_receipt,
    sha256_bytes,
    sha256_file,
    sha256_json,
    sha256_tree,
    write_json,
    write_receipt,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as partial:
        partial.write_text("new")
        raise ZeroDivisionError
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_is_swapped_whole_and_a_killed_runs_rest_is_cleared(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    left_by_a_killed_run = tmp_path / ".out.partial"
    left_by_a_killed_run.mkdir()
    (left_by_a_killed_run / "rubbish").touch()
    with atomic_folder(out) as partial:
        (partial / "new").touch()
        assert (out / "old").exists()
    assert [path.name for path in out.iterdir()] == ["new"]
    assert not left_by_a_killed_run.exists()


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "no space left"), (errno.EROFS, "may not write")]
)
def test_disk_errors_name_the_file(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(ServiceError, match=words) as caught, disk_errors(tmp_path / "model"):
        raise OSError(number, "the system's words")
    assert str(tmp_path / "model") in caught.value.message
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("name", ["folder", "file/x.png"])
def test_a_place_that_cannot_be_is_the_users_mistake(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"), atomic_path(tmp_path / name) as partial:
        partial.write_text("x")


def test_other_os_errors_stay_bugs(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="strange") as caught, disk_errors(tmp_path):
        raise OSError(errno.EIO, "strange")
    assert not isinstance(caught.value, CoembedError)


def test_json_and_receipts(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": "é"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "a": "é",\n  "b": 1\n}\n'
    write_receipt(tmp_path, {"num_items": 3})
    assert read_receipt(tmp_path, what="pairs", made_by="coembed curate") == {"num_items": 3}
    with pytest.raises(DataError, match=r"no pairs \(receipt\)") as caught:
        read_receipt(tmp_path / "none", what="pairs", made_by="coembed curate")
    assert "coembed curate" in (caught.value.hint or "")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        read_json(tmp_path / "bad.json", what="receipt")


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x") == sha256_bytes(b"abc")
    assert sha256_bytes(b"abc").startswith("ba7816bf")  # FIPS 180-2, appendix B.1
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1})
    before = sha256_tree(tmp_path)
    (tmp_path / "x").rename(tmp_path / "y")
    assert sha256_tree(tmp_path) != before


def test_exit_codes_tell_the_users_mistakes_from_ours() -> None:
    assert UserError("x").exit_code == 2
    assert ServiceError("x").exit_code == 1
    assert str(UserError("bad", hint="do this")) == "bad\n  → do this"
