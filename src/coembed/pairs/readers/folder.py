"""A folder of media files, each with a .txt of captions beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from coembed.pairs.media_types import MEDIA_ENDINGS, file_ending
from coembed.pairs.readers.base import ReadOptions, Refusal, Row, attribute, caption_texts, holds
from coembed.types import Attribute

_NUM_PEEKED = 1000
_MAX_TEXT_BYTES = 1 << 22  # a caption file larger than that is none
_TABLES = (".tar", ".csv", ".tsv", ".parquet", ".jsonl", ".ndjson")


def recognises(source: Path) -> bool:
    """A folder without tables and tars in which media files lie, at any depth."""
    if not source.is_dir() or holds(source, _TABLES):
        return False
    return any(
        file_ending(path.name) in MEDIA_ENDINGS for path in islice(_walk(source), _NUM_PEEKED)
    )


def read(source: Path, options: ReadOptions) -> Iterator[Row | Refusal]:
    """One row a media file. Each line of its .txt that is not empty is one caption.

    A .json of the same name gives attributes, and the caption where there is no .txt (as
    img2dataset's "files" output has it). The folder that a file lies in becomes the attribute
    `folder`. A link that leaves the folder is refused: whoever packed the folder could make it
    point at any file of whoever reads it.
    """
    root = options.media_root or source
    inside = root.resolve()
    for path in _walk(root):
        where = path.relative_to(root).as_posix()
        if path.is_dir():
            yield Refusal(where, *_closed(path))
            continue
        if not path.is_file():
            yield Refusal(where, "not_a_file", "a device, a pipe or a link to nowhere")
            continue
        ending = file_ending(path.name)
        if ending == "txt":
            if not any(path.with_suffix(f".{e}").exists() for e in _spellings()):
                yield Refusal(where, "missing_media", "captions without a media file of that name")
            continue
        if ending not in MEDIA_ENDINGS:
            if ending != "json":
                yield Refusal(where, "unknown_file", f"{ending or 'no ending'}: not a media file")
            continue
        if not _is_inside(path, inside):
            yield Refusal(where, "link_leaves_folder", f"a link to {path.readlink()}")
            continue
        about = _about(_text(path.with_suffix(".json"), inside))
        captions = _captions(_text(path.with_suffix(".txt"), inside))
        if not captions and "caption" in about:
            captions = caption_texts(about["caption"])
        if not captions:
            yield Refusal(where, "missing_caption", f"no {path.stem}.txt with a caption beside it")
            continue
        attributes: dict[str, Attribute] = {}
        for name, cell in about.items():
            value = attribute(cell)
            if value is not None and name not in ("caption", "path", "pair_id"):
                attributes[name] = value
        if (folder := path.parent.relative_to(root).as_posix()) != ".":
            attributes.setdefault("folder", folder)
        yield Row(where, path, path.name, captions, attributes=attributes)


def _spellings() -> Iterator[str]:
    for ending in sorted(MEDIA_ENDINGS):
        yield from (ending, ending.upper(), ending.capitalize())


def _walk(folder: Path) -> Iterator[Path]:
    """All that lies under `folder`, in name order, without hidden files and without the folders
    that were entered. Links to folders are not, nor are folders that may not be."""
    waiting = [folder]  # and no recursion: folders nest deeper than Python's calls may
    while waiting:
        path = waiting.pop()
        if path != folder and (path.is_symlink() or not path.is_dir()):
            yield path
            continue
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name, reverse=True)
        except OSError:
            yield path
            continue
        waiting += [Path(entry.path) for entry in entries if not entry.name.startswith(".")]


def _closed(path: Path) -> tuple[str, str]:
    """Why a folder was not entered: reason and detail."""
    if path.is_symlink():
        return "folder_link", "a link to a folder; name it as a source of its own"
    return "unreadable_folder", "it may not be listed, or its path is too long"


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether `path`, which is a link perhaps, leads to a file under the resolved `folder`."""
    return not path.is_symlink() or path.resolve().is_relative_to(folder)


def _text(path: Path, folder: Path) -> bytes:
    """The bytes of a file beside the media; none where there is no such file in the folder."""
    try:
        if not path.is_file() or not _is_inside(path, folder):
            return b""
        with path.open("rb") as file:
            data = file.read(_MAX_TEXT_BYTES + 1)
    except OSError:
        return b""
    return data if len(data) <= _MAX_TEXT_BYTES else b""


def _captions(data: bytes) -> tuple[str, ...]:
    text = data.decode("utf-8-sig", "replace")
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _about(data: bytes) -> dict[str, Any]:
    """The object in a .json beside the media; empty when there is none."""
    try:
        about = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}
