"""What a reader is, and what readers of tables share.

A reader is one module here, called like its format. It holds

- `recognises(source) -> bool`: whether the file or folder looks like its format;
- `read(source, options) -> Iterator[Row | Refusal]`: the rows in a fixed order, in bounded memory.
  What is wrong with one row is a Refusal and never stops the rest; what is wrong with the source as
  a whole is a DataError.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from coembed.errors import DataError
from coembed.pairs.limits import check_columns, listed
from coembed.types import Attribute

# What people call the two columns, most telling first. The first one present is taken.
_PATH_NAMES = (
    "path", "image_path", "audio_path", "filepath", "file_path", "filename", "file_name", "file",
    "image", "img", "audio", "image_url", "url",
)  # fmt: skip
_CAPTION_NAMES = (
    "caption", "captions", "text", "title", "sentence", "sentences", "transcript", "transcription",
    "description", "raw_caption",
)  # fmt: skip
_SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """`columns` maps a name of ours ("path", "caption", an attribute) to the source's name for it.

    Relative paths start at `media_root`; None leaves the place to the reader. Media larger than
    `max_media_bytes` are refused, if possible before they are read.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    media_root: Path | None = None
    max_media_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Row:
    """One item of a source, with its captions.

    `media` is a file, or the bytes themselves; `name` is what the source calls it, for its ending.
    `where` says where the row stands ("pairs.csv:12"). `split` is what the source says, in its own
    words.
    """

    where: str
    media: Path | bytes
    name: str
    captions: tuple[str, ...]
    modality: str | None = None
    split: str | None = None
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that cannot be taken: where it stands, a snake_case reason, and what was found."""

    where: str
    reason: str
    detail: str


class Reader(Protocol):
    """A reader module."""

    def recognises(self, source: Path) -> bool:
        """Whether `source` looks like this reader's format."""

    def read(self, source: Path, options: ReadOptions) -> Iterator[Row | Refusal]:
        """The rows of `source`."""


@dataclass(frozen=True, slots=True)
class TableColumns:
    """Which column of a table is what."""

    path: str
    caption: str
    renamed: Mapping[str, str]  # the source's name → ours


def find_columns(names: Sequence[str], options: ReadOptions, source: Path) -> TableColumns:
    """Find path and caption among the columns `names`: as the options say, else by usual names. An
    option that repeats our own name ("path" for path) is no more than the first guess.

    Raises DataError that lists the columns when one is not there, when there are too many, or when
    two have one name.
    """
    check_columns(names, source)
    have = listed(names)
    said = {o: t for o, t in options.columns.items() if o != t or t in names}
    for ours, theirs in said.items():
        if theirs not in names:
            raise DataError(
                f"{source} has no column {theirs!r} to take as {ours!r}; its columns are {have}"
            )

    def find(ours: str, usual: Sequence[str]) -> str:
        if ours in said:
            return said[ours]
        taken = set(said.values())
        for name in usual:
            match = [n for n in names if n.strip().lower() == name and n not in taken]
            if match:
                return match[0]
        raise DataError(
            f"{source} has no column that could be the {ours}; its columns are {have}",
            hint=f"say which it is: `--{ours}-column NAME`",
        )

    renamed = {theirs: ours for ours, theirs in said.items()}
    return TableColumns(find("path", _PATH_NAMES), find("caption", _CAPTION_NAMES), renamed)


def table_row(
    cells: Mapping[str, Any], columns: TableColumns, where: str, root: Path
) -> Row | Refusal:
    """A row of a table, its cells by column name."""
    captions = caption_texts(cells.get(columns.caption))
    found = cells.get(columns.path)
    media: Path | bytes
    if isinstance(found, Mapping):  # an image as the datasets library stores it
        name = str(found.get("path") or "")
        found = found.get("bytes") or name
    else:
        name = found if isinstance(found, str) else ""
    if isinstance(found, bytes) and found:
        media = found
    elif isinstance(found, str) and found.strip():
        located = locate(found.strip(), root, where)
        if isinstance(located, Refusal):
            return located
        media, name = located, found.strip()
    else:
        what = "empty" if not found else f"a {type(found).__name__}"
        return Refusal(where, "missing_path", f"the {columns.path!r} cell is {what}")
    own: dict[str, str] = {}
    attributes: dict[str, Attribute] = {}
    for theirs, cell in cells.items():
        if theirs in (columns.path, columns.caption) or not theirs:
            continue
        ours = columns.renamed.get(theirs, theirs)
        if ours in ("modality", "split"):
            if cell not in (None, ""):
                own[ours] = str(cell).strip().lower()
            continue
        value = attribute(cell)
        if value is not None:
            attributes["source_pair_id" if ours == "pair_id" else ours] = value
    return Row(where, media, name, captions, own.get("modality"), own.get("split"), attributes)


def locate(path: str, root: Path, where: str) -> Path | Refusal:
    """The file that a table calls `path`.

    A table is the user's own word: it may name files anywhere by absolute paths. A relative path
    must stay under `root`, because one that leaves it most likely starts elsewhere.
    """
    scheme = path.split("://", 1)[0].lower() if "://" in path else ""
    if scheme and scheme != "file":
        return Refusal(
            where,
            "is_url",
            f"{path}: coembed downloads nothing; use img2dataset and ingest its output",
        )
    if "\0" in path:
        return Refusal(where, "outside_media_root", "the path holds a zero character")
    pure = Path(path.removeprefix("file://"))
    if pure.is_absolute():
        return pure
    depth = 0
    for part in pure.parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            detail = f"{path} leaves {root}; say where paths start with --media-root"
            return Refusal(where, "outside_media_root", detail)
    return root / pure


def caption_texts(cell: Any) -> tuple[str, ...]:
    """A caption cell as captions: a text is one, a list of texts several, anything else is none
    (an empty caption, which curation judges)."""
    if isinstance(cell, str):
        return (cell,)
    if isinstance(cell, (list, tuple)):
        texts = tuple(text for text in cell if isinstance(text, str))
        return texts or ("",)
    return ("",)


def attribute(value: Any) -> Attribute | None:
    """`value` as an attribute: text, number or boolean; nested values as JSON; None when absent."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or value == "" or isinstance(value, bytes):
        return None
    if isinstance(value, (bool, int, str)):
        return value
    try:
        return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    except (RecursionError, TypeError, ValueError) as error:  # nested like a bomb, keys that differ
        return f"no JSON: {error}"


def usual_split(split: str) -> str | None:
    """train, val or test for what a source calls its split; None for any other word."""
    return _SPLIT_NAMES.get(split)


def source_files(source: Path, endings: tuple[str, ...]) -> list[Path]:
    """`source` itself, or the files in that folder with one of the `endings`, in name order."""
    if source.is_file():
        return [source]
    return sorted(
        path
        for path in source.iterdir()
        if path.suffix.lower() in endings and path.is_file() and not path.name.startswith(".")
    )


def holds(source: Path, endings: tuple[str, ...]) -> bool:
    """Whether `source` is such a file, or a folder that directly holds one."""
    if source.is_file():
        return source.suffix.lower() in endings
    return source.is_dir() and bool(source_files(source, endings))
