"""Which code and libraries a result depends on: the modules that it was made with, and what those
import."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

from coembed.files import sha256_file, sha256_json

_PACKAGE = "coembed"
# Libraries whose package has another name than their module.
_PACKAGE_OF = {"PIL": "pillow", "cv2": "opencv-python-headless", "sklearn": "scikit-learn"}


def sources_hash(modules: Iterable[str]) -> str:
    """SHA-256 over the source of `modules`, of every coembed module that they import, directly or
    not, and over the versions of the libraries that those import."""
    files: dict[str, str] = {}
    libraries: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in files:
            continue
        path = _source(name)
        if path is None:
            continue
        files[name] = _hash(path)
        for imported in _imports(name, path):
            top = imported.partition(".")[0]
            if top == _PACKAGE:
                parts = imported.split(".")  # importing a.b runs a, too
                waiting += [".".join(parts[:num]) for num in range(1, len(parts) + 1)]
            elif top not in sys.stdlib_module_names:
                libraries.add(top)
    versions = {name: _version(name) for name in libraries}
    return sha256_json([files, versions])


@cache
def _source(name: str) -> Path | None:
    """The Python file of a module; None where `name` is not a module. Imports nothing."""
    found = getattr(sys.modules.get(name), "__file__", None)
    if found is not None:
        return Path(found)
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return None
    place = Path(spec.origin).parent.joinpath(*rest)
    for path in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
        if path.is_file():
            return path
    return None


@cache  # of what this process runs, not of what is written while it does
def _hash(path: Path) -> str:
    return sha256_file(path)


@cache
def _imports(name: str, path: Path) -> tuple[str, ...]:
    """All that a file imports, at its top or in a function. `from a import b` counts as a.b too."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                # A package's own file is one level further down than its name.
                levels = node.level - (path.name == "__init__.py")
                package = name.rsplit(".", levels)[0] if levels else name
                base = f"{package}.{base}" if base else package
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(found)


def _version(module: str) -> str:
    try:
        return metadata.version(_PACKAGE_OF.get(module, module))
    except metadata.PackageNotFoundError:
        return "unknown"
