"""Reading media: every refusal has its reason, and no path or link leads out of the pool."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from coembed.curation.reading import INTAKE_REASONS, MediaReader, read_media


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A pool beside a secret."""
    (tmp_path / "secret.txt").write_bytes(b"secret")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "a.txt").write_bytes(b"secret")
    folder = tmp_path / "pool"
    (folder / "media" / "deep").mkdir(parents=True)
    (folder / "media" / "a.txt").write_bytes(b"fine")
    (folder / "media" / "ä ö.txt").write_bytes(b"fine")
    (folder / "media" / "empty.txt").touch()
    (folder / "media" / "large.txt").write_bytes(b"x" * 101)
    (folder / "media" / "full.txt").write_bytes(b"x" * 100)
    return folder


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("media/a.txt", ""),
        ("media//a.txt", ""),
        ("media/./a.txt", ""),
        ("media/ä ö.txt", ""),
        ("media/full.txt", ""),
        ("", "missing_path"),
        ("../secret.txt", "path_outside_pool"),
        ("media/../../secret.txt", "path_outside_pool"),
        ("media/../media/a.txt", "path_outside_pool"),
        ("/etc/hostname", "path_outside_pool"),
        ("media/a.txt\0.jpg", "path_outside_pool"),
        ("media/none.txt", "missing_file"),
        ("none/none.txt", "missing_file"),
        ("media/a.txt/b.txt", "missing_file"),
        ("media/deep", "not_a_file"),
        (".", "not_a_file"),
        ("media/empty.txt", "empty_file"),
        ("media/large.txt", "file_too_large"),
        ("media/" + "x" * 300, "unreadable_file"),
    ],
)
def test_paths(pool: Path, path: str, reason: str) -> None:
    found = MediaReader(pool, 100).read(path)
    assert found.reason == reason and bool(found.detail) == bool(reason)
    assert bool(found.data) == (not reason) and b"secret" not in found.data
    assert not reason or reason in INTAKE_REASONS
    assert read_media(pool, path, 100) == (found.data, found.reason, found.detail)


def test_size_and_time_are_those_of_the_file(pool: Path) -> None:
    reader = MediaReader(pool, 100)
    for name in ("a.txt", "empty.txt", "large.txt"):
        status = (pool / "media" / name).stat()
        found = reader.read(f"media/{name}")
        assert (found.size, found.mtime_ns) == (status.st_size, status.st_mtime_ns)
        assert reader.status(f"media/{name}") == (status.st_size, status.st_mtime_ns)
    assert reader.read("media/none.txt").size is None and reader.status("media/none.txt") is None


def test_links_inside_the_pool_are_followed(pool: Path) -> None:
    (pool / "media" / "link.txt").symlink_to("a.txt")
    (pool / "media" / "up.txt").symlink_to(pool / "media" / "deep" / ".." / "a.txt")
    (pool / "linked").symlink_to("media", target_is_directory=True)
    for path in ("media/link.txt", "media/up.txt", "linked/a.txt", "linked/link.txt"):
        assert MediaReader(pool, 100).read(path).data == b"fine", path


def test_a_pool_that_is_a_link_is_a_pool(pool: Path) -> None:
    place = pool.parent / "place"
    place.symlink_to(pool, target_is_directory=True)
    assert MediaReader(place, 100).read("media/a.txt").data == b"fine"


def test_links_out_of_the_pool_are_not_followed(pool: Path) -> None:
    outside = pool.parent
    (pool / "media" / "out.txt").symlink_to(outside / "secret.txt")
    (pool / "media" / "far.txt").symlink_to("../../secret.txt")
    (pool / "media" / "twice.txt").symlink_to("far.txt")
    (pool / "media" / "gone.txt").symlink_to(outside / "nothing")
    (pool / "secrets").symlink_to(outside / "secrets", target_is_directory=True)
    (pool / "media" / "deep" / "more").symlink_to(outside / "secrets", target_is_directory=True)
    # A folder beside the pool whose name begins as the pool's does is not inside it.
    (outside / "pool2").mkdir()
    (outside / "pool2" / "b.txt").write_bytes(b"secret")
    (pool / "media" / "beside.txt").symlink_to(outside / "pool2" / "b.txt")
    paths = [f"media/{name}.txt" for name in ("out", "far", "twice", "gone", "beside")]
    for path in [*paths, "secrets/a.txt", "media/deep/more/a.txt"]:
        found = MediaReader(pool, 100).read(path)
        assert (found.data, found.reason) == (b"", "path_outside_pool"), path
        assert "link" in found.detail


def test_links_in_a_circle_end(pool: Path) -> None:
    (pool / "media" / "x.txt").symlink_to("y.txt")
    (pool / "media" / "y.txt").symlink_to("x.txt")
    assert MediaReader(pool, 100).read("media/x.txt").reason == "unreadable_file"


def test_what_dvc_links_into_its_cache_is_read(pool: Path) -> None:
    cache = pool.parent / "cache" / "files" / "md5" / "0a"
    cache.mkdir(parents=True)
    (cache / ("b" * 30)).write_bytes(b"cached")
    (cache / "other").write_bytes(b"secret")
    (pool / "media" / "good.txt").symlink_to(cache / ("b" * 30))
    (pool / "media" / "bad.txt").symlink_to(cache / "other")
    assert MediaReader(pool, 100).read("media/good.txt").data == b"cached"
    assert MediaReader(pool, 100).read("media/bad.txt").reason == "path_outside_pool"


def test_pipes_sockets_and_devices_are_not_waited_for(pool: Path) -> None:
    os.mkfifo(pool / "media" / "pipe")
    assert MediaReader(pool, 100).read("media/pipe").reason == "not_a_file"
    with socket.socket(socket.AF_UNIX) as listening:
        name = os.path.relpath(pool / "media" / "socket")  # the kernel takes 107 bytes
        listening.bind(name)
        assert MediaReader(pool, 100).read("media/socket").reason == "not_a_file"
    (pool / "media" / "zeros").symlink_to("/dev/zero")
    assert MediaReader(pool, 100).read("media/zeros").reason == "path_outside_pool"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(pool: Path) -> None:
    (pool / "media" / "a.txt").chmod(0)
    assert MediaReader(pool, 100).read("media/a.txt").reason == "unreadable_file"
