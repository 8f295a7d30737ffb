"""Embeds the corpus in parts that survive a kill.

A part is a Parquet file of the next `part_size` items of the corpus, written beside a small receipt
with its checksum. A run that starts again goes on after the last whole part. Batches never reach
over the end of a part, so that the same items always make up a batch: a resumed run writes the very
bytes that an uninterrupted one writes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from coembed.errors import DataError, ModelError
from coembed.files import atomic_path, sha256_file, sweep_partials, write_json
from coembed.types import MODALITIES, Modality, Sample, Split

Embeddings = NDArray[np.float32]
Encode = Callable[[Modality, Sequence[bytes]], Embeddings]
Decode = Callable[[Modality, bytes], object]
Chunk = Sequence[tuple[Split, Sample]]

# Batches that are handed to the encoder together: it decodes some of them while it embeds others.
_CHUNK_BATCHES = 8
# Fewer where their files are large: a chunk of long sounds could fill the memory.
_CHUNK_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An item of the corpus that could not be decoded, so that it has no embedding."""

    item_id: str
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Part:
    """One written part: its file name, rows (in all and by modality), checksum, and what was left
    out of it."""

    file: str
    num_items: int
    sha256: str
    unreadable: tuple[Unreadable, ...]
    modalities: Mapping[Modality, int]


@dataclass(frozen=True, slots=True)
class EmbeddedCorpus:
    """All parts, in order. `content_hash` covers every item of the corpus but not its vectors."""

    parts: tuple[Part, ...]
    content_hash: str
    num_resumed: int

    @property
    def num_items(self) -> int:
        """Rows over all parts."""
        return sum(part.num_items for part in self.parts)

    @property
    def modalities(self) -> Mapping[Modality, int]:
        """Rows over all parts, by modality."""
        found: Counter[Modality] = Counter()
        for part in self.parts:
            found.update(part.modalities)
        return {name: found[name] for name in MODALITIES if found[name]}

    @property
    def unreadable(self) -> tuple[Unreadable, ...]:
        """What could not be decoded, in corpus order."""
        return tuple(item for part in self.parts for item in part.unreadable)


def embed_parts(
    corpus: Iterable[tuple[Split, Sample]],
    encode: Encode,
    decode: Decode,
    *,
    dim: int,
    batch_size: int,
    part_size: int,
    work: Path,
    advance: Callable[[int], None],
) -> EmbeddedCorpus:
    """Embed `corpus` into parts in the folder `work`, keeping the whole parts found there.

    `encode` turns media of one modality into [num, dim] unit vectors, `batch_size` at a time; both
    it and `decode` raise DataError on what cannot be decoded. `part_size` is a multiple of
    `batch_size`. `advance` hears of every item passed.
    """
    work.mkdir(parents=True, exist_ok=True)
    sweep_partials(work)
    content = hashlib.sha256()
    parts: list[Part] = []
    num_resumed = 0
    chunks = _read_ahead(_chunks(corpus, batch_size * _CHUNK_BATCHES, part_size))
    for number, group in itertools.groupby(chunks, key=lambda numbered: numbered[0]):
        mine = _counted((chunk for _, chunk in group), content, advance)
        part = _find_part(work, number)
        if part is not None:
            for _ in mine:  # what is done already still counts towards the content hash
                pass
            num_resumed += 1
        else:
            part = _write_part(work, number, mine, encode, decode, dim=dim)
        parts.append(part)
    return EmbeddedCorpus(tuple(parts), content.hexdigest(), num_resumed)


def assemble(corpus: EmbeddedCorpus, work: Path, out: Path) -> None:
    """Put the parts in `work` into the existing folder `out`, as hard links where that works."""
    for part in corpus.parts:
        source, target = work / part.file, out / part.file
        try:
            os.link(source, target)
        except OSError:  # another disk, or a file system without links
            shutil.copyfile(source, target)


def part_name(number: int) -> str:
    """File name of a part."""
    return f"part-{number:05d}.parquet"


def _chunks(
    corpus: Iterable[tuple[Split, Sample]], chunk_size: int, part_size: int
) -> Iterator[tuple[int, Chunk]]:
    """(part number, items): runs of at most `chunk_size` items, none reaching over a part's end.

    They end early behind _CHUNK_BYTES of media. That depends on the items alone, too.
    """
    iterator = iter(corpus)
    for number in itertools.count():
        left = part_size
        while left:
            chunk = _take(iterator, min(chunk_size, left))
            if not chunk:
                return
            yield number, chunk
            left -= len(chunk)


def _take(items: Iterator[tuple[Split, Sample]], most: int) -> Chunk:
    chunk, num_bytes = [], 0
    for split, sample in items:
        chunk.append((split, sample))
        num_bytes += len(sample.media)
        if len(chunk) == most or num_bytes >= _CHUNK_BYTES:
            break
    return chunk


def _read_ahead(chunks: Iterator[tuple[int, Chunk]]) -> Iterator[tuple[int, Chunk]]:
    """Read the next chunk from disk in a thread while the one before it is embedded."""
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        coming = pool.submit(next, chunks, None)
        while (chunk := coming.result()) is not None:
            coming = pool.submit(next, chunks, None)
            yield chunk


def _counted(
    chunks: Iterable[Chunk], content: Any, advance: Callable[[int], None]
) -> Iterator[Chunk]:
    """Pass chunks on, adding their items to the `content` hash and to the progress."""
    for chunk in chunks:
        for split, sample in chunk:
            payload = [sample.item_id, *_payload(split, sample).values()]
            content.update(json.dumps(payload, ensure_ascii=False).encode() + b"\n")
        yield chunk
        advance(len(chunk))


def _payload(split: Split, sample: Sample) -> dict[str, Any]:
    return {
        "path": sample.path,
        "modality": sample.modality,
        "captions": list(sample.captions),
        "split": split,
        "attributes": json.dumps(dict(sample.attributes), sort_keys=True, ensure_ascii=False),
    }


def _find_part(work: Path, number: int) -> Part | None:
    """The part if it was written whole, else None."""
    file = work / part_name(number)
    try:
        receipt = json.loads(_receipt_path(file).read_text(encoding="utf-8"))
        unreadable = tuple(Unreadable(**item) for item in receipt.pop("unreadable"))
        part = Part(**receipt, unreadable=unreadable)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return part if file.is_file() and sha256_file(file) == part.sha256 else None


def _write_part(
    work: Path,
    number: int,
    chunks: Iterable[Chunk],
    encode: Encode,
    decode: Decode,
    *,
    dim: int,
) -> Part:
    vectors: list[Embeddings] = []
    rows: list[tuple[Split, Sample]] = []
    unreadable: list[Unreadable] = []
    for chunk in chunks:
        embedded, reasons = _embed_chunk(chunk, encode, decode, dim=dim)
        for place, (split, sample) in enumerate(chunk):
            if place in reasons:
                unreadable.append(Unreadable(sample.item_id, sample.path, reasons[place]))
            else:
                # The media are not needed any more: a part of them could fill the memory.
                rows.append((split, replace(sample, media=b"")))
        vectors.append(embedded)
    file = work / part_name(number)
    matrix = np.concatenate(vectors) if vectors else np.empty((0, dim), dtype=np.float32)
    with atomic_path(file) as partial:
        pq.write_table(
            _table(rows, matrix),
            partial,
            compression="zstd",
            use_dictionary=["modality", "split"],
            write_statistics=False,
        )
    modalities = dict(Counter(sample.modality for _, sample in rows))
    part = Part(file.name, len(rows), sha256_file(file), tuple(unreadable), modalities)
    write_json(_receipt_path(file), asdict(part))
    return part


def _embed_chunk(
    chunk: Chunk, encode: Encode, decode: Decode, *, dim: int
) -> tuple[Embeddings, dict[int, str]]:
    """Embeddings of what can be decoded, in order, and the reason for each place that cannot.

    Each modality goes through its own tower, in batches of its own.
    """
    places: dict[Modality, list[int]] = {}
    for place, (_, sample) in enumerate(chunk):
        places.setdefault(sample.modality, []).append(place)
    vectors = np.empty((len(chunk), dim), dtype=np.float32)
    reasons: dict[int, str] = {}
    for modality, own in places.items():
        media = [chunk[place][1].media for place in own]
        embedded, own_reasons = _encode_readable(encode, decode, modality, media)
        reasons.update({own[place]: reason for place, reason in own_reasons.items()})
        readable = [place for place in own if place not in reasons]
        if readable:
            _check(embedded, dim)
            vectors[readable] = embedded
    kept = [place for place in range(len(chunk)) if place not in reasons]
    return vectors[kept], reasons


def _encode_readable(
    encode: Encode, decode: Decode, modality: Modality, media: Sequence[bytes]
) -> tuple[Embeddings, dict[int, str]]:
    """Embeddings of what can be decoded, and the reason for each place that cannot."""
    try:
        return encode(modality, media), {}
    except DataError:
        reasons: dict[int, str] = {}
        for place, data in enumerate(media):
            try:
                decode(modality, data)
            except DataError as error:
                # It was alone, so a place in the message ("image 0: ...") says nothing.
                reasons[place] = re.sub(r"^\w+ 0: ", "", error.message)
        if not reasons:
            raise
    readable = [data for place, data in enumerate(media) if place not in reasons]
    if not readable:
        return np.empty((0, 0), dtype=np.float32), reasons
    return encode(modality, readable), reasons


def _check(embedded: Embeddings, dim: int) -> None:
    if embedded.shape[1] != dim or not np.isfinite(embedded).all():
        raise ModelError(
            f"the model gave embeddings of shape {list(embedded.shape)} that are not finite "
            f"numbers of dimension {dim}",
            hint="its training diverged: look at history.csv, lower train.lr and train again",
        )


def _table(rows: Sequence[tuple[Split, Sample]], vectors: Embeddings) -> pa.Table:
    payloads = [_payload(split, sample) for split, sample in rows]
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    columns = {
        "item_id": pa.array([sample.item_id for _, sample in rows], pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        "path": pa.array([row["path"] for row in payloads], pa.string()),
        "modality": pa.array([row["modality"] for row in payloads], pa.string()),
        "captions": pa.array([row["captions"] for row in payloads], pa.list_(pa.string())),
        "split": pa.array([row["split"] for row in payloads], pa.string()),
        "attributes": pa.array([row["attributes"] for row in payloads], pa.string()),
    }
    return pa.table(columns)


def _receipt_path(file: Path) -> Path:
    return file.with_name(file.name + ".receipt.json")
