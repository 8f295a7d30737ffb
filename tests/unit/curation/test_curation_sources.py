"""What a result depends on: the modules it names, what those import, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from coembed.curation.examination import sources
from coembed.curation.examination.sources import sources_hash


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """a imports b in a function and c from it by name; d stands alone."""
    folder = tmp_path / "tiny_package"
    (folder / "deep").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "deep" / "__init__.py").touch()
    (folder / "a.py").write_text("def f():\n    from . import b\n    import numpy\n")
    (folder / "b.py").write_text("from tiny_package.deep.c import g\n")
    (folder / "deep" / "c.py").write_text("from ..d import h\ng = 1\n")
    (folder / "d.py").write_text("h = 1\n")
    (folder / "e.py").write_text("h = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sources, "_PACKAGE", "tiny_package")
    return folder


def _hash(*modules: str) -> str:
    for known in (sources._hash, sources._imports, sources._source):
        known.cache_clear()
    return sources_hash(modules)


@pytest.mark.parametrize("name", ["a.py", "b.py", "deep/c.py", "d.py", "deep/__init__.py"])
def test_a_change_anywhere_below_counts(package: Path, name: str) -> None:
    before = _hash("tiny_package.a")
    with (package / name).open("a") as file:
        file.write("x = 2\n")
    assert _hash("tiny_package.a") != before


def test_what_is_not_imported_does_not_count(package: Path) -> None:
    before = _hash("tiny_package.a")
    (package / "e.py").write_text("h = 2\n")
    assert _hash("tiny_package.a") == before != _hash("tiny_package.a", "tiny_package.e")
    assert not [name for name in sys.modules if name.startswith("tiny_package.")]


@pytest.mark.usefixtures("package")
def test_the_version_of_a_library_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {module: _hash(module) for module in ("tiny_package.a", "tiny_package.d")}
    monkeypatch.setattr(sources, "_version", lambda module: f"0.0 of {module}")
    after = {module: _hash(module) for module in before}
    assert before["tiny_package.a"] != after["tiny_package.a"]
    assert before["tiny_package.d"] == after["tiny_package.d"]  # it imports none


def test_measuring_does_not_depend_on_the_report() -> None:
    files = []
    for known in (sources._hash, sources._imports, sources._source):
        known.cache_clear()
    waiting = ["coembed.curation.media.media", "coembed.curation.examination.part_examiner"]
    while waiting:
        name = waiting.pop()
        path = sources._source(name)
        if path is None or name in files:
            continue
        files.append(name)
        waiting += [n for n in sources._imports(name, path) if n.startswith("coembed")]
    assert {"coembed.curation.media.picture", "coembed.curation.reading"} <= set(files)
    for room in ("report", "engine", "pack", "split", "settings"):
        assert f"coembed.curation.{room}" not in files
