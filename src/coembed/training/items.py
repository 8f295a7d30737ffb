"""The items of a split and their captions, as training looks them up.

Everything but the media of one modality's items: made by one pass over the shards and kept under
`runs/cache`, because tokenising costs more than reading the tokens back.

    item_ids.u8      uint8 [num_items, 32], SHA-256 digests in shard order
    places.i64       int64 [num_items, 3]: shard number, offset and size of the media
    tokens.i32       int32 [num_captions, context_length], one row for each different caption
    caption_ids.i64  int64, rows of the tokens, item after item
    offsets.i64      int64 [num_items + 1]; item i has caption_ids[offsets[i] : offsets[i + 1]]
    negatives.i64    int64 [num_items]: row of the tokens of the item's hard negative, or -1
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from coembed.errors import DataError
from coembed.files import write_text
from coembed.pairs.shards import Place
from coembed.progress import tracker
from coembed.types import Modality, Sample

T = TypeVar("T")
Rows = NDArray[np.int64]

INDEX_FORMAT: Final = 1
_CHUNK: Final = 4096
_CAPTIONS: Final = "captions.txt"


@dataclass(frozen=True, slots=True)
class Items:
    """The items of one modality. All arrays are memory maps; see the module for their shapes."""

    modality: Modality
    digests: NDArray[np.uint8]
    places: Rows
    tokens: NDArray[np.int32]
    offsets: Rows
    caption_ids: Rows
    negatives: Rows

    def __len__(self) -> int:
        return len(self.digests)

    @property
    def keys(self) -> NDArray[np.uint64]:
        """What random choices depend on: the first 64 bits of each item_id, [num_items]."""
        first = np.ascontiguousarray(self.digests[:, :8])
        return first.view(">u8").reshape(-1).astype(np.uint64)

    def item_ids(self, rows: Iterable[int]) -> list[str]:
        """item_id (hexadecimal SHA-256) of the items at `rows`."""
        return [self.digests[row].tobytes().hex() for row in rows]


def write_items(
    folder: Path,
    samples: Iterable[tuple[Sample, Place]],
    *,
    tokenise: Callable[[Sequence[str]], Tensor],
    hard_negatives: str | None,
    label: str,
) -> None:
    """Write the items of `samples`, which are all of one modality, into the existing `folder`.

    `hard_negatives` names the attribute that holds an item's hard negative caption.
    Raises DataError where an item has no caption.
    """
    captions: dict[str, int] = {}
    num_items = 0
    new: list[str] = []  # captions that are not tokenised yet

    def number(caption: str) -> int:
        if caption not in captions:
            captions[caption] = len(captions)
            new.append(caption)
        return captions[caption]

    task = tracker(total=None, label=f"tokenise {label}", unit="items")
    with (
        _Column(folder / "item_ids.u8", np.uint8) as digests,
        _Column(folder / "places.i64", np.int64) as places,
        _Column(folder / "tokens.i32", np.int32) as tokens,
        _Column(folder / "offsets.i64", np.int64) as offsets,
        _Column(folder / "caption_ids.i64", np.int64) as caption_ids,
        _Column(folder / "negatives.i64", np.int64) as negatives,
    ):
        offsets.write([0])
        num_caption_ids = 0
        for chunk in chunks(samples, _CHUNK):
            for sample, place in chunk:
                if not sample.captions:
                    raise DataError(
                        f"item {sample.path!r} has no caption", hint="run `coembed curate` again"
                    )
                ids = [number(caption) for caption in sample.captions]
                caption_ids.write(ids)
                num_caption_ids += len(ids)
                offsets.write([num_caption_ids])
                negative = sample.attributes.get(hard_negatives) if hard_negatives else None
                if isinstance(negative, str) and negative.strip():
                    negatives.write([number(negative)])
                else:
                    negatives.write([-1])
                digests.write(np.frombuffer(bytes.fromhex(sample.item_id), np.uint8))
                places.write([place.shard, place.offset, place.size])
            for part in chunks(new, _CHUNK):
                tokens.write(tokenise(part).numpy())
            new.clear()
            num_items += len(chunk)
            task.advance(len(chunk))
    task.close()
    write_text(folder / _CAPTIONS, "".join(f"{c.encode().hex()}\n" for c in captions))


def read_items(folder: Path, modality: Modality) -> Items:
    """The items that `write_items` left in `folder`."""
    offsets = _mapped(folder / "offsets.i64", np.int64)
    num_captions = int(_num_lines(folder / _CAPTIONS))
    return Items(
        modality=modality,
        digests=_mapped(folder / "item_ids.u8", np.uint8).reshape(-1, 32),
        places=_mapped(folder / "places.i64", np.int64).reshape(-1, 3),
        tokens=_mapped(folder / "tokens.i32", np.int32).reshape(num_captions, -1),
        offsets=offsets,
        caption_ids=_mapped(folder / "caption_ids.i64", np.int64),
        negatives=_mapped(folder / "negatives.i64", np.int64),
    )


def read_captions(folder: Path) -> Iterator[str]:
    """The different captions, in the order of their tokens."""
    with (folder / _CAPTIONS).open(encoding="ascii") as file:
        for line in file:
            yield bytes.fromhex(line.strip()).decode()


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """`items` in lists of `size`; the last may be shorter."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


class _Column:
    """Appends values of one type to a file."""

    def __init__(self, path: Path, dtype: type[np.generic]) -> None:
        self._file, self._dtype = path.open("wb"), dtype

    def __enter__(self) -> _Column:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, values: Any) -> None:
        self._file.write(np.asarray(values, self._dtype).tobytes())


def _mapped(path: Path, dtype: type[np.generic]) -> NDArray[Any]:
    """A read-only memory map; an empty file cannot be mapped."""
    if not path.stat().st_size:
        return np.empty(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def _num_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)
