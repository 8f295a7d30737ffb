"""Drop what is in an outside evaluation set: the pool must not train on its own examination."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import Field

from coembed.curation.filters.base import Cell, ColumnType, Filter, PoolView
from coembed.curation.lookalikes.fingerprints import Fingerprints, Pictures
from coembed.curation.lookalikes.hamming import Places
from coembed.curation.lookalikes.lookalikes import (
    Judge,
    Orientation,
    Pairs,
    nearest,
    orient,
    propose,
)
from coembed.curation.lookalikes.perceptual import fingerprint, hash_thumbnails
from coembed.curation.lookalikes.references import References, read_references
from coembed.curation.media.media import Media
from coembed.settings import ComponentSettings


class Settings(ComponentSettings):
    """`against`: folders with evaluation sets, each a folder of media files or a pool of its own
    (with tables in `pairs/`), relative to the pool's folder or, where there is none, to the
    project's. Keep them inside the pool's folder (say, `data/evaluation`): data.dvc then versions
    them, and a changed evaluation set makes `curate` run again. Of others DVC knows nothing.

    `captions`: also drop pairs whose caption is one of an evaluation pool's (up to case and white
    space). Off, because in a narrow field short captions are repeated by chance.

    `radius`, `min_score`: as in `near_duplicate`.
    """

    name: Literal["evaluation_leak"] = "evaluation_leak"
    against: tuple[str, ...] = Field(min_length=1)
    captions: bool = False
    radius: int = Field(default=6, ge=1, le=12)
    min_score: float = Field(default=0.73, gt=0, le=1)

    def build(self) -> Filter:
        """Make the filter."""
        return EvaluationLeak(self.against, self.captions, self.radius, self.min_score)


class EvaluationLeak(Filter):
    """Drops every pair of an item that has the same bytes as one of the evaluation sets, or is a
    near duplicate of one of their pictures, found and decided as by `near_duplicate`, which need
    not be listed. The detail names the file.

    Columns: `evaluation_leak_score`, the likeness of a dropped picture to that in the evaluation
    set.
    """

    reasons = ("in_evaluation_set",)
    columns: ClassVar[Mapping[str, ColumnType]] = {
        "_leak_thumbnail": "binary",
        "evaluation_leak_score": "float64",
    }

    def __init__(
        self, against: tuple[str, ...], captions: bool, radius: int, min_score: float
    ) -> None:
        self._against = against
        self._captions = captions
        self._radius = radius
        self._min_score = min_score

    def measure(self, media: Media) -> Mapping[str, Cell]:
        """Make the thumbnail. Raises Undecodable."""
        return {"_leak_thumbnail": fingerprint(media.thumbnail)} if media.is_image else {}

    def check_pool(self, pool: PoolView) -> Iterator[pa.Table]:
        """Compare the pool with the evaluation sets."""
        references = read_references(self._against, (pool.pool, pool.root), pool.map)
        for batch in pool.query(_SAME_BYTES, leaked=references.item_table()):
            yield pa.Table.from_batches([batch])
        yield from self._find_near(pool, references)
        if self._captions:
            for batch in pool.query(_SAME_CAPTION, leaked=references.caption_table()):
                yield pa.Table.from_batches([batch])

    def _find_near(self, pool: PoolView, references: References) -> Iterator[pa.Table]:
        prints = Fingerprints(pool, "_leak_thumbnail")
        theirs = hash_thumbnails(references.thumbnails)
        # A cropped picture is like a window of the whole one, and either may be the cropped one.
        both = [
            propose(
                asking, np.ascontiguousarray(answering[:, 0]), np.arange(len(answering)),
                radius=self._radius, folder=pool.scratch, map_tasks=pool.map,
            )
            for asking, answering in ((prints.hashes, theirs), (theirs, prints.hashes))
        ]  # fmt: skip
        couples = np.unique(
            np.concatenate([np.stack(both[0], axis=1), np.stack(both[1][::-1], axis=1)]), axis=0
        )
        pairs = Pairs(couples[:, 0], couples[:, 1])
        oriented = orient(pairs, prints.hashes, theirs)
        # As places of one table, because `nearest` keeps what is near to either side.
        shifted = Pairs(pairs.asking, pairs.answering + len(prints.items))
        rank = np.arange(len(prints.items) + len(theirs))
        near = nearest(shifted, oriented.distance.min(axis=0), rank)
        pairs = Pairs(pairs.asking[near], pairs.answering[near])
        yield from self._judge(pool, references, prints, pairs, oriented.only(near))

    def _judge(
        self,
        pool: PoolView,
        references: References,
        prints: Fingerprints,
        pairs: Pairs,
        oriented: Orientation,
    ) -> Iterator[pa.Table]:
        ours, asking = np.unique(pairs.asking, return_inverse=True)
        theirs, answering = np.unique(pairs.answering, return_inverse=True)
        thumbnails = pool.scratch / "thumbnails.u8"
        prints.write_thumbnails(ours, thumbnails)
        with thumbnails.open("ab") as file:
            references.thumbnails[theirs].tofile(file)
        look = _Look(Pictures(pool, prints.items[ours]), len(ours), references, theirs)
        score = Judge(thumbnails, look, pool.scratch, pool.map).score(
            Pairs(asking, answering + len(ours)), oriented, radius=self._radius
        )
        # The best match of each; of equally good ones the first file.
        order = np.lexsort((answering, -score, asking))
        first = order[np.unique(asking[order], return_index=True)[1]]
        found = first[score[first] >= self._min_score]
        table = pa.table(
            {
                "item": prints.items[ours[asking[found]]],
                "label": pa.array(
                    [references.labels[references.pictured[theirs[at]]] for at in answering[found]],
                    pa.string(),
                ),
                "score": score[found],
            }
        )
        for batch in pool.query(_NEAR.format(min_score=self._min_score), leaked=table):
            yield pa.Table.from_batches([batch])


class _Look:
    """The picture at a place: first the pool's, then those of the evaluation sets."""

    def __init__(
        self, ours: Pictures, num_ours: int, references: References, theirs: Places
    ) -> None:
        self._ours = ours
        self._num_ours = num_ours
        self._references = references
        self._theirs = theirs

    def __call__(self, place: int) -> Image.Image | None:
        if place < self._num_ours:
            return self._ours(place)
        return self._references.picture(int(self._theirs[place - self._num_ours])).thumbnail


_SAME_BYTES = """
SELECT row, 'in_evaluation_set' AS reason, 'same bytes as ' || label AS detail
FROM kept JOIN leaked USING (item_id)
"""
_NEAR = """
SELECT row, 'in_evaluation_set' AS reason,
    'the picture of ' || label || printf(
        ' again: likeness %.3f, copies have {min_score:g} or more', score) AS detail,
    score AS evaluation_leak_score
FROM kept JOIN leaked USING (item)
"""
_SAME_CAPTION = """
SELECT row, 'in_evaluation_set' AS reason, 'the caption of ' || label AS detail
FROM kept JOIN leaked ON kept.caption_key = leaked.key::UUID
"""
