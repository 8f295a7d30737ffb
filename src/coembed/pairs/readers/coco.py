"""COCO captions: one JSON file of images and annotations, pictures in a folder beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coembed.errors import DataError
from coembed.pairs.limits import listed
from coembed.pairs.readers.base import ReadOptions, Refusal, Row, locate

_PEEK_BYTES = 1 << 16
_MAX_BYTES = 512 << 20  # COCO's own captions have 92 MB; Python holds a few times as much


def recognises(source: Path) -> bool:
    """A .json file that speaks of images or annotations near its beginning."""
    if not source.is_file() or source.suffix.lower() != ".json":
        return False
    with source.open("rb") as file:
        head = file.read(_PEEK_BYTES)
    return b'"images"' in head or b'"annotations"' in head


def read(source: Path, options: ReadOptions) -> Iterator[Row | Refusal]:
    """One row an image, in the order of `images`, with all of its captions.

    Without a media root the pictures are looked for where COCO's archives unpack: beside the JSON,
    or in `../<name>/` for `captions_<name>.json`.
    """
    images, annotations = _load(source)
    captions: dict[Any, list[str]] = {}
    known = {_key(image.get("id")) for image in images if isinstance(image, dict)}
    for number, annotation in enumerate(annotations):
        where = f"{source.name}: annotations[{number}]"
        if not isinstance(annotation, dict) or not isinstance(annotation.get("caption"), str):
            yield Refusal(where, "missing_caption", "the annotation has no caption")
        elif (key := _key(annotation.get("image_id"))) not in known:
            found = f"image_id {annotation.get('image_id')!r} is not among the images"
            yield Refusal(where, "unknown_image", found)
        else:
            captions.setdefault(key, []).append(annotation["caption"])
    root = options.media_root or _find_root(source, images)
    for number, image in enumerate(images):
        where = f"{source.name}: images[{number}]"
        name = image.get("file_name") if isinstance(image, dict) else None
        if not isinstance(name, str) or not name:
            yield Refusal(where, "missing_path", "the image has no file_name")
            continue
        image_id = image.get("id")
        if _key(image_id) not in captions:
            yield Refusal(where, "missing_caption", f"no annotation describes {name}")
            continue
        media = locate(name, root, where)
        if isinstance(media, Refusal):
            yield media
            continue
        # Captions of COCO often end in a line break.
        texts = tuple(text.strip() for text in captions[_key(image_id)])
        attributes = {"image_id": image_id} if isinstance(image_id, (int, str)) else {}
        yield Row(where, media, name, texts, attributes=attributes)


def _key(image_id: Any) -> Any:
    """An id by which captions are found. Ids are numbers or texts; JSON may hold anything."""
    return image_id if isinstance(image_id, (int, str)) else repr(image_id)


def _load(source: Path) -> tuple[list[Any], list[Any]]:
    if (size := source.stat().st_size) > _MAX_BYTES:
        raise DataError(
            f"{source} has {size:,} bytes; COCO files are read whole, up to {_MAX_BYTES:,} bytes",
            hint="split it, or make it JSON Lines, which are read line by line",
        )
    try:
        whole = json.loads(source.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source} is not JSON: {error}") from error
    parts = []
    for key in ("images", "annotations"):
        part = whole.get(key) if isinstance(whole, dict) else None
        if not isinstance(part, list):
            found = listed(list(whole)) if isinstance(whole, dict) else "no object"
            raise DataError(
                f"{source} is not COCO captions: no list {key!r} in it (it holds {found})"
            )
        parts.append(part)
    return parts[0], parts[1]


def _find_root(source: Path, images: list[Any]) -> Path:
    """The folder in which the first of the images lies; the JSON's own when none does."""
    names = [i["file_name"] for i in images[:20] if isinstance(i, dict) and i.get("file_name")]
    stem = source.stem.removeprefix("captions_")
    above = source.parent.parent
    for root in (
        source.parent,
        source.parent / stem,
        above / stem,
        above,
        source.parent / "images",
    ):
        if any(isinstance(name, str) and (root / name).is_file() for name in names):
            return root
    return source.parent
