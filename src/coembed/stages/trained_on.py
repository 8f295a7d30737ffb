"""What a model was trained on: `trained_on.parquet`, which the train stage leaves in the model
directory, so that any later evaluation can tell whether it asks what the model has seen.

One row an item, those of the model's own train split first:

    item_id   32 bytes, the SHA-256 of the media
    modality  image, audio, ...
    use       "train": the weights learned from it; "choose": an item of the val split by which the
              weights that were kept, or the end of the training, were chosen; "watch": one of the
              val split that was only looked at
    hash      of a picture: the perceptual hash of its whole frame (`curation.lookalikes`), else
              null
    sketch    of a picture: SKETCH_BYTES bytes, to compare it by when it is gone, else null
    through   "" for the model's own data; else the models that it was inherited from, the nearest
              first ("model.pretrained runs/models/1f2e")

A model that begins from another's weights, or learns from a teacher, inherits what that one was
trained on. Where nobody can say what that was, the file's metadata name it as `unknown`.

An item takes about 80 bytes, so a million take some 80 MB. Same pairs, same settings, same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from coembed.curation.lookalikes.perceptual import fingerprint, hash_thumbnails, unpack_thumbnails
from coembed.curation.lookalikes.sketch import SKETCH_BYTES, Sketches, sketch_thumbnails
from coembed.curation.media.media import Media
from coembed.curation.media.undecodable import Undecodable
from coembed.errors import ModelError
from coembed.files import RECEIPT, atomic_path, read_receipt, sha256_file
from coembed.models.architecture import read_architecture
from coembed.models.pretrained import MODEL_JSON
from coembed.models.settings import ModelSettings
from coembed.pairs.shards import num_samples, read_samples
from coembed.progress import tracker
from coembed.types import MODALITIES, Modality, Sample, Split

TRAINED_ON: Final = "trained_on.parquet"
Use = Literal["train", "choose", "watch"]

_FORMAT = 1
_ABOUT = b"coembed"
_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.binary(32), nullable=False),
        pa.field("modality", pa.string(), nullable=False),
        pa.field("use", pa.string(), nullable=False),
        pa.field("hash", pa.uint64()),
        pa.field("sketch", pa.binary(SKETCH_BYTES)),
        pa.field("through", pa.string(), nullable=False),
    ]
)
_GROUP_ROWS = 1 << 16
_DECODED_AT_ONCE = 128
_AGAIN = "fetch the model again (`coembed fetch`, `dvc pull`), or train it again"


@dataclass(frozen=True)
class Learned:
    """The items that decided about a model's weights, those of "train" and "choose".

    `item_ids`, `use`, `through` [n]; `rows` [n]: their rows in the file; `hashes` [n], of which
    only those where `is_picture` [n] mean anything.
    """

    item_ids: pa.FixedSizeBinaryArray
    use: pa.StringArray
    through: pa.StringArray
    rows: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    is_picture: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class TrainedOn:
    """A model's record of its training data, checked. `unknown` names what the weights also come
    from and whose training data are not known."""

    path: Path
    unknown: tuple[str, ...]

    def learned(self) -> Learned:
        """Read all but the sketches: some 50 bytes an item."""
        columns = [name for name in _SCHEMA.names if name != "sketch"]
        table = pq.read_table(self.path, columns=columns)
        decided = pc.not_equal(table["use"], "watch")
        rows = np.flatnonzero(decided.to_numpy())
        table = table.filter(decided).combine_chunks()
        return Learned(
            item_ids=_whole(table["item_id"]),
            use=_whole(table["use"]),
            through=_whole(table["through"]),
            rows=rows,
            hashes=table["hash"].fill_null(0).to_numpy(),
            is_picture=table["hash"].is_valid().to_numpy(),
        )

    def sketches(self, rows: NDArray[np.int64]) -> Sketches:
        """Sketches [n, SKETCH_BYTES] of the pictures at `rows` of the file (ascending)."""
        found = []
        with pq.ParquetFile(self.path) as file:
            first = 0
            for group in range(file.num_row_groups):
                last = first + file.metadata.row_group(group).num_rows
                some = rows[np.searchsorted(rows, first) : np.searchsorted(rows, last)] - first
                if len(some):
                    column = file.read_row_group(group, columns=["sketch"])["sketch"]
                    found.append(b"".join(column.take(pa.array(some)).to_pylist()))
                first = last
        return np.frombuffer(b"".join(found), np.int8).reshape(-1, SKETCH_BYTES)


@dataclass(frozen=True)
class Ancestor:
    """A model that another one's weights come from. `words` say which by the setting that names it;
    `record` is None where it does not say what it was trained on itself."""

    words: str
    record: TrainedOn | None


def read_trained_on(model: Path) -> TrainedOn | None:
    """The record of the training data in the model directory `model`; None where it has none, being
    older than the record, or another program's.

    Raises ModelError where the record is damaged, or missing though the receipt names it.
    """
    path = model / TRAINED_ON
    noted = None
    if (model / RECEIPT).is_file():
        receipt = read_receipt(model, what="model", made_by="coembed train")
        noted = receipt.get("trained_on")
    if not path.is_file():
        if noted is None:
            return None
        raise ModelError(f"{path} is missing, but the model's receipt names it", hint=_AGAIN)
    if noted is not None and sha256_file(path) != noted:
        raise ModelError(
            f"{path} is not the record of the training data that the model's receipt names",
            hint=_AGAIN,
        )
    try:
        schema = pq.read_schema(path)
        about = json.loads((schema.metadata or {})[_ABOUT])
        if about["format"] != _FORMAT:
            raise ModelError(
                f"{path} has format {about['format']!r}; this coembed reads {_FORMAT}",
                hint="use the coembed that wrote it, or train the model again",
            )
        if not schema.equals(_SCHEMA):
            raise ValueError(f"its columns are {', '.join(schema.names)}")
        return TrainedOn(path, tuple(map(str, about["unknown"])))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} is not a record of training data: {error}", hint=_AGAIN
        ) from error


def find_ancestors(
    model: ModelSettings, *, teacher: str | None, root: Path
) -> tuple[Ancestor, ...]:
    """The models that weights of these settings come from; relative paths start at `root`.

    Raises ModelError where the record of one is damaged.
    """
    found = []
    if model.pretrained is not None:
        found.append(_ancestor(f"model.pretrained {model.pretrained}", root / model.pretrained))
    if teacher is not None:
        # As `training.teacher` reads it: a model directory, or ARCHITECTURE/CHECKPOINT.
        own = (root / teacher / MODEL_JSON).is_file()
        folder = root / (teacher if own else teacher.partition("/")[2])
        found.append(_ancestor(f"train.loss.teacher {teacher}", folder))
    for name, section in read_architecture(model.architecture, root=root).items():
        if isinstance(section, dict) and section.get("timm_model_pretrained"):
            found.append(Ancestor(f"{name}: timm's weights of {section['timm_model_name']}", None))
    return tuple(found)


def _ancestor(words: str, folder: Path) -> Ancestor:
    ours = (folder / MODEL_JSON).is_file()
    return Ancestor(words, read_trained_on(folder) if ours else None)


def write_trained_on(
    folder: Path,
    pairs: Path,
    *,
    num_val: int,
    val_decides: bool,
    ancestors: Sequence[Ancestor],
    num_threads: int,
) -> str:
    """Write the record of a training on the curated pairs at `pairs` into the existing `folder`;
    return its SHA-256.

    The first `num_val` items of each modality of the val split were looked at, and with
    `val_decides` the weights were chosen by them. Every picture is decoded once more, scaled down.
    """
    unknown = [one.words for one in ancestors if one.record is None]
    unknown += [
        f"{one.words} < {words}" for one in ancestors if one.record for words in one.record.unknown
    ]
    about = {"format": _FORMAT, "unknown": unknown}
    schema = _SCHEMA.with_metadata({_ABOUT: json.dumps(about, sort_keys=True).encode()})
    use_of_val: Use = "choose" if val_decides else "watch"
    total = num_samples(pairs, "train") + min(num_val, num_samples(pairs, "val"))
    with (
        closing(tracker(total=total, label="note what was trained on", unit="items")) as progress,
        ThreadPoolExecutor(num_threads) as threads,
        atomic_path(folder / TRAINED_ON) as partial,
        pq.ParquetWriter(
            partial, schema, compression="zstd", use_dictionary=["modality", "use", "through"],
            use_byte_stream_split=["sketch"],
        ) as writer,
    ):  # fmt: skip
        rows = _Rows(writer, schema, sparse=any(one.record for one in ancestors))

        def add_own(split: Split, use: Use, limit: int | None) -> None:
            for batch in _own_rows(pairs, split, use, limit, threads):
                rows.add(batch)
                progress.advance(len(batch))
            rows.end_part()

        # Of an item that comes up again the first row stands: what taught goes before what chose.
        add_own("train", "train", None)
        rows.inherit(ancestors, "train")
        if use_of_val == "choose":
            add_own("val", use_of_val, num_val)
        rows.inherit(ancestors, "choose")
        if use_of_val == "watch":
            add_own("val", use_of_val, num_val)
    return sha256_file(folder / TRAINED_ON)


class _Rows:
    """Writes rows in groups, in parts that hold no item twice. With `sparse`, items of an earlier
    part are left out."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema, *, sparse: bool) -> None:
        self._writer, self._schema, self._sparse = writer, schema, sparse
        self._held: list[pa.RecordBatch] = []
        self._seen = pa.array([], _SCHEMA.field("item_id").type)
        self._new: list[pa.Array] = []

    def add(self, batch: pa.RecordBatch) -> None:
        self._held.append(batch)
        if sum(map(len, self._held)) >= _GROUP_ROWS:
            self._write()

    def inherit(self, ancestors: Iterable[Ancestor], use: Use) -> None:
        """Add what `ancestors` used so."""
        for ancestor in ancestors:
            if ancestor.record is None:
                continue
            with pq.ParquetFile(ancestor.record.path) as file:
                for batch in file.iter_batches(_GROUP_ROWS):
                    batch = batch.filter(pc.equal(batch["use"], use))
                    words = [
                        f"{ancestor.words} < {further}" if further else ancestor.words
                        for further in batch["through"].to_pylist()
                    ]
                    place = batch.schema.get_field_index("through")
                    cells = pa.array(words, pa.string())
                    self.add(batch.set_column(place, _SCHEMA.field(place), cells))
            self.end_part()

    def end_part(self) -> None:
        self._write()
        self._seen = pa.concat_arrays([self._seen, *self._new])
        self._new = []

    def _write(self) -> None:
        batches = [batch.cast(self._schema) for batch in self._held]
        self._held = []
        table = pa.Table.from_batches(batches, self._schema).combine_chunks()
        if self._sparse:
            table = table.filter(pc.invert(pc.is_in(table["item_id"], value_set=self._seen)))
            self._new += table["item_id"].chunks
        if len(table):
            self._writer.write_table(table, row_group_size=len(table))


def _own_rows(
    pairs: Path, split: Split, use: Use, limit: int | None, threads: ThreadPoolExecutor
) -> Iterator[pa.RecordBatch]:
    left: dict[Modality, int | None] = dict.fromkeys(MODALITIES, limit)
    samples = (sample for sample in read_samples(pairs, split) if _take(left, sample))
    while chunk := list(islice(samples, _DECODED_AT_ONCE)):
        thumbnails = list(threads.map(_thumbnail, chunk))
        yield _batch(chunk, use, thumbnails)


def _take(left: dict[Modality, int | None], sample: Sample) -> bool:
    """Whether `sample` is among the first ones of its modality; counts it."""
    num = left[sample.modality]
    if num is not None:
        left[sample.modality] = num - 1
    return num is None or num > 0


def _thumbnail(sample: Sample) -> bytes | None:
    return take_thumbnail(sample.media) if sample.modality == "image" else None


def take_thumbnail(media: bytes) -> bytes | None:
    """The thumbnail (`fingerprint`) of an encoded picture; None where it cannot be decoded."""
    try:
        return fingerprint(Media(media, modality="image").thumbnail)
    except Undecodable:
        return None


def _batch(
    samples: Sequence[Sample], use: Use, thumbnails: Sequence[bytes | None]
) -> pa.RecordBatch:
    num = len(samples)
    there = np.array([thumbnail is not None for thumbnail in thumbnails])
    pictures = unpack_thumbnails(b"".join(one for one in thumbnails if one is not None))
    hashes = np.zeros(num, np.uint64)
    sketches = np.zeros((num, SKETCH_BYTES), np.int8)
    if len(pictures):
        hashes[there] = hash_thumbnails(pictures)[:, 0]
        sketches[there] = sketch_thumbnails(pictures)
    sketch = [row.tobytes() if here else None for row, here in zip(sketches, there, strict=True)]
    return pa.RecordBatch.from_arrays(
        [
            pa.array([bytes.fromhex(sample.item_id) for sample in samples], pa.binary(32)),
            pa.array([sample.modality for sample in samples], pa.string()),
            pa.array([use] * num, pa.string()),
            pa.array(hashes, pa.uint64(), mask=~there),
            pa.array(sketch, pa.binary(SKETCH_BYTES)),
            pa.array([""] * num, pa.string()),
        ],
        schema=_SCHEMA,
    )


def _whole(column: pa.ChunkedArray) -> Any:
    """A column as one array."""
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
