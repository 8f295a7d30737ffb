"""Shards: WebDataset tars, one sample an item, written deterministically and read safely.

A sample is `<item_id>.<ext>` (the media as it came), `<item_id>.txt` (the first caption) and
`<item_id>.json` (all captions, their pair ids, the path and the attributes).
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from coembed.errors import DataError
from coembed.files import disk_errors, read_receipt, sha256_bytes
from coembed.types import MODALITIES, SPLITS, Sample, Split

_MADE_BY = "coembed curate"
_BLOCK = 512
_TEXTS = ("txt", "json")  # what lies beside a sample's media


@dataclass(frozen=True, slots=True)
class Shard:
    """A finished shard. `num_bytes` and `sha256` are the tar file's."""

    name: str
    num_samples: int
    num_bytes: int
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        """For a receipt."""
        return {
            "name": self.name,
            "num_samples": self.num_samples,
            "num_bytes": self.num_bytes,
            "sha256": self.sha256,
        }


class ShardWriter:
    """Writes `<split>-000000.tar`, `<split>-000001.tar` ... into `folder`.

    Same samples in the same order make the same bytes. A shard is closed when it holds
    `max_samples`, or when another sample would carry it past `max_bytes`. A context manager;
    `shards` is whole once it is closed.
    """

    def __init__(
        self, folder: Path, split: str, *, max_samples: int, max_bytes: int, first: int = 0
    ) -> None:
        self.shards: list[Shard] = []
        self._folder, self._split = folder, split
        self._max_samples, self._max_bytes = max_samples, max_bytes
        self._next = first
        self._file: _HashedFile | None = None
        self._num_samples = 0

    def write(self, sample: Sample) -> None:
        """Append `sample`."""
        members = sample_members(sample)
        size = sum(members_bytes(len(data)) for _, data in members)
        full = self._num_samples >= self._max_samples
        if self._file and (full or _tar_bytes(self._file.num_bytes + size) > self._max_bytes):
            self._close_shard()
        if self._file is None:
            name = shard_name(self._split, self._next)
            self._file = _HashedFile(self._folder / name)
            self._num_samples = 0
            self._next += 1
        with disk_errors(self._file.path):
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                self._file.write(info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict"))
                self._file.write(data)
                self._file.write(b"\0" * (-len(data) % _BLOCK))
        self._num_samples += 1

    def _close_shard(self) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        with disk_errors(file.path):
            file.write(b"\0" * (_tar_bytes(file.num_bytes) - file.num_bytes))
            file.close()
        self.shards.append(
            Shard(file.path.name, self._num_samples, file.num_bytes, file.digest.hexdigest())
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._close_shard()
        elif self._file is not None:
            self._file.close()


class _HashedFile:
    """A file and the SHA-256 of what was written to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digest = hashlib.sha256()
        self.num_bytes = 0
        with disk_errors(path):
            self._file = path.open("wb")

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)
        self.num_bytes += len(data)

    def close(self) -> None:
        self._file.close()


def shard_name(split: str, number: int) -> str:
    """File name of a shard."""
    return f"{split}-{number:06d}.tar"


def _tar_bytes(size: int) -> int:
    """Bytes of a tar whose members take `size`: two zero blocks, then up to a whole record."""
    size += 2 * _BLOCK
    return size + -size % tarfile.RECORDSIZE


def members_bytes(size: int) -> int:
    """Bytes that a member of `size` bytes takes in a tar: a header and whole blocks."""
    return _BLOCK + size + -size % _BLOCK


def sample_members(sample: Sample) -> list[tuple[str, bytes]]:
    """The tar members of `sample`: names and contents."""
    about = {
        "item_id": sample.item_id,
        "modality": sample.modality,
        "path": sample.path,
        "captions": list(sample.captions),
        "pair_ids": list(sample.pair_ids),
        "attributes": dict(sample.attributes),
    }
    text = json.dumps(about, ensure_ascii=False, sort_keys=True, allow_nan=False)
    return [
        (f"{sample.item_id}.{sample.extension}", sample.media),
        (f"{sample.item_id}.txt", (sample.captions[0] if sample.captions else "").encode()),
        (f"{sample.item_id}.json", text.encode()),
    ]


def shard_paths(folder: Path, split: Split) -> tuple[Path, ...]:
    """The shards of `split` in order, as the receipt of the curated pairs at `folder` names them.

    Raises DataError when the folder has no receipt (curation did not finish), or a shard is gone or
    has another size than when it was written.
    """
    paths = []
    for shard in _split_receipt(folder, split)["shards"]:
        path = folder / shard["name"]
        if not path.is_file():
            raise DataError(f"shard {path} is missing", hint=f"run `{_MADE_BY}` again")
        # A tar that breaks off between two samples looks whole from inside.
        if (size := path.stat().st_size) != shard["num_bytes"]:
            raise DataError(
                f"shard {path} has {size:,} bytes, but its receipt says {shard['num_bytes']:,}",
                hint=f"run `{_MADE_BY}` again",
            )
        paths.append(path)
    return tuple(paths)


def num_samples(folder: Path, split: Split) -> int:
    """The number of items of `split`, from the receipt."""
    return int(_split_receipt(folder, split)["num_items"])


def _split_receipt(folder: Path, split: Split) -> dict[str, Any]:
    if split not in SPLITS:
        raise DataError(f"no split {split!r}; expected {', '.join(SPLITS)}")
    receipt = read_receipt(folder, what="set of curated pairs", made_by=_MADE_BY)
    try:
        found = receipt["splits"][split]
        assert isinstance(found["num_items"], int)
        # A receipt may come from anywhere: its names must stay inside the folder.
        for shard in found["shards"]:
            assert Path(shard["name"]).name == shard["name"]
            assert isinstance(shard["num_bytes"], int)
    except (KeyError, TypeError, AssertionError):
        raise DataError(
            f"the receipt of {folder} is not one of curated pairs", hint=f"run `{_MADE_BY}`"
        ) from None
    return found


def read_samples(folder: Path, split: Split, *, verify: bool = False) -> Iterator[Sample]:
    """The items of `split` in shard order. With `verify`, media are checked against their ids."""
    for path in shard_paths(folder, split):
        yield from read_shard(path, verify=verify)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an item's media lie: `size` bytes from `offset` of shard number `shard`."""

    shard: int
    offset: int
    size: int


def locate_samples(folder: Path, split: Split) -> Iterator[tuple[Sample, Place]]:
    """The items of `split` in shard order without their media, and where these lie.

    Raises DataError as `read_samples` does; the media are not looked at.
    """
    for number, path in enumerate(shard_paths(folder, split)):
        for sample, offset, size in _read_shard(path, verify=False, with_media=False):
            yield sample, Place(number, offset, size)


def read_shard(path: Path, *, verify: bool = False) -> Iterator[Sample]:
    """The items of one shard.

    Nothing is extracted to disk. Members other than regular files, names with folders in them and
    incomplete samples are refused with a DataError that names the member.
    """
    for sample, _, _ in _read_shard(path, verify=verify, with_media=True):
        yield sample


def _read_shard(path: Path, *, verify: bool, with_media: bool) -> Iterator[tuple[Sample, int, int]]:
    """The items, and offset and size of each one's media."""
    with path.open("rb") as file:
        held: dict[str, bytes] = {}
        key, place = "", (0, 0)
        for name, data, offset, size in _members(file, path, with_media=with_media):
            stem, dot, ending = name.partition(".")
            if not (stem and dot and ending) or "/" in name or "\\" in name:
                raise DataError(f"{path}: member {name!r} is not named KEY.ENDING")
            if stem != key and held:
                yield _sample(path, key, held, verify), *place
                held = {}
            key = stem
            held[ending] = data
            if ending not in _TEXTS:
                place = offset, size
        if held:
            yield _sample(path, key, held, verify), *place


def _members(
    file: BinaryIO, path: Path, *, with_media: bool
) -> Iterator[tuple[str, bytes, int, int]]:
    """Name, content, offset and size of the regular files in a tar of the plain kind that
    ShardWriter makes. The content of media is empty where they are not asked for.

    Read by hand: `tarfile` takes 0.3 ms a member, and understands links, sparse files and extended
    headers, which a shard of ours has no use for.
    """

    def damaged(what: str) -> DataError:
        return DataError(f"shard {path} is damaged: {what}", hint=f"run `{_MADE_BY}` again")

    whole = path.stat().st_size
    while True:
        header = file.read(_BLOCK)
        if header == bytes(_BLOCK):
            return
        if len(header) < _BLOCK:
            raise damaged("it ends in the middle")
        try:
            name = header[:100].rstrip(b"\0").decode()
            size = int(header[124:136].rstrip(b"\0 "), 8)
            checksum = int(header[148:156].rstrip(b"\0 "), 8)
        except ValueError:
            raise damaged("a header is no tar header") from None
        if checksum != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            raise damaged(f"the header of {name!r} has a wrong checksum")
        if header[156:157] not in (b"0", b"\0") or header[345:500].strip(b"\0"):
            raise DataError(
                f"{path}: member {name!r} is not a regular file with a plain name",
                hint="bring shards made elsewhere in with `coembed ingest`",
            )
        if not 0 <= size <= whole:
            raise damaged(f"{name!r} is said to have {size:,} bytes, the whole file has {whole:,}")
        offset, padding = file.tell(), -size % _BLOCK
        if with_media or name.partition(".")[2] in _TEXTS:
            data = file.read(size)
            if len(data) < size or len(file.read(padding)) < padding:
                raise damaged("it ends in the middle")
        else:
            data = b""
            if file.seek(size + padding, io.SEEK_CUR) > whole:
                raise damaged("it ends in the middle")
        yield name, data, offset, size


def _sample(path: Path, key: str, held: dict[str, bytes], verify: bool) -> Sample:
    about_bytes = held.pop("json", None)
    held.pop("txt", None)
    if about_bytes is None or len(held) != 1:
        raise DataError(
            f"{path}: sample {key!r} is not one media file with its .txt and .json",
            hint="bring shards made elsewhere in with `coembed ingest`",
        )
    ((extension, media),) = held.items()
    try:
        about = json.load(io.BytesIO(about_bytes))
        sample = Sample(
            item_id=about["item_id"],
            modality=about["modality"],
            path=about["path"],
            media=media,
            extension=extension,
            captions=tuple(about["captions"]),
            pair_ids=tuple(about["pair_ids"]),
            attributes=about["attributes"],
        )
        assert sample.item_id == key and sample.modality in MODALITIES
        assert isinstance(sample.attributes, dict)
    except (ValueError, KeyError, TypeError, AssertionError):
        raise DataError(
            f"{path}: {key}.json does not describe the sample as coembed writes it",
            hint="bring shards made elsewhere in with `coembed ingest`",
        ) from None
    if verify and sha256_bytes(media) != key:
        raise DataError(f"{path}: the media of {key!r} do not have that SHA-256: the shard changed")
    return sample
