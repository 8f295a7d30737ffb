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
    `folder`.
    """
    root = options.media_root or source
    for path in _walk(root):
        where = path.relative_to(root).as_posix()
        ending = file_ending(path.name)
        if ending == "txt":
            if not any(path.with_suffix(f".{e}").exists() for e in _spellings()):
                yield Refusal(where, "missing_media", "captions without a media file of that name")
            continue
        if ending not in MEDIA_ENDINGS:
            if ending != "json":
                yield Refusal(where, "unknown_file", f"{ending or 'no ending'}: not a media file")
            continue
        about = _about(path.with_suffix(".json"))
        captions = _captions(path.with_suffix(".txt"))
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
    """All files under `folder` in name order, without hidden ones; folder links are not entered."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        elif entry.is_file():
            yield Path(entry.path)


def _captions(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return ()
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _about(path: Path) -> dict[str, Any]:
    """The object in a .json beside the media; empty when there is none."""
    try:
        about = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}
