"""WebDataset tars, img2dataset's output among them. Nothing is extracted, nothing unpickled."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coembed.pairs.media_types import MEDIA_ENDINGS
from coembed.pairs.readers.base import (
    ReadOptions,
    Refusal,
    Row,
    attribute,
    caption_texts,
    holds,
    source_files,
)
from coembed.types import Attribute

_ENDINGS = (".tar",)
_CAPTIONS = ("txt", "caption", "text")
_MAX_TEXT_BYTES = 1 << 22
_MAX_HEADER_BYTES = 1 << 20  # of a long name or of extended headers
_MAX_LABEL_DIGITS = 18  # int64
_NOT_ATTRIBUTES = frozenset(
    {"caption", "captions", "text", "path", "pair_id", "pair_ids", "item_id"}
)


def recognises(source: Path) -> bool:
    """A .tar file, or a folder of them."""
    return holds(source, _ENDINGS)


def read(source: Path, options: ReadOptions) -> Iterator[Row | Refusal]:
    """One row a sample. A tar that breaks off is refused from there on; what came before stands."""
    for path in source_files(source, _ENDINGS):
        key: str | None = None
        held: dict[str, bytes] = {}
        for found in _members(path, options.max_media_bytes):
            if isinstance(found, Refusal):
                yield found
                continue
            stem, ending, data = found
            if stem != key and key is not None:
                yield _sample(path, key, held)
                held = {}
            key = stem
            if ending in held:
                detail = "the sample has a member of that name already"
                yield Refusal(f"{path.name}:{stem}.{ending}", "duplicate_member", detail)
            else:
                # Of several media none is taken: only one need be in memory.
                several = ending in MEDIA_ENDINGS and any(e in MEDIA_ENDINGS for e in held)
                held[ending] = b"" if several else data
        if key is not None:
            yield _sample(path, key, held)


class _Header(tarfile.TarInfo):
    """A header whose own data (a long name, extended headers), which tarfile reads into memory
    before anyone can look at it, has a limit."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        """The header in `buf`."""
        header = super().frombuf(buf, encoding, errors)
        if header.type not in (*tarfile.SUPPORTED_TYPES, tarfile.SOLARIS_XHDTYPE):
            return header
        own = header.type not in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE)
        if own and header.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        return header


def _members(path: Path, max_media_bytes: int) -> Iterator[tuple[str, str, bytes] | Refusal]:
    """Key, ending and contents of the members that belong to samples."""
    try:
        # No compression is accepted: a small .tar.gz can unpack to any size.
        with tarfile.open(path, "r|", bufsize=1 << 20, tarinfo=_Header) as tar:
            for info in tar:
                tar.members.clear()  # type: ignore[attr-defined] # or it remembers every member
                where = f"{path.name}:{info.name}"
                folder, slash, base = info.name.rpartition("/")
                stem, _, ending = base.partition(".")
                ending = ending.lower()
                if info.isdir():
                    continue
                if not info.isreg():
                    yield Refusal(where, "not_a_file", "a link, device or pipe in the tar")
                elif info.issparse():
                    # A few bytes can stand for any number of zeros.
                    yield Refusal(where, "not_a_file", "a sparse file in the tar")
                elif info.name.startswith("/") or ".." in info.name.split("/"):
                    yield Refusal(where, "climbing_name", "the member's name leaves its folder")
                elif stem.startswith("__") or base.startswith("._"):
                    continue  # the dataset's own notes (__index__), a Mac's
                elif ending not in MEDIA_ENDINGS and ending not in (*_CAPTIONS, "json", "cls"):
                    detail = f"{ending or 'no ending'}: neither media nor text; not read"
                    yield Refusal(where, "unknown_member", detail)
                elif info.size > (
                    limit := max_media_bytes if ending in MEDIA_ENDINGS else _MAX_TEXT_BYTES
                ):
                    detail = f"{info.size:,} bytes > {limit:,} bytes"
                    yield Refusal(where, "file_too_large", detail)
                else:
                    member = tar.extractfile(info)
                    assert member is not None
                    data = member.read()
                    if len(data) < info.size:
                        raise tarfile.ReadError("unexpected end of data")
                    yield f"{folder}{slash}{stem}", ending, data
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        yield Refusal(path.name, "damaged_archive", f"read no further: {error}")


def _sample(path: Path, key: str, held: dict[str, bytes]) -> Row | Refusal:
    where = f"{path.name}:{key}"
    about = _object(held.get("json", b""))
    if about is None:
        return Refusal(where, "malformed_row", "the .json is not a JSON object")
    media = sorted(ending for ending in held if ending in MEDIA_ENDINGS)
    if not media:
        found = ", ".join(sorted(held))
        return Refusal(where, "missing_media", f"no media among {found}")
    if len(media) > 1:
        found = ", ".join(media)
        return Refusal(where, "several_media", f"{found}: which one the caption is of is not said")
    captions: tuple[str, ...] = ()
    # Our own shards hold all captions in the JSON, and only the first one in the .txt.
    if isinstance(about.get("captions"), list) and about["captions"]:
        captions = caption_texts(about["captions"])
    else:
        text = next((held[ending] for ending in _CAPTIONS if ending in held), None)
        if text is not None:
            captions = (text.decode("utf-8", "replace").strip(),)
        elif "caption" in about or "text" in about:
            captions = caption_texts(about.get("caption", about.get("text")))
    if not captions:
        return Refusal(where, "missing_caption", "neither a .txt nor a caption in a .json")
    attributes: dict[str, Attribute] = {"key": key}
    nested = about.pop("attributes", None)
    for name, cell in (about | (nested if isinstance(nested, dict) else {})).items():
        value = attribute(cell)
        if value is not None and name not in _NOT_ATTRIBUTES and name not in ("modality", "split"):
            attributes[name] = value
    label = held.get("cls", b"").decode("ascii", "replace").strip()
    if label:
        is_number = label.isdecimal() and len(label) <= _MAX_LABEL_DIGITS
        attributes["label"] = int(label) if is_number else label
    return Row(
        where,
        held[media[0]],
        f"{key}.{media[0]}",
        captions,
        modality=_text(about.get("modality")),
        split=_text(about.get("split")),
        attributes=attributes,
    )


def _object(data: bytes) -> dict[str, Any] | None:
    if not data.strip():
        return {}
    try:
        about = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return about if isinstance(about, dict) else None


def _text(value: Any) -> str | None:
    return value.strip().lower() if isinstance(value, str) and value.strip() else None
