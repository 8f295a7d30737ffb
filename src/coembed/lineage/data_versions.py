"""A version of the data as DVC's cache holds it: which files it has, and its pairs as a pool.

Nothing is checked out: the listing and the tables are read where the cache has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from coembed.errors import DataError, UserError
from coembed.lineage import dvc
from coembed.lineage.git import find_commit
from coembed.lineage.process import capture
from coembed.pairs.pool import Pool, open_pool

_DIRECTORY = re.compile(r"[0-9a-f]{32}\.dir")
_FILE = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class DataVersion:
    """`name` is what the user calls it, `commit` where git has it (None: the working tree), `md5`
    DVC's hash of the whole folder, `listing` DVC's list of its files."""

    name: str
    commit: str | None
    md5: str
    listing: Path


def cache_folder(project: Path) -> Path:
    """Where DVC keeps the files of `project`, by their MD5."""
    return project / dvc.dvc(project, "cache", "dir").strip() / "files" / "md5"


def find_version(project: Path, pool: Path, revision: str | None, *, cache: Path) -> DataVersion:
    """The version of `pool` (relative to `project`) that git has at `revision`; what its .dvc file
    says now where None. `cache` is the project's `cache_folder`.

    Raises UserError for a revision that git does not know, DataError when the pool was not
    versioned there, or is not in DVC's cache.
    """
    pointer = f"{pool.as_posix()}.dvc"
    if revision is None:
        name, commit = "now", None
        if not (project / pointer).exists():
            raise DataError(f"there is no {pointer}", hint=f"`dvc add {pool}` versions the pool")
        text = (project / pointer).read_text(encoding="utf-8")
    else:
        name, commit = revision, _commit(project, revision)
        shown = capture(["git", "show", f"{commit}:./{pointer}"], cwd=project)
        if shown.returncode != 0:
            raise DataError(
                f"{revision} has no {pointer}: the pool was not versioned there",
                hint=f"`git log --oneline -- {pointer}` lists the commits that changed it",
            )
        text = shown.stdout
    md5 = _folder_hash(text, f"{pointer} at {name}")
    listing = _cached(cache, md5)
    if not listing.is_file():
        raise _not_cached(pointer, name, "the list of its files")
    return DataVersion(name, commit, md5, listing)


@contextmanager
def opened_version(
    version: DataVersion, tables: dict[str, str], *, cache: Path, scratch: Path
) -> Iterator[Pool]:
    """The pairs of `version` as a pool. `tables` are its tables by name, with DVC's hash of each;
    `cache` is the project's `cache_folder`, `scratch` is an empty folder for links to them."""
    (scratch / "pairs").mkdir(parents=True)
    for name, md5 in tables.items():
        cached = _cached(cache, md5) if _FILE.fullmatch(md5) else None
        if cached is None or not cached.is_file():
            raise _not_cached("the pool", version.name, f"pairs/{name}")
        (scratch / "pairs" / name).symlink_to(cached)
    try:
        yield open_pool(scratch)
    except DataError as error:
        message = error.message.replace(f"{scratch}/", "")
        raise DataError(f"version {version.name}: {message}", hint=error.hint) from error


def _commit(project: Path, revision: str) -> str:
    commit = find_commit(project, revision)
    if commit is None:
        raise UserError(
            f"git knows no revision {revision!r}", hint="name a commit, a branch or a tag"
        )
    return commit


def _folder_hash(text: str, what: str) -> str:
    try:
        md5 = str(yaml.safe_load(text)["outs"][0]["md5"])
    except (yaml.YAMLError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"{what} is no .dvc file of a folder: {error!r}") from error
    if not _DIRECTORY.fullmatch(md5):
        raise DataError(f"{what} names {md5!r}, expected the MD5 of a folder")
    return md5


def _cached(cache: Path, md5: str) -> Path:
    return cache / md5[:2] / md5[2:]


def _not_cached(pointer: str, name: str, what: str) -> DataError:
    return DataError(
        f"version {name} of {pointer} is not in DVC's cache: {what} is missing",
        hint="`dvc fetch --all-commits` brings what the remote has of earlier versions",
    )
