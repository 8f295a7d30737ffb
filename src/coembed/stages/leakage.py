"""Leakage: evaluation items that a model has seen in training, as they are or nearly so.

Within curated pairs no split shares items or near duplicates with another. But a model may have
been trained elsewhere: on an older version of the pairs (as a pool grows, pairs move towards test,
never back), or from a checkpoint with a training of its own. What it was trained on stands in its
directory (`trained_on`); here that is held against an evaluation set, in the order of certainty:

1. the same bytes;
2. a picture that curation dropped as a near duplicate of one that is evaluated (the manifest);
3. a picture of which the hash comes near to an evaluated one's (`curation.lookalikes`): where the
   training picture is among the curated pairs at hand, its pixels decide, as in the filter
   `near_duplicate`; where it is gone, its sketch does, with limits so tight that what is left is
   certain, and copies that were stamped on or cropped are missed.

Of sounds only the same bytes are found. A caption that comes up again is no leak.

A million training items take some 600 MB of memory, the search for 10,000 pictures among them about
half a minute of one core.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from coembed.curation.filters import near_duplicate
from coembed.curation.lookalikes.hamming import Places
from coembed.curation.lookalikes.lookalikes import Judge, Pairs, orient, propose
from coembed.curation.lookalikes.perceptual import (
    MIRROR,
    NUM_WINDOWS,
    THUMBNAIL_BYTES,
    THUMBNAIL_PX,
    Hashes,
    hash_thumbnails,
)
from coembed.curation.lookalikes.sketch import compare, has_structure
from coembed.curation.media.media import Media
from coembed.curation.media.undecodable import Undecodable
from coembed.errors import DataError
from coembed.pairs.shards import Place, locate_samples, read_samples, shard_paths
from coembed.stages.trained_on import Learned, TrainedOn, read_trained_on, take_thumbnail
from coembed.types import SPLITS, Modality, Split

LeakKind = Literal["same_item", "near_duplicate", "lookalike"]

_MANIFEST = "manifest.parquet"
_AS_CURATED = near_duplicate.Settings()
# What of a sketch's brightness and colours another picture may leave unexplained, where the sketch
# decides alone. Of the 63 million pairs of different pictures in three demo shops (seeds 7, 11,
# 12) none is within, of the 288 planted copies 74 % (79 % where the copy was the training
# picture: a crop is found from its original, not the other way about).
_COPY_LUMA, _COPY_COLOUR = 0.008, 0.03
# Beyond these no pair's pixels are looked at. Of those copies whose hashes come near, all are
# within; of the other pairs whose hashes do, one in seven.
_FAR_LUMA, _FAR_COLOUR = 0.2, 0.5
_MOST_COMPARED = 64  # nearest of an evaluated picture, by sketch
_PAIRS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Leak:
    """One item of the evaluation set that the model has seen, and the nearest thing it has seen.

    `item_id`, `path` (in the pool) and `modality` are the evaluation item's. `kind`: "same_item"
    (the same bytes), "near_duplicate" (the same picture, verified by its pixels or by curation),
    "lookalike" (by hash and sketch alone: the training picture is not at hand any more). `seen` is
    the item_id of the training item, `seen_in` its split ("train", or "val" where the weights were
    chosen by val), `likeness` the score of a near duplicate (0 to 1), else None. `through` is ""
    for the model's own training data, else the model that it was inherited from ("model.pretrained
    runs/models/1f2e").
    """

    item_id: str
    path: str
    modality: Modality
    kind: LeakKind
    seen: str
    seen_in: Split
    likeness: float | None
    through: str


@dataclass(frozen=True, slots=True)
class Leaks:
    """What is known of a model's leakage.

    `known` is False for a model that does not say what it was trained on (an older or foreign
    one): `found` is empty then and means nothing. `unknown` names what the weights also come from
    and whose training data nobody can name (an open_clip tag, an older checkpoint). `found` is in
    the order of item ids, one entry an evaluation item. `num_trained` counts the training items,
    inherited ones included.
    """

    known: bool
    unknown: tuple[str, ...]
    num_evaluated: int
    num_trained: int
    found: tuple[Leak, ...]

    @property
    def item_ids(self) -> frozenset[str]:
        """The evaluation items that leaked."""
        return frozenset(leak.item_id for leak in self.found)


def find_leaks(model: Path, pairs: Path, split: Split) -> Leaks:
    """The items of `split` of the curated pairs at `pairs` that the model directory `model` was
    trained on.

    Raises DataError for pairs that are not whole, ModelError for a damaged record of the model's
    training data.
    """
    record = read_trained_on(model)
    items = [
        _Item(sample.item_id, sample.path, sample.modality)
        for sample, _ in locate_samples(pairs, split)
    ]
    if record is None:
        return Leaks(False, (), len(items), 0, ())
    learned = record.learned()
    found: dict[str, Leak] = {}
    for leak in _same_items(items, learned):
        found[leak.item_id] = leak
    for leak in _near_by_curation(items, learned, pairs / _MANIFEST):
        found.setdefault(leak.item_id, leak)
    rest = {item.item_id: item for item in items if item.item_id not in found}
    with tempfile.TemporaryDirectory(prefix="coembed-leakage-") as scratch:
        asked = _ask(rest, pairs, split, Path(scratch))
        for leak in _near_by_picture(asked, record, learned, pairs):
            found[leak.item_id] = leak
    in_order = tuple(found[item_id] for item_id in sorted(found))
    return Leaks(True, record.unknown, len(items), len(learned), in_order)


class _Item(NamedTuple):
    """An evaluated item."""

    item_id: str
    path: str
    modality: Modality


def _leak(
    item: _Item, kind: LeakKind, learned: Learned, at: int, likeness: float | None = None
) -> Leak:
    return Leak(
        item_id=item.item_id,
        path=item.path,
        modality=item.modality,
        kind=kind,
        seen=learned.item_ids[at].as_py().hex(),
        seen_in="train" if learned.use[at].as_py() == "train" else "val",
        likeness=likeness,
        through=learned.through[at].as_py(),
    )


def _look_up(item_ids: Sequence[str], learned: Learned) -> list[int | None]:
    """Where each of `item_ids` is among the learned items, None where it is not."""
    asked = pa.array([bytes.fromhex(item_id) for item_id in item_ids], pa.binary(32))
    places: list[int | None] = pc.index_in(asked, value_set=learned.item_ids).to_pylist()
    return places


def _same_items(items: Sequence[_Item], learned: Learned) -> Iterator[Leak]:
    for item, at in zip(items, _look_up([item.item_id for item in items], learned), strict=True):
        if at is not None:
            yield _leak(item, "same_item", learned, at)


def _near_by_curation(items: Sequence[_Item], learned: Learned, manifest: Path) -> Iterator[Leak]:
    """Evaluated pictures of which curation dropped a near duplicate that was learned; of several
    the likest one."""
    if not manifest.is_file():
        return
    # A group is called by the first 16 digits of the item that stands for it.
    standing = {item.item_id[:16]: item for item in items}
    dropped = list(_dropped_copies(manifest, pa.array(list(standing), pa.string())))
    likest: dict[str, tuple[float, int]] = {}
    for (_, group, score), at in zip(
        dropped, _look_up([item_id for item_id, _, _ in dropped], learned), strict=True
    ):
        if at is not None and score > likest.get(group, (0.0, 0))[0]:
            likest[group] = score, at
    for group, (score, at) in likest.items():
        yield _leak(standing[group], "near_duplicate", learned, at, score)


def _dropped_copies(manifest: Path, groups: pa.Array) -> Iterator[tuple[str, str, float]]:
    """(item_id, group, score) of the pictures that were dropped as members of `groups`."""
    columns = ["item_id", "near_duplicate_group", "near_duplicate_score"]
    try:
        with pq.ParquetFile(manifest) as file:
            if not set(columns) <= set(file.schema_arrow.names):
                return  # the filter was not asked
            for batch in file.iter_batches(columns=columns):
                wanted = pc.is_in(batch["near_duplicate_group"], value_set=groups)
                # The one that stands for a group has no score.
                batch = batch.filter(pc.and_(wanted, pc.is_valid(batch["near_duplicate_score"])))
                cells = (column.to_pylist() for column in batch.columns)
                yield from zip(*cells, strict=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"the manifest {manifest} cannot be read: {error}", hint="run `coembed curate` again"
        ) from error


@dataclass(frozen=True)
class _Asked:
    """The evaluated pictures that can be decoded. `thumbnails`: a file of theirs, one after another
    (more may be written behind); `hashes` [n, NUM_WINDOWS]."""

    items: Sequence[_Item]
    thumbnails: Path
    hashes: Hashes


def _ask(items: dict[str, _Item], pairs: Path, split: Split, scratch: Path) -> _Asked:
    asked = []
    path = scratch / "thumbnails.u8"
    with path.open("wb") as file:
        if any(item.modality == "image" for item in items.values()):
            for sample in read_samples(pairs, split):
                if sample.modality == "image" and sample.item_id in items:
                    thumbnail = take_thumbnail(sample.media)
                    if thumbnail is not None:
                        asked.append(items[sample.item_id])
                        file.write(thumbnail)
    return _Asked(asked, path, hash_thumbnails(_thumbnails(path)))


def _thumbnails(path: Path) -> NDArray[np.uint8]:
    shape = (-1, THUMBNAIL_PX, THUMBNAIL_PX, 3)
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.empty((0, *shape[1:]), np.uint8)
    return np.memmap(path, np.uint8, "r").reshape(shape)


@dataclass(frozen=True)
class _Candidates:
    """Pairs (place in `asked`, place in `learned`), by asked and then by nearness. `is_copy`
    [pair]: what the sketch alone says."""

    asked: Places
    learned: Places
    is_copy: NDArray[np.bool_]

    def only(self, chosen: NDArray[np.bool_] | Places) -> _Candidates:
        """Some of the pairs."""
        return _Candidates(self.asked[chosen], self.learned[chosen], self.is_copy[chosen])


def _near_by_picture(
    asked: _Asked, record: TrainedOn, learned: Learned, pairs: Path
) -> Iterator[Leak]:
    candidates = _propose(asked, record, learned)
    if not len(candidates.asked):
        return
    places, numbers = np.unique(candidates.learned, return_inverse=True)
    names = [learned.item_ids[at].as_py().hex() for at in places.tolist()]
    at_hand = _AtHand(pairs, {*names, *(asked.items[at].item_id for at in candidates.asked)})
    here = np.array([name in at_hand for name in names])[numbers]

    score = _judge(asked, candidates.only(here), learned, at_hand)
    likest: dict[int, tuple[float, int]] = {}
    for at, place, likeness in zip(
        candidates.asked[here].tolist(), candidates.learned[here].tolist(), score.tolist(),
        strict=True,
    ):  # fmt: skip
        if likeness >= _AS_CURATED.min_score and likeness > likest.get(at, (0.0, 0))[0]:
            likest[at] = likeness, place
    for at, (likeness, place) in likest.items():
        yield _leak(asked.items[at], "near_duplicate", learned, place, likeness)

    gone = candidates.only(~here & candidates.is_copy)
    done = set(likest)
    for at, place in zip(gone.asked.tolist(), gone.learned.tolist(), strict=True):
        if at not in done:
            done.add(at)
            yield _leak(asked.items[at], "lookalike", learned, place)


def _propose(asked: _Asked, record: TrainedOn, learned: Learned) -> _Candidates:
    """Pairs whose hashes come near and whose sketches are not far from each other."""
    pictured = np.flatnonzero(learned.is_picture)
    frames = learned.hashes[pictured]
    proposed = propose(
        asked.hashes, frames, np.arange(len(frames)), radius=_AS_CURATED.radius,
        folder=asked.thumbnails.parent, map_tasks=map,
    )  # fmt: skip
    thumbnails = _thumbnails(asked.thumbnails)
    places, numbers = np.unique(proposed.answering, return_inverse=True)
    sketches = record.sketches(learned.rows[pictured[places]])
    luma, colour = np.empty(len(numbers)), np.empty(len(numbers))
    for start in range(0, len(numbers), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        one = asked.hashes[proposed.asking[part]]
        other = frames[proposed.answering[part], None]
        bits = np.concatenate([one ^ other, one ^ other ^ MIRROR], axis=1)
        mirrored, window = np.divmod(np.bitwise_count(bits).argmin(axis=1), NUM_WINDOWS)
        luma[part], colour[part] = compare(
            thumbnails[proposed.asking[part]], window, mirrored == 1, sketches[numbers[part]]
        )
    near = np.flatnonzero((luma <= _FAR_LUMA) & (colour <= _FAR_COLOUR))
    near = near[np.lexsort((luma[near], proposed.asking[near]))]
    asking = proposed.asking[near]
    near = near[np.arange(len(near)) - np.searchsorted(asking, asking) < _MOST_COMPARED]
    is_copy = (luma[near] <= _COPY_LUMA) & (colour[near] <= _COPY_COLOUR)
    return _Candidates(
        asked=proposed.asking[near],
        learned=pictured[proposed.answering[near]],
        is_copy=is_copy & has_structure(sketches[numbers[near]]),
    )


class _AtHand:
    """The media of those of `wanted` (item ids) that are in the curated pairs, in any split."""

    def __init__(self, pairs: Path, wanted: set[str]) -> None:
        self._places: dict[str, tuple[Path, Place]] = {}
        for split in SPLITS:
            shards = shard_paths(pairs, split)
            for sample, place in locate_samples(pairs, split):
                if sample.item_id in wanted:
                    self._places[sample.item_id] = shards[place.shard], place

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._places

    def read(self, item_id: str) -> bytes:
        """The media of one of them."""
        shard, place = self._places[item_id]
        with shard.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), place.size, place.offset)


def _judge(
    asked: _Asked, candidates: _Candidates, learned: Learned, at_hand: _AtHand
) -> NDArray[np.float64]:
    """How alike the pictures of each pair are, as `near_duplicate` finds it."""
    places, numbers = np.unique(candidates.learned, return_inverse=True)
    names = [learned.item_ids[at].as_py().hex() for at in places.tolist()]
    with asked.thumbnails.open("ab") as file:
        for name in names:
            # Decoded once, when it was noted; were it damaged since, black is like nothing.
            file.write(take_thumbnail(at_hand.read(name)) or bytes(THUMBNAIL_BYTES))
    theirs = hash_thumbnails(_thumbnails(asked.thumbnails)[len(asked.items) :])

    def look(place: int) -> Image.Image | None:
        own = place < len(asked.items)
        name = asked.items[place].item_id if own else names[place - len(asked.items)]
        try:
            return Media(at_hand.read(name), modality="image").thumbnail
        except Undecodable:
            return None

    oriented = orient(Pairs(candidates.asked, numbers), asked.hashes, theirs)
    judge = Judge(asked.thumbnails, look, asked.thumbnails.parent, map)
    shifted = Pairs(candidates.asked, numbers + len(asked.items))
    return judge.score(shifted, oriented, radius=_AS_CURATED.radius)
