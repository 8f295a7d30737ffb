"""The decoded split: every image as uint8 and every caption as tokens, memory-mapped.

Decoding and resizing cost more than a small model's whole step, so they are done once and kept
under `runs/cache/<key>/`, where the key is a hash of all that the content depends on. An item costs
side² · 3 bytes of disk (196 KB at 256 px).

    images.u8     uint8 [num_items, side, side, 3], raw
    tokens.npy    int64 [num_captions, context_length], one row for each different caption
    caption_ids.npy  int64, rows of `tokens`, item after item
    offsets.npy   int64 [num_items + 1]; item i has caption_ids[offsets[i] : offsets[i + 1]]
    item_ids.json
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from coembed.errors import CoembedError, DataError
from coembed.files import RECEIPT, atomic_folder, read_json, sha256_json, write_json, write_receipt
from coembed.locking import exclusive
from coembed.progress import tracker
from coembed.types import Sample

T = TypeVar("T")

_FORMAT: Final = 1
_CHUNK: Final = 256


@dataclass(frozen=True, slots=True)
class CachedSplit:
    """A decoded split. `images` is a read-only memory map; the rest lies in memory."""

    item_ids: tuple[str, ...]
    images: NDArray[np.uint8]
    tokens: NDArray[np.int64]
    offsets: NDArray[np.int64]
    caption_ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.item_ids)


def open_cached_split(
    folder: Path,
    samples: Callable[[], Iterable[Sample]],
    *,
    side: int,
    decode: Callable[[bytes], NDArray[np.uint8]],
    tokenise: Callable[[Sequence[str]], Tensor],
    content: Mapping[str, Any],
    limit: int | None = None,
    label: str,
) -> CachedSplit:
    """Open the split decoded under `folder`, decoding it first where that was not done yet.

    `decode` turns media bytes into uint8 [side, side, 3], `tokenise` captions into int64
    [n, context_length]. `content` names everything besides `side` and `limit` that the result
    depends on: pairs, split, code, tokenizer. Raises DataError where the split is empty or an item
    cannot be decoded, and names it.
    """
    key = sha256_json({**content, "side": side, "limit": limit, "format": _FORMAT})[:32]
    place = folder / key
    with exclusive(folder / f"{key}.lock", doing=f"decoding the {label} split", wait=True):
        if not _is_whole(place, side):
            with atomic_folder(place) as partial:
                items = islice(samples(), limit)
                _write(partial, items, side=side, decode=decode, tokenise=tokenise, label=label)
    return _read(place, side)


def _write(
    folder: Path,
    samples: Iterable[Sample],
    *,
    side: int,
    decode: Callable[[bytes], NDArray[np.uint8]],
    tokenise: Callable[[Sequence[str]], Tensor],
    label: str,
) -> None:
    item_ids: list[str] = []
    offsets, caption_ids = [0], list[int]()
    captions: dict[str, int] = {}
    task = tracker(total=None, label=f"decode {label}", unit="items")
    # The decoders let go of the interpreter lock, so threads are enough.
    with (
        (folder / "images.u8").open("wb") as file,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for chunk in _chunks(samples, _CHUNK):
            for image in pool.map(lambda sample: _decode_one(sample, decode, side), chunk):
                file.write(image.tobytes())
            for sample in chunk:
                item_ids.append(sample.item_id)
                caption_ids += [captions.setdefault(c, len(captions)) for c in sample.captions]
                offsets.append(len(caption_ids))
            task.advance(len(chunk))
        os.fsync(file.fileno())
    task.close()
    if not item_ids:
        raise DataError(
            f"the {label} split holds no items",
            hint="look at the drop reasons in the pairs' summary.json, and at the split's shares",
        )
    np.save(folder / "tokens.npy", _tokenise_all(list(captions), tokenise))
    np.save(folder / "offsets.npy", np.array(offsets, dtype=np.int64))
    np.save(folder / "caption_ids.npy", np.array(caption_ids, dtype=np.int64))
    write_json(folder / "item_ids.json", item_ids)
    write_receipt(folder, {"num_items": len(item_ids), "num_captions": len(captions)})


def _decode_one(
    sample: Sample, decode: Callable[[bytes], NDArray[np.uint8]], side: int
) -> NDArray[np.uint8]:
    if sample.modality != "image":
        raise DataError(
            f"item {sample.path!r} is {sample.modality}; training reads images with captions",
            hint="keep one modality beside text in the pool",
        )
    if not sample.captions:
        raise DataError(f"item {sample.path!r} has no caption", hint="run `coembed curate` again")
    try:
        image = decode(sample.media)
    except CoembedError as error:
        raise DataError(
            f"item {sample.path!r} ({sample.item_id[:12]}) cannot be decoded: {error.message}",
            hint="curation should have dropped it: keep its `decodable` filter switched on",
        ) from error
    assert image.shape == (side, side, 3) and image.dtype == np.uint8
    return image


def _tokenise_all(
    captions: Sequence[str], tokenise: Callable[[Sequence[str]], Tensor]
) -> NDArray[np.int64]:
    parts = [tokenise(chunk).numpy() for chunk in _chunks(captions, 4096)]
    return np.concatenate(parts).astype(np.int64)


def _is_whole(place: Path, side: int) -> bool:
    """Whether `place` was written to its end and its images have the size they should have."""
    if not (place / RECEIPT).exists():
        return False
    num = read_json(place / RECEIPT, what="cache receipt")["num_items"]
    images = place / "images.u8"
    return images.exists() and images.stat().st_size == num * side * side * 3


def _read(place: Path, side: int) -> CachedSplit:
    item_ids = tuple(read_json(place / "item_ids.json", what="cache"))
    shape = (len(item_ids), side, side, 3)
    return CachedSplit(
        item_ids=item_ids,
        images=np.memmap(place / "images.u8", dtype=np.uint8, mode="r", shape=shape),
        tokens=np.load(place / "tokens.npy"),
        offsets=np.load(place / "offsets.npy"),
        caption_ids=np.load(place / "caption_ids.npy"),
    )


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
